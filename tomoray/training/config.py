"""The config of `jobs.train`: what is learned, from which patches, by which network, and how.

Each part that has settings of its own is a model of its own; a new setting belongs to the narrowest.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from tomoray.config import Config, Fraction, Positive, Url
from tomoray.tasks.config import (
    ClassificationConfig,
    DenoisingConfig,
    DetectionConfig,
    GenerationConfig,
    PretrainingConfig,
)

TaskName = Literal["segmentation", "classification", "detection", "denoising", "generation", "pretraining"]
_NEED_LABELS = {"segmentation", "detection"}
_USE_NETWORK = {"segmentation", "pretraining"}  # the others have networks of their own


class NetworkConfig(Config):
    """A network of `tomoray.networks` and its size."""

    name: Literal["unet"] = "unet"
    channels: Annotated[list[Positive], Field(min_length=2)] = [16, 32, 64, 128]
    residual_units: Annotated[int, Field(ge=0)] = 1
    norm: Literal["instance", "batch"] = "instance"


class SplitConfig(Config):
    """Shares of the patients held out; a patient is never in two parts."""

    validation: Fraction = 0.1
    test: Fraction = 0.2
    seed: int = 0

    @model_validator(mode="after")
    def _leaves_patients_to_train_on(self) -> SplitConfig:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} + test {self.test} leave no patient to train on")
        return self


class LossConfig(Config):
    """What a segmentation is trained to lessen."""

    name: Literal["dice_ce"] = "dice_ce"


class AugmentConfig(Config):
    """How patches are varied, so that a network learns what matters.

    Attributes:
        mirror: along each axis, one time in two.
    """

    mirror: bool = True


class OptimizerConfig(Config):
    """How weights follow the gradient.

    Attributes:
        name: AdamW (Loshchilov and Hutter, ICLR 2019), Adam, or SGD with Nesterov momentum 0.99.
        clip_norm: gradients longer than this are shortened to it.
    """

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 5.0


class TransferConfig(Config):
    """Where a training starts from, instead of random weights.

    Attributes:
        url: a run, a checkpoint (`….pt`), or a MONAI bundle (a folder or zip with `models/model.pt`); a path or S3.
        network: which of the run's networks; None: the only one, or the one of the same name.
        prefix: what stands before every name there and is dropped, such as `module.`.
        rename: beginnings of names there to beginnings of names here.
        leave: weights of ours whose names begin so stay random, though some there would fit.
        freeze: weights of ours whose names begin so are not trained.
        at_least: share of our weights (numbers, not tensors) that must be found, or it is an error.
    """

    url: Annotated[str, Field(min_length=1)]
    network: str | None = None
    prefix: str = ""
    rename: dict[str, str] = {}
    leave: list[str] = []
    freeze: list[str] = []
    at_least: Fraction = 0.0


class TrainConfig(Config):
    """`jobs.train`: archive -> run. `archive` and `out` may come from the command line.

    Attributes:
        task: what is learned (docs/tasks.md).
        labels: names of archive labels; their order gives the classes 1, 2, …, and where masks overlap the later
            label wins. Empty where a task wants no masks.
        contains: labels whose masks hold others whole, such as `lungs: [nodules]`; a predicted mask of lungs is then
            the voxels of both classes.
        spacing_zyx_mm: every patch and scan is resampled to this grid; None keeps each scan's own.
        hu_window: HU mapped to 0 and 1; values outside are clipped.
        foreground_fraction: share of patches centred on a labelled voxel, label drawn evenly.
        batch_size: patches of a step, over all workers: how many those are changes no sample.
        classification: settings of that task, as are `detection`, `denoising`, `generation` and `pretraining`; a
            section of another task than `task` is an error.
        start_from: weights to begin with, instead of random ones.
        workers: processes that train together.
        gpu: None uses a GPU per worker where the cluster has that many.
    """

    archive: Url | None = None
    out: Url | None = None
    task: TaskName = "segmentation"
    labels: list[str] = []
    contains: dict[str, list[str]] = {}
    spacing_zyx_mm: tuple[float, float, float] | None = None
    patch_zyx: tuple[Positive, Positive, Positive] = (64, 64, 64)
    hu_window: tuple[float, float] = (-1000.0, 400.0)
    foreground_fraction: Fraction = 0.66
    augment: AugmentConfig = AugmentConfig()
    network: NetworkConfig = NetworkConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    classification: ClassificationConfig | None = None
    detection: DetectionConfig | None = None
    denoising: DenoisingConfig | None = None
    generation: GenerationConfig | None = None
    pretraining: PretrainingConfig | None = None
    start_from: TransferConfig | None = None
    split: SplitConfig = SplitConfig()
    batch_size: Annotated[int, Field(gt=0, description="patches per step, over all workers")] = 2
    steps: Positive = 1000
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    checkpoint_every: Annotated[int, Field(gt=0, description="steps")] = 100
    overlap: Annotated[float, Field(ge=0, lt=1, description="of windows, when predicting")] = 0.25
    workers: Positive = 1
    gpu: bool | None = None
    seed: int = 0

    @field_validator("labels")
    @classmethod
    def _label_names_differ(cls, labels: list[str]) -> list[str]:
        if len(set(labels)) != len(labels):
            raise ValueError(f"a label is named twice: {labels}")
        return labels

    @model_validator(mode="after")
    def _contains_names_labels(self) -> TrainConfig:
        for name in [*self.contains, *(inner for inners in self.contains.values() for inner in inners)]:
            if name not in self.labels:
                raise ValueError(f"contains names {name!r}, which is not among labels {self.labels}")
        return self

    @model_validator(mode="after")
    def _settings_are_the_task_s(self) -> TrainConfig:
        for name in ("classification", "detection", "denoising", "generation", "pretraining"):
            if name != self.task and getattr(self, name) is not None:
                raise ValueError(f"settings of {name}, but the task is {self.task}; remove them, or set task: {name}")
        if self.task in _NEED_LABELS and not self.labels:
            raise ValueError(f"labels names none; {self.task} wants one label of the archive or more")
        if self.task == "classification":
            if self.classification is None:
                raise ValueError("classification wants a section of that name that says what the classes are")
            label = self.classification.label
            if label is not None and label not in self.labels:
                raise ValueError(f"classification by label {label!r}, which is not among labels {self.labels}")
        return self

    @model_validator(mode="after")
    def _patches_fit_the_task(self) -> TrainConfig:
        if self.classification is not None:
            sides = self.patch_zyx[1:] if self.patch_zyx[0] == 1 else self.patch_zyx
            least = {"densenet121": 32, "small": 16}[self.classification.network]
            if min(sides) < least:
                raise ValueError(f"patch_zyx {self.patch_zyx}: {self.classification.network} wants {least} or more")
        multiple = {
            "detection": 4 * 2 ** (self.detection or DetectionConfig()).levels,
            "denoising": max(8, 2 ** (len((self.denoising or DenoisingConfig()).generator) - 1)),
            "generation": 8,
        }.get(self.task, 1)
        if any(side % multiple for side in self.patch_zyx):
            raise ValueError(f"patch_zyx {self.patch_zyx}: {self.task} wants multiples of {multiple}")
        crop_zyx = self.detection.crop_zyx if self.detection is not None else None
        if crop_zyx is not None and any(
            part % multiple or part > side for part, side in zip(crop_zyx, self.patch_zyx, strict=True)
        ):
            raise ValueError(f"detection.crop_zyx {crop_zyx}: wanted multiples of {multiple} within {self.patch_zyx}")
        if self.task == "pretraining":
            block_zyx = (self.pretraining or PretrainingConfig()).block_zyx
            if any(side % block for side, block in zip(self.patch_zyx, block_zyx, strict=True)):
                raise ValueError(f"patch_zyx {self.patch_zyx} is not a multiple of pretraining.block_zyx {block_zyx}")
        return self

    @model_validator(mode="after")
    def _network_halves_patches_evenly(self) -> TrainConfig:
        if self.task not in _USE_NETWORK:
            return self
        multiple = 2 ** (len(self.network.channels) - 1)
        if any(side % multiple for side in self.patch_zyx):
            raise ValueError(
                f"patch_zyx {self.patch_zyx}: {len(self.network.channels)} channels want multiples of {multiple}"
            )
        return self

    @model_validator(mode="after")
    def _every_worker_has_a_patch(self) -> TrainConfig:
        if self.batch_size < self.workers:
            raise ValueError(f"batch_size {self.batch_size} leaves some of {self.workers} workers without a patch")
        return self
