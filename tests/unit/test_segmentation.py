from __future__ import annotations

import numpy as np
import pytest

from tomoray.config import make_config
from tomoray.tasks.segmentation import Segmentation
from tomoray.training.config import TrainConfig

SHAPE = (16, 16, 16)


@pytest.fixture
def scans(tiny_archive):
    """Lung at -800 HU in tissue at 40, with a nodule as dense as the tissue."""
    image, lungs, nodules = np.full(SHAPE, 40.0), np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    lungs[4:12, 2:14, 2:14] = 1
    nodules[6:8, 6:8, 6:8] = 1
    image[(lungs > 0) & (nodules == 0)] = -800
    return tiny_archive({f"{n:016x}": (image, {"lungs": lungs, "nodules": nodules}) for n in range(2)})


def test_the_best_threshold_stands_beside_dice(scans):
    config = make_config(TrainConfig, {"labels": ["lungs", "nodules"], "patch_zyx": [16, 16, 16]})
    task = Segmentation(config)
    networks = {name: network.eval() for name, network in task.build_networks().items()}
    scores = task.score([task.examine(networks, scans, scan_id) for scan_id in scans.scan_ids()])
    lung, nodule, whole = 8 * 12 * 12, 2**3, 16**3
    tissue = whole - lung + nodule
    lungs, nodules = 2 * (lung - nodule) / (2 * lung - nodule), 2 * nodule / (tissue + nodule)
    assert scores["dice/threshold"] == pytest.approx((lungs + nodules) / 2)
    assert scores["dice"] == pytest.approx((scores["dice/lungs"] + scores["dice/nodules"]) / 2)


def test_where_there_is_nothing_the_baseline_finds_nothing():
    task = Segmentation(make_config(TrainConfig, {"labels": ["lungs"]}))
    nothing = {"dice": {"lungs": 1.0}, "voxels": [8, *[0] * 99], "inside": {"lungs": [0] * 100}}
    assert task.score([nothing])["dice/threshold"] == 1.0
    assert task.score([]) == {}
