"""What a file that is made from a series takes over from it: patient, study, dates and identifiers."""

from __future__ import annotations

import datetime
import hashlib
import io
import re
from collections.abc import Sequence

import numpy as np
from pydicom import Dataset
from pydicom.valuerep import DA, DT, TM

# Patient and study are passed on as the source writes them; highdicom would judge names, dates and character sets.
_AS_IN_SOURCE = (
    "SpecificCharacterSet",
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
# What the source says of its own de-identification (PS3.3 C.7.1.1, C.12.1)
_CONFORMANCE = (
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "LongitudinalTemporalInformationModified",
)
# What de-identification often leaves half of; highdicom would pass it on
_REFERENCES = ("ReferencedStudySequence", "ReferencedPerformedProcedureStepSequence")


def as_sources(headers: Sequence[Dataset]) -> list[Dataset]:
    """Copies of the headers of a series, in plane order, that highdicom takes.

    Patient and study are empty in them; the frame of reference and the slice thickness, which real series may leave
    out, are there in any case.
    """
    positions = [np.array(header.ImagePositionPatient, float) for header in headers[:2]]
    spacing_mm = float(np.linalg.norm(positions[-1] - positions[0])) or 1.0
    return [_as_source(header, spacing_mm) for header in headers]


def finished(made: Dataset, header: Dataset, moment: tuple[str, str]) -> bytes:
    """The file of what highdicom made: with the patient and the study of `header`, made at `moment`. Changes `made`."""
    for keyword in (*_AS_IN_SOURCE, *_CONFORMANCE):
        if keyword in header:
            made[keyword] = header[keyword]
    date, time = moment
    made.InstanceCreationDate, made.InstanceCreationTime = DA(date), TM(time)
    for equipment in made.get("ContributingEquipmentSequence", ()):
        equipment.ContributionDateTime = DT(date + time)
    file = io.BytesIO()
    made.save_as(file)
    return file.getvalue()


def hashed_uid(*parts: str) -> str:
    """A DICOM UID (PS3.5 B.2, `2.25.` + 128-bit number) from the SHA-256 of `parts`."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def date_of(source: Dataset | None, made: datetime.datetime | None = None) -> tuple[str, str]:
    """Day and time as DICOM writes them: `made`, else of the content of `source`, else of its study, else now.

    A source without any date gives the first day of 1900.
    """
    if source is None or made is not None:
        moment = made or datetime.datetime.now()
        return moment.strftime("%Y%m%d"), moment.strftime("%H%M%S")
    for kind in ("Content", "Acquisition", "Series", "Study"):
        date, time = str(source.get(f"{kind}Date") or ""), str(source.get(f"{kind}Time") or "")
        if re.fullmatch(r"\d{8}", date):
            return date, time if re.fullmatch(r"\d{6}(\.\d{1,6})?", time) else "000000"
    return "19000101", "000000"


def decimal_string(value: float) -> str:
    """A DICOM decimal string: at most 16 characters."""
    text = f"{value:.10g}"
    return text if len(text) <= 16 else f"{value:.8e}"


def _as_source(header: Dataset, spacing_mm: float) -> Dataset:
    source = Dataset()
    source.update({element.tag: element for element in header if element.keyword not in _AS_IN_SOURCE})
    for keyword in _AS_IN_SOURCE[1:]:
        setattr(source, keyword, "")
    for keyword in _REFERENCES:
        items: list[Dataset] = list(source.get(keyword) or [])
        source.pop(keyword, None)  # shared with `header`, which keeps it
        whole = [item for item in items if item.get("ReferencedSOPClassUID") and item.get("ReferencedSOPInstanceUID")]
        if whole:
            setattr(source, keyword, whole)
    for keyword, value in (
        ("FrameOfReferenceUID", hashed_uid(str(source.SeriesInstanceUID), "frame of reference")),
        ("SliceThickness", decimal_string(spacing_mm)),
    ):
        if not source.get(keyword):
            source.pop(keyword, None)  # shared with `header`, which keeps it
            setattr(source, keyword, value)
    return source
