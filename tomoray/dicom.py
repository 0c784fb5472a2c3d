"""DICOM headers: what TomoRay reads of an instance, and nothing it does not need.

An `Instance` holds real identifiers. It lives in memory only: names, UIDs and file names turn into pseudonyms
before anything is stored, logged or raised.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from pydicom import Dataset, config
from pydicom.datadict import tag_for_keyword
from pydicom.errors import InvalidDicomError
from pydicom.filereader import dcmread, read_partial
from pydicom.tag import BaseTag

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT_STORAGE = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
SECONDARY_CAPTURE_PREFIX = "1.2.840.10008.5.1.4.1.1.7"
SEGMENTATION_STORAGE = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
MEDIA_DIRECTORY_STORAGE = "1.2.840.10008.1.3.10"

HEAD_BYTES = 65_536  # enough for the header of nearly every classic CT instance

_FIRST_PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_KEYWORDS = (
    "AcquisitionNumber",
    "BitsAllocated",
    "BitsStored",
    "BurnedInAnnotation",
    "Columns",
    "ConvolutionKernel",
    "FrameOfReferenceUID",
    "HighBit",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "ImageType",
    "InstanceNumber",
    "LossyImageCompression",
    "Manufacturer",
    "ManufacturerModelName",
    "Modality",
    "NumberOfFrames",
    "PatientAge",
    "PatientID",
    "PatientSex",
    "PixelSpacing",
    "ReferencedSeriesSequence",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "Rows",
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SliceThickness",
    "StudyInstanceUID",
)
_TAGS = [cast("int", tag_for_keyword(keyword)) for keyword in _KEYWORDS]


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """One DICOM file's header. Missing or malformed values are None (or an empty string for UIDs).

    Attributes:
        root: the source it came from; `key` names the file in it.
        orientation: row and column direction cosines, LPS (PS3.3 C.7.6.2.1.1).
        position: centre of the first voxel, LPS mm.
        pixel_spacing: between rows, between columns, mm.
        referenced_series: for a segmentation, the series it was drawn on.
    """

    root: str
    key: str
    size_bytes: int
    transfer_syntax: str
    sop_class: str
    sop_uid: str
    series_uid: str
    study_uid: str
    frame_of_reference_uid: str
    patient_id: str
    modality: str
    image_type: tuple[str, ...]
    rows: int | None
    columns: int | None
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None
    slope: float | None
    intercept: float | None
    rescale_type: str
    instance_number: int | None
    burned_in: bool
    lossy: bool
    referenced_series: str
    manufacturer: str | None
    model: str | None
    kernel: str | None
    slice_thickness_mm: float | None
    sex: str | None
    age_years: float | None


class NotDicomError(Exception):
    """The bytes are not a DICOM file; the message says why, without quoting them."""


def looks_like_dicom(head: bytes) -> bool:
    """True where `head` starts like a DICOM file, with or without the 128-byte preamble (PS3.10 7.1)."""
    if head[128:132] == b"DICM":
        return True
    return head[:2] in (b"\x02\x00", b"\x08\x00") and head[2:4] != b"\x00\x00" and head[4:6].isalpha()


def read_instance(data: bytes, *, root: str, key: str, size_bytes: int) -> Instance | None:
    """Read the header from the first bytes of a file.

    Args:
        data: the file's first bytes, or all of them.
        root: the source.
        key: the file's name in the source.
        size_bytes: length of the whole file.

    Returns:
        The header, or None where `data` ends before the header does: call again with the whole file.

    Raises:
        NotDicomError: the bytes are no readable DICOM file.
    """
    whole = len(data) >= size_bytes
    reached_pixels = False

    def at_pixels(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        nonlocal reached_pixels
        reached_pixels = reached_pixels or tag in _FIRST_PIXEL_TAGS
        return reached_pixels

    try:
        with quiet_pydicom():
            dataset = read_partial(io.BytesIO(data), at_pixels, specific_tags=list(_TAGS))
            if not (whole or reached_pixels):
                return None
            return _instance(dataset, root, key, size_bytes)
    except InvalidDicomError as error:
        raise NotDicomError("no DICOM preamble") from error
    except Exception as error:  # a parser of broken bytes can raise anything; each file must be accounted for
        if not whole:
            return None
        raise NotDicomError(f"the header cannot be parsed ({type(error).__name__})") from error


def read_dataset(data: bytes) -> Dataset:
    """Read a whole file. Raises `NotDicomError` where it cannot be parsed."""
    try:
        with quiet_pydicom():
            return dcmread(io.BytesIO(data))
    except Exception as error:  # as above
        raise NotDicomError(f"the file cannot be parsed ({type(error).__name__})") from error


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """No value validation and no warnings from pydicom: its messages quote values, which may name a patient."""
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def _instance(dataset: Dataset, root: str, key: str, size_bytes: int) -> Instance:
    meta = getattr(dataset, "file_meta", None) or Dataset()
    return Instance(
        root=root,
        key=key,
        size_bytes=size_bytes,
        transfer_syntax=_text(meta, "TransferSyntaxUID"),
        sop_class=_text(dataset, "SOPClassUID"),
        sop_uid=_text(dataset, "SOPInstanceUID"),
        series_uid=_text(dataset, "SeriesInstanceUID"),
        study_uid=_text(dataset, "StudyInstanceUID"),
        frame_of_reference_uid=_text(dataset, "FrameOfReferenceUID"),
        patient_id=_text(dataset, "PatientID"),
        modality=_text(dataset, "Modality"),
        image_type=tuple(part.strip().upper() for part in _text(dataset, "ImageType").split("\\")),
        rows=_integer(dataset, "Rows"),
        columns=_integer(dataset, "Columns"),
        orientation=_numbers(dataset, "ImageOrientationPatient", 6),
        position=_numbers(dataset, "ImagePositionPatient", 3),
        pixel_spacing=_numbers(dataset, "PixelSpacing", 2),
        slope=_number(dataset, "RescaleSlope"),
        intercept=_number(dataset, "RescaleIntercept"),
        rescale_type=_text(dataset, "RescaleType").upper(),
        instance_number=_integer(dataset, "InstanceNumber"),
        burned_in=_text(dataset, "BurnedInAnnotation").upper() == "YES",
        lossy=_text(dataset, "LossyImageCompression") == "01",
        referenced_series=_referenced_series(dataset),
        manufacturer=_text(dataset, "Manufacturer") or None,
        model=_text(dataset, "ManufacturerModelName") or None,
        kernel=_text(dataset, "ConvolutionKernel") or None,
        slice_thickness_mm=_number(dataset, "SliceThickness"),
        sex=_text(dataset, "PatientSex").upper() if _text(dataset, "PatientSex").upper() in ("F", "M", "O") else None,
        age_years=_age_years(_text(dataset, "PatientAge")),
    )


def _value(dataset: Dataset, keyword: str) -> Any:
    try:
        return dataset.get(keyword)
    except Exception:  # a malformed element; the caller treats it as missing
        return None


def _text(dataset: Dataset, keyword: str) -> str:
    value = _value(dataset, keyword)
    if value is None:
        return ""
    parts = [value] if isinstance(value, (str, int, float)) or not hasattr(value, "__iter__") else value
    return "\\".join(str(part) for part in parts).strip(" \0")


def _numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    value = _value(dataset, keyword)
    try:
        numbers = tuple(float(part) for part in value)
    except (TypeError, ValueError):
        return None
    finite = all(abs(number) < 1e9 for number in numbers)  # false for nan too
    return numbers if len(numbers) == count and finite else None


def _number(dataset: Dataset, keyword: str) -> float | None:
    try:
        number = float(_value(dataset, keyword))
    except (TypeError, ValueError):
        return None
    return number if abs(number) < 1e9 else None


def _integer(dataset: Dataset, keyword: str) -> int | None:
    number = _number(dataset, keyword)
    return int(number) if number is not None and number.is_integer() else None


def _referenced_series(dataset: Dataset) -> str:
    sequence = _value(dataset, "ReferencedSeriesSequence")
    return _text(sequence[0], "SeriesInstanceUID") if sequence else ""


def _age_years(age: str) -> float | None:
    """Years from an Age String such as 045Y, 018M, 003W, 010D (PS3.5 6.2)."""
    per_year = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}
    if len(age) != 4 or not age[:3].isdigit() or age[3] not in per_year:
        return None
    return round(int(age[:3]) / per_year[age[3]], 2)
