"""Work items: what is to be brought into an archive, named but not yet read.

They hold real identifiers and stay in memory; what is stored of them is their `Identity`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tomoray.errors import Refused
from tomoray.pseudonyms import Pseudonyms
from tomoray.sources import SeriesListing, SourceFile


class DicomFile(NamedTuple):
    """One DICOM file of a series."""

    root: str
    key: str
    size_bytes: int
    sop_uid: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What an item is called, before any pixel is read.

    Attributes:
        digest: keyed; changes when the item's files do, and needs no pixels.
    """

    series_id: str
    patient_id: str
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DicomSeries:
    """All files of one Series Instance UID, and what was drawn on it (SEG, RTSTRUCT).

    Attributes:
        voxel_bytes: of its images as int16, by their headers.
    """

    series_uid: str
    study_uid: str
    patient_id: str
    files: tuple[DicomFile, ...]
    drawings: tuple[DicomFile, ...] = ()
    voxel_bytes: int = 0

    @property
    def root(self) -> str:
        """The source it lies in."""
        return self.files[0].root

    @property
    def n_instances(self) -> int:
        """Files of images."""
        return len(self.files)

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(file.size_bytes for file in (*self.files, *self.drawings))

    def identify(self, pseudonyms: Pseudonyms) -> Identity:
        """By UIDs. Where those are empty, by the instances, so that series and patients are never merged."""
        digest = pseudonyms.digest("instances", sorted(f"{f.sop_uid} {f.size_bytes}" for f in (*self.files, *self.drawings)))
        return Identity(
            series_id=pseudonyms.token("series", self.series_uid or digest),
            patient_id=pseudonyms.token("patient", self.patient_id or f"study {self.study_uid or digest}"),
            digest=digest,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedSeries:
    """A series that its source lists by itself; its files are listed by the task that reads them."""

    listing: SeriesListing

    @property
    def root(self) -> str:
        """The source it lies in."""
        return self.listing.root

    @property
    def n_instances(self) -> int:
        """As the source says."""
        return self.listing.n_instances

    @property
    def size_bytes(self) -> int:
        """As the source says."""
        return self.listing.size_bytes

    @property
    def voxel_bytes(self) -> int:
        """By the number of instances, at the 512 x 512 voxels of nearly every CT."""
        return self.listing.n_instances * 512 * 512 * 2

    def identify(self, pseudonyms: Pseudonyms) -> Identity:
        """By the listing alone."""
        listing = self.listing
        digest = pseudonyms.digest("listing", [listing.series_uid, listing.version])
        return Identity(
            series_id=pseudonyms.token("series", listing.series_uid or digest),
            patient_id=pseudonyms.token("patient", listing.patient_id or f"study {listing.study_uid or digest}"),
            digest=digest,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class VolumeCase:
    """One NIfTI or NRRD image and its masks; names are keys in `root`."""

    root: str
    case: str
    image: str
    size_bytes: int
    labels: tuple[tuple[str, str, int], ...]  # label name, key, bytes

    n_instances = 1

    @property
    def voxel_bytes(self) -> int:
        """A guess: the files are compressed, and masks by far the most."""
        return 4 * self.size_bytes

    def identify(self, pseudonyms: Pseudonyms) -> Identity:
        """By the case's name, which is taken for a patient."""
        labels = sorted(f"{name} {size}" for name, _, size in self.labels)
        return Identity(
            series_id=pseudonyms.token("series", f"nifti {self.case}"),
            patient_id=pseudonyms.token("patient", self.case),
            digest=pseudonyms.digest("instances", [f"{self.case} {self.size_bytes}", *labels]),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class BadFile:
    """A file that should be DICOM, NIfTI or NRRD and is not readable or belongs to nothing, and why."""

    file: SourceFile
    refusal: Refused

    n_instances = 1
    voxel_bytes = 0

    @property
    def root(self) -> str:
        """The source it lies in."""
        return self.file.root

    @property
    def size_bytes(self) -> int:
        """Of the file."""
        return self.file.size_bytes

    def identify(self, pseudonyms: Pseudonyms) -> Identity:
        """By the file's name."""
        name = f"file {self.file.key}"
        return Identity(
            series_id=pseudonyms.token("series", name),
            patient_id=pseudonyms.token("patient", name),
            digest=pseudonyms.digest("instances", [name, str(self.file.size_bytes)]),
        )


<<<<<<< HEAD
Item = DicomSeries | ListedSeries | VolumeCase | BadFile
=======
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
            masks = read_segmentation(_reread(data, segmentation), stack.geometry)
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
    """Read one NIfTI image and the masks that lie on its grid. Raises `Refused` where the image is not understood."""
    data = read(case.root, case.image)
    digests = [hashlib.sha256(data).hexdigest()]
    image, geometry = nifti.read_image(data)
    if min(geometry.shape_zyx) < min_slices:
        raise Refused(Reason.TOO_FEW_SLICES, f"shape {geometry.shape_zyx}; wanted {min_slices} or more along each axis")
    labels: dict[str, Mask] = {}
    refused_labels: list[tuple[DicomSeries | NiftiCase, Refused]] = []
    for name, key, size_bytes in case.labels:
        data = read(case.root, key)
        try:
            if not LABEL_NAME.fullmatch(name):
                raise Refused(Reason.LABEL_UNSUPPORTED, "the label's name holds other than letters, digits, . _ and -")
            labels[name] = nifti.read_mask(data, geometry)
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
        source_uri=case.root,
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
        source_uri=series.root,
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
>>>>>>> headers
