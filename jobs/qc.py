"""Archive -> one HTML report: the fingerprint on Ray's scheduler, then a task a thumbnail."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import ray

from jobs.fingerprint import measure
from jobs.main import main
from jobs.tasks import cluster_cpus, run_bounded
from tomoray.archive import Archive
from tomoray.catalog import Catalog
from tomoray.config import QcConfig
from tomoray.errors import Fatal, Transient
from tomoray.progress import track
from tomoray.reports.qc_report import QcReport, write_qc_report
from tomoray.reports.thumbnails import Thumbnail, draw_thumbnail
from tomoray.statistics.fingerprint import current_fingerprint
from tomoray.statistics.qc import assess


def run(config: QcConfig) -> dict[str, Any]:
    """Look at a whole archive and write the report.

    A fingerprint saved with `tomoray fingerprint --save` is used where it is of the archive's very scans.

    Returns:
        The fields of `tomoray.statistics.qc.Assessment`, and `archive`, `report`, `pictured`, `fingerprint` ("saved",
        "taken now" or None).

    Raises:
        Fatal: no such archive, nothing in it, or a scan cannot be read.
    """
    archive = Archive.open(config.archive)
    rows = Catalog(archive.store).rows()
    if not rows:
        raise Fatal(f"archive {archive.url} has seen no series; fill it with: tomoray preprocess SOURCE {archive.url}")
    scan_ids = sorted(row["scan_id"] for row in rows if row["status"] == "stored")
    saved = current_fingerprint(archive, scan_ids) if scan_ids else None
    fingerprint = saved or (measure(archive, scan_ids, in_flight=config.in_flight) if scan_ids else None)
    chosen = scan_ids
    if len(scan_ids) > config.montage:
        chosen = sorted(random.Random(config.seed).sample(scan_ids, config.montage))  # noqa: S311  no secret
    found = assess(rows, fingerprint)
    report = write_qc_report(
        config.out,
        QcReport(
            title="CT archive: quality report",
            rows=rows,
            fingerprint=fingerprint,
            assessment=found,
            thumbnails=_thumbnails(archive, chosen, config.in_flight),
            drawn_with=None if chosen is scan_ids else config.seed,
        ),
    )
    return {
        **asdict(found),
        "archive": archive.url,
        "report": str(report.resolve()),
        "pictured": len(chosen),
        "fingerprint": "saved" if saved else "taken now" if fingerprint else None,
    }


def _thumbnails(archive: Archive, scan_ids: Sequence[str], in_flight: int) -> list[Thumbnail]:
    level = archive.layout.levels - 1
    drawn = []
    with track("thumbnails", len(scan_ids)) as advance:
        results = run_bounded(
            lambda scan_id: _draw.remote(archive, scan_id, level), scan_ids, in_flight or 2 * cluster_cpus()
        )
        for scan_id, result in results:
            if isinstance(result, Exception):
                raise Fatal(f"scan {scan_id} was not pictured ({type(result).__name__}); run it again") from result
            drawn.append(result)
            advance(1)
    return sorted(drawn, key=lambda thumbnail: thumbnail.scan_id)


@ray.remote(num_cpus=1, retry_exceptions=[Transient])
def _draw(archive: Archive, scan_id: str, level: int) -> Thumbnail:
    return draw_thumbnail(archive.scan(scan_id), level)


if __name__ == "__main__":
    main(run, QcConfig)
