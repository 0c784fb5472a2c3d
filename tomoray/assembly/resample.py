"""Planes of one stack onto another grid of the same rows and columns: steps made even, a tilt made upright.

Linear interpolation of HU: exact where HU grow linearly in space, and off by at most h^2/8 times the second derivative
elsewhere, h being the distance of the samples between which a value lies; then rounded to whole HU. A voxel that is
not between samples is -1024.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tomoray.geometry import Geometry
from tomoray.volume import AIR_HU

_WHOLE = 1e-6  # of a voxel: nearer to a sample than this is on it


def resample_planes(
    image_zyx: npt.NDArray[np.int16], positions_mm: npt.NDArray[np.float64], geometry: Geometry
) -> npt.NDArray[np.int16]:
    """Interpolate planes onto `geometry`, one plane at a time.

    Args:
        image_zyx: int16 HU, planes sorted along the normal, with the rows and columns' directions and spacing of
            `geometry`.
        positions_mm: [plane, 3], centre of each plane's first voxel, LPS mm.
        geometry: the grid to be on; no plane of it lies before the first source plane or after the last.

    Returns:
        int16 HU of `geometry.shape_zyx`. Besides it, memory for two planes is used.
    """
    corners_xyz = to_voxels(positions_mm, geometry)
    heights = corners_xyz[:, 2]
    out = np.full(geometry.shape_zyx, AIR_HU, dtype=np.int16)
    for z, target in enumerate(out):
        below = int(np.clip(np.searchsorted(heights, z, side="right") - 1, 0, len(heights) - 2))
        part = _snap((z - heights[below]) / (heights[below + 1] - heights[below]))
        weights = {below: 1.0 - part, below + 1: part}
        used = {plane: weight for plane, weight in weights.items() if weight > 0}
        rows = _overlap([(corners_xyz[plane, 1], image_zyx.shape[1]) for plane in used], target.shape[0])
        columns = _overlap([(corners_xyz[plane, 0], image_zyx.shape[2]) for plane in used], target.shape[1])
        if rows.stop <= rows.start or columns.stop <= columns.start:
            continue
        total = np.zeros((rows.stop - rows.start, columns.stop - columns.start))
        for plane, weight in used.items():
            x, y, _ = corners_xyz[plane]
            along_columns = _shifted(image_zyx[plane], y, rows)
            total += weight * _shifted(along_columns.T, x, columns).T
        target[rows, columns] = np.rint(total)
    return out


def to_voxels(positions_mm: npt.NDArray[np.float64], geometry: Geometry) -> npt.NDArray[np.float64]:
    """Where LPS positions [n, 3] lie on a grid: voxel indices (x, y, z), fractions and outside included."""
    homogeneous = np.column_stack([positions_mm, np.ones(len(positions_mm))])
    xyz: npt.NDArray[np.float64] = (homogeneous @ np.linalg.inv(geometry.matrix).T)[:, :3]
    return xyz


def _snap(number: float) -> float:
    nearest = float(np.rint(number))
    return nearest if abs(number - nearest) < _WHOLE else float(number)


def _overlap(sources: list[tuple[float, int]], length: int) -> slice:
    """Target indices that lie between samples of every source, each given by its first sample's index and count."""
    starts = [int(np.ceil(_snap(first))) for first, _ in sources]
    stops = [int(np.floor(_snap(first + count - 1))) + 1 for first, count in sources]
    return slice(max(0, *starts), min(length, *stops)) if sources else slice(0, 0)


def _shifted(plane: npt.NDArray[np.generic], first: float, wanted: slice) -> npt.NDArray[np.float64]:
    """Rows `wanted` of the target, where the plane's row 0 lies at `first`."""
    offset = _snap(wanted.start - first)
    whole = int(np.floor(offset))
    part = offset - whole
    count = wanted.stop - wanted.start
    low = plane[whole : whole + count].astype(np.float64)
    if part == 0:
        return low
    high = plane[whole + 1 : whole + 1 + count].astype(np.float64)
    shifted: npt.NDArray[np.float64] = (1 - part) * low + part * high
    return shifted
