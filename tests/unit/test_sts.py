import nibabel
import numpy as np
import pytest

from benchmarks.sts import KEPT_MM, baseline_dice, ellipsoid, trim_margins, write_trimmed
from tomoray.config import load_config
from tomoray.metrics import dice
from tomoray.training.config import TrainConfig

SPACING_MM = np.array([3.0, 2.5, 4.0])


def crop(radius=6, margin_mm=50.0):
    """A ball of the given radius in voxels with one margin on all sides."""
    margins = np.rint(margin_mm / SPACING_MM).astype(int)
    ball = ellipsoid([2 * radius] * 3, np.full(3, radius))
    return np.pad(ball, [(margin, margin) for margin in margins])


def test_margins_are_drawn_from_the_whole_range_each_on_its_own():
    mask, margins = crop(), []
    for seed in range(200):
        box = trim_margins(mask, SPACING_MM, np.random.default_rng(seed))
        assert mask[box].sum() == mask.sum()
        inside = np.argwhere(mask[box])
        after = np.array(mask[box].shape) - 1 - inside.max(axis=0)
        margins.append(np.concatenate([inside.min(axis=0) * SPACING_MM, after * SPACING_MM]))
    assert np.min(margins, axis=0) == pytest.approx([KEPT_MM[0]] * 6, abs=3)
    assert np.max(margins, axis=0) == pytest.approx([KEPT_MM[1]] * 6, abs=3)
    between = np.corrcoef(np.transpose(margins))[~np.eye(6, dtype=bool)]
    assert np.abs(between).max() < 0.3


def test_less_margin_than_was_drawn_is_kept_whole():
    mask = crop(margin_mm=0.0)
    assert mask[trim_margins(mask, SPACING_MM, np.random.default_rng(0))].shape == mask.shape


def test_trimmed_pairs_keep_their_place_and_depend_on_case_and_seed_alone(tmp_path):
    mask, affine = crop(), np.diag([*SPACING_MM, 1.0])
    image = np.random.default_rng(0).integers(-1000, 1000, mask.shape, dtype=np.int16)
    (tmp_path / "source").mkdir()
    for case in ("A", "B"):
        for what, voxels in (("ct", image), ("gtv", mask)):
            nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "source" / f"{case}_{what}.nii.gz")
    for out, seed in (("one", 0), ("two", 0), ("three", 1)):
        assert write_trimmed(tmp_path / "source", tmp_path / out, seed) == ["A", "B"]
    a, again, b, other = (
        nibabel.load(tmp_path / path)
        for path in ("one/A_ct.nii.gz", "two/A_ct.nii.gz", "one/B_ct.nii.gz", "three/A_ct.nii.gz")
    )
    np.testing.assert_array_equal(a.get_fdata(), again.get_fdata())
    assert len({a.shape, b.shape, other.shape}) == 3
    first = np.rint(a.affine[:3, 3] / SPACING_MM).astype(int)
    x, y, z = (slice(start, start + size) for start, size in zip(first, a.shape, strict=True))
    np.testing.assert_array_equal(a.get_fdata(), image[x, y, z])


def test_the_trap_gives_untrimmed_tumours_away_and_trimmed_ones_not():
    whole = {str(n): (crop(radius), SPACING_MM) for n, radius in enumerate(range(4, 16))}
    trimmed = {
        name: (mask[trim_margins(mask, SPACING_MM, np.random.default_rng(int(name)))], SPACING_MM)
        for name, (mask, _) in whole.items()
    }
    train, test = list(whole)[::2], list(whole)[1::2]
    trap = np.mean(list(baseline_dice(whole, train, test, "margin").values()))
    after = np.mean(list(baseline_dice(trimmed, train, test, "margin").values()))
    assert trap > 0.9
    assert after < trap - 0.2


def test_the_parameter_of_the_baseline_is_fitted_on_training_patients_alone():
    half = {
        str(n): (ellipsoid((20, 20, 20), np.full(3, 10.0 * size)), np.ones(3)) for n, size in enumerate((0.5, 0.5, 1))
    }
    assert baseline_dice(half, ["0", "1"], ["2"], "fraction")["2"] == pytest.approx(
        dice(ellipsoid((20, 20, 20), np.full(3, 5.0)), half["2"][0])
    )


def test_the_recipe_holds_out_one_of_five_folds():
    config = load_config("sts", TrainConfig)
    assert (config.labels, config.split.folds, config.split.validation) == (["gtv"], 5, 0)
