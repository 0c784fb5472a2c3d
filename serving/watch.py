"""What is written down of requests: the audit log, and numbers for Prometheus. Pseudonyms and counts only."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tomoray.errors import Fatal

logger = logging.getLogger("ray.serve")

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class Audit:
    """JSON lines: who asked for what, when, and how it ended. Several gateways may append to one file."""

    def __init__(self, path: Path | None) -> None:
        self._file: int | None = None
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            except OSError as error:
                raise Fatal(f"the audit log {path}: {error.strerror}; choose another audit.file") from error

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append a line; `time` is added."""
        line = json.dumps({"time": round(time.time(), 3), **entry})
        if self._file is None:
            logger.info("audit %s", line)
        else:
            os.write(self._file, line.encode() + b"\n")  # one call, so that lines of others stay whole


class Numbers:
    """Counters of one gateway; Prometheus tells gateways apart by `replica`."""

    def __init__(self, replica: str) -> None:
        self._registry = CollectorRegistry()
        labels = ("replica", "route", "status")
        self._requests = Counter("tomoray_serving_requests", "Requests answered", labels, registry=self._registry)
        self._seconds = Histogram(
            "tomoray_serving_request_seconds",
            "Until the answer began",
            ("replica", "route"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._bytes = Counter(
            "tomoray_serving_body_bytes", "Bytes received", ("replica", "route"), registry=self._registry
        )
        self._jobs = Gauge("tomoray_serving_jobs", "Jobs in the queue", ("state",), registry=self._registry)
        self._replica = replica

    def count(self, route: str, status: int, seconds: float, body_bytes: int) -> None:
        """Count a request that was answered."""
        self._requests.labels(self._replica, route, str(status)).inc()
        self._seconds.labels(self._replica, route).observe(seconds)
        self._bytes.labels(self._replica, route).inc(body_bytes)

    def text(self, jobs: Mapping[str, int]) -> bytes:
        """All of it in Prometheus' text format, with the jobs in each state."""
        for state in ("queued", "running", "done", "failed", "cancelled"):
            self._jobs.labels(state).set(jobs.get(state, 0))
        return generate_latest(self._registry)
