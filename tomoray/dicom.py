"""DICOM headers: what TomoRay reads of an instance, and nothing it does not need.

An `Instance` holds real identifiers. It lives in memory only: names, UIDs and file names turn into pseudonyms
before anything is stored, logged or raised.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from struct import pack
from typing import Any

from pydicom import Dataset, config
from pydicom.dataelem import RawDataElement
from pydicom.errors import InvalidDicomError
from pydicom.filereader import dcmread, read_partial
from pydicom.tag import BaseTag

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT_STORAGE = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
SECONDARY_CAPTURE_PREFIX = "1.2.840.10008.5.1.4.1.1.7"
SEGMENTATION_STORAGE = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
STRUCTURE_SET_STORAGE = "1.2.840.10008.5.1.4.1.1.481.3"
MEDIA_DIRECTORY_STORAGE = "1.2.840.10008.1.3.10"

HEAD_BYTES = 65_536  # enough for the header of nearly every classic CT instance


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
    signed: bool
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
    manufacturer: str | None
    model: str | None
    kernel: str | None
    kvp: float | None
    sex: str | None
    age_years: float | None
    body_part: str | None


class NotDicomError(Exception):
    """The bytes are not a DICOM file; the message says why, without quoting them."""


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
    stream = io.BytesIO(data)
    reached_pixels = False
    offset = length = None

    def at_pixels(tag: BaseTag, _vr: str | None, length_bytes: int) -> bool:
        nonlocal reached_pixels, offset, length
        if tag in _FIRST_PIXEL_TAGS:
            reached_pixels = True
            offset = stream.tell() if tag == _PIXEL_DATA else None
            length = length_bytes if length_bytes != _UNDEFINED else None
        return reached_pixels

    try:
        with quiet_pydicom():
            dataset = read_partial(stream, at_pixels, specific_tags=[*_TAGS, *_SEQUENCES])
            if not (whole or reached_pixels):
                return None
            values = {tag: _value(dataset, tag) for tag in _TAGS if tag in dataset}
            meta = getattr(dataset, "file_meta", None) or Dataset()
            syntax = _text(_value(meta, _TRANSFER_SYNTAX))
            found = _Found(
                root=root,
                key=key,
                size_bytes=size_bytes,
                syntax=syntax,
                offset=offset if syntax != _DEFLATED else None,
                length=length if offset is not None and syntax != _DEFLATED else None,
            )
            return _instance(values, found, dataset)
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


# --- from raw values to an instance ---------------------------------------------------------------------------------

_UNDEFINED = 0xFFFFFFFF
_DEFLATED = "1.2.840.10008.1.2.1.99"
_LOSSY_SYNTAXES = {f"1.2.840.10008.1.2.4.{last}" for last in (50, 51, 81, 91, 203)}

_TRANSFER_SYNTAX = 0x00020010
_IMAGE_TYPE = 0x00080008
_SOP_CLASS = 0x00080016
_SOP_UID = 0x00080018
_MODALITY = 0x00080060
_MANUFACTURER = 0x00080070
_MODEL = 0x00081090
_PATIENT_ID = 0x00100020
_PATIENT_SEX = 0x00100040
_PATIENT_AGE = 0x00101010
_BODY_PART = 0x00180015
_SLICE_THICKNESS = 0x00180050
_KVP = 0x00180060
_TRIGGER_TIME = 0x00181060
_GANTRY_TILT = 0x00181120
_KERNEL = 0x00181210
_STUDY_UID = 0x0020000D
_SERIES_UID = 0x0020000E
_ACQUISITION_NUMBER = 0x00200012
_INSTANCE_NUMBER = 0x00200013
_POSITION = 0x00200032
_ORIENTATION = 0x00200037
_FRAME_OF_REFERENCE = 0x00200052
_TEMPORAL_POSITION = 0x00200100
_SAMPLES = 0x00280002
_PHOTOMETRIC = 0x00280004
_N_FRAMES = 0x00280008
_ROWS = 0x00280010
_COLUMNS = 0x00280011
_PIXEL_SPACING = 0x00280030
_BITS_ALLOCATED = 0x00280100
_BITS_STORED = 0x00280101
_HIGH_BIT = 0x00280102
_PIXEL_REPRESENTATION = 0x00280103
_PADDING = 0x00280120
_PADDING_LIMIT = 0x00280121
_BURNED_IN = 0x00280301
_INTERCEPT = 0x00281052
_SLOPE = 0x00281053
_RESCALE_TYPE = 0x00281054
_LOSSY = 0x00282110
_PIXEL_DATA = 0x7FE00010
_FIRST_PIXEL_TAGS = (0x7FE00008, 0x7FE00009, _PIXEL_DATA)

# What is read, and the value representations it may have (PS3.6); implicit VR files name none.
_TAGS: dict[int, tuple[str, ...]] = {
    _IMAGE_TYPE: ("CS",),
    _SOP_CLASS: ("UI",),
    _SOP_UID: ("UI",),
    _MODALITY: ("CS",),
    _MANUFACTURER: ("LO",),
    _MODEL: ("LO",),
    _PATIENT_ID: ("LO",),
    _PATIENT_SEX: ("CS",),
    _PATIENT_AGE: ("AS",),
    _BODY_PART: ("CS",),
    _SLICE_THICKNESS: ("DS",),
    _KVP: ("DS",),
    _TRIGGER_TIME: ("DS",),
    _GANTRY_TILT: ("DS",),
    _KERNEL: ("SH",),
    _STUDY_UID: ("UI",),
    _SERIES_UID: ("UI",),
    _ACQUISITION_NUMBER: ("IS",),
    _INSTANCE_NUMBER: ("IS",),
    _POSITION: ("DS",),
    _ORIENTATION: ("DS",),
    _FRAME_OF_REFERENCE: ("UI",),
    _TEMPORAL_POSITION: ("IS",),
    _SAMPLES: ("US",),
    _PHOTOMETRIC: ("CS",),
    _N_FRAMES: ("IS",),
    _ROWS: ("US",),
    _COLUMNS: ("US",),
    _PIXEL_SPACING: ("DS",),
    _BITS_ALLOCATED: ("US",),
    _BITS_STORED: ("US",),
    _HIGH_BIT: ("US",),
    _PIXEL_REPRESENTATION: ("US",),
    _PADDING: ("US", "SS"),
    _PADDING_LIMIT: ("US", "SS"),
    _BURNED_IN: ("CS",),
    _INTERCEPT: ("DS",),
    _SLOPE: ("DS",),
    _RESCALE_TYPE: ("LO",),
    _LOSSY: ("CS",),
}

_REFERENCED_SERIES = 0x00081115
_REFERENCED_FRAMES_OF_REFERENCE = 0x30060010
_REFERENCED_STUDIES = 0x30060012
_REFERENCED_RT_SERIES = 0x30060014
_SHARED_GROUPS = 0x52009229
_FRAME_GROUPS = 0x52009230
_SEQUENCES = (_REFERENCED_SERIES, _REFERENCED_FRAMES_OF_REFERENCE, _SHARED_GROUPS, _FRAME_GROUPS)

# Functional group macros of enhanced CT (PS3.3 C.7.6.16.2, C.8.15.3): sequence, element, the classic element it is.
_GROUPS = (
    (0x00209113, 0x00200032, _POSITION),  # Plane Position
    (0x00209116, 0x00200037, _ORIENTATION),  # Plane Orientation
    (0x00289110, 0x00280030, _PIXEL_SPACING),  # Pixel Measures
    (0x00289110, 0x00180050, _SLICE_THICKNESS),
    (0x00289145, 0x00281052, _INTERCEPT),  # Pixel Value Transformation
    (0x00289145, 0x00281053, _SLOPE),
    (0x00289145, 0x00281054, _RESCALE_TYPE),
    (0x00189329, 0x00089007, _IMAGE_TYPE),  # CT Image Frame Type
    (0x00209111, 0x00209156, _ACQUISITION_NUMBER),  # Frame Content
    (0x00209111, 0x00209128, _TEMPORAL_POSITION),
    (0x00189118, 0x00209153, _TRIGGER_TIME),  # Cardiac Synchronization
)
# Of the whole instance, from its first frame.
_FIRST_FRAME_GROUPS = (
    (0x00189304, 0x00181120, _GANTRY_TILT),  # CT Acquisition Details
    (0x00189314, 0x00181210, _KERNEL),  # CT Reconstruction
    (0x00189325, 0x00180060, _KVP),  # CT X-Ray Details
)

Values = Mapping[int, bytes]  # tag -> its value as stored; binary numbers little endian, text ASCII or UTF-8


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """What is known of a file besides its elements."""

    root: str
    key: str
    size_bytes: int
    syntax: str
    offset: int | None
    length: int | None


def _instance(values: Values, found: _Found, dataset: Dataset | None) -> Instance:
    """An instance from its values; `dataset` holds its sequences, None where it has none of those read here."""
    get = values.get
    sop_class = _text(get(_SOP_CLASS))
    n_frames = _n_frames(get(_N_FRAMES))
    planes: tuple[Plane, ...] = ()
    if sop_class in ENHANCED_CT_STORAGE:
        if dataset is not None:
            planes = _frame_planes(dataset, n_frames)
            first = _group_values(dataset, _FIRST_FRAME_GROUPS)
            values = {**first, **values}
            get = values.get
    elif n_frames == 1 and sop_class not in (*SEGMENTATION_STORAGE, STRUCTURE_SET_STORAGE):
        planes = (_plane(values, 0, _integer(get(_INSTANCE_NUMBER))),)
    sex = _text(get(_PATIENT_SEX)).upper()
    claim = _text(get(_LOSSY))
    return Instance(
        root=found.root,
        key=found.key,
        size_bytes=found.size_bytes,
        transfer_syntax=found.syntax,
        sop_class=sop_class,
        sop_uid=_text(get(_SOP_UID)),
        series_uid=_text(get(_SERIES_UID)),
        study_uid=_text(get(_STUDY_UID)),
        frame_of_reference_uid=_text(get(_FRAME_OF_REFERENCE)),
        patient_id=_text(get(_PATIENT_ID)),
        modality=_text(get(_MODALITY)),
        image_type=_image_type(get(_IMAGE_TYPE)),
        rows=_short(get(_ROWS)),
        columns=_short(get(_COLUMNS)),
        n_frames=n_frames,
        planes=planes,
        pixels=PixelFormat(
            photometric=_text(get(_PHOTOMETRIC)),
            samples=_short(get(_SAMPLES)),
            bits_allocated=_short(get(_BITS_ALLOCATED)),
            bits_stored=_short(get(_BITS_STORED)),
            high_bit=_short(get(_HIGH_BIT)),
            signed=_short(get(_PIXEL_REPRESENTATION)) == 1,
            padding=_short(get(_PADDING)),
            padding_limit=_short(get(_PADDING_LIMIT)),
            offset=found.offset,
            length=found.length,
        ),
        burned_in=_text(get(_BURNED_IN)).upper() == "YES",
        lossy=claim == "01" or (claim != "00" and found.syntax in _LOSSY_SYNTAXES),
        gantry_tilt_degrees=_number(get(_GANTRY_TILT)),
        referenced_series="" if dataset is None else _referenced_series(dataset),
        manufacturer=_text(get(_MANUFACTURER)) or None,
        model=_text(get(_MODEL)) or None,
        kernel=_text(get(_KERNEL)) or None,
        kvp=_number(get(_KVP)),
        sex=sex if sex in ("F", "M", "O") else None,
        age_years=_age_years(_text(get(_PATIENT_AGE))),
        body_part=_text(get(_BODY_PART)) or None,
    )


def _plane(values: Values, frame: int, instance_number: int | None) -> Plane:
    get = values.get
    return Plane(
        frame=frame,
        orientation=_numbers(get(_ORIENTATION), 6),
        position=_numbers(get(_POSITION), 3),
        pixel_spacing=_numbers(get(_PIXEL_SPACING), 2),
        slope=_number(get(_SLOPE)),
        intercept=_number(get(_INTERCEPT)),
        rescale_type=_text(get(_RESCALE_TYPE)).upper(),
        slice_thickness_mm=_number(get(_SLICE_THICKNESS)),
        image_type=_image_type(get(_IMAGE_TYPE)),
        acquisition_number=_integer(get(_ACQUISITION_NUMBER)),
        trigger_time_ms=_number(get(_TRIGGER_TIME)),
        temporal_position=_integer(get(_TEMPORAL_POSITION)),
        instance_number=instance_number,
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


def _n_frames(value: bytes | None) -> int:
    if value is None or not value.strip(b" \0"):
        return 1
    return max(_integer(value) or 0, 0)


def _age_years(age: str) -> float | None:
    """Years from an Age String such as 045Y, 018M, 003W, 010D (PS3.5 6.2)."""
    per_year = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}
    if len(age) != 4 or not age[:3].isdecimal() or age[3] not in per_year:
        return None
    return round(int(age[:3]) / per_year[age[3]], 2)


# --- pydicom: every encoding, and sequences -------------------------------------------------------------------------


def _value(dataset: Dataset, tag: int) -> bytes:
    """The value of an element as in `Values`; empty where it is missing or malformed."""
    short = _TAGS.get(tag, ("",))[0] == "US"
    try:
        element = dataset.get_item(tag)
        if isinstance(element, RawDataElement) and tag in _TAGS and element.VR in (None, *_TAGS[tag]):
            raw = element.value or b""
            if short and element.is_little_endian:
                return raw
            if not short and raw.isascii() and b"\x1b" not in raw:
                return raw
        value = dataset[tag].value  # by its own representation, and the file's character set
        if short:
            return pack("<H", int(value) & 0xFFFF) if -0x8000 <= int(value) <= 0xFFFF else b""
        return "\\".join(str(part) for part in _parts(value)).encode()
    except Exception:  # missing or malformed
        return b""


def _parts(value: Any) -> Iterable[Any]:
    if value is None:
        return ()
    return [value] if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__") else value


def _items(dataset: Dataset, tag: int) -> list[Dataset]:
    """The items of a sequence; none where it is missing or malformed."""
    try:
        return list(dataset[tag].value) if tag in dataset else []
    except Exception:  # as above
        return []


def _group_values(dataset: Dataset, groups: Iterable[tuple[int, int, int]]) -> dict[int, bytes]:
    """Values of the functional groups of the first frame: its own, else those that all frames share."""
    items = [*_items(dataset, _FRAME_GROUPS)[:1], *_items(dataset, _SHARED_GROUPS)[:1]]
    found: dict[int, bytes] = {}
    for item in reversed(items):
        found.update(_macro_values(item, groups))
    return found


def _macro_values(item: Dataset, groups: Iterable[tuple[int, int, int]]) -> dict[int, bytes]:
    found = {}
    for sequence, tag, classic in groups:
        for macro in _items(item, sequence)[:1]:
            if tag in macro:
                found[classic] = _value(macro, tag)
    return found


def _frame_planes(dataset: Dataset, n_frames: int) -> tuple[Plane, ...]:
    """The planes of an enhanced CT, none where the functional groups are not as many as the frames."""
    frames = _items(dataset, _FRAME_GROUPS)
    if len(frames) != n_frames:
        return ()
    shared: dict[int, bytes] = {}
    for item in _items(dataset, _SHARED_GROUPS)[:1]:
        shared = _macro_values(item, _GROUPS)
    return tuple(_plane({**shared, **_macro_values(item, _GROUPS)}, n, n + 1) for n, item in enumerate(frames))


def _referenced_series(dataset: Dataset) -> str:
    """The first series that a segmentation or a structure set refers to."""
    for series in _items(dataset, _REFERENCED_SERIES):
        return _text(_value(series, _SERIES_UID))
    for frame in _items(dataset, _REFERENCED_FRAMES_OF_REFERENCE):
        for study in _items(frame, _REFERENCED_STUDIES):
            for series in _items(study, _REFERENCED_RT_SERIES):
                return _text(_value(series, _SERIES_UID))
    return ""
