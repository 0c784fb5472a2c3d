"""One series -> one Volume, with the masks that were drawn on it.

The only way into an archive: `load_dicom` and `load_nifti` either give a scan that is right or raise `Refused`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType

import numpy as np
from pydicom import Dataset

from tomoray import nifti, nrrd
from tomoray.dicom import STRUCTURE_SET_STORAGE, Instance, NotDicomError, read_dataset
from tomoray.dicom_seg import read_segmentation
from tomoray.errors import Reason, Refused
from tomoray.pixels import decode_hu
from tomoray.pseudonyms import Pseudonyms, public_root
from tomoray.rtstruct import read_rtstruct
from tomoray.stack import Stack, build_stack
from tomoray.volume import AIR_HU, LABEL_NAME, Mask, ScanInfo, ScanUids, Volume

Read = Callable[[str, str], bytes]  # (root, key) -> the file's bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class DicomSeries:
    """All files of one Series Instance UID, and the segmentations and structure sets that refer to it."""

    instances: tuple[Instance, ...]
    segmentations: tuple[Instance, ...] = ()

    @property
    def root(self) -> str:
        """The source it lies in."""
        return self.instances[0].root

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(instance.size_bytes for instance in (*self.instances, *self.segmentations))

    def series_id(self, pseudonyms: Pseudonyms) -> str:
        """Stands for the Series Instance UID; where that is empty, for the instances in it."""
        first = self.instances[0]
        return pseudonyms.token("series", first.series_uid or self.digest(pseudonyms))

    def patient_id(self, pseudonyms: Pseudonyms) -> str:
        """Stands for the Patient ID; where that is empty, for the study, so that patients are never merged."""
        first = self.instances[0]
        return pseudonyms.token("patient", first.patient_id or f"study {first.study_uid or self.digest(pseudonyms)}")

    def digest(self, pseudonyms: Pseudonyms) -> str:
        """Changes when instances come, go, or change size; needs no pixels."""
        files = [f"{i.sop_uid} {i.size_bytes}" for i in (*self.instances, *self.segmentations)]
        return pseudonyms.digest("instances", sorted(files))


@dataclass(frozen=True, kw_only=True, slots=True)
class NiftiCase:
    """One NIfTI or NRRD image and its masks; names are keys in `root`."""

    root: str
    case: str
    image: str
    size_bytes: int
    labels: tuple[tuple[str, str, int], ...]  # label name, key, bytes

    def series_id(self, pseudonyms: Pseudonyms) -> str:
        """Stands for the case's name."""
        return pseudonyms.token("series", f"nifti {self.case}")

    def patient_id(self, pseudonyms: Pseudonyms) -> str:
        """Stands for the case's name: a case is taken for a patient."""
        return pseudonyms.token("patient", self.case)

    def digest(self, pseudonyms: Pseudonyms) -> str:
        """Changes when files come, go, or change size."""
        labels = sorted(f"{name} {size}" for name, _, size in self.labels)
        return pseudonyms.digest("instances", [f"{self.case} {self.size_bytes}", *labels])


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedSeries:
    """A scan and what came with it.

    Attributes:
        headers: for DICOM, the real headers in plane order, without pixels (results refer to them).
        refused_labels: segmentations that do not fit, each with why.
    """

    volume: Volume
    headers: tuple[Dataset, ...] = ()
    refused_labels: tuple[tuple[DicomSeries | NiftiCase, Refused], ...] = ()


def load_dicom(series: DicomSeries, read: Read, pseudonyms: Pseudonyms, *, min_slices: int) -> LoadedSeries:
    """Decode one DICOM series, a slice at a time into one preallocated volume.

    Args:
        series: its headers.
        read: gives the bytes of a file.
        pseudonyms: turns identifiers into pseudonyms.
        min_slices: fewer are refused.

    Raises:
        Refused: the series is not understood.
    """
    instances = _drop_copies(series.instances, read)
    stack = build_stack(instances, min_slices)
    image = np.empty(stack.geometry.shape_zyx, dtype=np.int16)
    headers, file_digests, padded = [], {}, 0
    for plane, instance in enumerate(stack.instances):
        data = read(instance.root, instance.key)
        file_digests[instance.key] = hashlib.sha256(data).hexdigest()
        dataset = _reread(data, instance)
        padded += decode_hu(data, instance, 0, image[plane])
        del dataset.PixelData
        headers.append(dataset)

    labels: dict[str, Mask] = {}
    refused_labels: list[tuple[DicomSeries | NiftiCase, Refused]] = []
    for segmentation in series.segmentations:
        data = read(segmentation.root, segmentation.key)
        try:
            read_masks = read_rtstruct if segmentation.sop_class == STRUCTURE_SET_STORAGE else read_segmentation
            masks = read_masks(_reread(data, segmentation), stack.geometry)
            twice = sorted(masks.keys() & labels.keys())
            if twice:
                raise Refused(Reason.LABEL_UNSUPPORTED, f"label {twice[0]} is given by two segmentations of one series")
        except Refused as refusal:
            refused_labels.append((DicomSeries(instances=(segmentation,)), refusal))
            continue
        labels.update(masks)
        file_digests[segmentation.key] = hashlib.sha256(data).hexdigest()

    notes = list(stack.notes)
    if len(instances) < len(series.instances):
        notes.append(f"{len(series.instances) - len(instances)} identical copies of instances were left out")
    if padded:
        notes.append(f"{padded} padding voxels were set to {AIR_HU} HU")
    info = _info(series, stack, pseudonyms, file_digests, notes)
    volume = Volume(image_zyx=image, geometry=stack.geometry, info=info, labels=labels)
    return LoadedSeries(volume=volume, headers=tuple(headers), refused_labels=tuple(refused_labels))


def load_nifti(case: NiftiCase, read: Read, pseudonyms: Pseudonyms, *, min_slices: int) -> LoadedSeries:
    """Read one NIfTI or NRRD image and the masks on its grid. Raises `Refused` where the image is not understood."""
    data = read(case.root, case.image)
    digests = [hashlib.sha256(data).hexdigest()]
    image, geometry = _volume_format(case.image).read_image(data)
    if min(geometry.shape_zyx) < min_slices:
        raise Refused(Reason.TOO_FEW_SLICES, f"shape {geometry.shape_zyx}; wanted {min_slices} or more along each axis")
    labels: dict[str, Mask] = {}
    refused_labels: list[tuple[DicomSeries | NiftiCase, Refused]] = []
    for name, key, size_bytes in case.labels:
        data = read(case.root, key)
        try:
            if not LABEL_NAME.fullmatch(name):
                raise Refused(Reason.LABEL_UNSUPPORTED, "the label's name holds other than letters, digits, . _ and -")
            labels[name] = _volume_format(key).read_mask(data, geometry)
        except Refused as refusal:
            alone = NiftiCase(root=case.root, case=f"{case.case} {name}", image=key, size_bytes=size_bytes, labels=())
            refused_labels.append((alone, refusal))
            continue
        digests.append(hashlib.sha256(data).hexdigest())
    digest = case.digest(pseudonyms)
    info = ScanInfo(
        scan_id=pseudonyms.token("scan", f"nifti {case.case}", digest),
        series_id=case.series_id(pseudonyms),
        patient_id=case.patient_id(pseudonyms),
        source_uri=public_root(case.root),
        n_instances=1,
        instances_sha256=digest,
        input_sha256=_digest_of(digests),
        uids=ScanUids(
            study=pseudonyms.uid("study", f"nifti {case.case}"),
            series=pseudonyms.uid("series", f"nifti {case.case}"),
            frame_of_reference=pseudonyms.uid("frame", f"nifti {case.case}"),
            instances=tuple(pseudonyms.uid("instance", f"nifti {case.case} {z}") for z in range(geometry.shape_zyx[0])),
        ),
    )
    volume = Volume(image_zyx=image, geometry=geometry, info=info, labels=labels)
    return LoadedSeries(volume=volume, refused_labels=tuple(refused_labels))


def _volume_format(key: str) -> ModuleType:
    """The module that reads a volume file of this name."""
    return nrrd if key.lower().endswith(".nrrd") else nifti


def _drop_copies(instances: Sequence[Instance], read: Read) -> list[Instance]:
    """Keep one of each SOP Instance UID. Copies must be the same to the byte."""
    by_uid: dict[str, list[Instance]] = {}
    for instance in instances:
        by_uid.setdefault(instance.sop_uid or instance.key, []).append(instance)
    for copies in by_uid.values():
        if len(copies) > 1:
            found = [hashlib.sha256(read(copy.root, copy.key)).hexdigest() for copy in copies]
            if any(a != b for a, b in pairwise(found)):
                raise Refused(
                    Reason.DUPLICATE_INSTANCE, f"{len(copies)} different files carry one instance UID; wanted one"
                )
    return [copies[0] for copies in by_uid.values()]


def _reread(data: bytes, instance: Instance) -> Dataset:
    try:
        dataset = read_dataset(data)
    except NotDicomError as error:
        raise Refused(Reason.UNREADABLE, f"an instance cannot be read: {error}") from error
    if str(dataset.get("SOPInstanceUID", "")) != instance.sop_uid:
        raise Refused(Reason.UNREADABLE, "an instance changed while it was read; run the command again")
    return dataset


def _info(
    series: DicomSeries, stack: Stack, pseudonyms: Pseudonyms, file_digests: dict[str, str], notes: Iterable[str]
) -> ScanInfo:
    first = stack.instances[0]
    digest = series.digest(pseudonyms)
    files = [*stack.instances, *(s for s in series.segmentations if s.key in file_digests)]
    return ScanInfo(
        scan_id=pseudonyms.token("scan", first.series_uid, digest),
        series_id=series.series_id(pseudonyms),
        patient_id=series.patient_id(pseudonyms),
        source_uri=public_root(series.root),
        n_instances=len(stack.instances),
        instances_sha256=digest,
        input_sha256=_digest_of(file_digests[file.key] for file in files),
        uids=ScanUids(
            study=pseudonyms.uid("study", first.study_uid),
            series=pseudonyms.uid("series", first.series_uid),
            frame_of_reference=pseudonyms.uid("frame", first.frame_of_reference_uid or first.series_uid),
            instances=tuple(pseudonyms.uid("instance", instance.sop_uid) for instance in stack.instances),
        ),
        manufacturer=first.manufacturer,
        model=first.model,
        kernel=first.kernel,
        slice_thickness_mm=first.planes[0].slice_thickness_mm,
        sex=first.sex,
        age_years=first.age_years,
        notes=tuple(notes),
    )


def _digest_of(digests: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
