"""What is to be done in a month, and how fast that goes: measured rates, and the ones that are assumed."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from tomoray.config import Config

NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class Rates(Config):
    """How fast one machine is. What the benchmarks did not measure is in `ASSUMED`.

    Attributes:
        mb_per_vcpu_s: uncompressed voxels a vCPU stores in a second, from disk to disk (docs/preprocessing.md).
        s3_share: of that speed, from S3 to S3.
        driver_series_per_s: series that one driver hands out in a second (docs/scale.md).
        stream_patches_per_vcpu_s: patches cut from an archive on S3 in a second of a vCPU (docs/patches.md).
        restart_s: seconds that a training stands still when its group of workers is started anew (docs/training.md).
        gpu_patches_per_s: training patches a GPU takes in a second; `samples_per_s` of your run's history knows.
        study_s: seconds a GPU takes to segment one study.
        node_start_s: seconds from a lost machine to a new one that works.
    """

    mb_per_vcpu_s: Positive = 130.0
    s3_share: Annotated[float, Field(gt=0, le=1)] = 0.73
    driver_series_per_s: Positive = 150.0
    stream_patches_per_vcpu_s: Positive = 81.0
    restart_s: NonNegative = 15.6
    gpu_patches_per_s: Positive = 40.0
    study_s: Positive = 20.0
    node_start_s: NonNegative = 180.0


ASSUMED = ("gpu_patches_per_s", "study_s", "node_start_s")


class Workload(Config):
    """A month's work. Everything is done once in it.

    Attributes:
        series: CT series that are preprocessed.
        source_tb: their DICOM, terabytes, uncompressed.
        epochs: visits of training to each of them.
        patches_per_visit: patches that are cut at each visit.
        studies_per_day: studies that a served model segments.
        replicas_kept: GPUs for serving that wait for studies day and night; 0: they start when one comes.
    """

    series: Annotated[int, Field(ge=0)] = 0
    source_tb: NonNegative = 0
    epochs: Annotated[int, Field(ge=0)] = 0
    patches_per_visit: Annotated[int, Field(ge=1)] = 4
    studies_per_day: NonNegative = 0
    replicas_kept: Annotated[int, Field(ge=0)] = 1
    rates: Rates = Rates()

    @property
    def patches(self) -> int:
        """Training patches in all."""
        return self.series * self.epochs * self.patches_per_visit

    def preprocessing_vcpu_hours(self) -> float:
        """Hours of one vCPU, from S3 to S3."""
        return self.source_tb * 1e6 / (self.rates.mb_per_vcpu_s * self.rates.s3_share) / 3600


def assumptions(rates: Rates) -> dict[str, Any]:
    """Every rate, and which of them nobody measured."""
    return {"rates": rates.model_dump(), "rates_not_measured": list(ASSUMED)}
