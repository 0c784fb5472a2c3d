"""How far a job is, from what it writes down as it goes: the archive's mark, the run's history."""

from __future__ import annotations

import math
from typing import Any

from tomoray.catalog import Catalog
from tomoray.config import make_config
from tomoray.errors import TomoRayError
from tomoray.lease import read_run
from tomoray.runs import read_history
from tomoray.storage import open_store
from tomoray.training.config import TrainConfig


class Progress:
    """Of one job by its config. What this machine cannot reach it does not tell."""

    def __init__(self, job: str, config: dict[str, Any]) -> None:
        self._job, self._config = job, config
        self._train_scans: int | None = None

    def now(self) -> dict[str, Any]:
        """What is known: `done` and `total`, `unit`, `mb_per_s`, `epoch`, `loss`; empty where nothing is."""
        try:
            if self._job == "preprocess":
                return self._preprocessing()
            if self._job == "train":
                return self._training()
        except TomoRayError:
            pass  # of a bucket that only the cluster may read, say
        return {}

    def _preprocessing(self) -> dict[str, Any]:
        run = read_run(open_store(self._config["archive"]))
        if run is None:
            return {}
        counts = run["progress"]
        return {
            "done": counts.get("done", 0),
            "total": counts.get("total", 0),
            "unit": "series",
            "mb_per_s": counts.get("mb_per_s", 0.0),
        }

    def _training(self) -> dict[str, Any]:
        config = make_config(TrainConfig, self._config)
        history = read_history(open_store(str(config.out)))
        if not history:
            return {"done": 0, "total": config.steps, "unit": "steps"}
        last = history[-1]
        patch_mb = 2 * math.prod(config.patch_zyx) / 1e6  # int16
        return {
            "done": last["step"],
            "total": config.steps,
            "unit": "steps",
            "mb_per_s": round(last["samples_per_s"] * patch_mb, 1),
            "epoch": round(last["samples"] / config.stream.patches_per_visit / self._scans(config), 2),
            "loss": last["loss"],
        }

    def _scans(self, config: TrainConfig) -> int:
        """Scans of an epoch, roughly: those of the archive by the share of patients that are trained on."""
        if self._train_scans is None:
            all_scans = sum(
                status == "stored"
                for digit in "0123456789abcdef"
                for status in Catalog(open_store(str(config.archive))).bucket(digit, ["status"])["status"].to_pylist()
            )
            test = 1 / config.split.folds if config.split.folds else config.split.test
            self._train_scans = max(1, round(all_scans * (1 - test - config.split.validation)))
        return self._train_scans
