"""Run + archive -> Dice per patient and label, on the scans' own grids. Predicts what is not predicted yet."""

from __future__ import annotations

import time
from collections import defaultdict
from statistics import fmean
from typing import Any

import ray

from jobs.main import main
from jobs.predict import predict
from jobs.tasks import cluster_cpus, run_bounded
from tomoray.archive import Archive
from tomoray.catalog import Catalog
from tomoray.config import EvaluateConfig
from tomoray.errors import Fatal, Transient
from tomoray.metrics import dice
from tomoray.patches import require_labels
from tomoray.predictions import Predictions
from tomoray.progress import track
from tomoray.runs import open_run, select_scans
from tomoray.storage import open_store


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Compare masks with the truth of the archive.

    Returns:
        `dice`: by label, by patient (a patient's scans averaged); `mean_dice`: by label, over patients; `scans`,
        `predicted` (now; the others were there), `run`, `archive`, `predictions`, `seconds`.

    Raises:
        Fatal: no such run or archive, no scan to compare, or one lacks a label of the run.
    """
    started = time.monotonic()
    model, archive = open_run(config.run), Archive.open(config.archive)
    rows = Catalog(archive.store).rows()
    patients = select_scans(model, archive.url, rows, config.part)
    labels = model.config.labels
    require_labels({row["scan_id"]: row["labels"] or [] for row in rows if row["scan_id"] in patients}, labels)
    store = open_store(config.predictions) if config.predictions else model.store.child("predictions")
    predictions = Predictions(store=store, format="zarr", model_sha256=model.model_sha256)
    predicted = predict(model, archive, sorted(patients), predictions)
    scores: dict[str, dict[str, list[float]]] = {label: defaultdict(list) for label in labels}
    with track("compare", len(patients)) as advance:
        results = run_bounded(
            lambda scan_id: _compare.remote(archive.url, predictions.store.url, scan_id, labels),
            sorted(patients),
            2 * cluster_cpus(),
        )
        for scan_id, found in results:
            if isinstance(found, Exception):
                raise Fatal(f"scan {scan_id} was not compared ({type(found).__name__}); run it again") from found
            for label, score in found.items():
                scores[label][patients[scan_id]].append(score)
            advance(1)
    by_patient = {
        label: {patient: fmean(values) for patient, values in sorted(by_patient.items())}
        for label, by_patient in scores.items()
    }
    return {
        "run": model.store.url,
        "archive": archive.url,
        "predictions": predictions.store.url,
        "scans": len(patients),
        "predicted": len(predicted),
        "dice": by_patient,
        "mean_dice": {label: fmean(values.values()) for label, values in by_patient.items()},
        "seconds": round(time.monotonic() - started, 3),
    }


@ray.remote(num_cpus=1, retry_exceptions=[Transient])
def _compare(archive_url: str, predictions_url: str, scan_id: str, labels: list[str]) -> dict[str, float]:
    truth, found = Archive.open(archive_url).scan(scan_id), Archive.open(predictions_url).scan(scan_id)
    return {label: dice(found.label(label).read().result(), truth.label(label).read().result()) for label in labels}


if __name__ == "__main__":
    main(run, EvaluateConfig)
