"""One writer at a time: the mark of a running job in its folder, which also tells how far it is.

    ARCHIVE/run.json    who writes an archive, and how far; there only while preprocessing runs
    RUN/lease.json      who trains there; the same for the trials of a tuning

A job that was killed leaves its mark behind. The next one takes it over: at once where the process is known to be
dead, else when the mark has not been renewed for a minute. A job that lived on all the same (its machine slept, its
network was cut) finds a foreign mark, and stops before it writes another row.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tomoray.errors import Fatal, TomoRayError
from tomoray.multiscale import to_json
from tomoray.progress import console
from tomoray.storage import Store

MARK = "run.json"  # of archives
RUN_MARK = "lease.json"  # of runs and tunings, where `run.json` is the result
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


class Lease:
    """The right to be the only writer in `store`, for as long as the body of its `with` runs.

    The mark is renewed meanwhile. At the end it is removed, with all that writers that were killed left unfinished.

    Args:
        store: an archive, a run, a tuning.
        progress: written down with the mark.
        mark: key of the mark.
        waits: wait, a minute at most, until the mark of another machine is renewed or stale, rather than take its
            process for alive: so a job goes on by itself that a cluster starts anew elsewhere.

    Raises:
        Fatal: on entering, where another job writes there.

    Example:
        >>> with Lease(archive.store, Progress(total=12)) as lease:
        ...     lease.check()
    """

    def __init__(self, store: Store, progress: Progress, *, mark: str = MARK, waits: bool = False) -> None:
        self._store, self._key, self._waits = store, mark, waits
        self._progress = progress
        me, host = os.getpid(), socket.gethostname()
        self._me = {"host": host, "pid": me, "born": _born(me), "id": os.urandom(8).hex()}
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Lease:
        self._take()
        self._renewing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._renewing.join()
        with suppress(TomoRayError):  # of a mark that stays, the next run finds that its process is dead
            if self._other() is None:
                self._store.clear_partial()
                self._store.delete([self._key])

    def check(self) -> None:
        """Ask whether this run is still the one that writes. Raises `Fatal` where another one is."""
        other = self._other()
        if other is not None:
            raise Fatal(
                f"{self._store.url} was taken over by process {other['pid']} on {other['host']}, as this run had not "
                "renewed its mark for a minute; that one goes on, and nothing is lost"
            )

    def _take(self) -> None:
        if self._store.write_new(self._key, self._mark()):
            return
        other = self._other()  # not so where an answer was lost, and the mark that is there is our own
        if self._waits and other is not None:
            other = self._last_sign(other)
        if other is not None and not _is_dead(other):
            watch = f" (tomoray watch {self._store.url})" if self._key == MARK else ""
            raise Fatal(
                f"{self._store.url} is being written by process {other['pid']} on {other['host']}; wait for it{watch}, "
                f"or stop it: a machine that is gone holds its place for {STALE_S:.0f} s"
            )
        self._store.write(self._key, self._mark())

    def _last_sign(self, other: dict[str, Any]) -> dict[str, Any] | None:
        """The mark of another machine once it was renewed, is stale, or is gone (None)."""
        if other["host"] != socket.gethostname() and not _is_dead(other):
            console.print(f"waiting for a sign of process {other['pid']} on {other['host']}, a minute at most")
        while other["host"] != socket.gethostname() and not _is_dead(other):
            time.sleep(1)
            now = self._other()
            if now is None or now["id"] != other["id"] or now["age_s"] < other["age_s"]:
                return now
            other = now
        return other

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S):
            with suppress(TomoRayError):  # the run itself meets the same trouble, and says so
                if self._other() is None:
                    self._store.write(self._key, self._mark())

    def _other(self) -> dict[str, Any] | None:
        run = read_run(self._store, self._key)
        return None if run is None or run["id"] == self._me["id"] else run

    def _mark(self) -> bytes:
        return to_json({**self._me, "renewed": time.time(), "progress": self._progress.snapshot()})


def read_run(store: Store, mark: str = MARK) -> dict[str, Any] | None:
    """What the run that writes now says of itself, and `age_s` since it did; None where nobody writes.

    A mark that cannot be understood is nobody's: the next run takes it over.
    """
    try:
        run: dict[str, Any] = json.loads(store.read(mark))
        known = {"host": str(run["host"]), "pid": int(run["pid"]), "born": run.get("born"), "id": str(run["id"])}
        return {**known, "progress": dict(run["progress"]), "age_s": max(0.0, time.time() - float(run["renewed"]))}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_dead(run: dict[str, Any]) -> bool:
    """True where nobody has renewed the mark for long, or its process ran here and is no more."""
    if run["age_s"] > STALE_S:
        return True
    return bool(run["host"] == socket.gethostname() and run["born"] is not None and _born(run["pid"]) != run["born"])


def _born(pid: int) -> str | None:
    """When a process began, in ticks of this machine; None where it is dead, or the system does not say (proc(5)).

    A container that starts again has the same name and often the same process id, so these alone tell nothing.
    """
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else rest[18]
