"""The deployment that owns the network. It holds arrays and pseudonyms only, never a DICOM header."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.schemas import ServedModel
from tomoray import __version__
from tomoray.archive import Archive
from tomoray.errors import Fatal
from tomoray.geometry import Geometry
from tomoray.predict import load_segmenter
from tomoray.runs import Run, open_run
from tomoray.volume import Image, Mask, ScanInfo


@dataclass(frozen=True, kw_only=True, slots=True)
class Segmentation:
    """What the model says, an eighth of the masks' size on its way.

    Attributes:
        packed: `np.packbits` of every mask [z, y, x], by label.
        info: of the archived scan; None for one that was sent.
        header: of the archived scan, as it was archived; empty for one that was sent.
        seconds: what segmenting took.
    """

    geometry: Geometry
    packed: Mapping[str, npt.NDArray[np.uint8]]
    info: ScanInfo | None
    header: Mapping[str, Any]
    seconds: float

    def masks(self) -> dict[str, Mask]:
        """The masks, uint8 [z, y, x], 0 or 1, by label."""
        shape = self.geometry.shape_zyx
        count = int(np.prod(shape))
        return {label: np.unpackbits(bits, count=count).reshape(shape) for label, bits in self.packed.items()}


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

    def segment(self, scan: tuple[Image, Geometry]) -> Segmentation:
        """Segment a scan that was sent: int16 HU [z, y, x] and where it is. Pass it as an object reference."""
        image_zyx, geometry = scan
        return self._segment(image_zyx, geometry, None, {})

    def segment_archived(self, archive: str, scan_id: str) -> Segmentation | None:
        """Segment a scan of an archive; None where the archive has no such scan."""
        opened = Archive.open(archive)
        if not opened.has_scan(scan_id):
            return None
        scan = opened.scan(scan_id)
        image_zyx: Image = scan.image().read().result()
        return self._segment(image_zyx, scan.geometry, scan.info, scan.header)

    def _segment(
        self, image_zyx: Image, geometry: Geometry, info: ScanInfo | None, header: Mapping[str, Any]
    ) -> Segmentation:
        start = time.perf_counter()
        masks = self._segmenter.segment(image_zyx, geometry)
        seconds = time.perf_counter() - start
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
