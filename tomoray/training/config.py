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
from tomoray.training.network_config import LossConfig, NetworkConfig
from tomoray.training.sample_config import AugmentConfig, SplitConfig, StreamConfig

TaskName = Literal["segmentation", "classification", "detection", "denoising", "generation", "pretraining"]
_NEED_LABELS = {"segmentation", "detection"}
# Fields that say where and how a training runs, and how it is followed: what is learned does not depend on them.
HOW_IT_RUNS = ("workers", "cpus", "gpu", "node", "tracking", "checkpoint_every", "keep")
_USE_NETWORK = {"segmentation", "pretraining"}  # the others have networks of their own


class OptimizerConfig(Config):
    """How weights follow the gradient.

    Attributes:
        name: AdamW (Loshchilov and Hutter, ICLR 2019), Adam, or SGD with Nesterov momentum 0.99.
        schedule: how `learning_rate` goes to zero: `poly` as (1 - progress) ** 0.9 (Chen et al., TPAMI 2018), `cosine`
            (Loshchilov and Hutter, ICLR 2017), or not at all.
        warmup_steps: steps in which it rises from zero before.
        clip_norm: gradients longer than this are shortened to it.
        accumulate: parts in which a worker goes through its share of a batch, one after the other: memory for one part.
        ema_decay: the model is a running mean of the weights that forgets at this rate a step (Polyak and Juditsky,
            1992); None: the weights themselves.
    """

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 5.0
    accumulate: Positive = 1
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None


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


class TrackingConfig(Config):
    """Who is told how a training goes (docs/tracking.md).

    Attributes:
        tensorboard: an event file in the run's folder.
        mlflow: address of a tracking server, `https://…`, or a folder, `file:///…`; None: no MLflow.
        experiment: the experiment in MLflow.
    """

    tensorboard: bool = True
    mlflow: Annotated[str, Field(min_length=1)] | None = None
    experiment: Annotated[str, Field(min_length=1)] = "tomoray"


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
        checkpoint_every: steps; at most so many are done again after a loss.
        keep: checkpoints kept for their scores, besides the last two.
        validate_every: steps between validations on whole scans; None: after the last step only.
        patience: validations in a row without a better score that end the training; None: all steps are done.
        precision: `bf16` and `fp16` compute in half the bits where that is safe (Micikevicius et al., ICLR 2018).
        distribute: `ddp` keeps the whole network in each worker, `fsdp` a share of it (Zhao et al., VLDB 2023).
        compile: let torch.compile write the kernels; the first step takes minutes, each one after that less.
        deterministic: the same weights to the last bit from the same config on the same kind of machine.
        workers: processes that train together, or the fewest and the most of them: as many as there is room for.
        cpus: threads of each worker.
        mirror_when_predicting: average the predictions of all eight mirror images of a window, at eight times the work.
        skip_air: leave out windows outside of the body when predicting (docs/inference.md); of no use where a
            label lies there.
        classification: settings of that task, as are `detection`, `denoising`, `generation` and `pretraining`; a
            section of another task than `task` is an error.
        start_from: weights to begin with, instead of random ones.
        gpu: None uses a GPU per worker where the cluster has that many.
        node: a kind of machine of the price table, by which the cost so far is reckoned; None: seconds only.
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
    stream: StreamConfig = StreamConfig()
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
    tracking: TrackingConfig = TrackingConfig()
    batch_size: Annotated[int, Field(gt=0, description="patches per step, over all workers")] = 2
    steps: Positive = 1000
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    checkpoint_every: Annotated[int, Field(gt=0, description="steps")] = 100
    keep: Positive = 1
    validate_every: Annotated[int, Field(gt=0, description="steps")] | None = None
    patience: Annotated[int, Field(gt=0, description="validations")] | None = None
    overlap: Annotated[float, Field(ge=0, lt=1, description="of windows, when predicting")] = 0.25
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    distribute: Literal["ddp", "fsdp"] = "ddp"
    compile: bool = False
    deterministic: bool = False
    workers: Positive | tuple[Positive, Positive] = 1
    cpus: Positive = 1
    mirror_when_predicting: bool = False
    skip_air: bool = True
    gpu: bool | None = None
    node: str | None = None
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
    def _only_segmentation_scores_coarse_levels(self) -> TrainConfig:
        if self.network.deep_supervision and self.task != "segmentation":
            raise ValueError(f"network.deep_supervision belongs to segmentation; the task is {self.task}")
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
        multiples = self.network.patch_multiple_zyx
        if any(side % multiple for side, multiple in zip(self.patch_zyx, multiples, strict=True)):
            wanted = f"multiples of {multiples[1]}" + (" along y and x" if self.network.slicewise else "")
            raise ValueError(
                f"patch_zyx {self.patch_zyx}: {self.network.name} with {len(self.network.channels)} channels wants "
                f"{wanted}"
            )
        if self.patch_zyx == multiples:
            raise ValueError(f"patch_zyx {self.patch_zyx} is a single voxel at the deepest level; make it larger")
        return self

    @property
    def fewest_workers(self) -> int:
        """Without so many, training waits."""
        return self.workers[0] if isinstance(self.workers, tuple) else self.workers

    @property
    def most_workers(self) -> int:
        """More are of no use."""
        return self.workers[1] if isinstance(self.workers, tuple) else self.workers

    @model_validator(mode="after")
    def _every_worker_has_a_patch(self) -> TrainConfig:
        if self.fewest_workers > self.most_workers:
            raise ValueError(f"workers {self.workers}: the fewest come first")
        if self.batch_size < self.most_workers:
            raise ValueError(f"batch_size {self.batch_size} leaves some of {self.most_workers} workers without a patch")
        return self

    @model_validator(mode="after")
    def _patience_has_validations(self) -> TrainConfig:
        if self.patience is not None and self.validate_every is None:
            raise ValueError("patience counts validations; set validate_every too")
        return self

    @model_validator(mode="after")
    def _warms_up_before_the_end(self) -> TrainConfig:
        if self.optimizer.warmup_steps >= self.steps:
            raise ValueError(f"optimizer.warmup_steps {self.optimizer.warmup_steps} leave none of {self.steps} steps")
        return self


class CrossValidateConfig(Config):
    """`jobs.cross_validate`: archive -> a run for each fold, and what they are worth together.

    Attributes:
        train: the config of every fold; its `out` is where they go, and its `split` says the share for validation.
        folds: None: those of `train.split`, or 5.
        only: which folds; None: all.
        seed: of the bootstrap.
    """

    train: TrainConfig
    folds: Annotated[int, Field(ge=2)] | None = None
    only: list[Annotated[int, Field(ge=0)]] | None = None
    seed: int = 0

    def of_fold(self, fold: int) -> TrainConfig:
        """The config of one fold, as a run of its own."""
        split = {**self.train.split.model_dump(), "folds": self.n_folds, "fold": fold}
        values = {**self.train.model_dump(), "split": split, "out": f"{self.train.out}/fold-{fold}"}
        return TrainConfig.model_validate(values)

    @property
    def n_folds(self) -> int:
        """How many folds there are."""
        return self.folds or self.train.split.folds or 5

    @model_validator(mode="after")
    def _folds_are_possible(self) -> CrossValidateConfig:
        if self.train.archive is None or self.train.out is None:
            raise ValueError("train.archive and train.out are wanted: --archive ARCHIVE --out DIR")
        for fold in self.only or [0]:
            self.of_fold(fold)
        return self
