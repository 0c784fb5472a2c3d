"""DICOM through pydicom: every encoding and every sequence, slower than `elements.walk` and to the same result."""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from struct import pack
from typing import Any

from pydicom import DataElement, Dataset, config
from pydicom.dataelem import RawDataElement
from pydicom.errors import InvalidDicomError
from pydicom.filereader import dcmread, read_partial
from pydicom.tag import BaseTag

from tomoray.dicom import elements, tags
from tomoray.dicom.elements import Elements, Ended, FileMeta, Unusual, Values

MAX_INFLATED_BYTES = 2**30  # of a deflated file; a CT volume of 2000 slices
MAX_INFLATED_RATIO, FREE_BYTES = 50, 2**25  # CT deflates to a half; what inflates to less than 32 MiB may be empty
_INFLATED_AT_ONCE = 65_536
_PREFIX_BYTES = 2**20  # enough for the header of nearly every file
_META_BYTES = 4096

# Functional group macros of enhanced CT (PS3.3 C.7.6.16.2, C.8.15.3): sequence, element, the classic element it is.
_FRAME_MACROS = (
    (0x00209113, 0x00200032, tags.POSITION),  # Plane Position
    (0x00209116, 0x00200037, tags.ORIENTATION),  # Plane Orientation
    (0x00289110, 0x00280030, tags.PIXEL_SPACING),  # Pixel Measures
    (0x00289110, 0x00180050, tags.SLICE_THICKNESS),
    (0x00289145, 0x00281052, tags.INTERCEPT),  # Pixel Value Transformation
    (0x00289145, 0x00281053, tags.SLOPE),
    (0x00289145, 0x00281054, tags.RESCALE_TYPE),
    (0x00189329, 0x00089007, tags.IMAGE_TYPE),  # CT Image Frame Type
    (0x00209111, 0x00209156, tags.ACQUISITION_NUMBER),  # Frame Content
    (0x00209111, 0x00209128, tags.TEMPORAL_POSITION),
    (0x00189118, 0x00209153, tags.TRIGGER_TIME),  # Cardiac Synchronization
    (0x00189321, 0x00189332, tags.EXPOSURE),  # CT Exposure
)
# Of the whole instance, from its first frame.
_FIRST_FRAME_MACROS = (
    (0x00189304, 0x00181120, tags.GANTRY_TILT),  # CT Acquisition Details
    (0x00189314, 0x00181210, tags.KERNEL),  # CT Reconstruction
    (0x00189325, 0x00180060, tags.KVP),  # CT X-Ray Details
)


_DRAWN = (tags.SEGMENTS, tags.REGIONS_OF_INTEREST)


class NotDicomError(Exception):
    """The bytes are not a DICOM file; the message says why, without quoting them."""


def read_dataset(data: bytes, *, pixels: bool = True) -> Dataset:
    """Read a whole file, or all but its pixels.

    Class and instance UID are those of the file meta information where the data set has none. Raises `NotDicomError`
    where it cannot be parsed.
    """
    _check_inflation(data)
    try:
        with quiet_pydicom():
            dataset = dcmread(io.BytesIO(data), stop_before_pixels=not pixels)
            meta = _file_meta(dataset)
            for tag, uid in ((tags.SOP_CLASS, meta.sop_class), (tags.SOP_UID, meta.sop_uid)):
                if uid and not _text(dataset, tag):
                    dataset[tag] = DataElement(tag, "UI", uid)
            return dataset
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
    data = bytes(data)
    if whole:
        _check_inflation(data)
    if (prefix := _inflated_prefix(data)) is not None:
        found = _parse(prefix, whole=False)
        if found is not None:
            return replace(found, transfer_syntax=tags.DEFLATED, pixels_offset=None, pixels_length=None)
    return _parse(data, whole=whole) if whole or prefix is None else None


def _parse(data: bytes, *, whole: bool) -> Elements | None:
    stream = io.BytesIO(data)
    reached_pixels = False
    offset = length = None

    def at_pixels(tag: BaseTag, _vr: str | None, length_bytes: int) -> bool:
        nonlocal reached_pixels, offset, length
        if tag in tags.FIRST_PIXEL_TAGS:
            reached_pixels = True
            if tag == tags.PIXEL_DATA:
                offset = stream.tell()
                length = length_bytes if length_bytes != elements.UNDEFINED_LENGTH else None
        return reached_pixels

    try:
        with quiet_pydicom():
            dataset = read_partial(stream, at_pixels, specific_tags=[*tags.WANTED, *tags.SEQUENCES, *_DRAWN])
            if not (whole or reached_pixels):
                return None
            meta = _file_meta(dataset)
            deflated = meta.transfer_syntax == tags.DEFLATED
            own = {tag: _value(dataset, tag) for tag in tags.WANTED if tag in dataset}
            return Elements(
                transfer_syntax=meta.transfer_syntax,
                values=meta.fill(_first_frame(dataset) | own),
                frames=_frames(dataset),
                referenced_series=_referenced_series(dataset),
                n_drawn=max(len(_items(dataset, tag)) for tag in _DRAWN),
                pixels_offset=None if deflated else offset,
                pixels_length=None if deflated else length,
            )
    except InvalidDicomError as error:
        raise NotDicomError("no DICOM preamble") from error
    except Exception as error:  # as above
        if not whole:
            return None
        raise NotDicomError(f"the header cannot be parsed ({type(error).__name__})") from error


def _inflated_prefix(data: bytes) -> bytes | None:
    """The first bytes of a deflated file as they were before; None where it is not deflated. Its pixels stay behind."""
    if tags.DEFLATED.encode() not in data[:_META_BYTES]:
        return None
    try:
        meta = elements.file_meta(data)
        if meta.transfer_syntax != tags.DEFLATED:
            return None
        plain = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[meta.end :], _PREFIX_BYTES)
    except (Unusual, Ended, zlib.error):
        return None  # `_check_inflation` and pydicom say what is wrong
    inflated = tags.DEFLATED.encode()
    return data[: meta.end].replace(inflated, tags.EXPLICIT.encode().ljust(len(inflated), b"\0"), 1) + plain


def _check_inflation(data: bytes) -> None:
    """Raises `NotDicomError` where a file is cut off, or inflates to a far larger one: pydicom would hold all of it."""
    if tags.DEFLATED.encode() not in data:
        return
    try:
        meta = elements.file_meta(data)
    except (Unusual, Ended) as error:
        raise NotDicomError("it may be deflated, and its file meta information is malformed") from error
    if meta.transfer_syntax != tags.DEFLATED:
        return
    inflater, size_bytes = zlib.decompressobj(-zlib.MAX_WBITS), 0
    limit = min(MAX_INFLATED_BYTES, max(FREE_BYTES, MAX_INFLATED_RATIO * len(data)))
    try:
        for position in range(meta.end, len(data), _INFLATED_AT_ONCE):
            chunk = data[position : position + _INFLATED_AT_ONCE]
            while chunk:
                size_bytes += len(inflater.decompress(chunk, 16 * _INFLATED_AT_ONCE))
                chunk = inflater.unconsumed_tail
                if size_bytes > limit:
                    raise NotDicomError(f"{len(data)} deflated bytes inflate to more than {limit}")
    except zlib.error:  # pydicom says so
        return
    if not inflater.eof:
        raise NotDicomError("its deflated bytes are cut off")


def _file_meta(dataset: Dataset) -> FileMeta:
    found = dataset.file_meta
    return FileMeta(
        _text(found, tags.TRANSFER_SYNTAX), _text(found, tags.META_SOP_CLASS), _text(found, tags.META_SOP_UID), 0
    )


def _frames(dataset: Dataset) -> tuple[Values, ...]:
    """What the functional groups say of each frame: its own, else those that all frames share."""
    shared: dict[int, bytes] = {}
    for item in _items(dataset, tags.SHARED_GROUPS)[:1]:
        shared = _macro_values(item, _FRAME_MACROS)
    return tuple(shared | _macro_values(item, _FRAME_MACROS) for item in _items(dataset, tags.FRAME_GROUPS))


def _first_frame(dataset: Dataset) -> dict[int, bytes]:
    """What the functional groups say of the first frame, and a classic header of the whole instance."""
    found: dict[int, bytes] = {}
    for groups in (tags.SHARED_GROUPS, tags.FRAME_GROUPS):
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
    for series in _items(dataset, tags.REFERENCED_SERIES):
        return _text(series, tags.SERIES_UID)
    for frame in _items(dataset, tags.REFERENCED_FRAMES_OF_REFERENCE):
        for study in _items(frame, tags.REFERENCED_STUDIES):
            for series in _items(study, tags.REFERENCED_RT_SERIES):
                return _text(series, tags.SERIES_UID)
    return ""


def _text(dataset: Dataset, tag: int) -> str:
    return _value(dataset, tag).decode(errors="replace").strip(" \0")


def _value(dataset: Dataset, tag: int) -> bytes:
    """The value of an element as in `Values`; empty where it is missing or malformed."""
    vrs = tags.WANTED.get(tag)
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
