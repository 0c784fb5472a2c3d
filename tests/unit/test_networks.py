import pytest
import torch

from tomoray.config import make_config
from tomoray.errors import Usage
from tomoray.networks import build_network
from tomoray.statistics.step_memory import step_bytes
from tomoray.training.config import TrainConfig
from tomoray.training.losses import segmentation_loss
from tomoray.training.network_config import LossConfig, NetworkConfig

TINY = {
    "unet": {"channels": [4, 8, 16]},
    "attention_unet": {"channels": [4, 8, 16]},
    "ra_unet": {"channels": [4, 8, 16]},
    "cab_unet": {"channels": [4, 8, 16]},
    "segresnet": {"channels": [8, 16, 32]},
    "dynunet": {"channels": [4, 8, 16]},
    "swin_unetr": {"channels": [12, 24, 48, 96], "residual_units": 1},
}
DEEP = ["ra_unet", "cab_unet", "dynunet"]
SLICEWISE = ["unet", *DEEP]
EACH = [NetworkConfig(name=name, **fields) for name, fields in TINY.items()]


def by_name(config):
    return config.name


def tiny(name, **fields):
    return NetworkConfig(name=name, **TINY[name], **fields)


def patch_for(config):
    """The smallest that the network takes: two voxels at the deepest level."""
    z, y, x = config.patch_multiple_zyx
    return torch.rand(1, 1, z, y, 2 * x)


@pytest.fixture(autouse=True)
def _same_weights_on_one_thread():
    """Tensors this small gain nothing from threads, and on a busy machine lose much."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("config", EACH, ids=by_name)
def test_scores_every_voxel_for_every_class(config):
    image = patch_for(config)
    network = build_network(config, out_channels=3).eval()
    with torch.no_grad():
        assert network(image.repeat(2, 1, 1, 1, 1)).shape == (2, 3, *image.shape[2:])


@pytest.mark.parametrize("config", EACH, ids=by_name)
def test_gradients_reach_every_weight(config):
    network = build_network(config, out_channels=2)
    image = patch_for(config)
    segmentation_loss(LossConfig())(network(image), (image > 0.5).to(torch.uint8)).backward()
    lost = [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not [name for name in lost if not name.endswith("bias")]  # a norm takes back what a bias before it adds


@pytest.mark.parametrize("config", EACH, ids=by_name)
def test_learns_one_patch(config):
    """Dice on a ball above that of all voxels and of none, in noise that no threshold sees through."""
    swin = config.name == "swin_unetr"
    sides = (32, 32, 64) if swin else (16, 16, 16)
    axes = torch.meshgrid(*(torch.arange(float(side)) for side in sides), indexing="ij")
    middle, radius = [side / share for side, share in zip(sides, (2, 3, 2), strict=True)], sides[0] / 4
    ball = (sum((axis - at) ** 2 for axis, at in zip(axes, middle, strict=True)) < radius**2)[None, None]
    image = ball * 0.3 + torch.rand(ball.shape) * 0.6
    network = build_network(config, out_channels=2)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    loss_of, losses = segmentation_loss(LossConfig()), []
    for _ in range(8 if swin else 30):
        optimizer.zero_grad()
        loss = loss_of(network(image), ball.to(torch.uint8))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        found = network.eval()(image).argmax(1, keepdim=True) == 1
    dice = 2 * (found & ball).sum() / (found.sum() + ball.sum())
    everything = 2 * ball.sum() / (ball.numel() + ball.sum())
    assert losses[-1] < 0.7 * losses[0]
    assert dice > everything + 0.2


@pytest.mark.parametrize("name", DEEP)
def test_deep_supervision_scores_halves_in_training_only(name):
    config = NetworkConfig(name=name, channels=[4, 8, 8, 8, 8], deep_supervision=True)
    network = build_network(config, out_channels=2)
    image = patch_for(config)
    scores = network(image)
    assert [tuple(level.shape[2:]) for level in scores] == [(16, 16, 32), (8, 8, 16), (4, 4, 8)]
    segmentation_loss(LossConfig())(scores, (image > 0.5).to(torch.uint8)).backward()
    assert all(weight.grad is not None for weight in network.parameters())
    assert network.eval()(image).shape == (1, 2, 16, 16, 32)


@pytest.mark.parametrize("name", SLICEWISE)
def test_slicewise_network_keeps_slices_apart(name):
    config = tiny(name, slicewise=True, norm="batch")
    network = build_network(config, out_channels=2).eval()
    image = torch.rand(1, 1, 3, 16, 16)
    other = image.clone()
    other[:, :, 2] = torch.rand(1, 1, 16, 16)
    with torch.no_grad():
        scores, changed = network(image), network(other)
        assert network(image[:, :, :1]).shape == (1, 2, 1, 16, 16)
    if name != "cab_unet":  # whose attention is of the whole patch
        assert torch.equal(scores[:, :, :2], changed[:, :, :2])
    assert not torch.equal(scores[:, :, 2], changed[:, :, 2])


@pytest.mark.parametrize(
    ("name", "norm"),
    [(name, norm) for name in TINY for norm in ("instance", "batch", "group") if (name, norm) != ("unet", "group")],
)
def test_every_norm_is_the_only_one(name, norm):
    config = NetworkConfig(name=name, norm=norm, **{**TINY[name], "channels": [24, 48, 96, 192]})
    network = build_network(config, 2)
    kinds = {type(module).__name__ for module in network.modules()}
    wanted = {"instance": "InstanceNorm3d", "batch": "BatchNorm3d", "group": "GroupNorm"}
    assert kinds & set(wanted.values()) == {wanted[norm]}


@pytest.mark.parametrize("name", list(TINY))
def test_dropout_is_for_training_only(name):
    network = build_network(tiny(name, dropout=0.5), 2)
    image = patch_for(tiny(name))
    with torch.no_grad():
        assert not torch.equal(network(image), network(image))
        network.eval()
        assert torch.equal(network(image), network(image))


@pytest.mark.parametrize("config", EACH, ids=by_name)
def test_memory_of_a_step_is_known_for_every_network(config):
    sides = tuple(2 * side for side in config.patch_multiple_zyx)
    per_patch, network_alone = step_bytes(sides, config, 2)
    wider = config.model_copy(update={"channels": [2 * n for n in config.channels]})
    assert 0 < per_patch < step_bytes(sides, wider, 2)[0]
    n_weights = sum(weight.numel() for weight in build_network(config, 2).parameters())
    assert network_alone == 16 * n_weights


def test_network_size_follows_the_config():
    small, large = (
        sum(p.numel() for p in build_network(NetworkConfig(channels=channels), 2).parameters())
        for channels in ([4, 8], [8, 16])
    )
    assert 2 * small < large


def test_what_is_left_out_suits_the_network():
    swin, segresnet = NetworkConfig(name="swin_unetr"), NetworkConfig(name="segresnet")
    assert swin.channels == [24, 48, 96, 192]
    assert segresnet.norm == "group"
    assert NetworkConfig(name="segresnet", norm="batch").norm == "batch"
    for config in (swin, segresnet, *EACH):
        assert NetworkConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "unte"}, r"network\.name.*'unte'"),
        ({"name": "unet", "deep_supervision": True}, "unet has no deep supervision; ra_unet, cab_unet, dynunet have"),
        ({"name": "dynunet", "channels": [8, 16], "deep_supervision": True}, "three levels"),
        ({"name": "segresnet", "slicewise": True}, "segresnet cannot be slicewise"),
        ({"name": "segresnet", "channels": [8, 16, 24]}, r"double.*\[8, 16, 32\]"),
        ({"name": "segresnet", "channels": [4, 8, 16]}, "multiples of 8"),
        ({"name": "swin_unetr", "channels": [16, 32, 64, 128]}, "multiple of 12"),
        ({"name": "swin_unetr", "channels": [12, 24, 48]}, r"double.*\[12, 24, 48, 96\]"),
        ({"name": "unet", "norm": "group"}, "unet has no norm group"),
        ({"name": "attention_unet", "residual_units": 1}, "leave residual_units out"),
        ({"name": "ra_unet", "residual_units": 0}, "residual_units of 1 at least"),
    ],
)
def test_network_that_cannot_be_is_a_usage_error_that_says_why(fields, words):
    with pytest.raises(Usage, match=words):
        make_config(TrainConfig, {"labels": ["lungs"], "network": fields})


@pytest.mark.parametrize(
    ("network", "patch", "words"),
    [
        ({}, [60, 64, 64], "multiples of 8"),
        ({}, [8, 8, 8], "single voxel"),
        ({"name": "swin_unetr"}, [64, 64, 48], "multiples of 32"),
        ({"name": "dynunet", "channels": [8] * 6}, [64, 64, 48], "multiples of 32"),
        ({"slicewise": True}, [5, 64, 60], "multiples of 8 along y and x"),
    ],
)
def test_patch_that_the_network_cannot_halve_is_a_usage_error(network, patch, words):
    with pytest.raises(Usage, match=words):
        make_config(TrainConfig, {"labels": ["lungs"], "patch_zyx": patch, "network": network})


@pytest.mark.parametrize(
    ("network", "patch"), [({"slicewise": True}, [1, 64, 64]), ({"name": "swin_unetr"}, [32, 32, 64])]
)
def test_patch_that_the_network_can_halve_is_taken(network, patch):
    config = make_config(TrainConfig, {"labels": ["lungs"], "patch_zyx": patch, "network": network})
    assert config.patch_zyx == tuple(patch)


def test_contains_names_only_known_labels():
    with pytest.raises(Usage, match="'nodule'"):
        make_config(TrainConfig, {"labels": ["lungs", "nodules"], "contains": {"lungs": ["nodule"]}})
