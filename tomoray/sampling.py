"""Which patch sample i of a run is: a pure function of (seed, i), so that anybody can cut it and no history is needed.

A *visit* is `patches_per_visit` patches of one scan that lie close together, so that what is read for one serves the
others. `visits_at_once` visits take turns, one sample each, so that neighbours in a batch come from other scans. They
do not begin together: of 8 visits of 4 patches, two end and two begin every eighth sample.

    sample i   is the turn i // visits_at_once of the slot i % visits_at_once
    visit v    the slots begin with visits 0, 1, …; after `patches_per_visit` turns a slot goes on with the visit
               `visits_at_once` later
    epoch e    the visits e * scans to (e + 1) * scans: each scan once, in an order drawn with (seed, e)

Where patches of a visit lie is drawn in two steps, which together change nothing for a single sample. Let P be the
plain distribution: centred on a labelled voxel in `foreground_fraction` of cases, the label drawn evenly, else
anywhere. The corners of all patches are sorted into *cells*, of whole chunks and about half a patch wide. A visit draws
one corner from P and keeps its cell; its samples are drawn from P given that cell. So each sample follows P exactly,
and only samples of one visit depend on one another.

All numbers are raw draws of Philox (Salmon et al., SC 2011), keyed with the seed and counted by i, v or e; of NumPy's
streams only raw ones are promised never to change.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import prod

import numpy as np
import numpy.typing as npt

from tomoray.geometry import Zyx
from tomoray.transforms import Grid

Uniform = npt.NDArray[np.float64]  # in [0, 1)
Voxels = npt.NDArray[np.int64]  # (n, 3), z y x

_SAMPLE, _VISIT, _EPOCH = 0, 1, 2


class Order:
    """Which visit a sample belongs to, and which scan a visit goes to.

    Args:
        seed: of the run.
        n_scans: scans to visit.
        patches_per_visit: patches of a visit.
        visits_at_once: visits that take turns.
    """

    def __init__(self, seed: int, n_scans: int, *, patches_per_visit: int, visits_at_once: int) -> None:
        self._seed, self._n_scans = seed, n_scans
        self._length, self._slots = patches_per_visit, visits_at_once
        self._permutation = lru_cache(maxsize=4)(self._draw_permutation)

    def visit(self, i: int) -> int:
        """The visit that sample i belongs to."""
        turn, slot = divmod(i, self._slots)
        return (turn + self._ahead(slot)) // self._length * self._slots + slot

    def samples(self, visit: int) -> list[int]:
        """The samples of a visit, in order; the run's first visits are short, so that they do not end together."""
        lap, slot = divmod(visit, self._slots)
        first = lap * self._length - self._ahead(slot)
        return [turn * self._slots + slot for turn in range(max(first, 0), first + self._length)]

    def next_visit(self, visit: int) -> int:
        """The visit that takes this one's place."""
        return visit + self._slots

    def scan(self, visit: int) -> int:
        """The number of the scan that a visit goes to."""
        epoch, place = divmod(visit, self._n_scans)
        return int(self._permutation(epoch)[place])

    def sample_draws(self, i: int, count: int) -> Uniform:
        """Numbers that belong to sample i."""
        return _uniform(self._seed, _SAMPLE, i, count)

    def visit_draws(self, visit: int, count: int) -> Uniform:
        """Numbers that belong to a visit."""
        return _uniform(self._seed, _VISIT, visit, count)

    def _ahead(self, slot: int) -> int:
        """Turns that a slot is ahead of slot 0."""
        return slot * self._length // self._slots

    def _draw_permutation(self, epoch: int) -> npt.NDArray[np.intp]:
        return np.argsort(_philox(self._seed, _EPOCH, epoch).random_raw(self._n_scans), kind="stable")


class Corners:
    """Where patches of one scan may begin, on its target grid (`transforms.Grid`), and in which cell that is.

    Args:
        grid: the scan's target grid.
        patch_zyx: shape of a patch, target voxels.
        foreground: canonical stored voxels of each label, at least one each.
        foreground_fraction: share of patches centred on one of them.
        chunk_zyx: stored voxels of a chunk, canonical order.
        flips: canonical axes that run against the stored ones; chunks begin at the stored end.
    """

    def __init__(
        self,
        *,
        grid: Grid,
        patch_zyx: Zyx,
        foreground: Mapping[str, Voxels],
        foreground_fraction: float,
        chunk_zyx: Zyx,
        flips: tuple[bool, bool, bool],
    ) -> None:
        self._grid, self._patch, self._flips = grid, np.array(patch_zyx), flips
        extents = self._patch * grid.step_zyx
        self._edges = [max(1, round(n / 2 / chunk)) * chunk for n, chunk in zip(extents, chunk_zyx, strict=True)]
        spare = np.array(grid.shape_zyx) - self._patch
        self._anywhere = [np.arange(n + 1) if n > 0 else np.array([n // 2]) for n in spare]
        self._labelled = [
            np.floor((foreground[name] + 0.5) / grid.step_zyx).astype(np.int32) - (self._patch // 2).astype(np.int32)
            for name in sorted(foreground)
        ]
        self._anywhere_cells = [self._axis_cells(axis, corners) for axis, corners in enumerate(self._anywhere)]
        self._labelled_cells = [self._cells(corners) for corners in self._labelled]
        self._fraction = foreground_fraction if self._labelled else 0.0

    def draw(self, draws: Uniform) -> Zyx:
        """A corner from the plain distribution. Wants 6 draws."""
        if draws[0] < self._fraction:
            corners = self._labelled[_pick(draws[1], len(self._labelled))]
            return _zyx(corners[_pick(draws[2], len(corners))])
        return _zyx([axis[_pick(draw, len(axis))] for axis, draw in zip(self._anywhere, draws[3:6], strict=True)])

    def near(self, other: Zyx) -> Nearby:
        """The plain distribution, given that a corner lies in the same cell as `other`."""
        cell = self._cells(np.array([other]))[0]
        labelled = [
            corners[(cells == cell).all(axis=1)]
            for corners, cells in zip(self._labelled, self._labelled_cells, strict=True)
        ]
        anywhere = [
            corners[cells == own]
            for corners, cells, own in zip(self._anywhere, self._anywhere_cells, cell, strict=True)
        ]
        shares = [
            self._fraction / len(labelled) * len(inside) / len(corners)
            for inside, corners in zip(labelled, self._labelled, strict=True)
        ]
        whole = prod(len(inside) / len(corners) for inside, corners in zip(anywhere, self._anywhere, strict=True))
        return Nearby(labelled, anywhere, np.cumsum([*shares, (1 - self._fraction) * whole]))

    def _cells(self, corners: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        return np.stack([self._axis_cells(axis, corners[:, axis]) for axis in range(3)], axis=1)

    def _axis_cells(self, axis: int, corners: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        """Cells along an axis, by the first stored voxel of the patch that begins at each corner."""
        step, size = self._grid.step_zyx[axis], self._grid.stored_shape_zyx[axis]
        low = size - np.ceil((corners + self._patch[axis]) * step) if self._flips[axis] else np.floor(corners * step)
        cells: npt.NDArray[np.int32] = low.clip(0, size - 1).astype(np.int32) // self._edges[axis]
        return cells


class Nearby:
    """Where patches of one cell may begin: on labelled voxels, or anywhere, and the chance of each kind, summed up."""

    def __init__(self, labelled: list[Voxels], anywhere: list[Voxels], upto: Uniform) -> None:
        self._labelled, self._anywhere, self._upto = labelled, anywhere, upto

    def draw(self, draws: Uniform) -> Zyx:
        """A corner. Wants 6 draws."""
        kind = int(np.searchsorted(self._upto, draws[0] * self._upto[-1], side="right"))
        if kind < len(self._labelled):
            return _zyx(self._labelled[kind][_pick(draws[2], len(self._labelled[kind]))])
        return _zyx([axis[_pick(draw, len(axis))] for axis, draw in zip(self._anywhere, draws[3:6], strict=True)])


def _philox(seed: int, purpose: int, number: int) -> np.random.Philox:
    return np.random.Philox(key=[seed % 2**64, purpose], counter=[0, number, 0, 0])


def _uniform(seed: int, purpose: int, number: int, count: int) -> Uniform:
    raw = _philox(seed, purpose, number).random_raw(count)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _pick(draw: float, count: int) -> int:
    return int(draw * count)


def _zyx(corner: npt.ArrayLike) -> Zyx:
    z, y, x = (int(v) for v in np.asarray(corner))
    return z, y, x
