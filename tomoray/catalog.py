"""The catalog: a row for every series ever seen, stored or refused, in Parquet. Holds pseudonyms only.

    ARCHIVE/catalog/<0…f>.parquet    series by the first digit of their id

A series that holds several scans, or a scan and something else, has a row for each `part`. A file is rewritten only
where its rows change, so the same rows always leave the same bytes. One writer at a time.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tomoray import __version__
from tomoray.catalog_file import read_rows, with_rows
from tomoray.errors import Fatal, Refused
from tomoray.ingest.series import Identity
from tomoray.privacy.deidentify import AUDIT_FIELDS, Deidentified, audit_row
from tomoray.storage import Store
from tomoray.training.sample_config import SplitConfig
from tomoray.volume import Image, Volume

Row = dict[str, Any]

_KNOWN_BESIDES = ("series_id", "code_version")  # columns of an audit that every row has anyway

SCHEMA = pa.schema(
    [
        pa.field("series_id", pa.string(), nullable=False),
        pa.field("part", pa.string(), nullable=False),  # "" for the whole series
        pa.field("scan_id", pa.string()),
        pa.field("patient_id", pa.string()),
        pa.field("status", pa.string(), nullable=False),  # stored | refused
        pa.field("reason", pa.string()),  # an errors.Reason
        pa.field("evidence", pa.string()),
        pa.field("source_uri", pa.string()),
        pa.field("n_instances", pa.int32()),
        pa.field("shape_zyx", pa.list_(pa.int32())),
        pa.field("spacing_zyx_mm", pa.list_(pa.float64())),
        pa.field("spacing_z", pa.float64()),  # mm, as spacing_zyx_mm; these three are easy to ask for
        pa.field("spacing_y", pa.float64()),
        pa.field("spacing_x", pa.float64()),
        pa.field("affine_lps", pa.list_(pa.float64())),  # 16 numbers, row by row: voxel index x, y, z, 1 -> mm
        pa.field("manufacturer", pa.string()),
        pa.field("model", pa.string()),
        pa.field("kernel", pa.string()),
        pa.field("kvp", pa.float64()),
        pa.field("body_part", pa.string()),
        pa.field("slice_thickness_mm", pa.float64()),
        pa.field("sex", pa.string()),
        pa.field("age_years", pa.float64()),
        pa.field("hu_min", pa.int16()),
        pa.field("hu_max", pa.int16()),
        pa.field("hu_mean", pa.float64()),  # this and the percentiles: of every 64th voxel
        pa.field("hu_p01", pa.int16()),
        pa.field("hu_p50", pa.int16()),
        pa.field("hu_p99", pa.int16()),
        pa.field("labels", pa.list_(pa.string())),
        pa.field("notes", pa.list_(pa.string())),
        pa.field("instances_sha256", pa.string()),
        pa.field("input_sha256", pa.string()),
        *(pa.field(f"deid_{field.name}", field.type) for field in AUDIT_FIELDS if field.name not in _KNOWN_BESIDES),
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
        """All rows, sorted by `series_id` and `part`; empty where no series has been seen yet."""
        keys = [info.key for info in self._store.list() if info.key.endswith(".parquet")]
        tables = [SCHEMA.empty_table(), *(self._read(key) for key in keys)]
        return pa.concat_tables(tables).sort_by([("series_id", "ascending"), ("part", "ascending")])

    def rows(self) -> list[Row]:
        """`table()` as dictionaries."""
        rows: list[Row] = self.table().to_pylist()
        return rows

    def stored(self) -> list[Row]:
        """The rows of scans that are in the archive, as dictionaries."""
        rows: list[Row] = self.table().filter(pc.field("status") == "stored").to_pylist()
        return rows

    def bucket(self, digit: str, columns: Sequence[str] = SCHEMA.names) -> pa.Table:
        """The rows of all series whose id begins with this hexadecimal digit, in these columns."""
        try:
            return self._read(f"{digit}.parquet", columns)
        except FileNotFoundError:
            return SCHEMA.empty_table().select(columns)

    def clear_partial(self) -> None:
        """Remove what a writer that was killed left unfinished."""
        self._store.clear_partial()

    def upsert(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows; those of a series replace all that it had. Safe to repeat.

        Raises:
            ValueError: a row with an unknown column, or a `series_id` that is no keyed pseudonym (hexadecimal).
        """
        buckets: dict[str, dict[str, dict[str, Row]]] = defaultdict(lambda: defaultdict(dict))
        for row in rows:
            checked = _checked(row)
            buckets[checked["series_id"][0]][checked["series_id"]][checked["part"]] = checked
        for digit, new in sorted(buckets.items()):
            key = f"{digit}.parquet"
            try:
                old = self._store.read(key)
            except FileNotFoundError:
                old = b""
            merged = with_rows(old, new, SCHEMA)
            if merged != old:
                self._store.write(key, merged)

    def _read(self, key: str, columns: Sequence[str] = SCHEMA.names) -> pa.Table:
        """A file's rows."""
        return read_rows(self._store.read(key), pa.schema([SCHEMA.field(name) for name in columns]))


def stored_row(volume: Volume, config_sha256: str, header: Deidentified | None = None) -> Row:
    """The row of a scan that is in the archive; `header`: what is kept of its DICOM header."""
    info, image = volume.info, volume.image_zyx
    spacing_zyx_mm = volume.geometry.spacing_zyx_mm
    z, y, x = spacing_zyx_mm
    return _row(
        series_id=info.series_id,
        part=info.part,
        scan_id=info.scan_id,
        patient_id=info.patient_id,
        status="stored",
        source_uri=info.source_uri,
        n_instances=info.n_instances,
        shape_zyx=list(volume.geometry.shape_zyx),
        spacing_zyx_mm=list(spacing_zyx_mm),
        spacing_z=z,
        spacing_y=y,
        spacing_x=x,
        affine_lps=list(volume.geometry.affine_lps),
        manufacturer=info.manufacturer,
        model=info.model,
        kernel=info.kernel,
        kvp=info.kvp,
        body_part=info.body_part,
        slice_thickness_mm=info.slice_thickness_mm,
        sex=info.sex,
        age_years=info.age_years,
        labels=sorted(volume.labels),
        notes=list(info.notes),
        instances_sha256=info.instances_sha256,
        input_sha256=info.input_sha256,
        config_sha256=config_sha256,
        **_hu_statistics(image),
        **_audit(header, info.series_id),
    )


def refused_row(
    identity: Identity,
    refusal: Refused,
    *,
    source_uri: str,
    n_instances: int,
    config_sha256: str,
    part: str = "",
    header: Deidentified | None = None,
) -> Row:
    """The row of what is not in the archive, and why."""
    known = ("manufacturer", "model", "kernel", "body_part", "sex", "age_years")
    about = {name: getattr(header, name) for name in known} if header else {}
    return _row(
        series_id=identity.series_id,
        part=part,
        patient_id=identity.patient_id,
        status="refused",
        reason=str(refusal.reason),
        evidence=refusal.evidence,
        source_uri=source_uri,
        n_instances=n_instances,
        instances_sha256=identity.digest,
        config_sha256=config_sha256,
        **about,
        **_audit(header, identity.series_id),
    )


def _audit(header: Deidentified | None, series_id: str) -> dict[str, Any]:
    if header is None:
        return {}
    row = audit_row(header.audit, series_id=series_id)
    return {f"deid_{name}": value for name, value in row.items() if name not in _KNOWN_BESIDES}


def _hu_statistics(image: Image) -> dict[str, Any]:
    """Exact extremes, and a mean and percentiles of every 64th voxel: they cost next to nothing, and say enough."""
    counts = np.bincount((image[::4, ::4, ::4].ravel() + np.int32(32768)), minlength=65536)
    upto, total = np.cumsum(counts), int(counts.sum())
    values = np.arange(-32768, 32768)
    percentiles = {f"hu_p{p:02d}": int(values[np.searchsorted(upto, p / 100 * total)]) for p in (1, 50, 99)}
    mean = round(float(counts @ values) / total, 3)
    return {"hu_min": int(image.min()), "hu_max": int(image.max()), "hu_mean": mean, **percentiles}


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

    Each part with a share above 0 gets one patient at least, and training keeps at least one. With `config.folds`,
    patients are dealt in turn to so many folds, whose sizes differ by one at most; each patient is tested in one.

    Raises:
        Fatal: fewer patients than parts or folds.
    """
    patients = sorted(set(patient_ids), key=lambda patient: _rank(config.seed, patient))
    if config.folds is not None:
        return _split_off_fold(patients, config, config.folds)
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


def _split_off_fold(patients: Sequence[str], config: SplitConfig, folds: int) -> Split:
    if len(patients) < folds or (config.validation > 0 and len(patients) - ceil(len(patients) / folds) < 2):
        raise Fatal(f"{len(patients)} patients cannot fill {folds} folds; add scans, or lower split.folds")
    test = patients[config.fold :: folds]
    rest = [patient for patient in patients if patient not in test]
    n_validation = min(_held_out(config.validation, len(patients)), len(rest) - 1)
    return Split(
        test=tuple(sorted(test)),
        validation=tuple(sorted(rest[:n_validation])),
        train=tuple(sorted(rest[n_validation:])),
    )


def _row(**values: Any) -> Row:
    return dict.fromkeys(SCHEMA.names) | {"part": "", "code_version": __version__} | values


def _checked(row: Mapping[str, Any]) -> Row:
    unknown = sorted(set(row) - set(SCHEMA.names))
    if unknown:
        raise ValueError(f"the catalog has no column {', '.join(unknown)}; it has: {', '.join(SCHEMA.names)}")
    if not re.fullmatch(r"[0-9a-f]{8,64}", row["series_id"]):
        raise ValueError("a series_id is no keyed pseudonym; wanted 8 to 64 hexadecimal digits")
    return _row(**row)


def _held_out(share: float, patients: int) -> int:
    return max(1, int(share * patients + 0.5)) if share > 0 else 0


def _rank(seed: int, patient_id: str) -> bytes:
    return hashlib.sha256(f"{seed}/{patient_id}".encode()).digest()
