"""Axial windows of a scan, for slice-wise work: a view on the archive, not a copy of it.

An index says where windows lie; reading a batch touches each chunk once, however many of its slices are asked for.

Legend: z, y, x are stored order, as `Scan.image` and the masks are; a slice is one z, as it was acquired.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, prod
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from tomoray.archive import Scan
from tomoray.volume import AIR_HU

T = TypeVar("T", bound=np.generic)
Yx = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """One window: slice `z`, first row `y0`, first column `x0`, in voxels of its level."""

    z: int
    y0: int
    x0: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AxialWindows(Sequence[Window]):
    """All windows of a scan at a level, in order of z, y, x. Pickles; holds no voxel.

    Attributes:
        shape_zyx: of the level.
        size_yx: of every window; larger than the slice where the slice is padded.
        starts_yx: first rows and first columns, the same on every slice.
    """

    scan: Scan
    level: int
    shape_zyx: tuple[int, int, int]
    size_yx: Yx
    starts_yx: tuple[tuple[int, ...], tuple[int, ...]]

    def __len__(self) -> int:
        return self.shape_zyx[0] * self._per_slice

    def __iter__(self) -> Iterator[Window]:
        for z, y0, x0 in product(range(self.shape_zyx[0]), *self.starts_yx):
            yield Window(z=z, y0=y0, x0=x0)

    @overload
    def __getitem__(self, i: int) -> Window: ...
    @overload
    def __getitem__(self, i: slice) -> list[Window]: ...
    def __getitem__(self, i: int | slice) -> Window | list[Window]:
        """Window i, or those of a slice. Raises `IndexError` beyond the last."""
        if isinstance(i, slice):
            return [self[n] for n in range(*i.indices(len(self)))]
        n = i + len(self) if i < 0 else i
        if not 0 <= n < len(self):
            raise IndexError(f"window {i} of {len(self)}")
        z, within = divmod(n, self._per_slice)
        row, column = divmod(within, len(self.starts_yx[1]))
        return Window(z=z, y0=self.starts_yx[0][row], x0=self.starts_yx[1][column])

    @property
    def _per_slice(self) -> int:
        return len(self.starts_yx[0]) * len(self.starts_yx[1])

    def read(self, windows: Sequence[Window]) -> npt.NDArray[np.int16]:
        """HU of windows: int16 [n, rows, columns], in their order; what lies outside of the slice is air.

        All reads are in flight at once. Memory: the batch, and once more its slices.

        Raises:
            ValueError: a window that does not lie in the scan.
            Fatal, Transient: the store is in trouble.
        """
        return self._read(self.scan.image(self.level), windows, np.full(1, AIR_HU, dtype=np.int16))

    def read_label(self, name: str, windows: Sequence[Window]) -> npt.NDArray[np.uint8]:
        """A mask in windows: uint8 [n, rows, columns], 0 or 1; 0 outside of the slice. Otherwise as `read`."""
        return self._read(self.scan.label(name, self.level), windows, np.zeros(1, dtype=np.uint8))

    def _read(self, store: ts.TensorStore, windows: Sequence[Window], outside: npt.NDArray[T]) -> npt.NDArray[T]:
        batch = np.full((len(windows), *self.size_yx), outside[0], dtype=outside.dtype)
        for window in windows:
            self._require_inside(window)
        chunk: list[int] = np.array(store.chunk_layout.read_chunk.shape, dtype=np.int64).tolist()
        groups = [group for slab in _by_slab(windows, chunk[0]) for group in self._by_rectangle(slab, windows, chunk)]
        reads = [self._start(store, [windows[n] for n in group]) for group in groups]  # all before any is awaited
        try:
            for group, read in zip(groups, reads, strict=True):
                self._fill(batch, group, windows, read)
        except ValueError as error:
            raise self.scan.explain(error) from error
        return batch

    def _by_rectangle(self, slab: list[int], windows: Sequence[Window], chunk: Sequence[int]) -> list[list[int]]:
        """Windows of a slab of chunks in groups to read as one: all together where that reads no chunk in vain."""
        places: dict[Yx, list[int]] = defaultdict(list)
        for n in slab:
            places[windows[n].y0, windows[n].x0].append(n)
        apart = sum(_chunks(self._rectangle([windows[group[0]]]), chunk) for group in places.values())
        together = _chunks(self._rectangle([windows[n] for n in slab]), chunk)
        return [slab] if together <= apart else list(places.values())

    def _rectangle(self, windows: Sequence[Window]) -> tuple[slice, slice]:
        """The part of a slice that holds all of `windows`."""
        _, height, width = self.shape_zyx
        first_y, first_x = min(w.y0 for w in windows), min(w.x0 for w in windows)
        last_y, last_x = max(w.y0 for w in windows), max(w.x0 for w in windows)
        rows = slice(first_y, min(height, last_y + self.size_yx[0]))
        return rows, slice(first_x, min(width, last_x + self.size_yx[1]))

    def _start(self, store: ts.TensorStore, windows: Sequence[Window]) -> _Read:
        slices = sorted({window.z for window in windows})
        rows, columns = self._rectangle(windows)
        future = store[slices, rows, columns].read()
        return _Read(future=future, place={z: n for n, z in enumerate(slices)}, rows=rows, columns=columns)

    def _fill(self, batch: npt.NDArray[T], group: list[int], windows: Sequence[Window], read: _Read) -> None:
        hu = read.future.result()
        for n in group:
            window = windows[n]
            y, x = window.y0 - read.rows.start, window.x0 - read.columns.start
            found = hu[read.place[window.z], y : y + self.size_yx[0], x : x + self.size_yx[1]]
            batch[n, : found.shape[0], : found.shape[1]] = found

    def _require_inside(self, window: Window) -> None:
        depth, height, width = self.shape_zyx
        if not (0 <= window.z < depth and 0 <= window.y0 < height and 0 <= window.x0 < width):
            raise ValueError(
                f"{window} does not lie in scan {self.scan.scan_id} of {depth} x {height} x {width} voxels"
            )


def axial_windows(scan: Scan, size: Yx = (512, 512), stride: Yx | None = None, *, level: int = 0) -> AxialWindows:
    """Windows that cover every slice of a scan.

    Args:
        scan: of which.
        size: rows and columns of a window. A smaller slice is padded with air below and to the right.
        stride: from one window to the next; None: side by side. The last ones are moved inwards, to end with the slice.
        level: of the scan's resolutions.

    Raises:
        ValueError: a size below 1, a stride that is below 1 or would leave gaps, or a scan whose planes are not axial.

    Example:
        >>> windows = axial_windows(scan, size=(256, 256))
        >>> batch = windows.read(windows[:32])
    """
    stride = size if stride is None else stride
    if min(size) < 1 or min(stride) < 1 or any(step > side for step, side in zip(stride, size, strict=True)):
        raise ValueError(f"windows of {size} every {stride} voxels do not cover a slice; wanted 1 <= stride <= size")
    if scan.geometry.canonical_axes()[0][0] != 0:
        raise ValueError(f"the planes of scan {scan.scan_id} are not axial; slice scan.image() along another axis")
    z, y, x = scan.image(level).shape
    rows, columns = (_starts(n, side, step) for n, side, step in zip((y, x), size, stride, strict=True))
    return AxialWindows(scan=scan, level=level, shape_zyx=(z, y, x), size_yx=size, starts_yx=(rows, columns))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Read:
    """Slices on their way: `place` says which of them is a z."""

    future: Any
    place: dict[int, int]
    rows: slice
    columns: slice


def _starts(n: int, side: int, step: int) -> tuple[int, ...]:
    if n <= side:
        return (0,)
    count = ceil((n - side) / step) + 1
    return tuple(min(i * step, n - side) for i in range(count))


def _by_slab(windows: Sequence[Window], chunk_z: int) -> list[list[int]]:
    """Indices of windows whose slices lie in the same layer of chunks."""
    slabs: dict[int, list[int]] = defaultdict(list)
    for n, window in enumerate(windows):
        slabs[window.z // chunk_z].append(n)
    return [slabs[slab] for slab in sorted(slabs)]


def _chunks(rectangle: tuple[slice, slice], chunk_zyx: Sequence[int]) -> int:
    """How many chunks of a layer a rectangle touches."""
    return prod(
        (part.stop - 1) // side - part.start // side + 1 for part, side in zip(rectangle, chunk_zyx[1:], strict=True)
    )
