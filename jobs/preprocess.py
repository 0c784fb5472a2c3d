"""Sources -> archive: one Ray task a series, exactly once.

A task returns a few hundred bytes of metadata; voxels go from the source straight to the archive. Run again, it
decodes nothing that is there already and changes no byte.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import ray

from jobs.main import main
from jobs.tasks import cluster_cpus, run_bounded
from tomoray import __version__, settings
from tomoray.archive import Archive
from tomoray.catalog import Catalog
from tomoray.config import PreprocessConfig
from tomoray.dicom import Instance
from tomoray.errors import Fatal, Transient
from tomoray.ingest import Identity, Ingested, Item, Row, identify, ingest
from tomoray.progress import track
from tomoray.pseudonyms import Pseudonyms
from tomoray.sources import BadFile, SourceFile, group_dicom, group_volumes, is_volume, list_source, read_headers
from tomoray.storage import open_store

HEADERS_PER_TASK = 256
FLUSH_EVERY_S = 30.0

_read_headers = ray.remote(num_cpus=1, retry_exceptions=[Transient])(read_headers)
_ingest = ray.remote(num_cpus=1, retry_exceptions=[Transient])(ingest)


def run(config: PreprocessConfig) -> dict[str, Any]:
    """Bring every series of the sources into the archive, or refuse it with a reason in the catalog.

    Returns:
        `stored`, `refused`, `skipped` (counts of this run), `refused_before` (in the catalog when it began), `reasons`
        (refused by code), `refusals` and `failed` (one entry a series), `files_ignored`, `voxel_mb`, `seconds`,
        `mb_per_s` (of uncompressed voxels).

    Raises:
        Fatal: a source or the archive cannot be reached, or there is nothing to read.
    """
    started = time.monotonic()
    pseudonyms = Pseudonyms(settings.pseudonym_key())
    open_store(config.archive).check()
    files = [file for source in config.sources for file in list_source(source)]
    if not files:
        raise Fatal(f"no file in {', '.join(config.sources)}; name a folder that holds DICOM or NIfTI")
    items, n_ignored = _find_items(config, files)
    if not items:
        raise Fatal(
            f"found no DICOM or NIfTI in {', '.join(config.sources)} (other files: {len(files)}); "
            "DICOM starts with DICM after 128 bytes, NIfTI ends in .nii or .nii.gz"
        )
    archive = Archive.create(config.archive, config.layout)
    judged_by = config.model_dump_json(include={"nifti", "layout", "min_slices"})
    config_sha256 = hashlib.sha256(judged_by.encode()).hexdigest()
    catalog = Catalog(archive.store)
    known = {row["series_id"]: row for row in catalog.rows()}
    there = set(archive.store.folders("scans"))
    todo = [
        (item, identity)
        for item, identity in ((item, identify(item, pseudonyms)) for item in items)
        if not _is_done(known.get(identity.series_id), identity, config_sha256, there)
    ]

    refused_before = sum(row["status"] == "refused" for row in known.values())
    stored, failed = 0, []
    refusals: list[Row] = []
    voxel_bytes = 0
    pending: list[Row] = []
    flushed = time.monotonic()
    in_flight = config.in_flight or 2 * cluster_cpus()
    with track("preprocess", len(todo)) as advance:
        results = run_bounded(
            lambda entry: _ingest.remote(
                entry[0], archive, pseudonyms, min_slices=config.min_slices, config_sha256=config_sha256
            ),
            todo,
            in_flight,
        )
        for (_, identity), result in results:
            advance(1)
            if not isinstance(result, Ingested):
                failed.append({"series_id": identity.series_id, "error": type(result).__name__})
                continue
            voxel_bytes += result.voxel_bytes
            stored += sum(row["status"] == "stored" for row in result.rows)
            refusals += [row for row in result.rows if row["status"] == "refused"]
            pending += _replacing(result.rows, known)
            if time.monotonic() - flushed > FLUSH_EVERY_S:
                _flush(catalog, archive, pending, known)
                pending, flushed = [], time.monotonic()
        _flush(catalog, archive, pending, known)

    seconds = time.monotonic() - started
    return {
        "stored": stored,
        "refused": len(refusals),
        "skipped": len(items) - len(todo),
        "refused_before": refused_before,
        "reasons": dict(sorted(Counter(row["reason"] for row in refusals).items())),
        "refusals": [{key: row[key] for key in ("series_id", "reason", "evidence")} for row in refusals],
        "failed": failed,
        "files_ignored": n_ignored,
        "archive": config.archive,
        "voxel_mb": round(voxel_bytes / 1e6, 3),
        "seconds": round(seconds, 3),
        "mb_per_s": round(voxel_bytes / 1e6 / seconds, 3),
    }


def _find_items(config: PreprocessConfig, files: Sequence[SourceFile]) -> tuple[list[Item], int]:
    """Everything to be stored or refused, and the number of files that are neither DICOM nor NIfTI."""
    others = [file for file in files if not is_volume(file)]
    batches = [others[at : at + HEADERS_PER_TASK] for at in range(0, len(others), HEADERS_PER_TASK)]
    instances: list[Instance] = []
    bad: list[BadFile] = []
    with track("read headers", len(others)) as advance:
        for batch, result in run_bounded(_read_headers.remote, batches, 2 * cluster_cpus()):
            if isinstance(result, Exception):
                raise Fatal(f"reading headers failed ({type(result).__name__}); run the command again") from result
            instances += result[0]
            bad += result[1]
            advance(len(batch))
    cases, unpaired = group_volumes([file for file in files if is_volume(file)], config.nifti)
    items: list[Item] = [*group_dicom(instances), *cases, *bad, *unpaired]
    return items, len(others) - len(instances) - len(bad)


def _is_done(row: Row | None, identity: Identity, config_sha256: str, there: Collection[str]) -> bool:
    """True where the catalog answers for this very input, and a stored scan is still there.

    A new release, or other limits, look at refused series again.
    """
    if row is None or row["instances_sha256"] != identity.digest:
        return False
    if row["status"] == "stored":
        return row["scan_id"] in there
    return bool(row["config_sha256"] == config_sha256 and row["code_version"] == __version__)


def _replacing(rows: Iterable[Row], known: dict[str, Row]) -> list[Row]:
    """The rows to write: a series that was stored once is not lost when its files are found damaged later."""
    return [
        row
        for row in rows
        if not (row["status"] == "refused" and known.get(row["series_id"], {}).get("status") == "stored")
    ]


def _flush(catalog: Catalog, archive: Archive, rows: Sequence[Row], known: dict[str, Row]) -> None:
    """Write rows to the catalog, then drop the scans that they replace."""
    catalog.upsert(rows)
    for row in rows:
        before = known.get(row["series_id"])
        if before and before["status"] == "stored" and before["scan_id"] != row["scan_id"]:
            archive.delete_scan(before["scan_id"])


if __name__ == "__main__":
    main(run, PreprocessConfig)
