"""Voxels of a scan counted where its shards are read: dask expressions whose results are a few kilobytes.

An expression computes to one object, the sum of what each task counted of its shard.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt

from tomoray.archive import Scan
from tomoray.geometry import Geometry
from tomoray.statistics.arrays import image_array, label_array
from tomoray.statistics.body import find_body
from tomoray.statistics.histograms import Histogram
from tomoray.volume import Image, Mask


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VoxelCounts:
    """What is counted of a shard, and of all shards of a scan: they add up.

    Attributes:
        scan, foreground: HU of all voxels, and of those in any label.
        labels: HU inside each label.
        overlap: int64 [label, label], voxels that are in both.
    """

    scan: Histogram
    foreground: Histogram
    labels: tuple[Histogram, ...]
    overlap: npt.NDArray[np.int64]

    def __add__(self, other: VoxelCounts) -> VoxelCounts:
        return VoxelCounts(
            scan=self.scan + other.scan,
            foreground=self.foreground + other.foreground,
            labels=tuple(a + b for a, b in zip(self.labels, other.labels, strict=True)),
            overlap=self.overlap + other.overlap,
        )


def count_voxels(scan: Scan) -> da.Array:
    """HU of a scan and of its labels as a lazy `VoxelCounts` (computes to one object). One task a shard."""
    image = image_array(scan)
    masks = [label_array(scan, name) for name in scan.label_names]
    return _one_each(_count_shard, image, *masks).sum()


def count_body(scan: Scan, level: int) -> da.Array:
    """HU inside the body at a level as a lazy `Histogram`. One task a scan."""
    image = image_array(scan, level)
    whole = image.rechunk(image.shape)
    return _one_each(_count_body, whole, geometry=scan.geometry, level=level).sum()


def _one_each(count: Callable[..., Any], *arrays: da.Array, **options: Any) -> da.Array:
    """`count` of each block, as an array with one object a block; `.sum()` adds them up with `+`."""

    def block(*parts: npt.NDArray[Any]) -> npt.NDArray[np.object_]:
        one = np.empty((1,) * parts[0].ndim, dtype=object)
        one[(0,) * one.ndim] = count(*parts, **options)
        return one

    chunks = tuple((1,) * n for n in arrays[0].numblocks)
    return da.map_blocks(block, *arrays, dtype=object, chunks=chunks, meta=np.empty((0,) * len(chunks), dtype=object))


def _count_shard(image_zyx: Image, *masks_zyx: Mask) -> VoxelCounts:
    insides = [mask > 0 for mask in masks_zyx]
    anywhere = np.logical_or.reduce(insides) if insides else np.zeros(image_zyx.shape, dtype=bool)
    overlap = [[np.count_nonzero(a & b) for b in insides] for a in insides]
    return VoxelCounts(
        scan=Histogram.of(image_zyx),
        foreground=Histogram.of(image_zyx[anywhere]),
        labels=tuple(Histogram.of(image_zyx[inside]) for inside in insides),
        overlap=np.array(overlap, dtype=np.int64).reshape(len(insides), len(insides)),
    )


def _count_body(image_zyx: Image, *, geometry: Geometry, level: int) -> Histogram:
    return Histogram.of(image_zyx[find_body(image_zyx, geometry, level)])
