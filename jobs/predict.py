"""Model + archive -> masks: one Ray task a scan, each model loaded once in a process.

A task reads its scan from the archive and writes its masks; the driver sees ids only. Masks that this very model has
drawn before are not drawn again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import ray
import torch

from jobs.main import main
from jobs.tasks import cluster_cpus, run_bounded
from tomoray.archive import Archive
from tomoray.catalog import Catalog
from tomoray.config import PredictConfig
from tomoray.errors import Fatal, Transient
from tomoray.inference.models import BackendName, Model, compile_segmenter, open_model
from tomoray.inference.scan_input import ArchivedVoxels
from tomoray.predict import Segmenter
from tomoray.predictions import Predictions
from tomoray.progress import track
from tomoray.runs import select_scans
from tomoray.storage import open_store


def run(config: PredictConfig) -> dict[str, Any]:
    """Segment every scan asked for that is not segmented yet.

    Returns:
        `scans`, of which `predicted` now and `skipped` as done before; `run`, `archive`, `out`, `format`, `seconds`.

    Raises:
        Fatal: no such model or archive, no scan to segment, or a scan failed.
    """
    started = time.monotonic()
    model, archive = open_model(config.run, ensemble=config.ensemble), Archive.open(config.archive)
    scan_ids = sorted(select_scans(model.runs, archive.url, Catalog(archive.store).rows(), config.part))
    name = f"predictions{'' if config.format == 'zarr' else f'-{config.format}'}"
    predictions = Predictions(
        store=open_store(config.out) if config.out else model.store.child(name),
        format=config.format,
        model_sha256=model.sha256,
        config_sha256=model.config_sha256,
    )
    todo = predict(model, archive, scan_ids, predictions, backend=config.backend)
    return {
        "run": model.urls[0],
        "ensemble": list(model.urls[1:]),
        "archive": archive.url,
        "out": predictions.store.url,
        "format": config.format,
        "scans": len(scan_ids),
        "predicted": len(todo),
        "skipped": len(scan_ids) - len(todo),
        "seconds": round(time.monotonic() - started, 3),
    }


def predict(
    model: Model,
    archive: Archive,
    scan_ids: Sequence[str],
    predictions: Predictions,
    *,
    backend: BackendName = "auto",
) -> list[str]:
    """Segment those of `scan_ids` that lack complete masks; the ids that were segmented now."""
    predictions.prepare(archive.layout)
    todo = [scan_id for scan_id in scan_ids if not predictions.has(scan_id)]
    gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
    task = _segment.options(num_gpus=gpus)
    with track("predict", len(todo)) as advance:
        results = run_bounded(
            lambda scan_id: task.remote(model.urls, archive.url, scan_id, predictions, backend),
            todo,
            2 * cluster_cpus(),
        )
        for scan_id, result in results:
            if isinstance(result, Exception):
                raise Fatal(f"scan {scan_id} was not segmented ({type(result).__name__}); run it again") from result
            advance(1)
    return todo


@ray.remote(num_cpus=1, retry_exceptions=[Transient])
def _segment(
    urls: tuple[str, ...], archive_url: str, scan_id: str, predictions: Predictions, backend: BackendName
) -> None:
    segmenter = _segmenter(urls, (predictions.model_sha256, predictions.config_sha256), backend)
    scan = Archive.open(archive_url).scan(scan_id)
    predictions.write(scan, segmenter.segment(ArchivedVoxels(scan), scan.geometry))


@lru_cache(maxsize=1)
def _segmenter(urls: tuple[str, ...], digests: tuple[str, str | None], backend: BackendName) -> Segmenter:
    """The model of this worker process; its digests are there so that a model that was changed is loaded anew."""
    torch.set_num_threads(1)
    model = open_model(urls[0], ensemble=urls[1:])
    if (model.sha256, model.config_sha256) != digests:
        raise Fatal(f"{' or '.join(urls)} was changed meanwhile; run the command again")
    return compile_segmenter(model, backend, device="cuda" if ray.get_gpu_ids() else "cpu", threads=1)[0]


if __name__ == "__main__":
    main(run, PredictConfig)
