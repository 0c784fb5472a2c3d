import pytest
import torch
from monai.losses.dice import DiceCELoss
from torch.nn.functional import cross_entropy, one_hot

from tomoray.training.losses import segmentation_loss
from tomoray.training.network_config import LossConfig

NAMES = ["dice_ce", "dice_focal", "focal", "tversky", "focal_tversky"]


@pytest.fixture
def truth():
    classes = torch.zeros(2, 1, 8, 8, 8, dtype=torch.uint8)
    classes[0, :, 2:6, 2:6] = 1
    classes[0, :, 4:6, 2:6] = 2
    return classes


@pytest.fixture
def scores():
    return torch.randn(2, 3, 8, 8, 8, generator=torch.Generator().manual_seed(0))


def scores_of(classes, sureness):
    return sureness * one_hot(classes[:, 0].long(), 3).movedim(-1, 1).float()


@pytest.mark.parametrize("name", NAMES)
def test_right_scores_lose_less_than_wrong_and_nothing_at_last(name, truth):
    loss = segmentation_loss(LossConfig(name=name))
    wrong, poor, right = (float(loss(scores_of(truth, sureness), truth)) for sureness in (-3, 1, 30))
    assert wrong > poor > right
    assert right == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_also_without_a_label(name, truth, scores):
    for classes in (truth, torch.zeros_like(truth)):
        leaf = scores.clone().requires_grad_()
        segmentation_loss(LossConfig(name=name))(leaf, classes).backward()
        assert leaf.grad.isfinite().all()
        assert leaf.grad.any()


def test_default_is_monais_dice_and_cross_entropy(truth, scores):
    wanted = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)(scores, truth)
    assert torch.equal(segmentation_loss(LossConfig())(scores, truth), wanted)


def test_focal_without_gamma_is_cross_entropy(truth, scores):
    found = segmentation_loss(LossConfig(name="focal", focal_gamma=0))(scores, truth)
    assert torch.allclose(found, cross_entropy(scores, truth[:, 0].long()))


def test_tversky_of_equal_halves_is_dice(truth, scores):
    halves = segmentation_loss(LossConfig(name="tversky", tversky_alpha=0.5, tversky_beta=0.5))(scores, truth)
    found = scores.softmax(1)[:, 1:]
    wanted = one_hot(truth[:, 0].long(), 3).movedim(-1, 1)[:, 1:]
    axes = (0, 2, 3, 4)
    dice = 2 * (found * wanted).sum(axes) / (found.sum(axes) + wanted.sum(axes))
    assert torch.allclose(halves, 1 - dice.mean(), atol=1e-4)


def test_tversky_beta_weighs_what_is_missed(truth):
    none, all_of_it = torch.zeros_like(truth), torch.ones_like(truth)

    def ratio(beta):
        loss = segmentation_loss(LossConfig(name="tversky", tversky_alpha=1 - beta, tversky_beta=beta))
        binary = (truth > 0).to(torch.uint8)
        return float(loss(scores_of(none, 3)[:, :2], binary) / loss(scores_of(all_of_it, 3)[:, :2], binary))

    assert ratio(0.9) > ratio(0.5) > ratio(0.1)


def test_focal_tversky_is_a_power_of_tversky_for_one_label(truth, scores):
    binary, two = (truth > 0).to(torch.uint8), scores[:, :2]
    plain, focal = (segmentation_loss(LossConfig(name=name))(two, binary) for name in ("tversky", "focal_tversky"))
    assert torch.allclose(focal, plain**0.75)


def test_deep_supervision_halves_the_weight_of_each_coarser_level(truth, scores):
    loss = segmentation_loss(LossConfig())
    half = scores[..., ::2, ::2, ::2]
    quarter = scores[..., ::4, ::4, ::4]
    parts = [
        loss(scores, truth),
        loss(half, truth[..., 1::2, 1::2, 1::2]),
        loss(quarter, truth[..., 2::4, 2::4, 2::4]),
    ]
    wanted = (4 * parts[0] + 2 * parts[1] + parts[2]) / 7
    assert torch.allclose(loss([scores, half, quarter], truth), wanted)
    assert torch.allclose(loss([scores], truth), parts[0])
