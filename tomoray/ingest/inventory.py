"""Everything that the sources hold, sorted into series: on this machine's disk, so that memory stays flat.

A terabyte of loose DICOM files is millions of headers. They are read in tasks, come here in batches, and leave as
one entry a series, in the order of the catalog. The file holds real identifiers; only this user can read it, it has no
name, and it is gone when the inventory is closed or its process ends, however it ends.
"""

from __future__ import annotations

import pickle
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from tomoray.dicom.headers import (
    CT_STORAGE,
    DRAWING_STORAGE,
    HEAD_BYTES,
    MEDIA_DIRECTORY_STORAGE,
    Instance,
    NotDicomError,
    looks_like_dicom,
    read_instance,
)
from tomoray.dicom.pixels import MAX_FRAME_PIXELS
from tomoray.dicom.tags import BIG_ENDIAN, DEFLATED
from tomoray.errors import Reason, Refused
from tomoray.ingest.series import BadFile, DicomFile, DicomSeries, Identity, Item
from tomoray.privacy.pseudonyms import Pseudonyms
from tomoray.sources import SourceFile, read_file, read_head
from tomoray.sources.packed import is_packed, list_packed, packed_root

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_AT_ONCE = 8  # answers of a remote source
_LONGER = 16  # times, where a header goes on


class Head(NamedTuple):
    """What it takes to give one DICOM file to its series."""

    series_uid: str
    folder: str  # where the series UID is empty: the folder, which then stands for it
    root: str
    key: str
    size_bytes: int
    sop_uid: str
    study_uid: str
    patient_id: str
    is_ct: bool  # or may be: it names no SOP class
    draws_on: str | None  # for SEG and RTSTRUCT: the series they refer to, or ""
    voxel_bytes: int
    file_bytes: int = 0  # held while its planes are decoded, beside them
    n_labels: int = 0


class Heads(NamedTuple):
    """What a batch of files turned out to be; the rest is neither DICOM nor broken DICOM."""

    heads: list[Head]
    bad: list[BadFile]
    n_ignored: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One work item, what it is called, and how large it is."""

    identity: Identity
    item: Item
    n_instances: int
    size_bytes: int
    voxel_bytes: int
    working_bytes: int


def read_heads(files: Sequence[SourceFile]) -> Heads:
    """Read the DICOM headers of `files`: the first 16 KiB of each, and more only where the header is longer.

    Of a remote source, eight at a time: it is the answers that take time.
    """
    if any("://" in file.root for file in files):
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = list(pool.map(_read_head, files))
    else:
        found = [_read_head(file) for file in files]
    heads = [each for each in found if isinstance(each, Head)]
    bad = [each for each in found if isinstance(each, BadFile)]
    return Heads(heads, bad, len(found) - len(heads) - len(bad))


def head_of(instance: Instance) -> Head:
    """The part of a header that says which series the file belongs to."""
    return Head(
        series_uid=instance.series_uid,
        folder="" if instance.series_uid else f"{instance.root} {instance.key.rpartition('/')[0]}",
        root=instance.root,
        key=instance.key,
        size_bytes=instance.size_bytes,
        sop_uid=instance.sop_uid,
        study_uid=instance.study_uid,
        patient_id=instance.patient_id,
        is_ct=not instance.sop_class or instance.sop_class in CT_STORAGE,
        draws_on=instance.referenced_series if instance.sop_class in DRAWING_STORAGE else None,
        voxel_bytes=_voxel_bytes(instance),
        file_bytes=_file_bytes(instance),
        n_labels=instance.n_drawn,
    )


class Inventory:
    """Series of the sources. Add what was found, `seal`, then read the entries.

    Example:
        >>> with Inventory() as inventory:
        ...     inventory.add_heads(read_heads(list(list_source("ct"))).heads)
        ...     inventory.seal(pseudonyms)
        ...     n = len(inventory)
    """

    def __init__(self) -> None:
        self._db = sqlite3.connect("")  # a private file in TMPDIR, removed as soon as it is open
        self._db.executescript(_SCHEMA)

    def __enter__(self) -> Inventory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget everything."""
        self._db.close()

    def __len__(self) -> int:
        return int(self._one("SELECT count(*) FROM entry"))

    @property
    def size_bytes(self) -> int:
        """Of all files of all entries."""
        return int(self._one("SELECT coalesce(sum(size_bytes), 0) FROM entry"))

    @property
    def voxel_bytes(self) -> int:
        """Of all images as int16, by their headers."""
        return int(self._one("SELECT coalesce(sum(voxel_bytes), 0) FROM entry"))

    def add_heads(self, heads: Iterable[Head]) -> None:
        """DICOM files, in any order; those of one series may come from several sources."""
        self._db.executemany("INSERT INTO head VALUES (?,?,?,?,?,?)", (_head_row(head) for head in heads))

    def add_items(self, items: Iterable[Item], pseudonyms: Pseudonyms) -> None:
        """Items that are whole already: cases of volume files, listed series, bad files."""
        rows = (_entry_row(item, pseudonyms) for item in items)
        self._db.executemany("INSERT OR REPLACE INTO entry VALUES (?,?,?,?,?,?,?,?)", rows)

    def seal(self, pseudonyms: Pseudonyms) -> None:
        """Sort the heads into series. A drawing goes to the CT series it refers to, or stays a series of its own."""
        self._db.executescript(_INDEXES)
        self.add_items(self._series(), pseudonyms)
        self._db.executescript("DROP TABLE head")
        self._db.commit()

    def entries(self, *, like: str = "") -> Iterator[Entry]:
        """Entries by their pseudonym, in order; `like`: only those that begin so."""
        rows = self._db.execute(
            "SELECT * FROM entry WHERE series_id >= ? AND series_id < ? ORDER BY series_id", (like, f"{like}g")
        )
        for series_id, patient_id, digest, n_instances, size_bytes, voxel_bytes, working_bytes, item in rows:
            yield Entry(
                identity=Identity(series_id=series_id, patient_id=patient_id, digest=digest),
                item=pickle.loads(item),  # noqa: S301 - written by this process
                n_instances=n_instances,
                size_bytes=size_bytes,
                voxel_bytes=voxel_bytes,
                working_bytes=working_bytes,
            )

    def sizes(self) -> Iterator[tuple[str, str, int, int, int, int]]:
        """(series_id, digest, n_instances, size_bytes, voxel_bytes, working_bytes) of each entry, without the item."""
        columns = "series_id, digest, n_instances, size_bytes, voxel_bytes, working_bytes"
        yield from self._db.execute(f"SELECT {columns} FROM entry")  # noqa: S608 - ours

    def _series(self) -> Iterator[DicomSeries]:
        """Drawings on no CT that is there belong to the series that they say, as any other file."""
        of_ct = "SELECT series_uid FROM head WHERE is_ct AND series_uid != x''"
        alone = f"draws_on IS NULL OR draws_on NOT IN ({of_ct})"
        found = self._heads(f"{alone} ORDER BY series_uid, folder, place")
        for (series_uid, _), group in groupby(found, itemgetter(0, 1)):
            heads = list(group)
            drawn = series_uid and any(head.is_ct for head in heads)
            drawings = self._heads("draws_on = ? ORDER BY place", _bytes(series_uid)) if drawn else ()
            yield _series(heads, list(drawings))

    def _heads(self, where: str, *values: bytes) -> Iterator[Head]:
        for (head,) in self._db.execute(f"SELECT head FROM head WHERE {where}", values):  # noqa: S608 - ours
            yield Head(*pickle.loads(head))  # noqa: S301 - written by this process

    def _one(self, query: str) -> Any:
        return self._db.execute(query).fetchone()[0]


def group_dicom(heads: Iterable[Head], pseudonyms: Pseudonyms) -> list[DicomSeries]:
    """The series of a handful of files, as an inventory would sort them."""
    with Inventory() as inventory:
        inventory.add_heads(heads)
        inventory.seal(pseudonyms)
        return [entry.item for entry in inventory.entries() if isinstance(entry.item, DicomSeries)]


def _read_head(file: SourceFile) -> Head | BadFile | None:
    """None where the file is ignored."""
    try:
        instance = _read_header(file)
    except NotDicomError as error:
        return BadFile(
            file=file, refusal=Refused(Reason.UNREADABLE, f"a file that should be DICOM cannot be read: {error}")
        )
    except Refused as refusal:
        return BadFile(file=file, refusal=refusal)
    if instance is None or instance.sop_class == MEDIA_DIRECTORY_STORAGE:
        return None
    return head_of(instance)


def _read_header(file: SourceFile) -> Instance | None:
    """The header of a DICOM file; None where it is no DICOM at all."""
    if is_packed(file.key):
        list_packed(packed_root(file))  # what could not be listed; it says why
        return None
    length = HEAD_BYTES
    while True:
        known = length < file.size_bytes
        data = read_head(file.root, file.key, length) if known else read_file(file.root, file.key)
        if not looks_like_dicom(data) and not file.key.lower().endswith(DICOM_SUFFIXES):
            return None
        size_bytes = file.size_bytes if known else len(data)
        instance = read_instance(data, root=file.root, key=file.key, size_bytes=size_bytes)
        if instance is not None:
            break
        assert known, "the whole file was given"
        length *= _LONGER
    if not (instance.sop_class or instance.modality):
        raise NotDicomError("it names neither SOP class nor modality")
    return instance


def _voxel_bytes(instance: Instance) -> int:
    """Of what may be decoded: other images, and larger ones, are refused by their headers."""
    n_pixels = (instance.rows or 0) * (instance.columns or 0)
    if instance.sop_class not in CT_STORAGE or n_pixels > MAX_FRAME_PIXELS:
        return 0
    return 2 * n_pixels * len(instance.planes)


def _file_bytes(instance: Instance) -> int:
    """A file, and a quarter for its parts; a second time where it is decoded by way of pydicom, inflated if need be."""
    if not _voxel_bytes(instance):
        return 0
    if instance.transfer_syntax == DEFLATED:
        return instance.size_bytes + 2 * _voxel_bytes(instance)
    return 2 * instance.size_bytes if instance.transfer_syntax == BIG_ENDIAN else 5 * instance.size_bytes // 4


def _series(heads: Sequence[Head], drawings: Sequence[Head]) -> DicomSeries:
    first = heads[0]
    return DicomSeries(
        series_uid=first.series_uid,
        study_uid=first.study_uid,
        patient_id=first.patient_id,
        files=tuple(_file(head) for head in heads),
        drawings=tuple(_file(head) for head in drawings),
        voxel_bytes=sum(head.voxel_bytes for head in heads) if any(head.is_ct for head in heads) else 0,
        file_bytes=max(head.file_bytes for head in heads),
        n_labels=sum(head.n_labels for head in drawings),
        is_ct=any(head.is_ct for head in heads),
    )


def _file(head: Head) -> DicomFile:
    return DicomFile(head.root, head.key, head.size_bytes, head.sop_uid)


def _entry_row(item: Item, pseudonyms: Pseudonyms) -> tuple[object, ...]:
    identity = item.identify(pseudonyms)
    sizes = (item.n_instances, item.size_bytes, item.voxel_bytes, item.working_bytes)
    return (identity.series_id, identity.patient_id, identity.digest, *sizes, pickle.dumps(item))


def _head_row(head: Head) -> tuple[object, ...]:
    draws_on = None if head.draws_on is None else _bytes(head.draws_on)
    place = _bytes(f"{head.root}\0{head.key}")
    return (_bytes(head.series_uid), _bytes(head.folder), place, draws_on, head.is_ct, pickle.dumps(tuple(head)))


def _bytes(text: str) -> bytes:
    """Names of files can hold what is no Unicode."""
    return text.encode("utf-8", "surrogatepass")


_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA temp_store = FILE;
CREATE TABLE head (series_uid BLOB, folder BLOB, place BLOB, draws_on BLOB, is_ct INTEGER, head BLOB);
CREATE TABLE entry (
    series_id TEXT PRIMARY KEY, patient_id TEXT, digest TEXT, n_instances INTEGER, size_bytes INTEGER,
    voxel_bytes INTEGER, working_bytes INTEGER, item BLOB
);
"""
_INDEXES = """
CREATE INDEX by_series ON head (series_uid, folder, place);
CREATE INDEX by_drawn ON head (draws_on) WHERE draws_on IS NOT NULL;
"""
