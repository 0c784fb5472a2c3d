"""Steps cut ahead of the training: which boxes to read now, and how much memory that may take.

Everything held for steps to come is counted before it is read: the box of each visit, and the patches of each step. A
step is begun while both fit into the limit, up to one visit in every slot ahead; the next one to be handed out is begun
in any case, and visits that are wanted latest make room for it. They are then read a second time.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from tomoray.regions import OpenScan, Region, Sample
from tomoray.samples import Samples
from tomoray.shards import Box
from tomoray.training.config import TrainConfig

T = TypeVar("T")

MEGABYTE = 10**6
_LOADERS = 16  # boxes under way at once: these threads wait for the store, and never compute
_BYTES_PER_VOXEL = 5  # of a patch: float32 and uint8


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """Which samples of each step a worker takes: every `world_size`-th from the `rank`-th on."""

    batch_size: int
    rank: int = 0
    world_size: int = 1

    def samples(self, step: int) -> tuple[int, ...]:
        """The numbers of its samples of a step."""
        first = step * self.batch_size
        return tuple(range(first + self.rank, first + self.batch_size, self.world_size))

    def __contains__(self, i: int) -> bool:
        return i % self.batch_size % self.world_size == self.rank


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Patches of one step: float32 and uint8 (patches, z, y, x), written by `patches`."""

    samples: tuple[int, ...]
    scan_ids: tuple[str, ...]
    image: Tensor
    classes: Tensor
    patches: tuple[Future[None], ...]

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        return self.image.nbytes + self.classes.nbytes


@dataclass(kw_only=True, slots=True)
class _Visit:
    """A visit whose box is in memory, or on its way there."""

    scan: OpenScan
    region: Future[Region]
    size_bytes: int
    left: dict[int, Sample]  # by number: those still to be cut
    under_way: int = 0  # samples being cut


class ReadAhead:
    """Steps of one worker from `first_step` on. One thread takes them; others read and cut.

    Args:
        samples: of the run.
        share: which of them are wanted.
        config: patch, stream.
        first_step: the first step's number.
    """

    def __init__(self, samples: Samples, share: Share, config: TrainConfig, first_step: int) -> None:
        self._samples, self._share, self._patch_zyx = samples, share, config.patch_zyx
        self._limit_bytes = config.stream.read_ahead_mb * MEGABYTE
        self._loaders = ThreadPoolExecutor(_LOADERS, "boxes")
        self._workers = ThreadPoolExecutor(_cores(), "patches")
        self._next = self._foreseen = first_step
        self._most = -(-config.stream.patches_per_visit * config.stream.visits_at_once // share.batch_size) + 1
        self._steps: deque[Step] = deque()
        self._lock = threading.Lock()  # of what follows
        self._visits: dict[int, _Visit] = {}
        self._held_bytes = self.peak_bytes = 0

    def take(self) -> Step:
        """The next step, whole. Raises what reading raised."""
        while len(self._steps) < self._most and self._begin(must=not self._steps):
            pass
        step = self._steps.popleft()
        for patch in step.patches:
            patch.result()
        self._hold(-step.size_bytes)
        return step

    def close(self) -> None:
        """Begin nothing more; nobody waits for what is under way."""
        self._loaders.shutdown(wait=False, cancel_futures=True)
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _begin(self, *, must: bool) -> bool:
        """Begin the next step; False where there is no room, or its scans are not open yet."""
        self._foresee()
        numbers = self._share.samples(self._next)
        visits = [self._samples.order.visit(i) for i in numbers]
        new = sorted({visit for visit in visits if visit not in self._visits})
        if not must and not all(self._samples.is_open(self._samples.scan_id(visit)) for visit in new):
            return False
        planned = {visit: self._plan(visit) for visit in new}
        size_bytes = len(numbers) * _BYTES_PER_VOXEL * prod(self._patch_zyx)
        size_bytes += sum(size for _, _, _, size in planned.values())
        if self._held_bytes + size_bytes > self._limit_bytes:
            if not must:
                return False
            self._make_room(size_bytes, set(visits))
        self._hold(size_bytes)
        for visit, (scan, box, left, size) in planned.items():
            region: Future[Region] = Future()
            self._visits[visit] = _Visit(scan=scan, region=region, size_bytes=size, left=left)
            self._loaders.submit(self._load, scan, box, region)
        shape = (len(numbers), *self._patch_zyx)
        image = torch.from_numpy(self._samples.buffers.empty(shape, np.float32))
        classes = torch.from_numpy(self._samples.buffers.empty(shape, np.uint8))
        found = [self._visits[visit].left[i] for visit, i in zip(visits, numbers, strict=True)]
        with self._lock:
            for visit in visits:
                self._visits[visit].under_way += 1
        patches = tuple(
            self._cut_later(visit, i, sample, image[n], classes[n])
            for n, (visit, i, sample) in enumerate(zip(visits, numbers, found, strict=True))
        )
        scan_ids = tuple(sample.scan_id for sample in found)
        self._steps.append(Step(samples=numbers, scan_ids=scan_ids, image=image, classes=classes, patches=patches))
        self._next += 1
        return True

    def _foresee(self) -> None:
        """Open the scans of the steps that come next."""
        while self._foreseen < self._next + self._most:
            for i in self._share.samples(self._foreseen):
                scan_id = self._samples.scan_id(self._samples.order.visit(i))
                if not self._samples.is_open(scan_id):
                    self._loaders.submit(self._samples.scan, scan_id)
            self._foreseen += 1

    def _plan(self, number: int) -> tuple[OpenScan, Box, dict[int, Sample], int]:
        """A visit's scan, the box and the samples that are still wanted of it, and the bytes of the box."""
        first = self._next * self._share.batch_size
        numbers = [i for i in self._samples.order.samples(number) if i >= first and i in self._share]
        left = {i: self._samples.sample(i) for i in numbers}
        scan = self._samples.scan(self._samples.scan_id(number))
        box = scan.box([sample.corner_zyx for sample in left.values()])
        return scan, box, left, scan.size_bytes(box)

    def _load(self, scan: OpenScan, box: Box, region: Future[Region]) -> None:
        """Wait for the bytes of a box; a worker decodes them."""
        try:
            encodings = scan.fetch(box)
        except BaseException as error:
            region.set_exception(error)
        else:
            self._work(region, scan.decode, encodings, box)

    def _cut_later(self, number: int, i: int, sample: Sample, image: Tensor, classes: Tensor) -> Future[None]:
        """Cut a patch as soon as its box is there."""
        patch: Future[None] = Future()
        region = self._visits[number].region
        region.add_done_callback(lambda _: self._work(patch, self._cut, number, i, sample, image, classes))
        return patch

    def _cut(self, number: int, i: int, sample: Sample, image: Tensor, classes: Tensor) -> None:
        visit = self._visits[number]
        visit.scan.cut(visit.region.result(), sample, image, classes)
        with self._lock:
            visit.under_way -= 1
            del visit.left[i]
            if not visit.left:
                self._let_go(number)

    def _work(self, result: Future[T], call: Callable[..., T], *args: Any) -> None:
        """Have a worker do it, and put what it gives, or raises, into `result`."""

        def work() -> None:
            try:
                result.set_result(call(*args))
            except BaseException as error:
                result.set_exception(error)

        with suppress(RuntimeError):  # closed meanwhile: nobody waits for it
            self._workers.submit(work)

    def _make_room(self, size_bytes: int, wanted: set[int]) -> None:
        """Let go of idle visits, those that are wanted latest first."""
        with self._lock:
            idle = [number for number, visit in self._visits.items() if not visit.under_way and number not in wanted]
            for number in sorted(idle, key=lambda number: min(self._visits[number].left), reverse=True):
                if self._held_bytes + size_bytes <= self._limit_bytes:
                    break
                self._let_go(number)

    def _let_go(self, number: int) -> None:
        self._held_bytes -= self._visits.pop(number).size_bytes

    def _hold(self, size_bytes: int) -> None:
        with self._lock:
            self._held_bytes += size_bytes
            self.peak_bytes = max(self.peak_bytes, self._held_bytes)


def _cores() -> int:
    """How many this process may use; pinning is Linux's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
