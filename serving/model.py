"""The deployment that owns the network. It holds arrays and pseudonyms only, never a DICOM header."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import numpy as np
import ray

from serving.messages import ArchivedScan, Finding, Progress, Request, Segmentation
from serving.schemas import ServedModel
from tomoray import __version__
from tomoray.archive import Archive
from tomoray.errors import Fatal
from tomoray.predict import load_segmenter
from tomoray.runs import Run, open_run


class SegmentModel:
    """One run's network, loaded once; one scan at a time. A plain class: `serving.app` makes it a deployment.

    Args:
        run: URL of the run.
        expected: what `/v1/models` says of it.
        device: where the network runs.

    Raises:
        Fatal: the run is not what it was when the application was built.
    """

    def __init__(self, run: str, expected: ServedModel, device: str) -> None:
        opened = open_run(run)
        if opened.model_sha256 != expected.sha256:
            raise Fatal(f"run {run} was trained further after this application was built; serve it again")
        self._segmenter = load_segmenter(opened, device)

    async def find(self, request: Request) -> AsyncIterator[Progress | Finding]:
        """The masks of a scan."""
        yield Progress(done=0, of=1)
        yield await asyncio.to_thread(self._segment, request)

    def _segment(self, request: Request) -> Segmentation:
        info, header = None, {}
        if isinstance(request.scan, ArchivedScan):
            scan = Archive.open(request.scan.archive).scan(request.scan.scan_id)
            image_zyx, geometry, info, header = scan.image().read().result(), scan.geometry, scan.info, scan.header
        else:
            image_zyx, geometry = ray.get(request.scan)
        start = time.perf_counter()
        masks = self._segmenter.segment(image_zyx, geometry)
        seconds = {"segment": time.perf_counter() - start}
        packed = {label: np.packbits(mask) for label, mask in masks.items()}
        return Segmentation(geometry=geometry, packed=packed, info=info, header=header, seconds=seconds)


def served_model(name: str, run: Run) -> ServedModel:
    """What `/v1/models` says of a run."""
    return ServedModel(
        name=name,
        labels=run.config.labels,
        spacing_zyx_mm=run.config.spacing_zyx_mm,
        sha256=run.model_sha256,
        version=__version__,
    )
