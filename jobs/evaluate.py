"""Model + archive -> how well masks agree with the truth, per patient and label, on the scans' own grids.

Predicts what is not predicted yet.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from statistics import fmean
from typing import Any

import ray

from jobs.main import main
from jobs.predict import predict
from jobs.tasks import cluster_cpus, run_bounded
from tomoray.archive import Archive
from tomoray.catalog import Catalog
from tomoray.config import EvaluateConfig
from tomoray.errors import Fatal, Transient, Usage
from tomoray.inference.models import open_model
from tomoray.metrics import Agreement, compare, estimate
from tomoray.patches import require_labels
from tomoray.predictions import Predictions
from tomoray.progress import track
from tomoray.runs import select_scans
from tomoray.storage import open_store

MEASURES = tuple(field.name for field in fields(Agreement))


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Compare masks with the truth of the archive.

    Returns:
        `dice`, `hd95_mm`, `surface_dice`, `volume_difference_ml` (`tomoray.metrics.Agreement`): by label, by patient
        (a patient's scans averaged, null where none is defined); `summary`: by label and measure, `mean`, `low` and
        `high` (95 % bootstrap interval) and `values`, over patients; `mean_dice`: by label; `tolerance_mm`, `scans`,
        `predicted` (now; the others were there), `run`, `ensemble`, `archive`, `predictions`, `seconds`.

    Raises:
        Fatal: no such model or archive, no scan to compare, or one lacks a label of the model.
        Usage: the model is no run, and not all patients are asked for.
    """
    started = time.monotonic()
    model, archive = open_model(config.run, ensemble=config.ensemble), Archive.open(config.archive)
    if not model.runs and config.part != "all":
        raise Usage(f"{model.url} does not say whom it was trained on; to test it on every patient: --part all")
    rows = Catalog(archive.store).rows()
    patients = select_scans(model.runs, archive.url, rows, config.part)
    labels = model.config.labels
    require_labels({row["scan_id"]: row["labels"] or [] for row in rows if row["scan_id"] in patients}, labels)
    store = open_store(config.predictions) if config.predictions else model.store.child("predictions")
    predictions = Predictions(store=store, format="zarr", model_sha256=model.sha256, config_sha256=model.config_sha256)
    predicted = predict(model, archive, sorted(patients), predictions)
    found = _compare_all(archive.url, predictions.store.url, sorted(patients), labels, config.tolerance_mm)
    scores = {measure: _by_patient(found, patients, labels, measure) for measure in MEASURES}
    summary = {
        label: {name: asdict(estimate(scores[name][label].values(), config.seed)) for name in MEASURES}
        for label in labels
    }
    return {
        "run": model.urls[0],
        "ensemble": list(model.urls[1:]),
        "archive": archive.url,
        "predictions": predictions.store.url,
        "scans": len(patients),
        "predicted": len(predicted),
        **scores,
        "mean_dice": {label: measures["dice"]["mean"] for label, measures in summary.items()},
        "summary": summary,
        "tolerance_mm": config.tolerance_mm,
        "seconds": round(time.monotonic() - started, 3),
    }


def _compare_all(
    archive_url: str, predictions_url: str, scan_ids: Sequence[str], labels: list[str], tolerance_mm: float
) -> dict[str, dict[str, Agreement]]:
    """By scan and label."""
    found = {}
    with track("compare", len(scan_ids)) as advance:
        results = run_bounded(
            lambda scan_id: _compare.remote(archive_url, predictions_url, scan_id, labels, tolerance_mm),
            scan_ids,
            2 * cluster_cpus(),
        )
        for scan_id, result in results:
            if isinstance(result, Exception):
                raise Fatal(f"scan {scan_id} was not compared ({type(result).__name__}); run it again") from result
            found[scan_id] = result
            advance(1)
    return found


@ray.remote(num_cpus=1, retry_exceptions=[Transient])
def _compare(
    archive_url: str, predictions_url: str, scan_id: str, labels: list[str], tolerance_mm: float
) -> dict[str, Agreement]:
    truth, found = Archive.open(archive_url).scan(scan_id), Archive.open(predictions_url).scan(scan_id)
    return {
        label: compare(
            found.label(label).read().result(),
            truth.label(label).read().result(),
            truth.geometry.spacing_zyx_mm,
            tolerance_mm,
        )
        for label in labels
    }


def _by_patient(
    found: Mapping[str, Mapping[str, Agreement]], patients: Mapping[str, str], labels: Sequence[str], measure: str
) -> dict[str, dict[str, float | None]]:
    """One measure by label and patient: the mean of the patient's scans."""
    scores: dict[str, dict[str, float | None]] = {}
    for label in labels:
        values: dict[str, list[float]] = {patient: [] for patient in sorted(set(patients.values()))}
        for scan_id, agreements in sorted(found.items()):
            value = getattr(agreements[label], measure)
            values[patients[scan_id]] += [] if value is None else [value]
        scores[label] = {patient: fmean(each) if each else None for patient, each in values.items()}
    return scores


if __name__ == "__main__":
    main(run, EvaluateConfig)
