import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

from tomoray.metrics import bootstrap_interval, compare, dice, estimate

ONE = np.zeros((4, 4, 4), np.uint8)
ONE[:2] = 1
TWO = np.zeros((4, 4, 4), np.uint8)
TWO[1:3] = 1
NONE = np.zeros((4, 4, 4), np.uint8)
SPACING_MM = (3.0, 1.0, 0.5)


def ball(shape, centre_mm, radius_mm, spacing_mm=SPACING_MM):
    places = np.stack(np.indices(shape), axis=-1) * spacing_mm
    return (np.linalg.norm(places - centre_mm, axis=-1) <= radius_mm).astype(np.uint8)


SMALL = ball((20, 50, 100), (27, 25, 25), 12)
LARGE = ball((20, 50, 100), (27, 25, 25), 18)
MOVED = ball((20, 50, 100), (27, 30, 25), 12)


@pytest.mark.parametrize(
    ("found", "truth", "wanted"),
    [(ONE, ONE, 1.0), (ONE, TWO, 0.5), (ONE, 1 - ONE, 0.0), (NONE, NONE, 1.0), (ONE, NONE, 0.0), (NONE, ONE, 0.0)],
)
def test_dice_of_known_masks(found, truth, wanted):
    assert dice(found, truth) == wanted


def test_masks_of_different_shapes_are_not_compared():
    with pytest.raises(ValueError, match="shapes"):
        dice(ONE, ONE[:2])
    with pytest.raises(ValueError, match="shapes"):
        compare(ONE, ONE[:2], SPACING_MM)


def test_a_mask_agrees_with_itself():
    found = compare(SMALL, SMALL, SPACING_MM)
    assert (found.dice, found.hd95_mm, found.surface_dice, found.volume_difference_ml) == (1, 0, 1, 0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_surface_distance_is_in_mm_along_every_axis(axis):
    box = np.zeros((30, 30, 30), np.uint8)
    box[8:20, 8:20, 8:20] = 1
    grown = np.zeros_like(box)
    grown[tuple(slice(8, 23 if a == axis else 20) for a in range(3))] = 1
    step_mm = 3 * SPACING_MM[axis]
    found = compare(grown, box, SPACING_MM, tolerance_mm=step_mm - 0.01)
    assert found.hd95_mm == pytest.approx(step_mm)
    assert found.surface_dice < 1
    assert compare(grown, box, SPACING_MM, tolerance_mm=step_mm).surface_dice == 1
    assert found.volume_difference_ml == pytest.approx(3 * 12 * 12 * np.prod(SPACING_MM) / 1000)


def test_concentric_balls_are_as_far_apart_as_their_radii():
    found = compare(LARGE, SMALL, SPACING_MM, tolerance_mm=2)
    assert found.hd95_mm == pytest.approx(6, abs=1.5)  # half a slice
    assert found.surface_dice < 0.1
    assert compare(SMALL, LARGE, SPACING_MM).hd95_mm == pytest.approx(found.hd95_mm)
    assert compare(LARGE, SMALL, SPACING_MM, tolerance_mm=8).surface_dice == 1


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # of MONAI, by itself
def test_surface_measures_agree_with_monai():
    one_hot = [torch.from_numpy(np.stack([1 - mask, mask]))[None].float() for mask in (MOVED, SMALL)]
    nsd = compute_surface_dice(*one_hot, [2.0], spacing=SPACING_MM, use_subvoxels=True)
    hd95 = compute_hausdorff_distance(*one_hot, percentile=95, spacing=SPACING_MM)
    found = compare(MOVED, SMALL, SPACING_MM, tolerance_mm=2)
    assert found.surface_dice == pytest.approx(float(nsd), abs=1e-5)
    assert found.hd95_mm == pytest.approx(float(hd95), abs=0.5)  # theirs counts voxels, ours area


def test_what_cannot_be_measured_is_said():
    both = compare(NONE, NONE, SPACING_MM)
    assert (both.dice, both.hd95_mm, both.surface_dice, both.volume_difference_ml) == (1, 0, 1, 0)
    lost = compare(NONE, ONE, SPACING_MM)
    assert (lost.dice, lost.hd95_mm, lost.surface_dice) == (0, None, 0)
    assert lost.volume_difference_ml == pytest.approx(-32 * 1.5 / 1000)


def test_bootstrap_interval_is_that_of_the_mean():
    values = np.random.default_rng(0).normal(0.8, 0.1, 100).tolist()
    low, high = bootstrap_interval(values, seed=1)
    half = 1.96 * np.std(values, ddof=1) / 10
    assert low == pytest.approx(np.mean(values) - half, abs=0.003)
    assert high == pytest.approx(np.mean(values) + half, abs=0.003)
    assert bootstrap_interval(values, seed=1) == (low, high) != bootstrap_interval(values, seed=2)


def test_estimate_says_how_many_values_it_rests_on():
    found = estimate([0.5, None, 0.7, float("nan")])
    assert (found.mean, found.values) == (pytest.approx(0.6), 2)
    assert 0.5 <= found.low < found.high <= 0.7
    alone = estimate([0.5, None])
    assert (alone.mean, alone.low, alone.high, alone.values) == (0.5, None, None, 1)
    assert estimate([None]).mean is None
    same = estimate([0.5, 0.5, 0.5])
    assert (same.low, same.high) == (0.5, 0.5)
