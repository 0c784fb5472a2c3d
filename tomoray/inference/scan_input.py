"""A scan as a network sees it: any box of its target grid, read and resampled when it is asked for.

Legend: stored is the scan's own order and grid, canonical its order turned to Superior, Posterior, Left, target the
grid of the network (`tomoray.transforms`).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from tomoray.archive import Scan
from tomoray.geometry import Geometry, Zyx, to_canonical
from tomoray.training.config import TrainConfig
from tomoray.transforms import Taps, linear_taps, resample, scale_hu, target_grid
from tomoray.volume import AIR_HU, Image

TISSUE_HU = -500
TILE = 8
AIR_RULE = (
    f"looked at from the feet through all slices of a row of windows, tiles of {TILE} x {TILE} voxels with a voxel "
    f"above {TISSUE_HU} HU are body, and so are tiles that these enclose; a window without a tile of the body is air"
)
_SLICES_AT_ONCE = 8
Range = tuple[int, int]  # first voxel, and how many


class Voxels(Protocol):
    """int16 HU [z, y, x] by boxes: an array, or something that reads."""

    def __getitem__(self, where: tuple[slice, slice, slice], /) -> Image: ...


class ArchivedVoxels:
    """Voxels of an archived scan, read when they are asked for; raises as `Scan.explain` says."""

    def __init__(self, scan: Scan) -> None:
        self._scan, self._array = scan, scan.image()

    def __getitem__(self, where: tuple[slice, slice, slice], /) -> Image:
        try:
            voxels: Image = self._array[where].read().result()
        except ValueError as error:
            raise self._scan.explain(error) from error
        return voxels


class ScanInput:
    """One scan as the input of a network.

    Args:
        image_zyx: HU in stored order.
        geometry: of the scan.
        config: spacing and HU window.
    """

    def __init__(self, image_zyx: Voxels, geometry: Geometry, config: TrainConfig) -> None:
        self.grid = target_grid(geometry, config.spacing_zyx_mm)
        self._image, self._geometry, self._window = image_zyx, geometry, config.hu_window

    def box(self, *ranges_zyx: Range) -> Tensor:
        """The input `(z, y, x)`, float32, of a box of the target grid; air where it lies outside of the scan."""
        return self.box_and_body(*ranges_zyx)[0]

    def box_and_body(self, *ranges_zyx: Range) -> tuple[Tensor, Body]:
        """`box`, and where the body is in it."""
        taps = tuple(
            linear_taps(first, count, step, size)
            for (first, count), step, size in zip(
                ranges_zyx, self.grid.step_zyx, self.grid.stored_shape_zyx, strict=True
            )
        )
        stored = self._read(taps)
        first, count = ranges_zyx[0]
        box = torch.empty([count for _, count in ranges_zyx])
        for z in range(0, count, _SLICES_AT_ONCE):  # in parts, so that what lies between is small
            part = min(_SLICES_AT_ONCE, count - z)
            z_taps = linear_taps(first + z, part, self.grid.step_zyx[0], self.grid.stored_shape_zyx[0])
            hu = torch.from_numpy(
                stored[z_taps.start - taps[0].start : z_taps.stop - taps[0].start].astype(np.float32)
            ).sub_(AIR_HU)
            box[z : z + part] = scale_hu(resample(hu, (z_taps, *taps[1:])).add_(AIR_HU), self._window)
        return box, Body(stored, (taps[1], taps[2]))

    def _read(self, taps_zyx: tuple[Taps, ...]) -> npt.NDArray[np.int16]:
        """The stored voxels, in canonical order, that a box is made from."""
        order, flips = self._geometry.canonical_axes()
        where = [slice(0)] * 3
        for taps, axis, flip in zip(taps_zyx, order, flips, strict=True):
            size = self._geometry.shape_zyx[axis]
            where[axis] = slice(size - taps.stop, size - taps.start) if flip else slice(taps.start, taps.stop)
        turned = to_canonical(self._image[where[0], where[1], where[2]], self._geometry)
        return turned.astype(np.int16, copy=False)


class Body:
    """Where the body is in a row of windows, as `AIR_RULE` says.

    Args:
        stored: HU, in canonical order.
        taps_yx: from target voxels, of the same rows and columns, to these.
    """

    def __init__(self, stored: npt.NDArray[np.int16], taps_yx: tuple[Taps, Taps]) -> None:
        highest = stored.max(axis=0)
        padding = [(0, -size % TILE) for size in highest.shape]
        padded = np.pad(highest, padding, constant_values=np.iinfo(np.int16).min)
        tiles = padded.reshape(padded.shape[0] // TILE, TILE, -1, TILE).max(axis=(1, 3)) > TISSUE_HU
        self._tiles: npt.NDArray[np.bool_] = ndimage.binary_fill_holes(tiles)
        self._taps_yx = taps_yx

    def touches(self, y: Range, x: Range) -> bool:
        """Whether a window at these rows and columns of the box has any of the body."""
        tiles = []
        for (first, count), taps in zip((y, x), self._taps_yx, strict=True):
            used = taps.index[first : first + count]
            tiles.append(slice(int(used.min()) // TILE, int(used.max()) // TILE + 1))
        return bool(self._tiles[tiles[0], tiles[1]].any())


def window_corners(shape_zyx: Zyx, patch_zyx: Zyx, overlap: float) -> list[Zyx]:
    """Where windows begin that cover a grid of that shape, overlapping by at least `overlap`."""
    z, y, x = (window_starts(size, side, overlap) for size, side in zip(shape_zyx, patch_zyx, strict=True))
    return [(k, j, i) for k in z for j in y for i in x]


def window_starts(size: int, side: int, overlap: float) -> list[int]:
    """Where windows of `side` begin so that they cover `size` voxels, evenly, overlapping by at least `overlap`."""
    if size <= side:
        return [0]
    count = -((size - side) // -max(1, int(side * (1 - overlap)))) + 1
    return [round(n * (size - side) / (count - 1)) for n in range(count)]
