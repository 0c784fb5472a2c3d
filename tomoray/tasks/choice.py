"""Which task a config asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tomoray.tasks.segmentation import Segmentation
from tomoray.tasks.task import Task
from tomoray.training.config import TrainConfig

Rows = Sequence[Mapping[str, Any]]

_TASKS: dict[str, Callable[[TrainConfig, Rows], Task]] = {
    "segmentation": lambda config, _rows: Segmentation(config),
}


def make_task(config: TrainConfig, rows: Rows) -> Task:
    """The task of a config.

    Args:
        config: names it, and what it learns from.
        rows: of the catalog, of the scans that are stored.
    """
    return _TASKS[config.task](config, rows)
