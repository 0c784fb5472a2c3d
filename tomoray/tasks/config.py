"""The settings of each task but segmentation, which has none of its own: one section each in a training config."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tomoray.config import Config, Fraction, Positive

Clinical = Literal["age_years", "sex", "kvp", "slice_thickness_mm", "spacing_z"]
AnchorZyx = tuple[Positive, Positive, Positive]


class ClassificationConfig(Config):
    """One class for a scan or a patch: exactly one of `column` and `label` says which.

    Attributes:
        column: of the catalog, such as `sex`; scans whose value is not among `classes` teach nothing.
        classes: values of `column`, in the order of their numbers 0, 1, …
        label: of the archive: class 1 where the patch holds a voxel of it, else 0.
        per: what is scored where `label` is the target: every patch, or every scan; of a column, always scans.
        clinical: columns of the catalog that are told to the network besides the image.
        network: `densenet121` (Huang et al., CVPR 2017), or `small`: two dense blocks of four layers. Both are 2-D
            where `patch_zyx` is one slice thick.
        norm: `batch`, or `group` for batches of a few patches.
        dropout: share of the features left out in training, before the last layer.
        pool: how the predictions for a scan's patches become one.
        windows: patches of a scan that are looked at, evenly spread.
    """

    column: Literal["sex", "manufacturer", "model", "kernel", "body_part"] | None = None
    classes: list[str] = []
    label: str | None = None
    per: Literal["scan", "patch"] = "scan"
    clinical: list[Clinical] = []
    network: Literal["densenet121", "small"] = "small"
    norm: Literal["batch", "group"] = "batch"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    pool: Literal["mean", "max"] = "mean"
    windows: Positive = 64

    @model_validator(mode="after")
    def _has_one_target(self) -> ClassificationConfig:
        if (self.column is None) == (self.label is None):
            raise ValueError("wanted either a column of the catalog or a label of the archive as target")
        if self.column is not None and len(set(self.classes)) < 2:
            raise ValueError(f"classes {self.classes}: wanted two values of column {self.column!r} or more")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"a class is named twice: {self.classes}")
        if self.label is not None and self.classes:
            raise ValueError("classes belong to a column; a label is there or not")
        if self.column is not None and self.per == "patch":
            raise ValueError("a column says something of the whole scan; per: patch wants a label")
        if self.column in self.clinical:
            raise ValueError(f"column {self.column!r} is the target; clinical must not tell it")
        return self


class DetectionConfig(Config):
    """A box around every connected part of each label, by RetinaNet (Lin et al., ICCV 2017).

    Attributes:
        anchors_zyx: sizes of the boxes that are tried everywhere on the finest level, in voxels of the target grid;
            each further level tries them twice as large.
        levels: of the feature pyramid, from a quarter of the resolution down.
        channels: of the backbone's first stage and of the pyramid; a multiple of 8.
        crop_zyx: networks learn from a part of each patch of this size, cut at random; None: from the whole patch. A
            patch that is drawn for a lesion has it in the middle, and what a network learns from such patches alone is
            that lesions lie in the middle.
        min_score: boxes below it are dropped.
        merge_iou: of two boxes that share more, the one with the lower score is dropped.
        hit_iou: a box that shares at least this with a lesion's has found it (Baumgartner et al., MICCAI 2021).
        false_positives: per scan, at most, where sensitivity is scored.
    """

    anchors_zyx: Annotated[list[AnchorZyx], Field(min_length=1)] = [(6, 6, 6), (8, 8, 8)]
    levels: Annotated[int, Field(ge=1, le=3)] = 2
    channels: Annotated[int, Field(gt=0, multiple_of=8)] = 32
    crop_zyx: tuple[Positive, Positive, Positive] | None = None
    min_score: Fraction = 0.05
    merge_iou: Fraction = 0.2
    hit_iou: Annotated[float, Field(gt=0, le=1)] = 0.1
    false_positives: Annotated[float, Field(gt=0)] = 1.0


class DenoisingConfig(Config):
    """Low dose -> full dose, by a conditional GAN (Isola et al., CVPR 2017).

    Attributes:
        dose: the share of the scan's dose that is simulated.
        noise_hu: standard deviation of the noise at full dose; at a share d of it there is sqrt(1 / d - 1) times as
            much on top.
        l1_weight: of the mean absolute difference on the scale 0..1, beside the discriminator's word. Noise is a few
            hundredths there, so that it wants more than the 100 of photographs.
        generator: channels of the U-Net's levels, three or more, from full resolution down.
        channels: of the discriminator's first layer.
        windows: patches of a scan that are scored, evenly spread.
    """

    dose: Annotated[float, Field(gt=0, lt=1)] = 0.25
    noise_hu: Annotated[float, Field(gt=0)] = 20.0
    l1_weight: Annotated[float, Field(ge=0)] = 1000.0
    generator: Annotated[list[Positive], Field(min_length=3)] = [16, 32, 64]
    channels: Positive = 16
    windows: Positive = 16


class GenerationConfig(Config):
    """Noise -> CT patch, by a GAN with spectral norm and hinge loss (Miyato et al., ICLR 2018).

    Attributes:
        noise: numbers that a patch is made from.
        channels: of the layers at full resolution; twice as many at each coarser one.
        windows: patches of a scan that generated ones are compared with, evenly spread.
    """

    noise: Positive = 64
    channels: Positive = 8
    windows: Annotated[int, Field(ge=2)] = 16


class PretrainingConfig(Config):
    """Volumes with holes -> what was in the holes, without any label (Xie et al., CVPR 2022: SimMIM).

    Attributes:
        block_zyx: size of the blocks that are hidden, in voxels; divides `patch_zyx`.
        hidden: share of the blocks.
        windows: patches of a scan that are scored, evenly spread.
    """

    block_zyx: tuple[Positive, Positive, Positive] = (8, 8, 8)
    hidden: Annotated[float, Field(gt=0, lt=1)] = 0.6
    windows: Positive = 16
