"""The Imaging Data Commons: public CT by collection, by series, or by a filter over its index.

    idc://nlst
    idc://series/1.2.840.113654.2.55.…
    idc://?where=collection_id = 'nlst' and Manufacturer = 'GE MEDICAL SYSTEMS' and instanceCount > 100
    idc:///path/index.parquet?where=instanceCount > 100

The index is a Parquet file with a row a series: the one of the package `idc-index-data` (`pip install tomoray[idc]`),
or one's own with at least `SeriesInstanceUID` and `series_aws_url`. Files come unsigned from the public bucket.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tomoray.errors import Fatal, Usage
from tomoray.filters import filter_columns, parse_filter
from tomoray.sources.files import SeriesListing

_SCHEME = "idc://"
_FORMS = "idc://COLLECTION, idc://series/UID, idc://?where=FILTER or idc:///path/index.parquet"
_NEEDED = ("SeriesInstanceUID", "series_aws_url")
_USED = (
    *_NEEDED,
    *("PatientID", "StudyInstanceUID", "Modality", "instanceCount", "series_size_MB", "crdc_series_uuid"),
    *("Manufacturer", "transfer_syntax_name"),
)
_NATIVE = {"Explicit VR Little Endian", "Implicit VR Little Endian", "Explicit VR Big Endian"}
_BATCH_ROWS = 1024
_BUFFER_BYTES = 2**16  # of each column's file part


def is_idc(url: str) -> bool:
    """True by the scheme."""
    return url.startswith(_SCHEME)


def list_series(url: str) -> Iterator[SeriesListing]:
    """The chosen series in the index's order, read a few thousand at a time. CT only, unless the filter says more.

    Raises:
        Usage: another form of URL, no index, a filter that is not understood.
        Fatal: nothing is chosen.
    """
    wanted = _parse(url)
    index = _open_index(wanted.index)
    names: list[str] = index.schema_arrow.names
    chosen = [parse_filter(wanted.where, index.schema_arrow)] if wanted.where else []
    for column, value in (("collection_id", wanted.collection), ("SeriesInstanceUID", wanted.series)):
        if value and column not in names:
            raise Usage(f"{url}: the index has no column {column}")
        if value:
            chosen.append(pc.field(column) == value)
    asked = filter_columns(wanted.where)
    if "Modality" in names and not wanted.series and "modality" not in asked:
        chosen.append(pc.field("Modality") == "CT")
    asked |= {"collection_id"} if wanted.collection else set()
    read = [name for name in names if name in _USED or name.lower() in asked]
    found = _rows(index, read, reduce(and_, chosen) if chosen else None)
    first = next(found, None)
    if first is None:
        raise Fatal(f"{url}: no CT series in the index is like this; look at the spelling of what you ask for")
    return _listings(first, found)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Wanted:
    index: str  # empty: the package's
    collection: str
    series: str
    where: str


def _parse(url: str) -> _Wanted:
    place, _, query = url.removeprefix(_SCHEME).partition("?")
    where = unquote(query.removeprefix("where="))
    if query and not query.startswith("where="):
        raise Usage(f"{url}: wanted {_FORMS}")
    if place.startswith("/"):
        return _Wanted(index=unquote(place), collection="", series="", where=where)
    kind, _, series = place.strip("/").partition("/")
    if (series and kind != "series") or (kind == "series" and not series) or not (place or where):
        raise Usage(f"{url}: wanted {_FORMS}")
    return _Wanted(index="", collection="" if series else kind, series=series, where=where)


def _open_index(path: str) -> pq.ParquetFile:
    if not path:
        try:
            package = importlib.import_module("idc_index_data")
        except ImportError as error:
            raise Usage("idc:// wants the index of the Imaging Data Commons: pip install 'tomoray[idc]'") from error
        path = str(package.IDC_INDEX_PARQUET_FILEPATH)
    if not Path(path).is_file():
        raise Usage(f"no index at {path}; name a Parquet file: idc:///path/index.parquet")
    try:
        index = pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    except (pa.ArrowException, OSError) as error:
        raise Usage(f"the index at {path} is no Parquet file ({type(error).__name__})") from error
    if missing := [name for name in _NEEDED if name not in index.schema_arrow.names]:
        raise Usage(f"the index at {path} has no column {missing[0]}; wanted {' and '.join(_NEEDED)}")
    return index


def _rows(index: pq.ParquetFile, columns: list[str], chosen: pc.Expression | None) -> Iterator[Mapping[str, Any]]:
    """Decoded a thousand at a time: the index is one row group, which a scanner would hold whole."""
    for batch in index.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
        table = pa.Table.from_batches([batch])
        found = table if chosen is None else table.filter(chosen)
        yield from found.select([name for name in columns if name in _USED]).to_pylist()


def _listings(first: Mapping[str, Any], others: Iterator[Mapping[str, Any]]) -> Iterator[SeriesListing]:
    yield _listing(first)
    yield from map(_listing, others)


def _listing(row: Mapping[str, Any]) -> SeriesListing:
    place = str(row["series_aws_url"]).removesuffix("*").rstrip("/")
    return SeriesListing(
        root=f"s3://anonymous@{place.removeprefix('s3://')}" if place.startswith("s3://") else place,
        series_uid=row["SeriesInstanceUID"],
        patient_id=row.get("PatientID") or "",
        study_uid=row.get("StudyInstanceUID") or "",
        modality=row.get("Modality") or "CT",
        n_instances=row.get("instanceCount") or 0,
        size_bytes=round((row.get("series_size_MB") or 0) * 1e6),
        version=row.get("crdc_series_uuid") or place.rpartition("/")[2],
        manufacturer=row.get("Manufacturer"),
        native=set((row.get("transfer_syntax_name") or "").split(",")) <= _NATIVE,
    )
