"""From voxels to the network's input and back: one grid, one kernel, one HU scale for training and serving.

Legend: `step` is target spacing divided by stored spacing along an axis. The target grid of a scan begins at
the outer face of its first voxel, so that target voxel k is centred on the stored index (k + 0.5) * step - 0.5
(`align_corners=False` in PyTorch's words, with the true step, not the ratio of sizes). A training patch is a
crop of that grid, hence exactly what prediction sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tomoray.geometry import Geometry, Zyx, ZyxMm


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """The target grid of one scan, in canonical orientation (axes grow to Superior, Posterior, Left).

    Attributes:
        stored_shape_zyx: voxels of the scan, canonical order.
        step_zyx: stored voxels for each target voxel, along each axis.
        shape_zyx: target voxels that cover the scan.
    """

    stored_shape_zyx: Zyx
    step_zyx: tuple[float, float, float]
    shape_zyx: Zyx


def target_grid(geometry: Geometry, spacing_zyx_mm: ZyxMm | None) -> Grid:
    """The grid on which a scan is trained on and segmented; None keeps the scan's own spacing."""
    order, _ = geometry.canonical_axes()
    stored = [geometry.shape_zyx[axis] for axis in order]
    found = [geometry.spacing_zyx_mm[axis] for axis in order]
    wanted = found if spacing_zyx_mm is None else spacing_zyx_mm
    step = [to / by for to, by in zip(wanted, found, strict=True)]
    shape = [max(1, ceil(n / s - 1e-6)) for n, s in zip(stored, step, strict=True)]
    return Grid(
        stored_shape_zyx=(stored[0], stored[1], stored[2]),
        step_zyx=(step[0], step[1], step[2]),
        shape_zyx=(shape[0], shape[1], shape[2]),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Taps:
    """Where each output voxel along one axis comes from.

    Attributes:
        index: int64 (voxels, taps), input index less `start`.
        weight: float32 (voxels, taps).
        start: first input index read.
        stop: one past the last.
    """

    index: Tensor
    weight: Tensor
    start: int
    stop: int

    def last_input(self) -> Tensor:
        """The last input index that each output voxel needs, int64 (voxels,)."""
        return self.index.amax(dim=1) + self.start


def linear_taps(first: int, count: int, step: float, size: int, outside: Literal["zero", "edge"] = "zero") -> Taps:
    """Linear interpolation at output voxels `first` to `first + count` of an axis of `size` input voxels.

    Where the output is coarser (`step` > 1) the triangle widens with it, so that noise is averaged, not aliased
    (as `antialias=True` of `torch.nn.functional.interpolate`). Input outside the axis counts as 0, or as its edge.
    """
    centres = ((first + np.arange(count) + 0.5) * step - 0.5)[:, None]
    width = max(step, 1.0)
    nearest = np.floor(centres).astype(np.int64)
    index = nearest + np.arange(1 - ceil(width), ceil(width) + 1)
    weight = np.clip(1 - np.abs(index - centres) / width, 0, None)
    weight[weight < 1e-9] = 0
    weight /= weight.sum(axis=1, keepdims=True)
    used = weight.any(axis=0)
    if outside == "zero":
        weight[(index < 0) | (index >= size)] = 0
    index = np.where(weight > 0, index, nearest)  # so that no row asks for more input than it needs
    return _taps(index[:, used], weight[:, used], size)


def resample(volume_zyx: Tensor, taps_zyx: Sequence[Taps]) -> Tensor:
    """Apply `taps_zyx` to the last three axes of a `(…, z, y, x)` that begins at their `start`; the dtype stays."""
    result = volume_zyx
    for axis, taps in _cheapest_order(taps_zyx):
        weight = taps.weight.to(result.dtype).view(*(-1 if a == axis else 1 for a in (-3, -2, -1)), taps.index.shape[1])
        source = result
        result = source.index_select(axis, taps.index[:, 0]) * weight[..., 0]
        for tap in range(1, taps.index.shape[1]):
            result.addcmul_(source.index_select(axis, taps.index[:, tap]), weight[..., tap])
    return result


def scale_hu(hu: Tensor, window: tuple[float, float]) -> Tensor:
    """HU, float32, to 0..1: `window` maps to 0 and 1, values outside are clipped."""
    low, high = window
    return ((hu - low) * (1 / (high - low))).clamp_(0, 1)  # not divided: that takes three times as long


def _cheapest_order(taps_zyx: Sequence[Taps]) -> list[tuple[int, Taps]]:
    """Axes that shrink from slowest to fastest, then those that grow the other way round.

    Picking rows is a copy, picking along x a gather: so the fewest possible of those.
    """
    along = list(zip((-3, -2, -1), taps_zyx, strict=True))
    grows = {axis: len(taps.index) > taps.stop - taps.start for axis, taps in along}
    return [entry for entry in along if not grows[entry[0]]] + [entry for entry in along[::-1] if grows[entry[0]]]


def _taps(index: np.ndarray[tuple[int, int], np.dtype[np.int64]], weight: np.ndarray, size: int) -> Taps:
    inside = index.clip(0, size - 1)
    start = int(inside.min())
    return Taps(
        index=torch.from_numpy(inside - start),
        weight=torch.from_numpy(weight.astype(np.float32)),
        start=start,
        stop=int(inside.max()) + 1,
    )
