"""Scans as dask arrays: one chunk a shard, read through TensorStore when a task asks for it.

Nothing is read until an expression is computed; a task reads the shards it needs and no more, so memory is a few
shards a worker. Dask's scheduler is the caller's choice: threads here, Ray's in `jobs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import tensorstore as ts

from tomoray.archive import Scan


def image_array(scan: Scan, level: int = 0) -> da.Array:
    """HU of a scan at a level: int16 [z, y, x], lazy.

    Example:
        >>> brightest = image_array(scan, level=2).max(axis=1)  # a coronal projection
        >>> brightest.compute(scheduler="threads")
    """
    return _array(_Source(scan=scan, level=level))


def label_array(scan: Scan, name: str, level: int = 0) -> da.Array:
    """A mask of a scan at a level: uint8, 0 or 1, [z, y, x], lazy. Raises `ValueError` for an unknown name."""
    return _array(_Source(scan=scan, level=level, label=name))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """What dask slices: pickles as the scan's place and opens its array where it is read."""

    scan: Scan
    level: int
    label: str | None = None

    def open(self) -> ts.TensorStore:
        return self.scan.image(self.level) if self.label is None else self.scan.label(self.label, self.level)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.open().shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.open().dtype.numpy_dtype)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, window: tuple[slice, ...]) -> npt.NDArray[Any]:
        try:
            return np.asarray(self.open()[window].read().result())
        except ValueError as error:
            raise self.scan.explain(error) from error


def _array(source: _Source) -> da.Array:
    store = source.open()
    name = f"{source.scan.url}/{source.label or 'image'}/{source.level}"
    shard = store.chunk_layout.write_chunk.shape
    return da.from_array(source, chunks=shard, name=name, asarray=False, inline_array=True, meta=_empty(store))


def _empty(store: ts.TensorStore) -> npt.NDArray[Any]:
    return np.empty((0,) * store.rank, dtype=store.dtype.numpy_dtype)
