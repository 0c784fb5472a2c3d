"""What is read of a scan at once, and the patches that are cut from it.

Legend: boxes, origins and corners are in canonical order (axes grow to Superior, Posterior, Left). Corners count target
voxels, boxes and origins stored ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tomoray.archive import Archive
from tomoray.block_cache import BlockCache
from tomoray.buffers import Buffers
from tomoray.geometry import Zyx, to_canonical
from tomoray.sampling import Corners
from tomoray.shards import Box, Encoded, Indices, Reader, Reads, ShardedArray
from tomoray.training.config import TrainConfig
from tomoray.transforms import Taps, linear_taps, resample, scale_hu, target_grid
from tomoray.volume import AIR_HU

Encodings = tuple[list[Encoded], ...]

_HALF = 0.499  # less than a half by more than rounding


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What to cut for sample i.

    Attributes:
        scan_id: from which scan.
        corner_zyx: the patch's first voxel on the scan's target grid (canonical orientation); may lie outside it.
        flips: which axes to mirror.
    """

    scan_id: str
    corner_zyx: Zyx
    flips: tuple[bool, bool, bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """Voxels of one box of a scan: int16 HU, and uint8 masks in the order of the config's labels."""

    origin_zyx: Zyx
    image: npt.NDArray[Any]
    masks: tuple[npt.NDArray[Any], ...]


class OpenScan:
    """A scan ready to be cut: its arrays, and where patches may begin. Holds no voxels; some 12 kB a label.

    Args:
        archive: where it is.
        scan_id: which it is; holds every label of the config.
        config: labels, patch, spacing.
        reads: counts what the store is asked.
        indices: where shard indices are kept.
        buffers: memory for voxels.
        cache: blocks on local disk.

    Raises:
        Fatal, Transient: it cannot be read.
    """

    def __init__(
        self,
        archive: Archive,
        scan_id: str,
        config: TrainConfig,
        *,
        reads: Reads,
        indices: Indices,
        buffers: Buffers,
        cache: BlockCache | None,
    ) -> None:
        scan = archive.scan(scan_id)
        reads.count(requests=1 + len(config.labels))
        edition = hashlib.sha256(repr((scan.geometry, scan.info, scan.label_names)).encode()).hexdigest()
        reader = Reader(archive.store.child(f"scans/{scan_id}"), reads, cache, edition)
        self._config, self._geometry, self._buffers = config, scan.geometry, buffers
        self._grid = target_grid(scan.geometry, config.spacing_zyx_mm)
        self._image = ShardedArray(reader, "0", indices)
        self._masks = [ShardedArray(reader, f"labels/{name}/0", indices) for name in config.labels]
        order, flips = scan.geometry.canonical_axes()
        foreground = {}
        for name in config.labels:
            voxels = scan.foreground_voxels_zyx(name)[:, order]
            if len(voxels):
                foreground[name] = np.where(flips, np.array(self._grid.stored_shape_zyx) - 1 - voxels, voxels)
        z, y, x = (self._image.chunk_zyx[axis] for axis in order)
        self.corners = Corners(
            grid=self._grid,
            patch_zyx=config.patch_zyx,
            foreground=foreground,
            foreground_fraction=config.foreground_fraction,
            chunk_zyx=(z, y, x),
            flips=flips,
        )

    def box(self, corners: Sequence[Zyx]) -> Box:
        """The smallest box that holds what patches at these corners are made of; at least one voxel."""
        sides = []
        for axis in range(3):
            along = [corner[axis] for corner in corners]
            sides.append(slice(self._span(axis, min(along))[0], self._span(axis, max(along))[1]))
        return sides[0], sides[1], sides[2]

    def size_bytes(self, box: Box) -> int:
        """What `read` will hold in memory."""
        each: int = self._image.dtype.itemsize + sum(mask.dtype.itemsize for mask in self._masks)
        return each * prod(int(side.stop - side.start) for side in box)

    def fetch(self, box: Box) -> Encodings:
        """The chunks of a box, encoded: of the image, then of each mask. Raises as `read`."""
        window = self._stored(box)
        return tuple(array.fetch(window) for array in (self._image, *self._masks))

    def decode(self, encodings: Encodings, box: Box) -> Region:
        """The voxels of a box from its chunks. Raises `Fatal` where one is damaged."""
        window = self._stored(box)
        image, *masks = (
            to_canonical(array.decode(chunks, window, self._buffers), self._geometry)
            for array, chunks in zip((self._image, *self._masks), encodings, strict=True)
        )
        return Region(origin_zyx=(box[0].start, box[1].start, box[2].start), image=image, masks=tuple(masks))

    def read(self, box: Box) -> Region:
        """The voxels of a box. Raises `Fatal` or `Transient` where they cannot be read."""
        return self.decode(self.fetch(box), box)

    def cut(self, region: Region, sample: Sample, image: Tensor, classes: Tensor) -> None:
        """Write a patch into `image`, float32 (z, y, x), 0..1, and `classes`, uint8 (z, y, x). Outside is air.

        Masks go through the image's own kernel, and a voxel belongs to a label that covers half of it: picking the
        nearest stored voxel instead would shift masks by half a stored voxel where the step is even.
        """
        if self._grid.step_zyx == (1, 1, 1):
            self._copy(region, sample, image.numpy(), classes.numpy())
            return
        taps = [self._taps(axis, corner) for axis, corner in enumerate(sample.corner_zyx)]
        window = tuple(
            slice(tap.start - first, tap.stop - first) for tap, first in zip(taps, region.origin_zyx, strict=True)
        )
        parts = [torch.from_numpy(np.ascontiguousarray(part[window])) for part in (region.image, *region.masks)]
        stacked = torch.stack([part.float() for part in parts])
        stacked[0] -= AIR_HU  # so that what lies outside, which counts as 0, is air
        hu, *covered = resample(stacked, taps)
        found = torch.zeros_like(classes)
        for number, share in enumerate(covered, start=1):
            found[share > _HALF] = number
        mirrored = [axis for axis, flip in enumerate(sample.flips) if flip]
        image.copy_(scale_hu(hu + AIR_HU, self._config.hu_window).flip(mirrored))
        classes.copy_(found.flip(mirrored))

    def _copy(
        self, region: Region, sample: Sample, image: npt.NDArray[np.float32], classes: npt.NDArray[np.uint8]
    ) -> None:
        """The same where target voxels are stored ones."""
        inside, window = [], []
        for axis, (corner, size, flip) in enumerate(zip(sample.corner_zyx, image.shape, sample.flips, strict=True)):
            start = max(corner, 0)
            stop = max(start, min(corner + size, self._grid.stored_shape_zyx[axis]))
            first = start - region.origin_zyx[axis]
            if flip:
                inside.append(slice(corner + size - stop, corner + size - start))
            else:
                inside.append(slice(start - corner, stop - corner))
            window.append(_side(first, first + stop - start, flip))
        low, high = self._config.hu_window
        voxels, here = image[tuple(inside)], classes[tuple(inside)]
        if voxels.size < image.size:
            image[...] = min(max((AIR_HU - low) / (high - low), 0), 1)
            classes[...] = 0
        least, most = max(floor(low), -(2**15)), min(ceil(high), 2**15 - 1)
        steps = self._buffers.empty(voxels.shape, np.int16)  # as integers: a half of the memory that floats go through
        np.clip(region.image[tuple(window)], least, most, out=steps)
        np.subtract(steps, np.int16(least), out=steps)  # may wrap around, so that it is read without a sign
        np.multiply(steps.view(np.uint16), np.float32(1 / (high - low)), out=voxels, dtype=np.float32)
        if (least, most) != (low, high):
            np.add(voxels, np.float32((least - low) / (high - low)), out=voxels)
            np.clip(voxels, 0, 1, out=voxels)
        for number, mask in enumerate(region.masks, start=1):
            if number == 1:
                np.copyto(here, mask[tuple(window)])
            else:
                np.maximum(here, mask[tuple(window)] * np.uint8(number), out=here)

    def _span(self, axis: int, corner: int) -> tuple[int, int]:
        """First stored voxel along an axis that a patch needs, and one past the last."""
        if self._grid.step_zyx[axis] == 1:  # as linear_taps says, sooner
            last = self._grid.stored_shape_zyx[axis] - 1
            end = corner + self._config.patch_zyx[axis] - 1
            return min(max(corner, 0), last), min(max(end, 0), last) + 1
        taps = self._taps(axis, corner)
        return taps.start, taps.stop

    def _stored(self, box: Box) -> Box:
        """The same box in the order that voxels are stored in."""
        order, flips = self._geometry.canonical_axes()
        stored = [slice(0)] * 3
        for axis, flip, side in zip(order, flips, box, strict=True):
            size = self._geometry.shape_zyx[axis]
            stored[axis] = slice(size - side.stop, size - side.start) if flip else side
        return stored[0], stored[1], stored[2]

    def _taps(self, axis: int, corner: int) -> Taps:
        return linear_taps(
            corner, self._config.patch_zyx[axis], self._grid.step_zyx[axis], self._grid.stored_shape_zyx[axis]
        )


def _side(start: int, stop: int, flip: bool) -> slice:
    """From `start` to `stop`, or the same backwards."""
    if not flip:
        return slice(start, stop)
    return slice(stop - 1, start - 1 if start else None, -1)
