"""The samples of a run, and the scans they are cut from, opened when they are wanted and kept while there is room."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from functools import lru_cache

import numpy as np

from tomoray.archive import Archive
from tomoray.block_cache import BlockCache
from tomoray.buffers import Buffers
from tomoray.regions import OpenScan, Sample
from tomoray.sampling import Nearby, Order
from tomoray.shards import Indices, Reads
from tomoray.training.config import TrainConfig

_OPEN_SCANS = 512


class Samples:
    """What sample i is (`sampling`), whoever cuts it. Safe to use from many threads.

    Args:
        archive: where scans are.
        scan_ids: scans to draw from, in any order.
        config: seed, labels, patch, spacing, stream.
        reads: counts what the store is asked.
        cache: blocks on local disk.
    """

    def __init__(
        self, archive: Archive, scan_ids: Sequence[str], config: TrainConfig, reads: Reads, cache: BlockCache | None
    ) -> None:
        self._archive, self._config, self._reads, self._cache = archive, config, reads, cache
        self._scan_ids = sorted(scan_ids)
        self._indices = Indices()
        self.buffers = Buffers(config.stream.read_ahead_mb * 10**6 // 4)
        self._lock = threading.Lock()
        self._scans: OrderedDict[str, Future[OpenScan]] = OrderedDict()
        self.order = Order(
            config.seed,
            len(self._scan_ids),
            patches_per_visit=config.stream.patches_per_visit,
            visits_at_once=config.stream.visits_at_once,
        )
        self._nearby = lru_cache(maxsize=2 * config.stream.visits_at_once)(self._draw_nearby)

    def sample(self, i: int) -> Sample:
        """What to cut. Opens the scan where it is not open."""
        visit = self.order.visit(i)
        scan_id = self.scan_id(visit)
        draws = self.order.sample_draws(i, 9)
        one = self._config.stream.patches_per_visit == 1
        corner = self.scan(scan_id).corners.draw(draws) if one else self._nearby(visit).draw(draws)
        flips = draws[6:9] < 0.5 if self._config.augment.mirror else np.zeros(3, dtype=bool)
        return Sample(scan_id=scan_id, corner_zyx=corner, flips=(bool(flips[0]), bool(flips[1]), bool(flips[2])))

    def scan_id(self, visit: int) -> str:
        """Where a visit goes."""
        return self._scan_ids[self.order.scan(visit)]

    def scan(self, scan_id: str) -> OpenScan:
        """The scan, opened. Who asks while another thread opens it waits for that one."""
        with self._lock:
            future = self._scans.get(scan_id)
            opens = future is None
            if future is None:
                future = self._scans[scan_id] = Future()
                while len(self._scans) > _OPEN_SCANS:
                    self._scans.popitem(last=False)
            else:
                self._scans.move_to_end(scan_id)
        if opens:
            try:
                future.set_result(
                    OpenScan(
                        self._archive,
                        scan_id,
                        self._config,
                        reads=self._reads,
                        indices=self._indices,
                        buffers=self.buffers,
                        cache=self._cache,
                    )
                )
            except BaseException as error:
                with self._lock:
                    self._scans.pop(scan_id, None)  # so that the next one tries again
                future.set_exception(error)
        return future.result()

    def is_open(self, scan_id: str) -> bool:
        """Whether `scan` would return at once."""
        with self._lock:
            future = self._scans.get(scan_id)
        return future is not None and future.done()

    def _draw_nearby(self, visit: int) -> Nearby:
        """Where the samples of a visit may lie."""
        corners = self.scan(self.scan_id(visit)).corners
        return corners.near(corners.draw(self.order.visit_draws(visit, 6)))
