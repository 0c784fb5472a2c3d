"""Work items: what is to be brought into an archive, named but not yet read.

They hold real identifiers and stay in memory; what is stored of them is their `Identity`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tomoray.errors import Refused
from tomoray.privacy.pseudonyms import Pseudonyms
from tomoray.sources import SeriesListing, SourceFile

VOXELS_AND_CODE = 1.6  # what storing voxels takes at most, in times of their bytes: they, and what is encoded of them
_UNCOUNTED = 1000  # slices of a series whose source does not count them; more than all but one in a thousand have
_SLICE_BYTES = 512 * 512 * 2


class DicomFile(NamedTuple):
    """One DICOM file of a series.

    Attributes:
        sop_uid: None where the file was not read yet.
    """

    root: str
    key: str
    size_bytes: int
    sop_uid: str | None


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
        file_bytes: what the largest file takes while its planes are decoded, beside them.
        n_labels: that its drawings describe.
        is_ct: some of it may be CT; of any other series, no more than one file need be read.
    """

    series_uid: str
    study_uid: str
    patient_id: str
    files: tuple[DicomFile, ...]
    drawings: tuple[DicomFile, ...] = ()
    voxel_bytes: int = 0
    file_bytes: int = 0
    n_labels: int = 0
    is_ct: bool = True

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

    @property
    def working_bytes(self) -> int:
        """Held at once at most: voxels with a file, or with what is encoded; a mask a label; drawings, as parsed."""
        scan = max(int(VOXELS_AND_CODE * self.voxel_bytes), self.voxel_bytes + self.file_bytes)
        return scan + self.n_labels * self.voxel_bytes // 2 + 3 * sum(file.size_bytes for file in self.drawings)

    def identify(self, pseudonyms: Pseudonyms) -> Identity:
        """By UIDs, and by what the files are."""
        digest = pseudonyms.digest(
            "instances", sorted(f"{f.sop_uid} {f.size_bytes}" for f in (*self.files, *self.drawings))
        )
        return _identity(self, digest, pseudonyms)


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
        """The files themselves where they are not compressed; else at the 512 x 512 voxels of nearly every CT."""
        if self.listing.native and self.listing.size_bytes:
            return self.listing.size_bytes
        return max(self.listing.n_instances * _SLICE_BYTES, self.listing.size_bytes)

    @property
    def working_bytes(self) -> int:
        """As of a `DicomSeries`, by the listing: files of one size, and a thousand where it does not count them."""
        listing = self.listing
        n_files = listing.n_instances or _UNCOUNTED
        file_bytes = listing.size_bytes // n_files
        voxel_bytes = self.voxel_bytes or n_files * _SLICE_BYTES
        if not listing.native and file_bytes > _SLICE_BYTES:  # multi-frame; CT is compressed to a third
            voxel_bytes = max(voxel_bytes, 3 * listing.size_bytes)
        return max(int(VOXELS_AND_CODE * voxel_bytes), voxel_bytes + 5 * file_bytes // 4)

    def identify(self, pseudonyms: Pseudonyms) -> Identity:
        """By the listing alone."""
        listing = self.listing
        digest = pseudonyms.digest("listing", [listing.series_uid, listing.version])
        return _identity(listing, digest, pseudonyms)


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

    @property
    def working_bytes(self) -> int:
        """As of a `DicomSeries`."""
        return int(VOXELS_AND_CODE * self.voxel_bytes) + len(self.labels) * self.voxel_bytes // 2

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
    working_bytes = 0

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


Item = DicomSeries | ListedSeries | VolumeCase | BadFile


def _identity(named: DicomSeries | SeriesListing, digest: str, pseudonyms: Pseudonyms) -> Identity:
    """By UIDs. Where those are empty, by the digest, so that series and patients are never merged."""
    return Identity(
        series_id=pseudonyms.token("series", named.series_uid or digest),
        patient_id=pseudonyms.token("patient", named.patient_id or f"study {named.study_uid or digest}"),
        digest=digest,
    )
