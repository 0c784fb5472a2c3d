import pytest
import torch

from tomoray.config import make_config
from tomoray.errors import Usage
from tomoray.networks import build_network
from tomoray.training.config import NetworkConfig, TrainConfig


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_network_scores_every_voxel_for_every_class(norm):
    network = build_network(NetworkConfig(channels=[4, 8, 16], norm=norm), out_channels=3)
    assert network(torch.zeros(2, 1, 16, 24, 32)).shape == (2, 3, 16, 24, 32)


def test_network_size_follows_the_config():
    small, large = (
        sum(p.numel() for p in build_network(NetworkConfig(channels=channels), 2).parameters())
        for channels in ([4, 8], [8, 16])
    )
    assert 2 * small < large


def test_unknown_network_is_a_usage_error_that_names_it():
    with pytest.raises(Usage, match=r"network\.name.*'unte'"):
        make_config(TrainConfig, {"labels": ["lungs"], "network": {"name": "unte"}})


def test_patch_that_the_network_cannot_halve_is_a_usage_error():
    with pytest.raises(Usage, match="multiples of 8"):
        make_config(TrainConfig, {"labels": ["lungs"], "patch_zyx": [60, 64, 64]})


def test_contains_names_only_known_labels():
    with pytest.raises(Usage, match="'nodule'"):
        make_config(TrainConfig, {"labels": ["lungs", "nodules"], "contains": {"lungs": ["nodule"]}})
