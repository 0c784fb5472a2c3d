"""What has been done, and what is on its way: the memory of `tomoray pacs`, in one SQLite file.

A series is noticed, and when it is whole it is routed: each rule that matches makes an order. An order goes

    new -> sent (the server has the job) -> found (results are on disk) -> returned

or, where the study is refused, failed.

Each step is written down after it was done, and each may be done twice without harm.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from serving.hospital.rules import Series, matches
from tomoray.errors import Fatal, Usage
from tomoray.hospital_config import RuleConfig

State = Literal["new", "sent", "found", "returned", "failed"]
STATES: tuple[State, ...] = ("new", "sent", "found", "returned", "failed")
OPEN = ("arriving", "new", "sent", "found")

_TABLES = """
CREATE TABLE IF NOT EXISTS secret (key BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS series (
    series_uid TEXT PRIMARY KEY,
    facts TEXT NOT NULL,                -- as JSON
    instances INTEGER NOT NULL,
    changed REAL NOT NULL,              -- when the number of instances did, seconds since 1970
    seen REAL NOT NULL,                 -- when it was last looked at
    routed INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS orders (
    id TEXT PRIMARY KEY,
    series_uid TEXT NOT NULL REFERENCES series,
    rule TEXT NOT NULL,                 -- as JSON, as it was then
    state TEXT NOT NULL,
    job TEXT,
    error TEXT,
    changed REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS orders_by_state ON orders (state);
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One series for one rule.

    Attributes:
        id: a pseudonym of the two; also the job's idempotency key and the name of the order's folder.
        job: the server's name for it, once it has one.
    """

    id: str
    series: Series
    rule: RuleConfig
    state: State
    job: str | None


class Ledger:
    """The file, for one process at a time. Not for several threads.

    Raises:
        Fatal: another process has it.
    """

    def __init__(self, path: Path) -> None:
        self._lock = path.with_suffix(".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise Fatal(f"another process works with {path.parent}; stop it first") from error
        path.touch(mode=0o600)  # it holds UIDs and descriptions
        self._db = _connect(path)
        with self._transaction():
            for statement in _TABLES.split(";"):
                self._db.execute(statement)
            if self._db.execute("SELECT 1 FROM secret").fetchone() is None:
                self._db.execute("INSERT INTO secret VALUES (?)", [secrets.token_bytes(32)])
        self._secret: bytes = self._db.execute("SELECT key FROM secret").fetchone()[0]

    def close(self) -> None:
        """Let another process have it."""
        self._db.close()
        self._lock.close()

    def notice(self, series: Series, now: float) -> None:
        """Write down that a series is there, and when it last grew."""
        self._db.execute(
            "INSERT INTO series (series_uid, facts, instances, changed, seen) "
            "VALUES (:uid, :facts, :count, :now, :now) "
            "ON CONFLICT (series_uid) DO UPDATE SET facts = :facts, instances = :count, seen = :now, "
            "changed = CASE instances WHEN :count THEN changed ELSE :now END WHERE routed = 0",
            {"uid": series.series_uid, "facts": json.dumps(asdict(series)), "count": series.instances, "now": now},
        )

    def route(self, rules: Sequence[RuleConfig], now: float, settle_s: float) -> int:
        """Make orders of the series that were still the same `settle_s` after they last grew. How many were made."""
        made = 0
        rows = self._db.execute("SELECT facts FROM series WHERE routed = 0 AND seen - changed >= ?", [settle_s])
        for (facts,) in rows.fetchall():
            series = Series(**json.loads(facts))
            with self._transaction():
                for rule in rules:
                    made += self._order(series, rule, now)
                self._db.execute("UPDATE series SET routed = 1 WHERE series_uid = ?", [series.series_uid])
        return made

    def open_orders(self) -> list[Order]:
        """Those that have not ended, the oldest first."""
        rows = self._db.execute(
            "SELECT id, facts, rule, state, job FROM orders JOIN series USING (series_uid) "
            "WHERE state IN ('new', 'sent', 'found') ORDER BY orders.changed"
        )
        return [
            Order(
                id=order_id,
                series=Series(**json.loads(facts)),
                rule=RuleConfig.model_validate_json(rule),
                state=state,
                job=job,
            )
            for order_id, facts, rule, state, job in rows
        ]

    def is_wanted(self, series_uid: str) -> bool:
        """True while the series itself may still be needed."""
        arriving = "SELECT 1 FROM series WHERE series_uid = :uid AND routed = 0"
        ordered = "SELECT 1 FROM orders WHERE series_uid = :uid AND state IN ('new', 'sent')"
        return self._db.execute(f"{arriving} UNION ALL {ordered}", {"uid": series_uid}).fetchone() is not None

    def set(self, order: Order, state: State, now: float, *, job: str | None = None, error: str | None = None) -> None:
        """Write down how far an order is."""
        self._db.execute(
            "UPDATE orders SET state = ?, job = coalesce(?, job), error = ?, changed = ? WHERE id = ?",
            [state, job, error, now, order.id],
        )

    def counts(self) -> dict[str, int]:
        """As `read_counts`."""
        return _counts(self._db)

    def _order(self, series: Series, rule: RuleConfig, now: float) -> int:
        if not matches(rule, series) or not rule.wanted:
            return 0
        name = f"{series.study_uid}/{series.series_uid}/{rule.operation}/{rule.model or ''}"
        order_id = hmac.new(self._secret, name.encode(), hashlib.sha256).hexdigest()[:32]
        done = self._db.execute(
            "INSERT OR IGNORE INTO orders (id, series_uid, rule, state, changed) VALUES (?, ?, ?, 'new', ?)",
            [order_id, series.series_uid, rule.model_dump_json(), now],
        )
        return done.rowcount

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def read_counts(path: Path) -> dict[str, int]:
    """Orders by state, and series that are not whole yet as `arriving`; whoever works with the ledger.

    Raises:
        Usage: there is none.
    """
    if not path.is_file():
        raise Usage(f"no ledger at {path}; start tomoray pacs first")
    with closing(_connect(path)) as db:
        return _counts(db)


def read_failures(path: Path, limit: int = 20) -> list[dict[str, str]]:
    """The orders that failed last, and why."""
    with closing(_connect(path)) as db:
        rows = db.execute("SELECT id, error FROM orders WHERE state = 'failed' ORDER BY changed DESC LIMIT ?", [limit])
        return [{"order": order, "error": error} for order, error in rows]


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=30)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    return db


def _counts(db: sqlite3.Connection) -> dict[str, int]:
    found = dict(db.execute("SELECT state, count(*) FROM orders GROUP BY state").fetchall())
    (arriving,) = db.execute("SELECT count(*) FROM series WHERE routed = 0").fetchone()
    return {"arriving": arriving, **{state: found.get(state, 0) for state in STATES}}
