"""Exact histograms of Hounsfield units: a bin a value, so that sums, percentiles and moments do not depend on order.

Counts are whole numbers. Shards, scans and machines may be added in any order and grouping; every statistic comes
out bit by bit the same, and equal to NumPy's on the voxels themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from math import floor, nan, sqrt
from operator import add

import numpy as np
import numpy.typing as npt

_LOWEST_HU = -(2**15)
_VALUES = 2**16
_AT_ONCE = 2**20


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Histogram:
    """How often each HU value occurs, without the empty bins at both ends. Pickles to a few ten kilobytes.

    Attributes:
        first_hu: the value of the first bin.
        counts: int64; bin i counts the value `first_hu + i`. Empty where there is no voxel.
    """

    first_hu: int
    counts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, hu: npt.NDArray[np.int16]) -> Histogram:
        """Count the values of an int16 array of any shape."""
        counts = np.zeros(_VALUES, dtype=np.int64)
        unsigned = np.ascontiguousarray(hu).reshape(-1).view(np.uint16)
        for start in range(0, unsigned.size, _AT_ONCE):  # as bincount makes eight bytes of each value
            counts += np.bincount(unsigned[start : start + _AT_ONCE] ^ np.uint16(2**15), minlength=_VALUES)
        return cls._trimmed(_LOWEST_HU, counts)

    @classmethod
    def empty(cls) -> Histogram:
        """Of no voxel at all."""
        return cls(first_hu=0, counts=np.zeros(0, dtype=np.int64))

    @classmethod
    def total(cls, parts: Iterable[Histogram]) -> Histogram:
        """The sum of any number of histograms."""
        return reduce(add, parts, cls.empty())

    def __add__(self, other: Histogram) -> Histogram:
        if not self.counts.size or not other.counts.size:
            return self if self.counts.size else other
        first = min(self.first_hu, other.first_hu)
        stop = max(self.first_hu + self.counts.size, other.first_hu + other.counts.size)
        counts = np.zeros(stop - first, dtype=np.int64)
        for part in (self, other):
            start = part.first_hu - first
            counts[start : start + part.counts.size] += part.counts
        return Histogram(first_hu=first, counts=counts)

    @property
    def n(self) -> int:
        """Number of voxels."""
        return int(self.counts.sum())

    @property
    def min(self) -> int:
        """The lowest value. Raises `ValueError` where there is no voxel."""
        self._require_voxels()
        return self.first_hu

    @property
    def max(self) -> int:
        """The highest value. Raises `ValueError` where there is no voxel."""
        self._require_voxels()
        return self.first_hu + self.counts.size - 1

    @property
    def mean(self) -> float:
        """The mean, from whole-number sums; NaN where there is no voxel."""
        n, total, _ = self._sums()
        return total / n if n else nan

    @property
    def std(self) -> float:
        """The standard deviation (of the population), from whole-number sums; NaN where there is no voxel."""
        n, total, squares = self._sums()
        return sqrt(n * squares - total * total) / n if n else nan

    def percentile(self, percent: float) -> float:
        """As `numpy.percentile` (linear between neighbours). Raises `ValueError` where there is no voxel."""
        self._require_voxels()
        place = percent / 100 * (self.n - 1)
        below = floor(place)
        ends = np.cumsum(self.counts)
        low, high = (self.first_hu + int(np.searchsorted(ends, rank, side="right")) for rank in (below, below + 1))
        return low + (place - below) * (high - low) if place > below else float(low)

    def rebinned(self, width_hu: int, low_hu: int, high_hu: int) -> npt.NDArray[np.int64]:
        """Counts in bins of `width_hu` from `low_hu` to `high_hu`; values outside count in the first or last bin."""
        n_bins = -(-(high_hu - low_hu) // width_hu)
        values = self.first_hu + np.arange(self.counts.size)
        bins = ((values - low_hu) // width_hu).clip(0, n_bins - 1)
        found = np.zeros(n_bins, dtype=np.int64)
        np.add.at(found, bins, self.counts)
        return found

    @classmethod
    def _trimmed(cls, first_hu: int, counts: npt.NDArray[np.int64]) -> Histogram:
        used = np.flatnonzero(counts)
        if not used.size:
            return cls.empty()
        return cls(first_hu=first_hu + int(used[0]), counts=counts[used[0] : used[-1] + 1].copy())

    def _sums(self) -> tuple[int, int, int]:
        """Voxels, sum and sum of squares as Python's whole numbers, which never overflow."""
        used = np.flatnonzero(self.counts)
        pairs = [(self.first_hu + i, n) for i, n in zip(used.tolist(), self.counts[used].tolist(), strict=True)]
        return sum(n for _, n in pairs), sum(hu * n for hu, n in pairs), sum(hu * hu * n for hu, n in pairs)

    def _require_voxels(self) -> None:
        if not self.counts.size:
            raise ValueError("the histogram holds no voxel")
