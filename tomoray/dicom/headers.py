"""DICOM headers: what TomoRay reads of an instance, and nothing it does not need.

An `Instance` holds real identifiers. It lives in memory only: names, UIDs and file names turn into pseudonyms
before anything is stored, logged or raised.
"""

from __future__ import annotations

from dataclasses import dataclass

from tomoray.dicom import datasets, elements, tags
from tomoray.dicom.datasets import NotDicomError, quiet_pydicom, read_dataset
from tomoray.dicom.elements import Elements, Unusual, Values

__all__ = [
    "CT_IMAGE_STORAGE",
    "ENHANCED_CT_STORAGE",
    "HEAD_BYTES",
    "MEDIA_DIRECTORY_STORAGE",
    "SECONDARY_CAPTURE_PREFIX",
    "SEGMENTATION_STORAGE",
    "STRUCTURE_SET_STORAGE",
    "Instance",
    "NotDicomError",
    "PixelFormat",
    "Plane",
    "looks_like_dicom",
    "quiet_pydicom",
    "read_dataset",
    "read_instance",
]

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT_STORAGE = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
SECONDARY_CAPTURE_PREFIX = "1.2.840.10008.5.1.4.1.1.7"
SEGMENTATION_STORAGE = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
STRUCTURE_SET_STORAGE = "1.2.840.10008.5.1.4.1.1.481.3"
CT_STORAGE = (CT_IMAGE_STORAGE, *ENHANCED_CT_STORAGE)
DRAWING_STORAGE = (*SEGMENTATION_STORAGE, STRUCTURE_SET_STORAGE)
MEDIA_DIRECTORY_STORAGE = "1.2.840.10008.1.3.10"

HEAD_BYTES = 16_384  # enough for the header of nearly every classic CT instance

_LOSSY_SYNTAXES = frozenset(f"1.2.840.10008.1.2.4.{last}" for last in (50, 51, 81, 91, 203))


@dataclass(frozen=True, kw_only=True, slots=True)
class Plane:
    """One slice: a classic instance has one, an enhanced multi-frame instance one per frame.

    Missing or malformed values are None (or empty).

    Attributes:
        frame: 0-based index in its file.
        orientation: row and column direction cosines, LPS (PS3.3 C.7.6.2.1.1).
        position: centre of the first voxel, LPS mm.
        pixel_spacing: between rows, between columns, mm.
        image_type: upper case; of the frame (FrameType) where the instance is enhanced.
        trigger_time_ms: TriggerTime, or NominalCardiacTriggerDelayTime.
        temporal_position: TemporalPositionIdentifier, or TemporalPositionIndex.
        instance_number: InstanceNumber; of an enhanced instance, frame + 1.
        exposure_mas: Exposure, or ExposureInmAs.
    """

    frame: int
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    pixel_spacing: tuple[float, ...] | None
    slope: float | None
    intercept: float | None
    rescale_type: str
    slice_thickness_mm: float | None
    image_type: tuple[str, ...]
    acquisition_number: int | None
    trigger_time_ms: float | None
    temporal_position: int | None
    instance_number: int | None
    exposure_mas: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelFormat:
    """How the pixels are stored (PS3.3 C.7.6.3). Missing values are None.

    Attributes:
        padding: PixelPaddingValue as an unsigned number, whatever the sign of the pixels (see `pixels`).
        padding_limit: PixelPaddingRangeLimit, likewise.
        offset: where the value of Pixel Data starts in the file; None where there is none, or the file is deflated.
        length: its bytes; None where undefined (encapsulated).
    """

    photometric: str
    samples: int | None
    bits_allocated: int | None
    bits_stored: int | None
    high_bit: int | None
    signed: bool | None
    padding: int | None
    padding_limit: int | None
    offset: int | None
    length: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """One DICOM file's header. Missing or malformed values are None (or an empty string for UIDs).

    Attributes:
        root: the source it came from; `key` names the file in it.
        n_frames: as the header says; 1 where it says nothing, 0 where that is no number.
        planes: one of a classic image, `n_frames` of an enhanced CT whose functional groups are whole; else none.
        lossy: the header says so, or says nothing and the transfer syntax is a lossy one.
        referenced_series: for a segmentation or a structure set, the series it was drawn on.
        n_drawn: the segments or regions of interest that it describes; 0 for others.
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
    n_frames: int
    planes: tuple[Plane, ...]
    pixels: PixelFormat
    burned_in: bool
    lossy: bool
    gantry_tilt_degrees: float | None
    referenced_series: str
    n_drawn: int
    kernel: str
    kvp: float | None


def looks_like_dicom(head: bytes) -> bool:
    """True where `head` starts like a DICOM file, with or without the 128-byte preamble (PS3.10 7.1)."""
    if head[128:132] == b"DICM":
        return True
    return head[:2] in (b"\x02\x00", b"\x08\x00") and head[2:4] != b"\x00\x00" and head[4:6].isalpha()


def read_instance(data: bytes | memoryview, *, root: str, key: str, size_bytes: int) -> Instance | None:
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
    try:
        found = elements.walk(data, whole=whole)
    except Unusual:
        found = datasets.parse(data, whole=whole)
    return None if found is None else instance_of(found, root=root, key=key, size_bytes=size_bytes)


def instance_of(found: Elements, *, root: str, key: str, size_bytes: int) -> Instance:
    """What the elements of a header say."""
    get = found.values.get
    sop_class = _text(get(tags.SOP_CLASS))
    n_frames = _n_frames(get(tags.N_FRAMES))
    claim = _text(get(tags.LOSSY))
    return Instance(
        root=root,
        key=key,
        size_bytes=size_bytes,
        transfer_syntax=found.transfer_syntax,
        sop_class=sop_class,
        sop_uid=_text(get(tags.SOP_UID)),
        series_uid=_text(get(tags.SERIES_UID)),
        study_uid=_text(get(tags.STUDY_UID)),
        frame_of_reference_uid=_text(get(tags.FRAME_OF_REFERENCE)),
        patient_id=_text(get(tags.PATIENT_ID)),
        modality=_text(get(tags.MODALITY)),
        image_type=_image_type(get(tags.IMAGE_TYPE)),
        rows=_short(get(tags.ROWS)),
        columns=_short(get(tags.COLUMNS)),
        n_frames=n_frames,
        planes=_planes(found, sop_class, n_frames),
        pixels=PixelFormat(
            photometric=_text(get(tags.PHOTOMETRIC)),
            samples=_short(get(tags.SAMPLES)),
            bits_allocated=_short(get(tags.BITS_ALLOCATED)),
            bits_stored=_short(get(tags.BITS_STORED)),
            high_bit=_short(get(tags.HIGH_BIT)),
            signed=_flag(get(tags.PIXEL_REPRESENTATION)),
            padding=_short(get(tags.PADDING)),
            padding_limit=_short(get(tags.PADDING_LIMIT)),
            offset=found.pixels_offset,
            length=found.pixels_length,
        ),
        burned_in=_text(get(tags.BURNED_IN)).upper() == "YES",
        lossy=claim == "01" or (claim != "00" and found.transfer_syntax in _LOSSY_SYNTAXES),
        gantry_tilt_degrees=_number(get(tags.GANTRY_TILT)),
        referenced_series=found.referenced_series,
        n_drawn=found.n_drawn if sop_class in DRAWING_STORAGE else 0,
        kernel=_text(get(tags.KERNEL)),
        kvp=_number(get(tags.KVP)),
    )


def _planes(found: Elements, sop_class: str, n_frames: int) -> tuple[Plane, ...]:
    if sop_class in ENHANCED_CT_STORAGE:
        if len(found.frames) != n_frames:
            return ()
        return tuple(_plane(values, frame, frame + 1) for frame, values in enumerate(found.frames))
    if n_frames != 1 or sop_class in DRAWING_STORAGE:
        return ()
    return (_plane(found.values, 0, _integer(found.values.get(tags.INSTANCE_NUMBER))),)


def _plane(values: Values, frame: int, instance_number: int | None) -> Plane:
    get = values.get
    return Plane(
        frame=frame,
        orientation=_numbers(get(tags.ORIENTATION), 6),
        position=_numbers(get(tags.POSITION), 3),
        pixel_spacing=_numbers(get(tags.PIXEL_SPACING), 2),
        slope=_number(get(tags.SLOPE)),
        intercept=_number(get(tags.INTERCEPT)),
        rescale_type=_text(get(tags.RESCALE_TYPE)).upper(),
        slice_thickness_mm=_number(get(tags.SLICE_THICKNESS)),
        image_type=_image_type(get(tags.IMAGE_TYPE)),
        acquisition_number=_integer(get(tags.ACQUISITION_NUMBER)),
        trigger_time_ms=_number(get(tags.TRIGGER_TIME)),
        temporal_position=_integer(get(tags.TEMPORAL_POSITION)),
        instance_number=instance_number,
        exposure_mas=_number(get(tags.EXPOSURE)),
    )


def _text(value: bytes | None) -> str:
    return value.decode(errors="replace").strip(" \0") if value else ""


def _image_type(value: bytes | None) -> tuple[str, ...]:
    return tuple(part.strip(" \0").upper() for part in _text(value).split("\\"))


def _numbers(value: bytes | None, count: int) -> tuple[float, ...] | None:
    """Finite decimal strings, or None where there are not `count`."""
    if not value or b"_" in value:  # float() would take 1_000 for a number
        return None
    try:
        numbers = tuple([float(part) for part in value.strip(b" \0").split(b"\\")])
    except ValueError:
        return None
    finite = all(abs(number) < 1e9 for number in numbers)  # false for nan too
    return numbers if len(numbers) == count and finite else None


def _number(value: bytes | None) -> float | None:
    numbers = _numbers(value, 1)
    return numbers[0] if numbers else None


def _integer(value: bytes | None) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number.is_integer() else None


def _short(value: bytes | None) -> int | None:
    """An unsigned 16-bit number."""
    return int.from_bytes(value, "little") if value and len(value) == 2 else None


def _flag(value: bytes | None) -> bool | None:
    number = _short(value)
    return bool(number) if number in (0, 1) else None


def _n_frames(value: bytes | None) -> int:
    if value is None or not value.strip(b" \0"):
        return 1
    return max(_integer(value) or 0, 0)
