"""DICOM through pydicom: every encoding and every sequence, slower than `elements.walk` and to the same result."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from struct import pack
from typing import Any

from pydicom import Dataset, config
from pydicom.dataelem import RawDataElement
from pydicom.errors import InvalidDicomError
from pydicom.filereader import dcmread, read_partial
from pydicom.tag import BaseTag

from tomoray import elements
from tomoray.elements import Elements, Values

# Functional group macros of enhanced CT (PS3.3 C.7.6.16.2, C.8.15.3): sequence, element, the classic element it is.
_FRAME_MACROS = (
    (0x00209113, 0x00200032, elements.POSITION),  # Plane Position
    (0x00209116, 0x00200037, elements.ORIENTATION),  # Plane Orientation
    (0x00289110, 0x00280030, elements.PIXEL_SPACING),  # Pixel Measures
    (0x00289110, 0x00180050, elements.SLICE_THICKNESS),
    (0x00289145, 0x00281052, elements.INTERCEPT),  # Pixel Value Transformation
    (0x00289145, 0x00281053, elements.SLOPE),
    (0x00289145, 0x00281054, elements.RESCALE_TYPE),
    (0x00189329, 0x00089007, elements.IMAGE_TYPE),  # CT Image Frame Type
    (0x00209111, 0x00209156, elements.ACQUISITION_NUMBER),  # Frame Content
    (0x00209111, 0x00209128, elements.TEMPORAL_POSITION),
    (0x00189118, 0x00209153, elements.TRIGGER_TIME),  # Cardiac Synchronization
)
# Of the whole instance, from its first frame.
_FIRST_FRAME_MACROS = (
    (0x00189304, 0x00181120, elements.GANTRY_TILT),  # CT Acquisition Details
    (0x00189314, 0x00181210, elements.KERNEL),  # CT Reconstruction
    (0x00189325, 0x00180060, elements.KVP),  # CT X-Ray Details
)


class NotDicomError(Exception):
    """The bytes are not a DICOM file; the message says why, without quoting them."""


def read_dataset(data: bytes) -> Dataset:
    """Read a whole file. Raises `NotDicomError` where it cannot be parsed."""
    try:
        with quiet_pydicom():
            return dcmread(io.BytesIO(data))
    except Exception as error:  # a parser of broken bytes can raise anything; each file must be accounted for
        raise NotDicomError(f"the file cannot be parsed ({type(error).__name__})") from error


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """No value validation and no warnings from pydicom: its messages quote values, which may name a patient."""
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def parse(data: bytes | memoryview, *, whole: bool) -> Elements | None:
    """As `elements.walk`, of every file that pydicom reads.

    Raises:
        NotDicomError: it does not read this one.
    """
    stream = io.BytesIO(data)
    reached_pixels = False
    offset = length = None

    def at_pixels(tag: BaseTag, _vr: str | None, length_bytes: int) -> bool:
        nonlocal reached_pixels, offset, length
        if tag in elements.FIRST_PIXEL_TAGS:
            reached_pixels = True
            if tag == elements.PIXEL_DATA:
                offset = stream.tell()
                length = length_bytes if length_bytes != elements.UNDEFINED_LENGTH else None
        return reached_pixels

    try:
        with quiet_pydicom():
            dataset = read_partial(stream, at_pixels, specific_tags=[*elements.WANTED, *elements.SEQUENCES])
            if not (whole or reached_pixels):
                return None
            syntax = _text(dataset.file_meta, elements.TRANSFER_SYNTAX)
            deflated = syntax == elements.DEFLATED
            return Elements(
                transfer_syntax=syntax,
                values=_first_frame(dataset) | {tag: _value(dataset, tag) for tag in elements.WANTED if tag in dataset},
                frames=_frames(dataset),
                referenced_series=_referenced_series(dataset),
                pixels_offset=None if deflated else offset,
                pixels_length=None if deflated else length,
            )
    except InvalidDicomError as error:
        raise NotDicomError("no DICOM preamble") from error
    except Exception as error:  # as above
        if not whole:
            return None
        raise NotDicomError(f"the header cannot be parsed ({type(error).__name__})") from error


def _frames(dataset: Dataset) -> tuple[Values, ...]:
    """What the functional groups say of each frame: its own, else those that all frames share."""
    shared: dict[int, bytes] = {}
    for item in _items(dataset, elements.SHARED_GROUPS)[:1]:
        shared = _macro_values(item, _FRAME_MACROS)
    return tuple(shared | _macro_values(item, _FRAME_MACROS) for item in _items(dataset, elements.FRAME_GROUPS))


def _first_frame(dataset: Dataset) -> dict[int, bytes]:
    """What the functional groups say of the first frame, and a classic header of the whole instance."""
    found: dict[int, bytes] = {}
    for groups in (elements.SHARED_GROUPS, elements.FRAME_GROUPS):
        for item in _items(dataset, groups)[:1]:
            found |= _macro_values(item, _FIRST_FRAME_MACROS)
    return found


def _macro_values(item: Dataset, macros: Iterable[tuple[int, int, int]]) -> dict[int, bytes]:
    found = {}
    for sequence, tag, classic in macros:
        for macro in _items(item, sequence)[:1]:
            if tag in macro:
                found[classic] = _value(macro, tag)
    return found


def _referenced_series(dataset: Dataset) -> str:
    """The first series that a segmentation or a structure set refers to."""
    for series in _items(dataset, elements.REFERENCED_SERIES):
        return _text(series, elements.SERIES_UID)
    for frame in _items(dataset, elements.REFERENCED_FRAMES_OF_REFERENCE):
        for study in _items(frame, elements.REFERENCED_STUDIES):
            for series in _items(study, elements.REFERENCED_RT_SERIES):
                return _text(series, elements.SERIES_UID)
    return ""


def _text(dataset: Dataset, tag: int) -> str:
    return _value(dataset, tag).decode().strip(" \0")


def _value(dataset: Dataset, tag: int) -> bytes:
    """The value of an element as in `Values`; empty where it is missing or malformed."""
    vrs = elements.WANTED.get(tag)
    try:
        element = dataset.get_item(tag)
        if vrs is not None and isinstance(element, RawDataElement) and element.VR in (None, *vrs):
            raw = element.value or b""
            if element.is_little_endian if "US" in vrs else raw.isascii() and b"\x1b" not in raw:
                return raw
        value = dataset[tag].value  # by its own representation, and the file's character set
        if vrs is not None and "US" in vrs:
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
