"""From files to series: headers are read, instances grouped, volumes paired with their masks by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

from tomoray.config import NiftiPattern
from tomoray.dicom import (
    CT_IMAGE_STORAGE,
    ENHANCED_CT_STORAGE,
    HEAD_BYTES,
    MEDIA_DIRECTORY_STORAGE,
    SEGMENTATION_STORAGE,
    STRUCTURE_SET_STORAGE,
    Instance,
    NotDicomError,
    looks_like_dicom,
    read_instance,
)
from tomoray.errors import Reason, Refused
from tomoray.series import DicomSeries, NiftiCase
from tomoray.sources.files import BadFile, SourceFile
from tomoray.sources.packed import is_packed, list_packed, packed_root
from tomoray.sources.places import read_file, read_head

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd")


def is_volume(file: SourceFile) -> bool:
    """True where the file's name is that of a NIfTI or NRRD volume."""
    return file.key.lower().endswith(_VOLUME_SUFFIXES)


def read_headers(files: Sequence[SourceFile]) -> tuple[list[Instance], list[BadFile]]:
    """Read the DICOM headers of `files`. Files that are not DICOM at all are in neither list.

    Reads the first 64 KiB of each, and the rest only where the header is longer. An archive among them is one that
    could not be listed.
    """
    instances: list[Instance] = []
    bad: list[BadFile] = []
    for file in files:
        try:
            if is_packed(file.key):
                list_packed(packed_root(file))  # says why it could not be listed
                continue
            if file.size_bytes >= 0:
                size_bytes, head = file.size_bytes, read_head(file.root, file.key, min(HEAD_BYTES, file.size_bytes))
            else:
                head = read_file(file.root, file.key)
                size_bytes = len(head)
            if not looks_like_dicom(head) and not file.key.lower().endswith(_DICOM_SUFFIXES):
                continue
            instance = read_instance(head, root=file.root, key=file.key, size_bytes=size_bytes)
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
    """Group by Series Instance UID and give each segmentation or structure set to the series it refers to.

    One that refers to no series here stays a series of its own. Instances without a series UID stay
    together by folder, to be refused together. The result is sorted, whatever the order of `instances`.
    """
    images: dict[tuple[str, str], list[Instance]] = {}
    segmentations: list[Instance] = []
    for instance in sorted(instances, key=lambda i: (i.root, i.key)):
        if instance.sop_class in (*SEGMENTATION_STORAGE, STRUCTURE_SET_STORAGE):
            segmentations.append(instance)
        else:
            folder = "" if instance.series_uid else f"{instance.root} {instance.key.rpartition('/')[0]}"
            images.setdefault((instance.series_uid, folder), []).append(instance)
    ct = (CT_IMAGE_STORAGE, *ENHANCED_CT_STORAGE)
    ct_series = {instance.series_uid for found in images.values() for instance in found if instance.sop_class in ct}
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


def group_volumes(files: Iterable[SourceFile], pattern: NiftiPattern) -> tuple[list[NiftiCase], list[BadFile]]:
    """Pair NIfTI and NRRD images with their masks by file name.

    A pattern's own ending does not matter: `{case}_ct.nii.gz` finds `a_ct.nrrd` too, and its masks of either kind.

    Returns:
        The cases, and the files that match neither pattern, have no image beside them, or come twice.
    """
    image_pattern = _regex(pattern.image)
    images: dict[tuple[str, str, str], SourceFile] = {}
    rest: list[SourceFile] = []
    bad: list[BadFile] = []
    for file in sorted(files, key=lambda f: (f.root, f.key)):
        folder, name = _split(file)
        match = image_pattern.fullmatch(name)
        if not match:
            rest.append(file)
        elif images.setdefault((file.root, folder, match["case"]), file) is not file:
            bad.append(_twice(file, "image"))
    labels: dict[tuple[str, str, str], dict[str, SourceFile]] = {case: {} for case in images}
    for file in rest:
        folder, name = _split(file)
        for case, label in _readings(name, pattern.label):
            if (file.root, folder, case) in images:
                if labels[file.root, folder, case].setdefault(label, file) is not file:
                    bad.append(_twice(file, "mask"))
                break
        else:
            wanted = f"an image {pattern.image!r} nor a mask {pattern.label!r} of such an image"
            refusal = Refused(Reason.LABEL_WITHOUT_IMAGE, f"a NIfTI or NRRD file is neither {wanted}")
            bad.append(BadFile(file=file, refusal=refusal))
    cases = [
        NiftiCase(
            root=root,
            case=case,
            image=file.key,
            size_bytes=file.size_bytes,
            labels=tuple((name, mask.key, mask.size_bytes) for name, mask in labels[root, folder, case].items()),
        )
        for (root, folder, case), file in images.items()
    ]
    return cases, bad


def _twice(file: SourceFile, what: str) -> BadFile:
    evidence = f"a case has the same {what} in two files; wanted one, NIfTI or NRRD"
    return BadFile(file=file, refusal=Refused(Reason.DUPLICATE_INSTANCE, evidence))


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
    stem = next((pattern.removesuffix(end) for end in _VOLUME_SUFFIXES if pattern.endswith(end)), pattern)
    case = "(?P<case>.+)" if case_length is None else f"(?P<case>.{{{case_length}}})"
    escaped = re.escape(stem).replace(r"\{case\}", case).replace(r"\{label\}", "(?P<label>.+)")
    ends = "|".join(re.escape(end) for end in _VOLUME_SUFFIXES)
    return re.compile(escaped if stem == pattern else f"{escaped}(?:{ends})")
