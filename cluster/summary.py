"""What an archive holds, from its catalog alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tomoray.archive import Archive
from tomoray.catalog import Catalog
from tomoray.storage import open_store


def summarize(url: str) -> dict[str, Any]:
    """Counts of an archive: series stored and refused, patients, labels, and the range of spacings.

    Returns:
        `archive`, `stored`, `refused`, `patients`, `reasons` (refused series by code), `labels` (stored scans by
        label), `spacing_mm` (lowest and highest along z, y, x).

    Raises:
        Fatal: there is no archive at `url`, or it cannot be reached.
    """
    archive = Archive.open(url)
    rows = Catalog(open_store(archive.url)).rows()
    stored = [row for row in rows if row["status"] == "stored"]
    refused = Counter(row["reason"] for row in rows if row["status"] == "refused")
    labels = Counter(label for row in stored for label in row["labels"])
    spacings = {
        axis: [row["spacing_zyx_mm"][index] for row in stored if row["spacing_zyx_mm"]]
        for index, axis in enumerate("zyx")
    }
    return {
        "archive": archive.url,
        "stored": len(stored),
        "refused": sum(refused.values()),
        "patients": len({row["patient_id"] for row in stored}),
        "reasons": dict(sorted(refused.items())),
        "labels": dict(sorted(labels.items())),
        "spacing_mm": {axis: [min(values), max(values)] for axis, values in spacings.items() if values},
    }
