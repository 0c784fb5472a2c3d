"""The patch stream: windows of many scans read ahead, in an order that depends on the seed alone.

Sample i of a run is a pure function of (seed, i). Step s wants samples s * batch to (s + 1) * batch, of which rank r of
n takes every n-th from the r-th on. So the order does not depend on how fast anyone reads or on how many do, and a run
resumes anywhere by starting at that step. Only windows are read, never a scan; threads wait for them while TensorStore
fetches and decodes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tomoray.archive import Archive
from tomoray.errors import Fatal
from tomoray.geometry import Geometry, Zyx, to_canonical
from tomoray.training.config import TrainConfig
from tomoray.transforms import Grid, Taps, linear_taps, resample, scale_hu, target_grid
from tomoray.volume import AIR_HU

_Patch = tuple[str, Tensor, Tensor]  # scan_id, image, classes
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
class Batch:
    """Patches for one step of one worker.

    Attributes:
        image: float32 (batch, 1, z, y, x), HU scaled to 0..1.
        classes: uint8 (batch, 1, z, y, x): 0 background, n for `config.labels[n - 1]`.
        samples: number of each sample within the run, which whatever is drawn for it depends on.
        scan_ids: where each was cut from.
        waited_s: how long the training loop stood still for it.
    """

    image: Tensor
    classes: Tensor
    samples: tuple[int, ...]
    scan_ids: tuple[str, ...]
    waited_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _OpenScan:
    geometry: Geometry
    grid: Grid
    image: Any
    labels: dict[str, Any]
    foreground: dict[str, np.ndarray]  # canonical voxels (n, 3); labels with an empty mask are absent


class PatchStream:
    """Batches of one worker, from `start_step` on, without end.

    Args:
        archive: where scans are.
        scan_ids: scans to draw from; each holds every label of the config (see `require_labels`).
        config: labels, patch, spacing, seed.
        rank: this worker.
        world_size: workers.
        start_step: the first step's number.
        in_flight: batches being read ahead; bounds the memory.
    """

    def __init__(
        self,
        archive: Archive,
        scan_ids: Sequence[str],
        config: TrainConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        in_flight: int = 4,
    ) -> None:
        self._archive = archive
        self._scan_ids = sorted(scan_ids)
        self._config = config
        self._rank, self._world_size = rank, world_size
        self._start_step = start_step
        self._in_flight = in_flight
        self._open = lru_cache(maxsize=256)(self._open_scan)

    def __iter__(self) -> Iterator[Batch]:
        """Read ahead in threads that end with the iterator."""
        with ThreadPoolExecutor(min(32, self._in_flight * self._config.batch_size), "patches") as pool:
            waiting: deque[tuple[range, list[Future[_Patch]]]] = deque()
            step = self._start_step
            try:
                while True:
                    while len(waiting) < self._in_flight:
                        samples = self._samples(step)
                        waiting.append((samples, [pool.submit(self._read, i) for i in samples]))
                        step += 1
                    since = time.perf_counter()
                    samples, futures = waiting.popleft()
                    scan_ids, image, classes = zip(*(future.result() for future in futures), strict=True)
                    waited_s = time.perf_counter() - since
                    yield Batch(
                        image=torch.stack(image)[:, None],
                        classes=torch.stack(classes)[:, None],
                        samples=tuple(samples),
                        scan_ids=scan_ids,
                        waited_s=waited_s,
                    )
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def sample(self, i: int) -> Sample:
        """What sample i of the run is, whoever cuts it."""
        rng = np.random.Generator(np.random.Philox(key=[self._config.seed % 2**64, i]))
        scan_id = self._scan_ids[rng.integers(len(self._scan_ids))]
        scan = self._open(scan_id)
        patch = np.array(self._config.patch_zyx)
        on_foreground = rng.random() < self._config.foreground_fraction and scan.foreground
        if on_foreground:
            voxels = scan.foreground[sorted(scan.foreground)[rng.integers(len(scan.foreground))]]
            centre = (voxels[rng.integers(len(voxels))] + 0.5) / scan.grid.step_zyx
            corner = np.floor(centre).astype(int) - patch // 2
        else:
            spare = np.array(scan.grid.shape_zyx) - patch
            corner = np.where(spare > 0, rng.integers(0, np.maximum(spare, 0) + 1), spare // 2)
        flips = rng.random(3) < 0.5 if self._config.augment.mirror else np.zeros(3, dtype=bool)
        z, y, x = (int(v) for v in corner)
        return Sample(scan_id=scan_id, corner_zyx=(z, y, x), flips=(bool(flips[0]), bool(flips[1]), bool(flips[2])))

    def cut(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """The patch: image float32 (z, y, x), 0..1, and classes uint8 (z, y, x). Outside the scan is air.

        Masks go through the image's own kernel, and a voxel belongs to a label that covers half of it: picking the
        nearest stored voxel instead would shift masks by half a stored voxel where the step is even.
        """
        scan, patch = self._open(sample.scan_id), self._config.patch_zyx
        taps = [
            linear_taps(*axis)
            for axis in zip(sample.corner_zyx, patch, scan.grid.step_zyx, scan.grid.stored_shape_zyx, strict=True)
        ]
        pending = [_read_window(store, scan.geometry, taps) for store in (scan.image, *scan.labels.values())]
        try:
            windows = [_canonical_tensor(future.result(), scan.geometry) for future in pending]
        except ValueError as error:  # TensorStore's word for every trouble
            raise self._archive.store.explain(error) from error
        stacked = torch.stack([window.float() for window in windows])
        stacked[0] -= AIR_HU  # so that what lies outside, which counts as 0, is air
        hu, *covered = resample(stacked, taps)
        image = scale_hu(hu + AIR_HU, self._config.hu_window)
        classes = torch.zeros(patch, dtype=torch.uint8)
        for number, share in enumerate(covered, start=1):
            classes[share > _HALF] = number
        mirrored = [axis for axis, flip in enumerate(sample.flips) if flip]
        return image.flip(mirrored), classes.flip(mirrored)

    def _read(self, i: int) -> _Patch:
        sample = self.sample(i)
        return sample.scan_id, *self.cut(sample)

    def _samples(self, step: int) -> range:
        batch = self._config.batch_size
        return range(step * batch + self._rank, (step + 1) * batch, self._world_size)

    def _open_scan(self, scan_id: str) -> _OpenScan:
        scan = self._archive.scan(scan_id)
        order, flips = scan.geometry.canonical_axes()
        foreground = {}
        for name in self._config.labels:
            voxels = scan.foreground_voxels_zyx(name)[:, order]
            if len(voxels):
                last = np.array(scan.geometry.shape_zyx)[list(order)] - 1
                foreground[name] = np.where(flips, last - voxels, voxels)
        return _OpenScan(
            geometry=scan.geometry,
            grid=target_grid(scan.geometry, self._config.spacing_zyx_mm),
            image=scan.image(),
            labels={name: scan.label(name) for name in self._config.labels},
            foreground=foreground,
        )


def require_labels(labels_by_scan: Mapping[str, Sequence[str]], wanted: Sequence[str]) -> None:
    """Raise `Fatal` for the first scan that lacks a wanted label."""
    for scan_id, found in sorted(labels_by_scan.items()):
        missing = [name for name in wanted if name not in found]
        if missing:
            raise Fatal(
                f"scan {scan_id} has no label {missing[0]!r} (it has: {', '.join(found) or 'none'}); preprocess its "
                f"masks too, or name other labels in the config"
            )


def _read_window(store: Any, geometry: Geometry, taps_zyx: Sequence[Taps]) -> Any:
    """A TensorStore future of the stored window that `taps_zyx`, in canonical order, read."""
    order, flips = geometry.canonical_axes()
    window = [slice(0)] * 3
    for axis, flip, taps in zip(order, flips, taps_zyx, strict=True):
        size = geometry.shape_zyx[axis]
        window[axis] = slice(size - taps.stop, size - taps.start) if flip else slice(taps.start, taps.stop)
    return store[tuple(window)].read()


def _canonical_tensor(window_zyx: np.ndarray, geometry: Geometry) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(to_canonical(window_zyx, geometry)))
