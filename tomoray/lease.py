"""One writer at a time: the mark of a running job in an archive, which also tells how far it is.

    ARCHIVE/run.json    who writes, and how far; there only while a run lasts

A run that was killed leaves its mark behind. The next one takes it over: at once where the process is known to be
dead, else when the mark has not been renewed for a minute.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tomoray.errors import Fatal, TomoRayError
from tomoray.multiscale import to_json
from tomoray.storage import Store

MARK = "run.json"
RENEW_S = 3.0
STALE_S = 60.0


class Progress:
    """How far a run is: plain counts, which the lease writes down as it is renewed."""

    def __init__(self, **counts: Any) -> None:
        self._counts = counts
        self._lock = threading.Lock()

    def update(self, **counts: Any) -> None:
        """Set some of them."""
        with self._lock:
            self._counts |= counts

    def snapshot(self) -> dict[str, Any]:
        """All of them."""
        with self._lock:
            return dict(self._counts)


@contextmanager
def lease(store: Store, progress: Progress) -> Iterator[None]:
    """Be the only writer of the archive in `store` for as long as the body runs, and renew the mark meanwhile.

    Raises:
        Fatal: another run writes there.
    """
    me = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
    if not store.write_new(MARK, _mark(me, progress)):
        other = read_run(store)
        if other is not None and not _is_dead(other):
            raise Fatal(
                f"{store.url} is being written by process {other['pid']} on {other['host']}; wait for it "
                f"(tomoray watch {store.url}), or stop it"
            )
        store.write(MARK, _mark(me, progress))
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(store, me, progress, ended), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        with suppress(TomoRayError):
            store.delete([MARK])


def read_run(store: Store) -> dict[str, Any] | None:
    """What the run that writes now says of itself, and `age_s` since it did; None where nobody writes."""
    try:
        run: dict[str, Any] = json.loads(store.read(MARK))
        return {**run, "age_s": max(0.0, time.time() - float(run["renewed"]))}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):  # a mark of a later release, or a torn one
        return None


def _is_dead(run: dict[str, Any]) -> bool:
    if run["age_s"] > STALE_S:
        return True
    return bool(
        run["host"] == socket.gethostname() and not Path(f"/proc/{run['pid']}").exists() and Path("/proc").exists()
    )


def _renew(store: Store, me: dict[str, Any], progress: Progress, ended: threading.Event) -> None:
    while not ended.wait(RENEW_S):
        with suppress(TomoRayError):  # the run itself meets the same trouble, and says so
            store.write(MARK, _mark(me, progress))


def _mark(me: dict[str, Any], progress: Progress) -> bytes:
    return to_json({**me, "renewed": time.time(), "progress": progress.snapshot()})
