"""The parts of a training config that say what is learned from: which patients, how patches are read and varied."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from tomoray.config import Config, Fraction, Positive


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"{bounds[0]} is above {bounds[1]}; the lower bound comes first")
    return bounds


Angle = Annotated[float, Field(ge=0, le=180)]
_NotNegative = Annotated[float, Field(ge=0)]
_Factor = Annotated[float, Field(gt=0)]
_Share = Annotated[float, Field(gt=0, le=1)]
Range = Annotated[tuple[_NotNegative, _NotNegative], AfterValidator(_ascending)]
Factors = Annotated[tuple[_Factor, _Factor], AfterValidator(_ascending)]
Shares = Annotated[tuple[_Share, _Share], AfterValidator(_ascending)]


class SplitConfig(Config):
    """Shares of the patients held out; a patient is never in two parts.

    Attributes:
        validation: share of all patients.
        test: share of all patients; not asked where there are `folds`.
        folds: patients are dealt into so many parts of one size, of which one is the test part.
        fold: which one, from 0 on.
    """

    validation: Fraction = 0.1
    test: Fraction = 0.2
    folds: Annotated[int, Field(ge=2)] | None = None
    fold: Annotated[int, Field(ge=0)] = 0
    seed: int = 0

    @model_validator(mode="after")
    def _leaves_patients_to_train_on(self) -> SplitConfig:
        if self.folds is None and self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} + test {self.test} leave no patient to train on")
        if self.folds is not None and self.validation + 1 / self.folds >= 1:
            raise ValueError(f"validation {self.validation} + one of {self.folds} folds leave no patient to train on")
        return self

    @model_validator(mode="after")
    def _fold_is_one_of_folds(self) -> SplitConfig:
        if self.fold >= (self.folds or 1):
            wanted = f"0 to {self.folds - 1}" if self.folds else "0, or folds to be set"
            raise ValueError(f"fold {self.fold} of {self.folds or 'no'} folds; wanted {wanted}")
        return self


class StreamConfig(Config):
    """How patches are read (docs/patches.md). The first two change which patches a run sees, the others only its speed.

    Attributes:
        patches_per_visit: patches cut close together in one scan while what they need is in memory; 1 draws each patch
            by itself, at four times the reading.
        visits_at_once: visits that take turns, a sample each. Best a multiple of `workers`, and not below `batch_size`.
        read_ahead_mb: megabytes of voxels and patches that a worker holds; more only where one step needs more.
        cache_folder: on each node's local disk; what was read once is read from there. None keeps nothing.
        cache_gb: what the cache takes at most, on each node.
    """

    patches_per_visit: Positive = 4
    visits_at_once: Positive = 8
    read_ahead_mb: Positive = 512
    cache_folder: Annotated[str, Field(min_length=1)] | None = None
    cache_gb: Annotated[float, Field(gt=0)] = 50.0


class AugmentConfig(Config):
    """How patches are varied, so that a network learns what matters.

    Every name of a transform is the probability that a sample gets it; ranges are drawn from evenly. Factors that may
    lie on both sides of 1 lie below it in half the cases.

    Attributes:
        preset: what the fields left out say: `none`, nothing but mirroring; `standard`, nnU-Net's default set (Isensee
            et al., Nature Methods 2021), whose ranges are those below.
        mirror: along each axis, one time in two.
        rotate: about the patch's middle, each axis by an angle of its own.
        rotate_degrees: the largest angle about z, y and x. Axes under a third of the longest are not tilted.
        scale: enlarge or shrink, all axes alike.
        noise: Gaussian noise.
        noise_sigma: 1 is the whole HU window.
        blur: a Gaussian.
        blur_sigma: voxels.
        brightness: all values times a factor.
        contrast: distance from the mean times a factor, within the patch's own range.
        low_resolution: sampled down, nearest, and up again, cubic.
        resolution_range: of the voxels an axis has, the share that is kept.
        gamma: values to a power, the patch's mean and standard deviation kept.
        gamma_inverted: the same on 1 - image.
    """

    preset: Literal["none", "standard"] = "none"
    mirror: bool = True
    rotate: Fraction = 0.0
    rotate_degrees: tuple[Angle, Angle, Angle] = (30.0, 30.0, 30.0)
    scale: Fraction = 0.0
    scale_range: Factors = (0.7, 1.4)
    noise: Fraction = 0.0
    noise_sigma: Range = (0.0, 0.03)
    blur: Fraction = 0.0
    blur_sigma: Range = (0.5, 1.0)
    brightness: Fraction = 0.0
    brightness_range: Factors = (0.75, 1.25)
    contrast: Fraction = 0.0
    contrast_range: Factors = (0.75, 1.25)
    low_resolution: Fraction = 0.0
    resolution_range: Shares = (0.5, 1.0)
    gamma: Fraction = 0.0
    gamma_inverted: Fraction = 0.0
    gamma_range: Factors = (0.7, 1.5)

    @model_validator(mode="before")
    @classmethod
    def _fills_in_the_preset(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("preset") == "standard":
            return {**_STANDARD_AUGMENTATION, **fields}
        return fields


_STANDARD_AUGMENTATION = {
    "rotate": 0.2,
    "scale": 0.2,
    "noise": 0.1,
    "blur": 0.2,
    "brightness": 0.15,
    "contrast": 0.15,
    "low_resolution": 0.25,
    "gamma": 0.3,
    "gamma_inverted": 0.1,
}
