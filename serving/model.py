"""The deployment that owns a network. It holds arrays and pseudonyms only, never a DICOM header.

Requests are prepared and blended in threads of their own; their windows share one network, in turn (`Batcher`).
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.util import metrics

from serving.messages import ArchivedScan, Finding, Progress, Request
from serving.room import Room
from serving.scaling import PACE, Pace
from serving.schemas import ServedModel
from serving.tasks import OPERATIONS, Finder, load_finder
from tomoray import __version__
from tomoray.archive import Archive, Scan
from tomoray.errors import Fatal, Usage
from tomoray.geometry import Geometry
from tomoray.inference.batcher import Batcher, Lane
from tomoray.inference.models import Model, open_model
from tomoray.inference.scan_input import ArchivedVoxels, Voxels
from tomoray.serving_config import ModelConfig

logger = logging.getLogger("ray.serve")

PROGRESS_EVERY_S = 0.25
_SECONDS = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000]
Advance = Callable[[int, int], None]


class ModelServer:
    """One model, loaded once. A plain class: `serving.app` makes it a deployment.

    Args:
        config: which model, and how it runs.
        expected: what `/v1/models` says of it.
        device: where the network runs.

    Raises:
        Fatal: the model is not what it was when the application was built, or its backend disagrees with PyTorch.
    """

    def __init__(self, config: ModelConfig, expected: ServedModel, device: str) -> None:
        start = time.perf_counter()
        model = open_model(config.source, sha256=expected.sha256, ensemble=config.ensemble)
        self._finder: Finder = load_finder(model, config.backend, device)
        self._batcher = Batcher(self._finder.forward, config.windows_at_once)
        self._sha256 = model.sha256
        self._room = Room(config.memory_mb * 1_000_000)
        self._threads = ThreadPoolExecutor(config.requests_at_once, "request")
        self._pace = Pace()
        logger.info("%s runs by %s, %.1f s", expected.name, self._finder.backend, time.perf_counter() - start)
        tags = {"model": expected.name}
        self._seconds = metrics.Histogram(
            "tomoray_serving_model_seconds", "A scan at the model, waiting included.", _SECONDS, tuple(tags)
        )
        self._windows = metrics.Counter(
            "tomoray_serving_windows_total", "Windows that went through the network.", tuple(tags)
        )
        for metric in (self._seconds, self._windows):
            metric.set_default_tags(tags)

    async def find(self, request: Request) -> AsyncIterator[Progress | Finding]:
        """What was found, and before it now and then how far it is, where that is asked for.

        Closing the generator drops the scan's windows.
        """
        start, loop = time.perf_counter(), asyncio.get_running_loop()
        with self._pace.scan():
            image, geometry, scan = await loop.run_in_executor(None, _open, request)
            told: asyncio.Queue[Progress | None] = asyncio.Queue()
            lane, last = self._batcher.lane(), [0.0]

            def advance(done: int, of: int) -> None:
                if request.progress and (time.perf_counter() - last[0] > PROGRESS_EVERY_S or done == of):
                    last[0] = time.perf_counter()
                    loop.call_soon_threadsafe(told.put_nowait, Progress(done=done, of=of))

            async with self._room.of(self._finder.working_bytes(geometry)):
                work = loop.run_in_executor(self._threads, self._find, request, image, geometry, scan, lane, advance)
                work.add_done_callback(lambda _: told.put_nowait(None))
                try:
                    while (progress := await told.get()) is not None:
                        yield progress
                    finding = work.result()
                finally:
                    lane.close()
                    if lane.windows:
                        self._windows.inc(lane.windows)
        self._seconds.observe(time.perf_counter() - start)
        yield finding

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Ray Serve asks for, and `QueueAndLatency` is told."""
        return {PACE: self._pace.seconds_a_scan()}

    def __del__(self) -> None:
        if hasattr(self, "_batcher"):
            self._batcher.close()

    def _find(
        self, request: Request, image: Voxels, geometry: Geometry, scan: Scan | None, lane: Lane, advance: Advance
    ) -> Finding:
        start = time.perf_counter()
        found = self._finder.find(image, geometry, lane, advance, scan=scan, explain=request.explain)
        known: dict[str, Any] = {} if scan is None else {"info": scan.info, "header": scan.header}
        seconds = {self._finder.step: time.perf_counter() - start}
        return found(geometry=geometry, sha256=self._sha256, seconds=seconds, **known)


def served_model(config: ModelConfig) -> tuple[ServedModel, Model]:
    """What `/v1/models` says of a model, and the model. Raises `Fatal` where there is none, or of no use here."""
    model = open_model(config.source, sha256=config.sha256, ensemble=config.ensemble)
    task = model.config.task
    if task not in OPERATIONS:
        raise Usage(f"{config.source} learned {task}; wanted one of: {', '.join(OPERATIONS)}")
    for run in model.runs:
        run.read_model()  # damage is told here in one line; a replica could only fail to start
    if not model.runs:
        model.read()
    if model.bundle is not None and config.sha256 is None:
        logger.warning("%s names no digest; to serve no other weights, give sha256: %s", model.url, model.sha256)
    last = model.url.rstrip("/").rpartition("/")[2].removesuffix(".onnx")
    return (
        ServedModel(
            name=config.name or re.sub(r"[^A-Za-z0-9._-]+", "-", last) or "model",
            labels=model.config.labels,
            spacing_zyx_mm=model.config.spacing_zyx_mm,
            sha256=model.sha256,
            version=__version__,
            operation=OPERATIONS[task],
            calibrated=None if task == "segmentation" else model.temperature is not None,
        ),
        model,
    )


def _open(request: Request) -> tuple[Voxels, Geometry, Scan | None]:
    """The voxels, to be read in pieces; where they are; and of an archived scan the rest."""
    if isinstance(request.scan, ArchivedScan):
        archive = Archive.open(request.scan.archive)
        if not archive.has_scan(request.scan.scan_id):
            raise Fatal(f"the archive has no scan {request.scan.scan_id} any more")
        scan = archive.scan(request.scan.scan_id)
        return ArchivedVoxels(scan), scan.geometry, scan
    image_zyx, geometry = ray.get(request.scan)
    return image_zyx, geometry, None
