"""A small picture of a scan: its middle axial and coronal plane, from the coarsest level.

Seen as radiologists do: the patient's right on the left, anterior (axial) or superior (coronal) at the top.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from tomoray.archive import Scan
from tomoray.geometry import to_canonical
from tomoray.reports.pictures import LUNG_WINDOW_HU

_PIXELS_PER_MM = 0.4
_MOST_PIXELS = 320


@dataclass(frozen=True, kw_only=True, slots=True)
class Plane:
    """One plane as PNG; `height_mm` and `width_mm` are the body's, whatever the voxels' shape."""

    png: bytes
    height_mm: float
    width_mm: float

    @property
    def data_url(self) -> str:
        """The picture as a `data:` URL."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Thumbnail:
    """One scan in small. A few ten kilobytes; pickles."""

    scan_id: str
    axial: Plane
    coronal: Plane


def draw_thumbnail(scan: Scan, level: int) -> Thumbnail:
    """Draw a scan in the lung window from one of its levels; only the two planes are read.

    Raises `Fatal` or `Transient` where they cannot be read.
    """
    order, flips = scan.geometry.canonical_axes()
    z_mm, y_mm, x_mm = (2**level * scan.geometry.spacing_zyx_mm[axis] for axis in order)
    image = scan.image(level)
    reads = []
    for axis, flip in zip(order[:2], flips[:2], strict=True):
        middle = image.shape[axis] // 2
        window = [slice(None)] * 3
        start = image.shape[axis] - 1 - middle if flip else middle
        window[axis] = slice(start, start + 1)
        reads.append(image[tuple(window)].read())
    try:
        axial, coronal = (to_canonical(read.result(), scan.geometry) for read in reads)
    except ValueError as error:
        raise scan.explain(error) from error
    return Thumbnail(
        scan_id=scan.scan_id,
        axial=_plane(axial[0], y_mm, x_mm),
        coronal=_plane(coronal[::-1, 0], z_mm, x_mm),
    )


def _plane(hu: npt.NDArray[Any], row_mm: float, column_mm: float) -> Plane:
    height_mm, width_mm = hu.shape[0] * row_mm, hu.shape[1] * column_mm
    scale = min(_PIXELS_PER_MM, _MOST_PIXELS / max(height_mm, width_mm))
    size = (max(1, round(width_mm * scale)), max(1, round(height_mm * scale)))
    resized = Pillow.fromarray(np.ascontiguousarray(hu, dtype=np.float32)).resize(size, Pillow.Resampling.BICUBIC)
    low, high = LUNG_WINDOW_HU
    grey = np.clip((np.asarray(resized) - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Pillow.fromarray(grey).save(file, "PNG", optimize=True)
    return Plane(png=file.getvalue(), height_mm=height_mm, width_mm=width_mm)
