"""The catalog: one row per series ever seen, stored or refused, in Parquet. Holds pseudonyms only.

    ARCHIVE/catalog/<0…f>.parquet    series by the first digit of their id

A file is rewritten only where its rows change, so the same rows always leave the same bytes. One writer at a time.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tomoray import __version__
from tomoray.config import SplitConfig
from tomoray.errors import Fatal, Reason
from tomoray.storage import Store
from tomoray.volume import Volume

Row = dict[str, Any]

SCHEMA = pa.schema(
    [
        pa.field("series_id", pa.string(), nullable=False),
        pa.field("scan_id", pa.string()),
        pa.field("patient_id", pa.string()),
        pa.field("status", pa.string(), nullable=False),  # stored | refused
        pa.field("reason", pa.string()),  # an errors.Reason
        pa.field("evidence", pa.string()),
        pa.field("source_uri", pa.string()),
        pa.field("n_instances", pa.int32()),
        pa.field("shape_zyx", pa.list_(pa.int32())),
        pa.field("spacing_zyx_mm", pa.list_(pa.float64())),
        pa.field("affine_lps", pa.list_(pa.float64())),  # 16 numbers, row by row: voxel index x, y, z, 1 -> mm
        pa.field("manufacturer", pa.string()),
        pa.field("model", pa.string()),
        pa.field("kernel", pa.string()),
        pa.field("slice_thickness_mm", pa.float64()),
        pa.field("sex", pa.string()),
        pa.field("age_years", pa.float64()),
        pa.field("labels", pa.list_(pa.string())),
        pa.field("notes", pa.list_(pa.string())),
        pa.field("instances_sha256", pa.string()),
        pa.field("input_sha256", pa.string()),
        pa.field("code_version", pa.string(), nullable=False),
        pa.field("config_sha256", pa.string(), nullable=False),
    ]
)


class Catalog:
    """The catalog of the archive in `store`. Pickles.

    Example:
        >>> catalog = Catalog(archive.store)
        >>> [row["reason"] for row in catalog.rows() if row["status"] == "refused"]
    """

    def __init__(self, store: Store) -> None:
        self._store = store.child("catalog")

    def table(self) -> pa.Table:
        """All rows, sorted by `series_id`; empty where no series has been seen yet."""
        keys = [info.key for info in self._store.list() if info.key.endswith(".parquet")]
        return pa.concat_tables([SCHEMA.empty_table(), *(self._read(key) for key in keys)]).sort_by("series_id")

    def rows(self) -> list[Row]:
        """`table()` as dictionaries, one a series."""
        rows: list[Row] = self.table().to_pylist()
        return rows

    def upsert(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows, each in place of the one with its `series_id`. Safe to repeat.

        Raises:
            ValueError: a row with an unknown column, or a `series_id` that is no keyed pseudonym (hexadecimal).
        """
        buckets: dict[str, dict[str, Row]] = defaultdict(dict)
        for row in rows:
            checked = _checked(row)
            buckets[checked["series_id"][0]][checked["series_id"]] = checked
        for digit, new in sorted(buckets.items()):
            key = f"{digit}.parquet"
            old = self._read(key) if self._store.exists(key) else SCHEMA.empty_table()
            merged = {row["series_id"]: row for row in old.to_pylist()} | new
            table = pa.Table.from_pylist([merged[series_id] for series_id in sorted(merged)], schema=SCHEMA)
            if not table.equals(old):
                self._store.write(key, _parquet(table))

    def _read(self, key: str) -> pa.Table:
        """A file's rows; columns that a later or earlier release has or lacks are dropped or null."""
        stored = pq.read_table(io.BytesIO(self._store.read(key)))
        columns = [
            stored[field.name].cast(field.type)
            if field.name in stored.column_names
            else pa.nulls(len(stored), field.type)
            for field in SCHEMA
        ]
        return pa.table(columns, schema=SCHEMA)


def stored_row(volume: Volume, config_sha256: str) -> Row:
    """The row of a series that is in the archive."""
    info = volume.info
    return _row(
        series_id=info.series_id,
        scan_id=info.scan_id,
        patient_id=info.patient_id,
        status="stored",
        source_uri=info.source_uri,
        n_instances=info.n_instances,
        shape_zyx=list(volume.geometry.shape_zyx),
        spacing_zyx_mm=list(volume.geometry.spacing_zyx_mm),
        affine_lps=list(volume.geometry.affine_lps),
        manufacturer=info.manufacturer,
        model=info.model,
        kernel=info.kernel,
        slice_thickness_mm=info.slice_thickness_mm,
        sex=info.sex,
        age_years=info.age_years,
        labels=sorted(volume.labels),
        notes=list(info.notes),
        instances_sha256=info.instances_sha256,
        input_sha256=info.input_sha256,
        config_sha256=config_sha256,
    )


def refused_row(
    *,
    series_id: str,
    patient_id: str | None,
    source_uri: str,
    n_instances: int,
    instances_sha256: str,
    reason: Reason,
    evidence: str,
    config_sha256: str,
    **known: Any,
) -> Row:
    """The row of a series that is not, and why; `known` are further columns, such as `manufacturer`."""
    return _row(
        series_id=series_id,
        patient_id=patient_id,
        status="refused",
        reason=str(reason),
        evidence=evidence,
        source_uri=source_uri,
        n_instances=n_instances,
        instances_sha256=instances_sha256,
        config_sha256=config_sha256,
        **known,
    )


def config_sha256(config: Mapping[str, Any]) -> str:
    """Digest of a JSON-able config, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Patient ids of each part, sorted; no patient is in two."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def split_by_patient(patient_ids: Iterable[str], config: SplitConfig) -> Split:
    """Divide patients by the rank of SHA-256(seed, patient): the same patients and seed give the same split.

    Each part with a share above 0 gets one patient at least, and training keeps at least one.

    Raises:
        Fatal: fewer patients than parts.
    """
    patients = sorted(set(patient_ids), key=lambda patient: _rank(config.seed, patient))
    shares = {"train": 1.0, "validation": config.validation, "test": config.test}
    parts = [part for part, share in shares.items() if share > 0]
    if len(patients) < len(parts):
        wanted = " and ".join(", ".join(parts).rsplit(", ", 1))
        count = "1 patient" if len(patients) == 1 else f"{len(patients)} patients"
        raise Fatal(f"{count} cannot fill {wanted}; add scans of {len(parts)} or more, or set a share of `split` to 0")
    n_test, n_validation = (_held_out(share, len(patients)) for share in (config.test, config.validation))
    while n_test + n_validation >= len(patients):
        n_test, n_validation = (n_test - 1, n_validation) if n_test >= n_validation else (n_test, n_validation - 1)
    held_out = n_test + n_validation
    return Split(
        test=tuple(sorted(patients[:n_test])),
        validation=tuple(sorted(patients[n_test:held_out])),
        train=tuple(sorted(patients[held_out:])),
    )


def _row(**values: Any) -> Row:
    return dict.fromkeys(SCHEMA.names) | {"code_version": __version__} | values


def _checked(row: Mapping[str, Any]) -> Row:
    unknown = sorted(set(row) - set(SCHEMA.names))
    if unknown:
        raise ValueError(f"the catalog has no column {', '.join(unknown)}; it has: {', '.join(SCHEMA.names)}")
    if not re.fullmatch(r"[0-9a-f]{8,64}", row["series_id"]):
        raise ValueError("a series_id is no keyed pseudonym; wanted 8 to 64 hexadecimal digits")
    return _row(**row)


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _held_out(share: float, patients: int) -> int:
    return max(1, int(share * patients + 0.5)) if share > 0 else 0


def _rank(seed: int, patient_id: str) -> bytes:
    return hashlib.sha256(f"{seed}/{patient_id}".encode()).digest()
