"""Where the body is, on a coarse level of a scan: without the table, with the air inside."""

from __future__ import annotations

from math import ceil

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from tomoray.geometry import Geometry, ZyxMm, from_canonical, to_canonical
from tomoray.volume import Image

BODY_HU = -500
TABLE_MM = 5.0
DEFINITION = (
    f"above {BODY_HU} HU; opened within axial planes by {TABLE_MM:g} mm, which cuts the table off; the largest "
    "connected piece; holes of axial planes filled, so that lungs and other enclosed air belong to it"
)


def find_body(image_zyx: Image, geometry: Geometry, level: int = 0) -> npt.NDArray[np.bool_]:
    """The body, as `DEFINITION` says.

    Args:
        image_zyx: HU of the scan at `level`, in stored order. The whole of it: meant for coarse levels.
        geometry: of the scan at level 0.
        level: which halving `image_zyx` is.

    Returns:
        bool, of the shape of `image_zyx`; all false where nothing is above the threshold.
    """
    order, _ = geometry.canonical_axes()
    spacing = [2**level * geometry.spacing_zyx_mm[axis] for axis in order]
    tissue: npt.NDArray[np.bool_] = to_canonical(image_zyx > BODY_HU, geometry).astype(bool)
    body = _find(tissue, (spacing[0], spacing[1], spacing[2]))
    return np.ascontiguousarray(from_canonical(body, geometry)).astype(bool)


def _find(tissue: npt.NDArray[np.bool_], spacing_mm: ZyxMm) -> npt.NDArray[np.bool_]:
    disk = _disk(TABLE_MM, spacing_mm)
    core = ndimage.binary_erosion(tissue, disk, border_value=1)  # a body that the field of view cuts stays whole
    core = _largest_piece(core if core.any() else tissue)
    body: npt.NDArray[np.bool_] = ndimage.binary_dilation(core, disk) & tissue
    for plane in body:
        plane[...] = ndimage.binary_fill_holes(plane)
    return body


def _disk(radius_mm: float, spacing_mm: ZyxMm) -> npt.NDArray[np.bool_]:
    """One plane of voxels within `radius_mm`, the four neighbours at least; odd sides."""
    _, y_mm, x_mm = spacing_mm
    reach_y, reach_x = max(1, ceil(radius_mm / y_mm)), max(1, ceil(radius_mm / x_mm))
    y, x = np.ogrid[-reach_y : reach_y + 1, -reach_x : reach_x + 1]
    within = (y * y_mm) ** 2 + (x * x_mm) ** 2 <= max(radius_mm, y_mm, x_mm) ** 2 + 1e-9
    return np.asarray(within[None])


def _largest_piece(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    pieces, n = ndimage.label(mask)
    return np.asarray(pieces == np.bincount(pieces.ravel())[1:].argmax() + 1) if n else mask
