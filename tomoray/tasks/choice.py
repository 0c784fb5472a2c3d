"""Which task a config names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tomoray.tasks.classification import Classification
from tomoray.tasks.denoising import Denoising
from tomoray.tasks.detection import Detection
from tomoray.tasks.generation import Generation
from tomoray.tasks.pretraining import Pretraining
from tomoray.tasks.segmentation import Segmentation
from tomoray.tasks.task import Task
from tomoray.training.config import TrainConfig


def make_task(config: TrainConfig, rows: Sequence[Mapping[str, Any]]) -> Task:
    """The task `config.task`.

    Args:
        config: with the settings of that task.
        rows: catalog rows of the stored scans, of all parts: what is known of a scan besides its voxels. Whatever is
            learned from them is learned from the patients that train by `config.split`.

    Raises:
        Fatal: the rows leave nothing to learn, such as a class that no scan has.
    """
    choices: dict[str, Callable[[], Task]] = {
        "segmentation": lambda: Segmentation(config),
        "classification": lambda: Classification(config, rows),
        "detection": lambda: Detection(config),
        "denoising": lambda: Denoising(config),
        "generation": lambda: Generation(config),
        "pretraining": lambda: Pretraining(config),
    }
    return choices[config.task]()
