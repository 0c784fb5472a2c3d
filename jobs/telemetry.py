"""Counts of a run for Prometheus, on a port of its driver."""

from __future__ import annotations

from typing import Any, Self

from prometheus_client import CollectorRegistry, Counter, start_http_server


class Telemetry:
    """Counters behind `http://HOST:PORT/metrics`; without a port, nothing but the counters.

    Example:
        >>> with Telemetry(9100) as telemetry:
        ...     telemetry.count("stored")
    """

    def __init__(self, port: int | None) -> None:
        self._port = port
        self._server: Any = None
        self._registry = CollectorRegistry()
        self._series = Counter(
            "tomoray_preprocess_series", "series by what became of them", ["outcome"], registry=self._registry
        )
        self._bytes = Counter("tomoray_preprocess_bytes", "bytes read and stored", ["of"], registry=self._registry)

    def __enter__(self) -> Self:
        if self._port is not None:
            self._server = start_http_server(self._port, addr="0.0.0.0", registry=self._registry)  # noqa: S104 - scraped
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            server, thread = self._server
            server.shutdown()
            server.server_close()
            thread.join()

    def count(self, outcome: str) -> None:
        """One more series (or part of one) that was `stored`, `refused` or `failed`."""
        self._series.labels(outcome).inc()

    def add_bytes(self, source_bytes: int, voxel_bytes: int) -> None:
        """Bytes of source files, and of uncompressed voxels stored."""
        self._bytes.labels("source").inc(source_bytes)
        self._bytes.labels("voxels").inc(voxel_bytes)
