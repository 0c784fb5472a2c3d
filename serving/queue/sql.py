"""The queue in a SQL database: SQLite in a file, or PostgreSQL. One table; each call is one transaction."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from serving.queue.job import Job, JobError, NewJob, State
from tomoray.errors import Busy, Fatal, Transient

_TABLE = """
CREATE TABLE IF NOT EXISTS tomoray_jobs (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    ask TEXT NOT NULL,
    idempotency TEXT UNIQUE,
    digest TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'queued',
    ready DOUBLE PRECISION NOT NULL,
    holder TEXT,
    attempts INTEGER NOT NULL DEFAULT 0,
    done INTEGER NOT NULL DEFAULT 0,
    total INTEGER NOT NULL DEFAULT 0,
    created DOUBLE PRECISION NOT NULL,
    started DOUBLE PRECISION,
    finished DOUBLE PRECISION,
    expires DOUBLE PRECISION,
    result TEXT,
    error_status INTEGER,
    error_code TEXT,
    error_message TEXT
)
"""
# `ready` is when a queued job may be taken, and when the lease of a running one ends
_INDEXES = (
    "CREATE INDEX IF NOT EXISTS tomoray_jobs_open ON tomoray_jobs (created, id) WHERE state IN ('queued', 'running')",
    "CREATE INDEX IF NOT EXISTS tomoray_jobs_ended ON tomoray_jobs (expires) WHERE expires IS NOT NULL",
)
_ADD = """
INSERT INTO tomoray_jobs (id, owner, ask, idempotency, digest, ready, created)
VALUES (:id, :owner, :ask, :idempotency, :digest, {now}, {now})
ON CONFLICT (idempotency) DO NOTHING RETURNING *
"""
_GIVE_UP = """
UPDATE tomoray_jobs SET state = 'failed', holder = NULL, finished = {now}, expires = {now} + :keep_s,
    error_status = 500, error_code = 'gave_up', error_message = 'the job ended the process that worked on it each time'
WHERE state = 'running' AND ready < {now} AND attempts >= :most_attempts
"""
_TAKE = """
UPDATE tomoray_jobs SET state = 'running', holder = :holder, ready = {now} + :lease_s, attempts = attempts + 1,
    started = COALESCE(started, {now}), done = 0, total = 0
WHERE id = (
    SELECT id FROM tomoray_jobs WHERE state IN ('queued', 'running') AND ready <= {now}
    ORDER BY created, id LIMIT 1 {skip_locked}
) RETURNING *
"""
_HELD = "WHERE id = :id AND holder = :holder AND state = 'running'"
_RENEW = f"UPDATE tomoray_jobs SET ready = {{now}} + :lease_s, done = :done, total = :total {_HELD}"  # noqa: S608
_RELEASE = (
    "UPDATE tomoray_jobs SET state = 'queued', holder = NULL, ready = {now} + :delay_s, "  # noqa: S608
    f"attempts = attempts - :refund {_HELD}"
)
_FINISH = (
    "UPDATE tomoray_jobs SET state = :state, holder = NULL, finished = {now}, expires = {now} + :keep_s, "  # noqa: S608
    f"result = :result, error_status = :status, error_code = :code, error_message = :message {_HELD}"
)
_CANCEL = """
UPDATE tomoray_jobs SET state = 'cancelled', holder = NULL, finished = {now}, expires = {now} + :keep_s
WHERE id = :id AND state IN ('queued', 'running')
"""


class Database(Protocol):
    """What tells SQLite from PostgreSQL.

    Attributes:
        now: an expression for the time in seconds since 1970.
        skip_locked: what makes takers pass by a row that another one takes.
        one_at_a_time: a statement after which one transaction at a time goes on.
    """

    now: str
    skip_locked: str
    one_at_a_time: str

    def transaction(self) -> AbstractContextManager[Callable[[str, Mapping[str, Any]], list[Mapping[str, Any]]]]:
        """`execute(statement, values)` in one transaction: rows by column, of an update one row `{"changed": n}`."""

    def close(self) -> None:
        """Close connections."""


class SqlQueue:
    """`Queue` in a database; makes its table where there is none."""

    def __init__(self, database: Database) -> None:
        self._database = database
        with database.transaction() as execute:
            for statement in (database.one_at_a_time, _TABLE, *_INDEXES):
                execute(statement, {})

    def add(self, job: NewJob, *, most_waiting: int) -> Job:
        """`Queue.add`."""
        with self._database.transaction() as execute:
            there = self._same_key(execute, job)
            if there is not None:
                return there
            waiting = execute("SELECT COUNT(*) AS n FROM tomoray_jobs WHERE state = 'queued'", {})[0]["n"]
            if waiting >= most_waiting:
                raise Busy(f"{waiting} jobs wait already; try again later")
            values = {name: getattr(job, name) for name in ("id", "owner", "ask", "idempotency", "digest")}
            added = execute(self._said(_ADD), values)
            if added:
                return _job(added[0])
        with self._database.transaction() as execute:  # another request was first with the same key
            there = self._same_key(execute, job)
        if there is None:
            raise Transient("the queue forgot a job while it was asked for; try again")
        return there

    def get(self, job_id: str) -> Job | None:
        """`Queue.get`."""
        with self._database.transaction() as execute:
            return _one(execute("SELECT * FROM tomoray_jobs WHERE id = :id", {"id": job_id}))

    def take(self, holder: str, *, lease_s: float, most_attempts: int, keep_s: float) -> Job | None:
        """`Queue.take`."""
        with self._database.transaction() as execute:
            execute(self._said(_GIVE_UP), {"most_attempts": most_attempts, "keep_s": keep_s})
            return _one(execute(self._said(_TAKE), {"holder": holder, "lease_s": lease_s}))

    def renew(self, job_id: str, holder: str, *, lease_s: float, done: int, total: int) -> bool:
        """`Queue.renew`."""
        values = {"id": job_id, "holder": holder, "lease_s": lease_s, "done": done, "total": total}
        return self._changes(_RENEW, values)

    def release(self, job_id: str, holder: str, *, delay_s: float, counts: bool) -> bool:
        """`Queue.release`."""
        values = {"id": job_id, "holder": holder, "delay_s": delay_s, "refund": 0 if counts else 1}
        return self._changes(_RELEASE, values)

    def finish(self, job_id: str, holder: str, *, result: str | None, error: JobError | None, keep_s: float) -> bool:
        """`Queue.finish`."""
        values = {"id": job_id, "holder": holder, "keep_s": keep_s, "state": "failed" if error else "done"}
        told = {"status": None, "code": None, "message": None}
        if error is not None:
            told = {"status": error.status, "code": error.code, "message": error.message}
        return self._changes(_FINISH, {**values, **told, "result": result})

    def cancel(self, job_id: str, *, keep_s: float) -> Job | None:
        """`Queue.cancel`."""
        self._changes(_CANCEL, {"id": job_id, "keep_s": keep_s})
        return self.get(job_id)

    def forget(self, job_id: str) -> None:
        """`Queue.forget`."""
        self._changes("DELETE FROM tomoray_jobs WHERE id = :id AND expires IS NOT NULL", {"id": job_id})

    def purge(self) -> list[str]:
        """`Queue.purge`."""
        with self._database.transaction() as execute:
            return [
                row["id"]
                for row in execute(self._said("DELETE FROM tomoray_jobs WHERE expires <= {now} RETURNING id"), {})
            ]

    def known(self, job_ids: list[str]) -> set[str]:
        """`Queue.known`."""
        with self._database.transaction() as execute:
            return {
                job_id for job_id in job_ids if execute("SELECT id FROM tomoray_jobs WHERE id = :id", {"id": job_id})
            }

    def counts(self) -> dict[State, int]:
        """`Queue.counts`."""
        with self._database.transaction() as execute:
            found = execute("SELECT state, COUNT(*) AS n FROM tomoray_jobs GROUP BY state", {})
        return {row["state"]: row["n"] for row in found}

    def close(self) -> None:
        """`Queue.close`."""
        self._database.close()

    def _same_key(self, execute: Any, job: NewJob) -> Job | None:
        if job.idempotency is None:
            return None
        return _one(execute("SELECT * FROM tomoray_jobs WHERE idempotency = :key", {"key": job.idempotency}))

    def _changes(self, statement: str, values: Mapping[str, Any]) -> bool:
        with self._database.transaction() as execute:
            return bool(execute(self._said(statement), values)[0]["changed"])

    def _said(self, statement: str) -> str:
        return statement.format(now=self._database.now, skip_locked=self._database.skip_locked)


class Sqlite:
    """A database in a file, which its owner alone may read. A connection for each thread; all processes on one machine.

    Raises:
        Fatal: the file cannot be used.
    """

    now = "((julianday('now') - 2440587.5) * 86400.0)"
    skip_locked = ""
    one_at_a_time = "SELECT 1"  # each is anyway

    def __init__(self, path: Path) -> None:
        self._path, self._local = path, threading.local()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
        except OSError as error:
            raise Fatal(f"{path}: {error.strerror}; choose another place for the queue") from error

    @contextmanager
    def transaction(self) -> Iterator[Callable[[str, Mapping[str, Any]], list[Mapping[str, Any]]]]:
        """`Database.transaction`."""
        try:
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield lambda statement, values: _rows(connection.execute(statement, values))
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
        except sqlite3.OperationalError as error:  # locked for too long, disk full
            raise Transient(f"the queue at {self._path} does not answer ({error}); try again") from error
        except sqlite3.DatabaseError as error:
            raise Fatal(f"{self._path} is no queue ({error}); move it away") from error

    def close(self) -> None:
        """Of this thread; those of others end with them."""
        if hasattr(self._local, "connection"):
            self._local.connection.close()
            del self._local.connection

    def _connection(self) -> sqlite3.Connection:
        if not hasattr(self._local, "connection"):
            connection = sqlite3.connect(self._path, timeout=30, isolation_level=None)
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")  # a 202 is a promise: it is on the disk before it is given
            self._local.connection = connection
        return self._local.connection


class Postgres:
    """A database on a server; a few connections, which are made anew where they break.

    Args:
        url: `postgresql://user@host/database`; the password comes from where libpq looks for it (`PGPASSWORD`, a
            password file).
    """

    now = "EXTRACT(EPOCH FROM clock_timestamp())::double precision"
    skip_locked = "FOR UPDATE SKIP LOCKED"
    one_at_a_time = "SELECT pg_advisory_xact_lock(7017)"

    def __init__(self, url: str) -> None:
        import psycopg
        from psycopg.rows import dict_row

        self._psycopg, self._row_factory = psycopg, dict_row
        self._url, self._free, self._lock = url, [], threading.Lock()

    @contextmanager
    def transaction(self) -> Iterator[Callable[[str, Mapping[str, Any]], list[Mapping[str, Any]]]]:
        """`Database.transaction`."""
        try:
            connection = self._take()
            try:
                with connection.transaction():
                    yield lambda statement, values: _rows(connection.execute(_pyformat(statement), values))
            finally:
                self._give_back(connection)
        except self._psycopg.OperationalError as error:
            raise Transient("the queue's PostgreSQL does not answer; try again") from error
        except self._psycopg.Error as error:
            raise Fatal(f"the queue's PostgreSQL refuses ({type(error).__name__}); look at its log") from error

    def close(self) -> None:
        """All that nobody uses."""
        with self._lock:
            while self._free:
                self._free.pop().close()

    def _take(self) -> Any:
        with self._lock:
            while self._free:
                connection = self._free.pop()
                with suppress(self._psycopg.Error):  # the server was away meanwhile
                    connection.execute("SELECT 1")
                    return connection
        return self._psycopg.connect(
            self._url, autocommit=True, row_factory=self._row_factory, connect_timeout=10, application_name="tomoray"
        )

    def _give_back(self, connection: Any) -> None:
        with self._lock:
            if not connection.closed and not connection.broken and len(self._free) < 8:
                self._free.append(connection)
                return
        connection.close()


def _pyformat(statement: str) -> str:
    return re.sub(r"(?<!:):(\w+)", r"%(\1)s", statement)


def _rows(cursor: Any) -> list[Mapping[str, Any]]:
    if cursor.description is None:
        return [{"changed": cursor.rowcount}]
    return list(cursor.fetchall())


def _one(rows: list[Mapping[str, Any]]) -> Job | None:
    return _job(rows[0]) if rows else None


def _job(row: Mapping[str, Any]) -> Job:
    error = None
    if row["error_code"] is not None:
        error = JobError(status=row["error_status"], code=row["error_code"], message=row["error_message"])
    names = ("id", "owner", "ask", "digest", "state", "attempts", "done", "total", "created", "started", "finished")
    return Job(**{name: row[name] for name in (*names, "expires", "result")}, error=error)
