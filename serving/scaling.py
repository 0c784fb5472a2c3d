"""How many replicas: as many as the requests call for, and as many as answer them in time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.serve.config import AutoscalingContext

PACE = "seconds_a_scan"
_OF_SCANS = 8


class Pace:
    """How fast a replica gets on with what it has to do; time without work does not count."""

    def __init__(self) -> None:
        self._ongoing, self._mark = 0, 0.0
        self._between: deque[float] = deque(maxlen=_OF_SCANS)

    @contextmanager
    def scan(self) -> Iterator[None]:
        """Around the work on one; one that fails does not count."""
        if not self._ongoing:
            self._mark = time.monotonic()
        self._ongoing += 1
        try:
            yield
            now = time.monotonic()
            self._between.append(now - self._mark)
            self._mark = now
        finally:
            self._ongoing -= 1

    def seconds_a_scan(self) -> float:
        """From one scan that ended to the next, over the last few; 0 before the first."""
        return sum(self._between) / len(self._between) if self._between else 0.0


class QueueAndLatency:
    """Ray Serve's own rule, `target_ongoing_requests` for each replica, and a second one: the more calls.

    The second one is Little's law: with n replicas that take s seconds a scan each, of r requests that are under way or
    wait the last is answered after r * s / n seconds.

    Args:
        target_s: how long that may be.
    """

    def __init__(self, target_s: float) -> None:
        self._target_s = target_s

    def __call__(self, ctx: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """Replicas that are wanted, before Ray Serve applies bounds and delays; and no state."""
        by_queue = ctx.total_num_requests / ctx.config.get_target_ongoing_requests()
        paces = [pace for pace in (ctx.aggregated_metrics or {}).get(PACE, {}).values() if pace > 0]
        slowest = max(paces, default=0.0)
        return max(by_queue, ctx.total_num_requests * slowest / self._target_s), {}
