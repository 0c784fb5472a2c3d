"""Archive -> a run for each fold of the patients, and what they are worth together.

Every fold is a run like any other, in OUT/fold-0, OUT/fold-1 and so on, and every patient is tested by the one fold
that was not trained on it. A fold that is done is not trained again, and one that was interrupted goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from jobs import evaluate, train
from jobs.main import main
from tomoray.config import EvaluateConfig
from tomoray.errors import Usage
from tomoray.metrics import estimate
from tomoray.storage import open_store
from tomoray.training.config import CrossValidateConfig

SUMMARY = "cross-validation.json"


def run(config: CrossValidateConfig) -> dict[str, Any]:
    """Train and test fold after fold, and write `OUT/cross-validation.json`.

    Returns:
        What `jobs.evaluate` returns of each measure by label and patient, over the patients of all folds done;
        `summary` with their means and bootstrap intervals; `folds`, `done`, `runs` (URLs by fold),
        `training_seconds` (by fold, of this call), `out`, `seconds`.

    Raises:
        Usage: a fold's folder holds a run of another config.
        Fatal: too few patients, or training failed.
    """
    began = time.monotonic()
    if config.train.task != "segmentation":
        raise Usage(f"cross-validation is of segmentation, and the config's task is {config.train.task!r}")
    store = open_store(str(config.train.out))
    store.check()
    found: dict[int, dict[str, Any]] = {}
    trained: dict[int, dict[str, Any]] = {}
    for fold in range(config.n_folds) if config.only is None else sorted(set(config.only)):
        of_fold = config.of_fold(fold)
        trained[fold] = train.run(of_fold)
        tested = EvaluateConfig(run=str(of_fold.out), archive=str(of_fold.archive), seed=config.seed)
        found[fold] = evaluate.run(tested)
    result = {
        "out": store.url,
        "folds": config.n_folds,
        "done": sorted(found),
        "runs": {str(fold): each["run"] for fold, each in found.items()},
        "training_seconds": {str(fold): each["seconds"] for fold, each in trained.items()},
        **pool(list(found.values()), config.train.labels, config.seed),
    }
    store.write(SUMMARY, (json.dumps(result, indent=2, sort_keys=True) + "\n").encode())
    return {**result, "seconds": round(time.monotonic() - began, 3)}


def pool(folds: Sequence[Mapping[str, Any]], labels: Sequence[str], seed: int) -> dict[str, Any]:
    """The patients of all folds together: each measure by label and patient, and `summary` over them."""
    scores = {
        measure: {label: dict(sorted(_merged([fold[measure][label] for fold in folds]).items())) for label in labels}
        for measure in evaluate.MEASURES
    }
    summary = {
        label: {name: asdict(estimate(scores[name][label].values(), seed)) for name in evaluate.MEASURES}
        for label in labels
    }
    return {**scores, "summary": summary}


def _merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {patient: value for part in parts for patient, value in part.items()}


if __name__ == "__main__":
    main(run, CrossValidateConfig)
