"""Where studies come from: folders and S3 prefixes of DICOM or NIfTI files, and zip files of one study.

A source is listed, its headers are read, and its files are grouped into series. Pixels are not touched here.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tomoray.config import NiftiPattern
from tomoray.dicom import (
    CT_IMAGE_STORAGE,
    HEAD_BYTES,
    MEDIA_DIRECTORY_STORAGE,
    SEGMENTATION_STORAGE,
    Instance,
    NotDicomError,
    looks_like_dicom,
    read_instance,
)
from tomoray.errors import Fatal, Reason, Refused, TooLarge
from tomoray.pseudonyms import Pseudonyms
from tomoray.series import DicomSeries, LoadedSeries, NiftiCase, load_dicom
from tomoray.storage import open_store

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_NIFTI_SUFFIXES = (".nii", ".nii.gz")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """A file and the source it was listed under."""

    root: str
    key: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BadFile:
    """A file that should be DICOM or NIfTI and is not readable or belongs to nothing, and why."""

    file: SourceFile
    refusal: Refused


def list_source(source: str) -> list[SourceFile]:
    """Every file of a folder, an S3 prefix, or the one file named, sorted by name. Links are followed, once.

    Raises:
        Fatal: there is nothing at `source`, or it cannot be reached.
    """
    if _is_remote(source):
        store = open_store(source)
        store.check(writable=False)
        return [SourceFile(root=store.url, key=item.key, size_bytes=item.size_bytes) for item in store.list()]
    path = Path(source).expanduser().absolute()
    if path.is_file():
        return [SourceFile(root=str(path.parent), key=path.name, size_bytes=path.stat().st_size)]
    if not path.is_dir():
        raise Fatal(f"no folder or file at {source}; check the path")
    found = (SourceFile(root=str(path), key=str(p.relative_to(path)), size_bytes=_size_bytes(p)) for p in _walk(path))
    return sorted(found, key=lambda file: file.key)


def read_file(root: str, key: str) -> bytes:
    """The bytes of one file of a source. Raises `Refused` where a local file cannot be opened."""
    return open_store(root).read(key) if _is_remote(root) else _read_local(root, key, -1)


def is_nifti(file: SourceFile) -> bool:
    """True by the file's name."""
    return file.key.lower().endswith(_NIFTI_SUFFIXES)


def read_headers(files: Sequence[SourceFile]) -> tuple[list[Instance], list[BadFile]]:
    """Read the DICOM headers of `files`. Files that are not DICOM at all are in neither list.

    Reads the first 64 KiB of each, and the rest only where the header is longer.
    """
    instances: list[Instance] = []
    bad: list[BadFile] = []
    for file in files:
        try:
            head = _read_head(file)
            if not looks_like_dicom(head) and not file.key.lower().endswith(_DICOM_SUFFIXES):
                continue
            instance = read_instance(head, root=file.root, key=file.key, size_bytes=file.size_bytes)
            if instance is None:
                whole = read_file(file.root, file.key)
                instance = read_instance(whole, root=file.root, key=file.key, size_bytes=len(whole))
            assert instance is not None, "the whole file was given"
            if not (instance.sop_class or instance.modality):
                raise NotDicomError("it names neither SOP class nor modality")
        except NotDicomError as error:
            refusal = Refused(Reason.UNREADABLE, f"a file that should be DICOM cannot be read: {error}")
            bad.append(BadFile(file=file, refusal=refusal))
            continue
        except Refused as refusal:
            bad.append(BadFile(file=file, refusal=refusal))
            continue
        if instance.sop_class != MEDIA_DIRECTORY_STORAGE:
            instances.append(instance)
    return instances, bad


def group_dicom(instances: Iterable[Instance]) -> list[DicomSeries]:
    """Group by Series Instance UID and give each segmentation to the series it refers to.

    A segmentation that refers to no series here stays a series of its own. Instances without a series UID stay
    together by folder, to be refused together. The result is sorted, whatever the order of `instances`.
    """
    images: dict[tuple[str, str], list[Instance]] = {}
    segmentations: list[Instance] = []
    for instance in sorted(instances, key=lambda i: (i.root, i.key)):
        if instance.sop_class in SEGMENTATION_STORAGE:
            segmentations.append(instance)
        else:
            folder = "" if instance.series_uid else f"{instance.root} {instance.key.rpartition('/')[0]}"
            images.setdefault((instance.series_uid, folder), []).append(instance)
    ct_series = {
        instance.series_uid for found in images.values() for instance in found if instance.sop_class == CT_IMAGE_STORAGE
    }
    drawn: dict[str, list[Instance]] = {}
    loose: list[DicomSeries] = []
    for segmentation in segmentations:
        if segmentation.referenced_series in ct_series:
            drawn.setdefault(segmentation.referenced_series, []).append(segmentation)
        else:
            loose.append(DicomSeries(instances=(segmentation,)))
    grouped = [
        DicomSeries(instances=tuple(found), segmentations=tuple(drawn.get(uid, ())))
        for (uid, _), found in sorted(images.items())
    ]
    return grouped + loose


def group_nifti(files: Iterable[SourceFile], pattern: NiftiPattern) -> tuple[list[NiftiCase], list[BadFile]]:
    """Pair NIfTI images with their masks by file name.

    Returns:
        The cases, and the files that match neither pattern or have no image beside them.
    """
    found = sorted(files, key=lambda f: (f.root, f.key))
    image_pattern = _regex(pattern.image)
    images: dict[tuple[str, str, str], SourceFile] = {}
    rest: list[SourceFile] = []
    for file in found:
        folder, name = _split(file)
        match = image_pattern.fullmatch(name)
        if match:
            images[file.root, folder, match["case"]] = file
        else:
            rest.append(file)
    labels: dict[tuple[str, str, str], list[tuple[str, str, int]]] = {}
    bad: list[BadFile] = []
    for file in rest:
        folder, name = _split(file)
        for case, label in _readings(name, pattern.label):
            if (file.root, folder, case) in images:
                labels.setdefault((file.root, folder, case), []).append((label, file.key, file.size_bytes))
                break
        else:
            refusal = Refused(
                Reason.LABEL_WITHOUT_IMAGE,
                f"a NIfTI file is neither an image {pattern.image!r} nor a mask {pattern.label!r} of such an image",
            )
            bad.append(BadFile(file=file, refusal=refusal))
    cases = [
        NiftiCase(
            root=root,
            case=case,
            image=file.key,
            size_bytes=file.size_bytes,
            labels=tuple(labels.get((root, folder, case), ())),
        )
        for (root, folder, case), file in images.items()
    ]
    return cases, bad


def read_zip(data: bytes, max_bytes: int, pseudonyms: Pseudonyms, *, min_slices: int = 3) -> LoadedSeries:
    """The one CT scan in a zip file of a DICOM study.

    Args:
        data: the zip file.
        max_bytes: more than this after decompression is an error; a forged size cannot get around it.
        pseudonyms: turns identifiers into pseudonyms.
        min_slices: fewer are refused.

    Raises:
        Fatal: not a zip file, too large (`TooLarge`), or no DICOM in it.
        Refused: no series, or more than one, is a usable CT scan.
    """
    members = _unzip(data, max_bytes)
    instances = []
    for name, member in members.items():
        if looks_like_dicom(member):
            try:
                instance = read_instance(member, root="", key=name, size_bytes=len(member))
            except NotDicomError as error:
                raise Refused(Reason.UNREADABLE, f"a file in the zip cannot be read: {error}") from error
            if instance is not None and instance.sop_class != MEDIA_DIRECTORY_STORAGE:
                instances.append(instance)
    if not instances:
        raise Fatal(f"no DICOM file among the {len(members)} files of the zip; send one CT study")
    usable: list[LoadedSeries] = []
    refusals: list[Refused] = []
    for series in group_dicom(instances):
        try:
            alone = DicomSeries(instances=series.instances)
            usable.append(load_dicom(alone, lambda _root, key: members[key], pseudonyms, min_slices=min_slices))
        except Refused as refusal:
            refusals.append(refusal)
        if len(usable) > 1:
            raise Refused(Reason.SEVERAL_SCANS, "several CT scans in one study; send one")
    if not usable:
        raise refusals[0]
    return usable[0]


def _unzip(data: bytes, max_bytes: int) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    left = max_bytes
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in archive.infolist():
                if entry.is_dir():
                    continue
                with archive.open(entry) as member:
                    members[entry.filename] = member.read(left + 1)
                left -= len(members[entry.filename])
                if left < 0:
                    raise TooLarge(f"the zip holds more than {max_bytes} bytes; send less, or raise the limit")
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        raise Fatal(f"the zip file cannot be read ({type(error).__name__}); send a plain, unencrypted zip") from error
    return members


def _is_remote(source: str) -> bool:
    return "://" in source


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a local folder, whatever their names; each folder once, though links make a ring."""
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        here = os.path.realpath(parent)
        if here in seen:
            folders.clear()
            continue
        seen.add(here)
        yield from (Path(parent, name) for name in names)


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a link to nothing; reading it says so
        return 0


def _read_head(file: SourceFile) -> bytes:
    if not _is_remote(file.root):
        return _read_local(file.root, file.key, HEAD_BYTES)
    length = min(HEAD_BYTES, file.size_bytes)
    return open_store(file.root).read_range(file.key, 0, length) if length else b""


def _read_local(root: str, key: str, length: int) -> bytes:
    try:
        with Path(root, key).open("rb") as file:
            return file.read(length)
    except OSError as error:
        raise Refused(Reason.UNREADABLE, f"a file cannot be opened ({error.strerror})") from error


def _split(file: SourceFile) -> tuple[str, str]:
    folder, _, name = file.key.rpartition("/")
    return folder, name


def _readings(name: str, pattern: str) -> Iterator[tuple[str, str]]:
    """Every (case, label) that `name` can be read as, the longest case first: both may hold underscores."""
    for length in range(len(name), 0, -1):
        match = _regex(pattern, length).fullmatch(name)
        if match:
            yield match["case"], match["label"]


@cache
def _regex(pattern: str, case_length: int | None = None) -> re.Pattern[str]:
    case = "(?P<case>.+)" if case_length is None else f"(?P<case>.{{{case_length}}})"
    return re.compile(re.escape(pattern).replace(r"\{case\}", case).replace(r"\{label\}", "(?P<label>.+)"))
