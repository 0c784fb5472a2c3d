"""What a listing gives: files, and series where a source knows them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """A file and the source it was listed under: what `read_file(root, key)` reads.

    Attributes:
        root: a URL of its own; `pseudonyms.public_root` is what may be stored of it.
        size_bytes: -1 where the source does not say.
    """

    root: str
    key: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesListing:
    """A series that its source knows without reading its files. Holds real identifiers: it lives in memory only.

    Attributes:
        root: `list_source(root)` gives its files.
        version: changes when the series' content does.
        size_bytes: 0 where the source does not say.
        native: the source says that its pixels are not compressed.
    """

    root: str
    series_uid: str
    patient_id: str
    study_uid: str
    modality: str
    n_instances: int
    size_bytes: int
    version: str
    manufacturer: str | None
    native: bool = False
