"""The files of a series that its source lists by itself, each read once: the header is taken from the same bytes."""

from __future__ import annotations

from collections.abc import Sequence

from tomoray.dicom.headers import looks_like_dicom
from tomoray.errors import Reason, Refused
from tomoray.ingest.inventory import DICOM_SUFFIXES, group_dicom, head_of
from tomoray.ingest.planes import DecodedSeries, Read, decode_series
from tomoray.ingest.series import DicomFile, DicomSeries
from tomoray.privacy.pseudonyms import Pseudonyms
from tomoray.sources import SeriesListing, SourceFile


def read_listed(
    listing: SeriesListing, files: Sequence[SourceFile], read: Read, pseudonyms: Pseudonyms
) -> tuple[DicomSeries, DecodedSeries] | None:
    """The series as an inventory would find it, and what was decoded of it.

    Returns:
        None where the files are not, all of them, readable CT of the one series that the listing names: then their
        headers have to be read first, to tell what they are. What is wrong is found there again, and named.
    """
    if not files or not listing.series_uid or listing.modality not in ("CT", ""):
        return None

    def read_dicom(root: str, key: str) -> bytes:
        data = read(root, key)
        if not looks_like_dicom(data) and not key.lower().endswith(DICOM_SUFFIXES):
            raise Refused(Reason.UNREADABLE, "no DICOM")
        return data

    unread = DicomSeries(
        series_uid=listing.series_uid,
        study_uid=listing.study_uid,
        patient_id=listing.patient_id,
        files=tuple(DicomFile(file.root, file.key, file.size_bytes, None) for file in files),
    )
    try:
        decoded = decode_series(unread, read_dicom, keep_headers=False)
    except Refused:
        return None
    if not all(instance.sop_class or instance.modality for instance in decoded.instances):
        return None
    found = group_dicom(map(head_of, decoded.instances), pseudonyms)
    if len(found) != 1 or not found[0].is_ct or len(found[0].files) != len(files):
        return None
    return found[0], decoded
