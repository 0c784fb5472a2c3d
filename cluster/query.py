"""Questions to a catalog: rows by a filter, and the story of one series."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from tomoray import settings
from tomoray.archive import Archive
from tomoray.assembly.reasons import ABOUT
from tomoray.catalog import SCHEMA, Catalog
from tomoray.errors import Fatal, Reason, Usage
from tomoray.filters import parse_filter
from tomoray.privacy.pseudonyms import Pseudonyms

SHOWN = (
    "series_id",
    "part",
    "status",
    "reason",
    "shape_zyx",
    "spacing_zyx_mm",
    "manufacturer",
    "kernel",
)


def query(
    url: str, where: str | None, columns: Sequence[str] | None, limit: int, out: Path | None = None
) -> dict[str, Any]:
    """Rows of a catalog.

    Args:
        url: the archive.
        where: a filter over the catalog's columns, as in SQL; None: every row.
        columns: names; None: the usual ones.
        limit: rows given at most; 0: all.
        out: a .parquet or .csv file that gets every row found, with every column unless `columns` are named.

    Returns:
        `found` (number of rows), `rows` (dictionaries), `columns`, and `written` where a file was.

    Raises:
        Usage: an unknown column, a filter that cannot be read, or another kind of file.
    """
    table = Catalog(Archive.open(url).store).table()
    if where:
        table = table.filter(parse_filter(where, SCHEMA))
    names = list(columns or SHOWN)
    unknown = [name for name in names if name not in SCHEMA.names]
    if unknown:
        raise Usage(f"the catalog has no column {', '.join(unknown)}; it has: {', '.join(SCHEMA.names)}")
    result = {"found": table.num_rows, "columns": names}
    if out is not None:
        _write(table.select(names) if columns else table, out)
        result["written"] = str(out)
    shown = table.select(names)
    return {**result, "rows": (shown.slice(0, limit) if limit else shown).to_pylist()}


def explain(url: str, series: str) -> dict[str, Any]:
    """Everything that the archive knows of one series.

    Returns:
        `series_id`, and `parts`: the catalog rows without empty columns, each refused one with `meaning` and
        `advice`, each stored one with `scan` (its path) and `header` (what was kept of the DICOM header).

    Raises:
        Fatal: the catalog has no such series.
    """
    archive = Archive.open(url)
    series_id = _series_id(series)
    catalog = Catalog(archive.store)
    digit = series_id[:1].lower()
    rows = [row for row in catalog.bucket(digit).to_pylist() if row["series_id"] == series_id]
    if not rows:  # perhaps a scan's id
        ids = {row["series_id"] for row in catalog.rows() if row["scan_id"] == series_id}
        rows = [row for row in catalog.rows() if row["series_id"] in ids]
    if not rows:
        raise Fatal(f"{url} has seen no series {series_id}; tomoray catalog {url} lists what it has")
    return {"series_id": rows[0]["series_id"], "archive": url, "parts": [_part(archive, row) for row in rows]}


def _series_id(series: str) -> str:
    if re.fullmatch(r"\d+(\.\d+)+", series):
        return Pseudonyms(settings.pseudonym_key()).token("series", series)
    if not re.fullmatch(r"[0-9a-f]{8,64}", series):
        raise Usage("the series is neither a pseudonym of the catalog (hexadecimal) nor a Series Instance UID")
    return series


def _part(archive: Archive, row: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in row.items() if value not in (None, [], "")}
    if row["status"] == "refused":
        about = ABOUT[Reason(row["reason"])]
        return {**known, "meaning": about.meaning, "advice": about.advice}
    found = archive.scan(row["scan_id"]) if archive.has_scan(row["scan_id"]) else None
    return {**known, "scan": f"scans/{row['scan_id']}", "header": found.header if found else None}


def _write(table: pa.Table, out: Path) -> None:
    if out.suffix == ".parquet":
        pq.write_table(table, out)
    elif out.suffix == ".csv":
        lists = [n for n, f in enumerate(table.schema) if pa.types.is_list(f.type)]
        for n in lists:
            texts = [None if v is None else " ".join(map(str, v)) for v in table.column(n).to_pylist()]
            table = table.set_column(n, table.schema.names[n], pa.array(texts, pa.string()))
        pa_csv.write_csv(table, out)
    else:
        raise Usage(f"--out {out} is neither .parquet nor .csv")
