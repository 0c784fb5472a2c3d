"""One series into the archive: the plain function behind each Ray task of `jobs.preprocess`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tomoray.archive import Archive
from tomoray.catalog import refused_row, stored_row
from tomoray.errors import Refused
from tomoray.pseudonyms import Pseudonyms, public_root
from tomoray.series import DicomSeries, LoadedSeries, NiftiCase, load_dicom, load_nifti
from tomoray.sources import BadFile, read_file

Item = DicomSeries | NiftiCase | BadFile
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What an item is called, before any pixel is read."""

    series_id: str
    patient_id: str
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Ingested:
    """The catalog rows that one item ends in, and how many bytes of voxels were stored."""

    rows: tuple[Row, ...]
    voxel_bytes: int = 0


def identify(item: Item, pseudonyms: Pseudonyms) -> Identity:
    """The item's pseudonyms and the digest that changes when its files do."""
    if isinstance(item, BadFile):
        name = f"file {item.file.key}"
        return Identity(
            series_id=pseudonyms.token("series", name),
            patient_id=pseudonyms.token("patient", name),
            digest=pseudonyms.digest("instances", [name, str(item.file.size_bytes)]),
        )
    return Identity(
        series_id=item.series_id(pseudonyms), patient_id=item.patient_id(pseudonyms), digest=item.digest(pseudonyms)
    )


def ingest(item: Item, archive: Archive, pseudonyms: Pseudonyms, *, min_slices: int, config_sha256: str) -> Ingested:
    """Load one series and write it to the archive, or say why not. Safe to repeat: the same input, the same bytes."""
    try:
        loaded = _load(item, pseudonyms, min_slices)
    except Refused as refusal:
        return Ingested(rows=(_refused(item, refusal, pseudonyms, config_sha256),))
    archive.write_scan(loaded.volume)
    unfit = (_refused(label, refusal, pseudonyms, config_sha256) for label, refusal in loaded.refused_labels)
    return Ingested(
        rows=(stored_row(loaded.volume, config_sha256), *unfit), voxel_bytes=int(loaded.volume.image_zyx.nbytes)
    )


def _load(item: Item, pseudonyms: Pseudonyms, min_slices: int) -> LoadedSeries:
    if isinstance(item, BadFile):
        raise item.refusal
    if isinstance(item, NiftiCase):
        return load_nifti(item, read_file, pseudonyms, min_slices=min_slices)
    return load_dicom(item, read_file, pseudonyms, min_slices=min_slices)


def _refused(item: Item, refusal: Refused, pseudonyms: Pseudonyms, config_sha256: str) -> Row:
    identity = identify(item, pseudonyms)
    first = item.instances[0] if isinstance(item, DicomSeries) else None
    plane = first.planes[0] if first and first.planes else None
    return refused_row(
        series_id=identity.series_id,
        patient_id=identity.patient_id,
        source_uri=public_root(item.file.root if isinstance(item, BadFile) else item.root),
        n_instances=len(item.instances) if isinstance(item, DicomSeries) else 1,
        instances_sha256=identity.digest,
        reason=refusal.reason,
        evidence=refusal.evidence,
        config_sha256=config_sha256,
        manufacturer=first.manufacturer if first else None,
        model=first.model if first else None,
        kernel=first.kernel if first else None,
        slice_thickness_mm=plane.slice_thickness_mm if plane else None,
        sex=first.sex if first else None,
        age_years=first.age_years if first else None,
    )
