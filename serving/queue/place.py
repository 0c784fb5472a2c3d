"""Where a queue is: a URL to the queue behind it."""

from __future__ import annotations

from pathlib import Path

from serving.queue.job import Queue
from serving.queue.redis import RedisQueue
from serving.queue.sql import Postgres, Sqlite, SqlQueue


def open_queue(url: str) -> Queue:
    """The queue at a path (SQLite), `postgresql://…` or `redis://…`; made where there is none.

    Raises:
        Fatal: the place cannot be used.
        Transient: its server does not answer.
    """
    if url.startswith(("postgresql://", "postgres://")):
        return SqlQueue(Postgres(url))
    if url.startswith(("redis://", "rediss://")):
        return RedisQueue(url)
    return SqlQueue(Sqlite(Path(url).expanduser()))


def is_on_this_machine(url: str) -> bool:
    """True for a path."""
    return "://" not in url
