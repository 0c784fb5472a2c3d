"""Sources -> archive: one Ray task a series, exactly once.

A task returns a few hundred bytes of metadata; voxels go from the source straight to the archive. The driver holds
the tasks in flight, one of the catalog's sixteen files, at most 250 rows that are to be written, and the ids of scans.
Run again, it decodes nothing that is there already and changes no byte.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from jobs.main import main
from jobs.tasks import cluster_cpus, largest_node_bytes, run_bounded
from jobs.telemetry import Telemetry
from tomoray import __version__, settings
from tomoray.archive import Archive
from tomoray.assembly.stack import Rules
from tomoray.catalog import Catalog, config_sha256
from tomoray.config import PreprocessConfig
from tomoray.errors import Fatal, Transient
from tomoray.ingest.ingester import Ingested, Ingester, Row, task_bytes
from tomoray.ingest.inventory import Entry, Heads, Inventory, read_heads
from tomoray.ingest.names import Names
from tomoray.ingest.series import Item
from tomoray.ingest.stocktaking import take_stock
from tomoray.lease import Lease, Progress
from tomoray.privacy.deidentify import Deidentifier
from tomoray.privacy.pseudonyms import Pseudonyms
from tomoray.progress import Advance, track
from tomoray.sources import SourceFile
from tomoray.storage import open_store

FLUSH_EVERY_S, FLUSH_ROWS = 30.0, 250
RETRIES = 5  # of a task whose worker or node died, or whose store did not answer for a minute
REFUSALS_LISTED = 1000

_read_heads = ray.remote(num_cpus=1, max_retries=RETRIES, retry_exceptions=[Transient])(read_heads)


@ray.remote(num_cpus=1, max_retries=RETRIES, retry_exceptions=[Transient])
def _ingest(ingester: Ingester, item: Item) -> Ingested:
    return ingester.ingest(item)


def run(config: PreprocessConfig) -> dict[str, Any]:
    """Bring every series of the sources into the archive, or refuse it with a reason in the catalog.

    Returns:
        `stored`, `refused`, `skipped` (counts of this run), `refused_before` (in the catalog when it began), `reasons`
        (refused by code), `refusals` and `failed` (one entry each; of refusals the first thousand), `files_ignored`,
        `source_mb`, `voxel_mb`, `seconds`, `mb_per_s` (of uncompressed voxels).

    Raises:
        Fatal: a source or the archive cannot be reached, another run writes it, or there is nothing to read.
    """
    pseudonyms = Pseudonyms(settings.pseudonym_key())
    open_store(config.archive).check()
    with ExitStack() as stack:
        stack.enter_context(_frugal_arrow())
        inventory = stack.enter_context(Inventory())
        n_ignored = take_stock(config.sources, config.nifti, inventory, pseudonyms, read_in_tasks)
        archive = Archive.create(config.archive, config.layout)
        ingester = Ingester(
            archive=archive,
            deidentifier=Deidentifier(pseudonyms, config.deidentify),
            rules=Rules(min_slices=config.min_slices, repairs=frozenset(config.repair)),
            config_sha256=config_sha256(config.model_dump(mode="json", include=_JUDGED_BY)),
        )
        progress = Progress(total=len(inventory))
        lease = stack.enter_context(Lease(archive.store, progress, waits=True))
        telemetry = stack.enter_context(Telemetry(config.metrics_port))
        return {**_Run(config, ingester, inventory, lease, progress, telemetry).result(), "files_ignored": n_ignored}


def read_in_tasks(batches: Iterable[list[SourceFile]]) -> Iterator[tuple[list[SourceFile], Heads]]:
    """Headers of batches of files, a Ray task each."""
    for batch, heads in run_bounded(_read_heads.remote, batches, 2 * cluster_cpus()):
        if not isinstance(heads, Heads):
            raise Fatal(f"reading headers failed ({type(heads).__name__}); run the command again")
        yield batch, heads


@dataclass(frozen=True, kw_only=True, slots=True)
class _Todo:
    """An entry, and the scans that the catalog has of its series."""

    entry: Entry
    scan_ids: frozenset[str]


@dataclass
class _Run:
    """One run over an inventory, from its first task to its last row."""

    config: PreprocessConfig
    ingester: Ingester
    inventory: Inventory
    lease: Lease
    progress: Progress
    telemetry: Telemetry
    stored: int = 0
    refused: int = 0
    skipped: int = 0
    refused_before: int = 0
    voxel_bytes: int = 0
    source_bytes: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    refusals: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.catalog = Catalog(self.ingester.archive.store)
        self.pending: list[Row] = []
        self.outdated: list[str] = []  # scans that pending rows replace
        self.there = Names()  # scans that are complete or begun

    def result(self) -> dict[str, Any]:
        """Do it."""
        started = flushed = time.monotonic()
        archive = self.ingester.archive
        self.catalog.clear_partial()
        self.there = Names(archive.store.walk_folders("scans"))
        ingester = ray.put(self.ingester)
        most_bytes = largest_node_bytes()

        task_of = lru_cache(lambda memory: _ingest.options(memory=memory))

        def submit(todo: _Todo) -> ray.ObjectRef[Any]:
            memory = min(task_bytes(todo.entry.working_bytes), most_bytes)
            return task_of(memory).remote(ingester, todo.entry.item)

        in_flight = self.config.in_flight or 2 * cluster_cpus()
        with track("preprocess", len(self.inventory)) as advance:
            for todo, result in run_bounded(submit, self._todo(advance), in_flight):
                self._take(todo, result)
                seconds = time.monotonic() - started
                rate = f"{self.voxel_bytes / 1e6:.0f} MB, {self.voxel_bytes / 1e6 / seconds:.0f} MB/s"
                advance(1, f"{rate}, {self.refused} refused")
                self._tell(seconds)
                if len(self.pending) >= FLUSH_ROWS or time.monotonic() - flushed > FLUSH_EVERY_S:
                    with suppress(Transient):  # the rows are kept, and the next flush brings them
                        self._flush()
                    flushed = time.monotonic()
            self._flush()
        self._sweep()
        seconds = time.monotonic() - started
        return {
            "stored": self.stored,
            "refused": self.refused,
            "skipped": self.skipped,
            "refused_before": self.refused_before,
            "reasons": dict(sorted(self.reasons.items())),
            "refusals": self.refusals,
            "failed": self.failed,
            "archive": self.config.archive,
            "source_mb": round(self.source_bytes / 1e6, 3),
            "voxel_mb": round(self.voxel_bytes / 1e6, 3),
            "seconds": round(seconds, 3),
            "mb_per_s": round(self.voxel_bytes / 1e6 / seconds, 3),
        }

    def _todo(self, advance: Advance) -> Iterator[_Todo]:
        """Entries that the catalog does not answer for yet, a catalog file at a time."""
        for digit in "0123456789abcdef":
            bucket = self.catalog.bucket(digit, _KNOWN)
            self.refused_before += pc.sum(pc.equal(bucket["status"], "refused")).as_py() or 0
            known = groupby(_each_row(bucket), itemgetter("series_id"))
            series_id, rows = next(known, _NO_MORE)
            for entry in self.inventory.entries(like=digit):  # both come in the order of their ids
                while series_id < entry.identity.series_id:
                    series_id, rows = next(known, _NO_MORE)
                mine = list(rows) if series_id == entry.identity.series_id else []
                if self._is_done(entry, mine):
                    self.skipped += 1
                    advance(1)
                else:
                    yield _Todo(entry=entry, scan_ids=frozenset(row["scan_id"] for row in mine if row["scan_id"]))

    def _is_done(self, entry: Entry, rows: Collection[Row]) -> bool:
        """True where the catalog answers for this very input, and stored scans are still there.

        A new release, or other limits, look at refused parts again.
        """
        mine = self.ingester.config_sha256
        return bool(rows) and all(
            row["instances_sha256"] == entry.identity.digest
            and (
                row["scan_id"] in self.there
                if row["status"] == "stored"
                else row["config_sha256"] == mine and row["code_version"] == __version__
            )
            for row in rows
        )

    def _take(self, todo: _Todo, result: Ingested | Exception) -> None:
        if not isinstance(result, Ingested):
            self.failed.append({"series_id": todo.entry.identity.series_id, "error": type(result).__name__})
            self.telemetry.count("failed")
            return
        self.voxel_bytes += result.voxel_bytes
        self.source_bytes += todo.entry.size_bytes
        self.telemetry.add_bytes(todo.entry.size_bytes, result.voxel_bytes)
        for row in result.rows:
            self.telemetry.count(row["status"])
            if row["status"] == "stored":
                self.stored += 1
                continue
            self.refused += 1
            self.reasons[row["reason"]] += 1
            if len(self.refusals) < REFUSALS_LISTED:
                self.refusals.append({key: row[key] for key in ("series_id", "part", "reason", "evidence")})
        stores = any(row["status"] == "stored" for row in result.rows)
        if stores or not todo.scan_ids:  # what was stored once is not lost when its files are found damaged later
            self.pending.extend(result.rows)
            self.outdated.extend(todo.scan_ids.difference(row["scan_id"] for row in result.rows))

    def _flush(self) -> None:
        """Write the rows that have come to the catalog, then drop the scans that they replace."""
        self.lease.check()
        self.catalog.upsert(self.pending)
        for scan_id in self.outdated:
            self.ingester.archive.delete_scan(scan_id)
        self.pending.clear()
        self.outdated.clear()

    def _sweep(self) -> None:
        """Remove what runs that were killed left of input that has changed since."""
        if self.failed:
            return  # the next run finishes them
        self.lease.check()
        archive = self.ingester.archive
        self.there = Names()  # what was there at the beginning
        unnamed = Names(archive.store.walk_folders("scans"))
        for digit in "0123456789abcdef":
            unnamed = unnamed.without(self.catalog.bucket(digit, ["scan_id"])["scan_id"].drop_null().to_pylist())
        for scan_id in unnamed:
            if not archive.has_scan(scan_id) or self._is_replaced(scan_id):
                archive.delete_scan(scan_id)

    def _is_replaced(self, scan_id: str) -> bool:
        """True of a complete scan without a row where its series has a row of another scan.

        Without that it is left alone: it may be all that is left of a lost catalog.
        """
        scan = self.ingester.archive.scan(scan_id)
        try:
            series_id = scan.info.series_id
        except Fatal:  # it is masks without an image, which preprocessing has not put there
            return False
        rows = _each_row(self.catalog.bucket(series_id[0], _KNOWN))
        return any(row["series_id"] == series_id and row["status"] == "stored" for row in rows)

    def _tell(self, seconds: float) -> None:
        self.progress.update(
            done=self.stored + self.refused + self.skipped + len(self.failed),
            stored=self.stored,
            refused=self.refused,
            skipped=self.skipped,
            failed=len(self.failed),
            voxel_mb=round(self.voxel_bytes / 1e6, 1),
            mb_per_s=round(self.voxel_bytes / 1e6 / seconds, 1),
            seconds=round(seconds, 1),
        )


_JUDGED_BY = {"nifti", "layout", "min_slices", "repair", "deidentify"}
_KNOWN = ["series_id", "scan_id", "status", "instances_sha256", "config_sha256", "code_version"]


_NO_MORE: tuple[str, Iterator[Row]] = ("~", iter(()))  # beyond every id


def _each_row(table: pa.Table) -> Iterator[Row]:
    """A few at a time: as dictionaries they take ten times the memory."""
    for batch in table.to_batches(max_chunksize=1000):
        yield from batch.to_pylist()


@contextmanager
def _frugal_arrow() -> Iterator[None]:
    """Arrow's memory from the system, as its own allocators keep tens of MB that were used once."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


if __name__ == "__main__":
    main(run, PreprocessConfig)
