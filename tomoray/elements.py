"""The elements of a DICOM file's header that TomoRay reads, found by a walk over its bytes.

`walk` reads what nearly every CT file is: little endian, explicit or implicit VR, tags in ascending order, no sequence
that matters. It is some ten times as fast as a general parser, and declines everything else (`Unusual`): then
`datasets.parse` finds the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct

from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32

META_LENGTH = 0x00020000
TRANSFER_SYNTAX = 0x00020010
CHARACTER_SET = 0x00080005
IMAGE_TYPE = 0x00080008
SOP_CLASS = 0x00080016
SOP_UID = 0x00080018
MODALITY = 0x00080060
MANUFACTURER = 0x00080070
MODEL = 0x00081090
PATIENT_ID = 0x00100020
PATIENT_SEX = 0x00100040
PATIENT_AGE = 0x00101010
BODY_PART = 0x00180015
SLICE_THICKNESS = 0x00180050
KVP = 0x00180060
TRIGGER_TIME = 0x00181060
GANTRY_TILT = 0x00181120
KERNEL = 0x00181210
STUDY_UID = 0x0020000D
SERIES_UID = 0x0020000E
ACQUISITION_NUMBER = 0x00200012
INSTANCE_NUMBER = 0x00200013
POSITION = 0x00200032
ORIENTATION = 0x00200037
FRAME_OF_REFERENCE = 0x00200052
TEMPORAL_POSITION = 0x00200100
SAMPLES = 0x00280002
PHOTOMETRIC = 0x00280004
N_FRAMES = 0x00280008
ROWS = 0x00280010
COLUMNS = 0x00280011
PIXEL_SPACING = 0x00280030
BITS_ALLOCATED = 0x00280100
BITS_STORED = 0x00280101
HIGH_BIT = 0x00280102
PIXEL_REPRESENTATION = 0x00280103
PADDING = 0x00280120
PADDING_LIMIT = 0x00280121
BURNED_IN = 0x00280301
INTERCEPT = 0x00281052
SLOPE = 0x00281053
RESCALE_TYPE = 0x00281054
LOSSY = 0x00282110
PIXEL_DATA = 0x7FE00010
FIRST_PIXEL_TAGS = (0x7FE00008, 0x7FE00009, PIXEL_DATA)

# What is read, and the value representations (VR) it may have (PS3.6); files of implicit VR name none.
WANTED: dict[int, tuple[str, ...]] = {
    IMAGE_TYPE: ("CS",),
    SOP_CLASS: ("UI",),
    SOP_UID: ("UI",),
    MODALITY: ("CS",),
    MANUFACTURER: ("LO",),
    MODEL: ("LO",),
    PATIENT_ID: ("LO",),
    PATIENT_SEX: ("CS",),
    PATIENT_AGE: ("AS",),
    BODY_PART: ("CS",),
    SLICE_THICKNESS: ("DS",),
    KVP: ("DS",),
    TRIGGER_TIME: ("DS",),
    GANTRY_TILT: ("DS",),
    KERNEL: ("SH",),
    STUDY_UID: ("UI",),
    SERIES_UID: ("UI",),
    ACQUISITION_NUMBER: ("IS",),
    INSTANCE_NUMBER: ("IS",),
    POSITION: ("DS",),
    ORIENTATION: ("DS",),
    FRAME_OF_REFERENCE: ("UI",),
    TEMPORAL_POSITION: ("IS",),
    SAMPLES: ("US",),
    PHOTOMETRIC: ("CS",),
    N_FRAMES: ("IS",),
    ROWS: ("US",),
    COLUMNS: ("US",),
    PIXEL_SPACING: ("DS",),
    BITS_ALLOCATED: ("US",),
    BITS_STORED: ("US",),
    HIGH_BIT: ("US",),
    PIXEL_REPRESENTATION: ("US",),
    PADDING: ("US", "SS"),
    PADDING_LIMIT: ("US", "SS"),
    BURNED_IN: ("CS",),
    INTERCEPT: ("DS",),
    SLOPE: ("DS",),
    RESCALE_TYPE: ("LO",),
    LOSSY: ("CS",),
}

REFERENCED_SERIES = 0x00081115
REFERENCED_FRAMES_OF_REFERENCE = 0x30060010
REFERENCED_STUDIES = 0x30060012
REFERENCED_RT_SERIES = 0x30060014
SHARED_GROUPS = 0x52009229
FRAME_GROUPS = 0x52009230
SEQUENCES = (REFERENCED_SERIES, REFERENCED_FRAMES_OF_REFERENCE, SHARED_GROUPS, FRAME_GROUPS)

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
UNDEFINED_LENGTH = 0xFFFFFFFF

Values = Mapping[int, bytes]  # tag -> its value as stored; binary numbers little endian, text ASCII or UTF-8

_DEPTH = 16  # of nested sequences; real headers have five at most
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_SHORT_VRS = frozenset(vr.encode() for vr in EXPLICIT_VR_LENGTH_16)  # with a length of two bytes (PS3.5 7.1.2)
_LONG_VRS = frozenset(vr.encode() for vr in EXPLICIT_VR_LENGTH_32)
_WANTED_VRS = {tag: frozenset(vr.encode() for vr in vrs) for tag, vrs in WANTED.items()}
_WALKED_SYNTAX_PREFIXES = ("1.2.840.10008.1.2.4.", "1.2.840.10008.1.2.5")

_explicit = Struct("<HH2sH").unpack_from
_implicit = Struct("<HHL").unpack_from
_long = Struct("<L").unpack_from


@dataclass(frozen=True, kw_only=True, slots=True)
class Elements:
    """What a header holds, without a meaning yet.

    Attributes:
        transfer_syntax: UID, or an empty string.
        values: of the elements of the data set.
        frames: of an enhanced instance, the values of each frame's functional groups, under the tags of the classic
            elements that say the same.
        referenced_series: the UID that a segmentation or a structure set refers to, or an empty string.
        pixels_offset: where the value of Pixel Data starts in the file; None where it is not there, or deflated.
        pixels_length: its bytes; None where undefined.
    """

    transfer_syntax: str
    values: Values
    frames: tuple[Values, ...] = ()
    referenced_series: str = ""
    pixels_offset: int | None = None
    pixels_length: int | None = None


class Unusual(Exception):
    """Not a header that `walk` reads."""


class _Ended(Exception):
    """The bytes end within an element."""


def walk(data: bytes | memoryview, *, whole: bool) -> Elements | None:
    """The header's elements from the first bytes of a file, or all of them.

    Args:
        data: the bytes.
        whole: nothing follows them in the file.

    Returns:
        The elements, or None where `data` ends before the header does.

    Raises:
        Unusual: this file needs a general parser.
    """
    if bytes(data[128:132]) != b"DICM":
        raise Unusual
    try:
        syntax, start = _file_meta(data)
        if syntax == IMPLICIT:
            return _walk_implicit(data, start, whole=whole)
        if syntax != EXPLICIT and not syntax.startswith(_WALKED_SYNTAX_PREFIXES):
            raise Unusual
        return _walk_explicit(data, start, syntax, whole=whole)
    except _Ended:
        if whole:
            raise Unusual from None
        return None


def _file_meta(data: bytes | memoryview) -> tuple[str, int]:
    """The transfer syntax, and where the data set starts (PS3.10 7.1)."""
    end = len(data)
    position, last, syntax = 132, -1, ""
    while True:
        if position + 8 > end:
            raise _Ended
        group, element, vr, length = _explicit(data, position)
        if group != 2:
            break
        tag = group << 16 | element
        if tag <= last or (last < 0 and (tag, vr, length) != (META_LENGTH, b"UL", 4)):
            raise Unusual
        last = tag
        position += 8
        if vr in _LONG_VRS:
            length, position = _long_length(data, position)
        elif vr not in _SHORT_VRS:
            raise Unusual
        if tag == TRANSFER_SYNTAX:
            value = bytes(data[position : position + length])
            if vr != b"UI" or not value.isascii():
                raise Unusual
            syntax = value.decode().strip(" \0")
        position += length
    if group == 0:  # a command set
        raise Unusual
    return syntax, position


def _walk_explicit(data: bytes | memoryview, position: int, syntax: str, *, whole: bool) -> Elements | None:
    end, last, values = len(data), 0, {}
    while position + 8 <= end:
        group, element, vr, length = _explicit(data, position)
        tag = group << 16 | element
        if tag <= last:
            raise Unusual
        last = tag
        position += 8
        if vr in _LONG_VRS:
            length, position = _long_length(data, position)
        elif vr not in _SHORT_VRS:
            raise Unusual
        if tag in _WANTED_VRS:
            if vr not in _WANTED_VRS[tag]:
                raise Unusual
            values[tag] = _value(data, position, length, vr)
        elif tag in _STOPS:
            if tag == PIXEL_DATA:
                return _with_pixels(syntax, values, position, length)
            if tag != CHARACTER_SET or vr != b"CS":
                raise Unusual
            _check_character_set(_value(data, position, length, b""))
        elif length == UNDEFINED_LENGTH:
            if vr != b"SQ":
                raise Unusual
            position = _skip_sequence(data, position, explicit=True, depth=0)
            continue
        position += length
    return _without_pixels(syntax, values, position, end, whole=whole)


def _walk_implicit(data: bytes | memoryview, position: int, *, whole: bool) -> Elements | None:
    end, last, values = len(data), 0, {}
    if bytes(data[position + 4 : position + 6]).isupper():  # explicit, whatever the transfer syntax says
        raise Unusual
    while position + 8 <= end:
        group, element, length = _implicit(data, position)
        tag = group << 16 | element
        if tag <= last:
            raise Unusual
        last = tag
        position += 8
        if tag in WANTED:
            values[tag] = _value(data, position, length, WANTED[tag][0].encode())
        elif tag in _STOPS:
            if tag == PIXEL_DATA:
                return _with_pixels(IMPLICIT, values, position, length)
            if tag != CHARACTER_SET:
                raise Unusual
            _check_character_set(_value(data, position, length, b""))
        elif length == UNDEFINED_LENGTH:
            _check_sequence(data, tag, position)
            position = _skip_sequence(data, position, explicit=False, depth=0)
            continue
        position += length
    return _without_pixels(IMPLICIT, values, position, end, whole=whole)


_STOPS = {CHARACTER_SET, *SEQUENCES, *FIRST_PIXEL_TAGS}


def _with_pixels(syntax: str, values: Values, position: int, length: int) -> Elements:
    return Elements(
        transfer_syntax=syntax,
        values=values,
        pixels_offset=position,
        pixels_length=length if length != UNDEFINED_LENGTH else None,
    )


def _without_pixels(syntax: str, values: Values, position: int, end: int, *, whole: bool) -> Elements | None:
    if not whole:
        return None
    if position != end:
        raise Unusual
    return Elements(transfer_syntax=syntax, values=values)


def _long_length(data: bytes | memoryview, position: int) -> tuple[int, int]:
    """The 4-byte length at `position`, and where the value starts."""
    if position + 4 > len(data):
        raise _Ended
    length: int = _long(data, position)[0]
    return length, position + 4


def _value(data: bytes | memoryview, position: int, length: int, vr: bytes) -> bytes:
    if position + length > len(data):
        raise _Ended
    value = bytes(data[position : position + length])
    if vr not in (b"US", b"SS") and (not value.isascii() or b"\x1b" in value):  # text of another character set
        raise Unusual
    return value


def _check_sequence(data: bytes | memoryview, tag: int, position: int) -> None:
    """An implicit element of undefined length is a sequence by the dictionary, or as an item comes first."""
    try:
        known = dictionary_VR(tag) == "SQ"
    except KeyError:
        if position + 8 > len(data):
            raise _Ended from None
        group, element, _ = _implicit(data, position)
        known = (group << 16 | element) == _ITEM
    if not known:
        raise Unusual


def _skip_sequence(data: bytes | memoryview, position: int, *, explicit: bool, depth: int) -> int:
    """Where a sequence of undefined length that starts at `position` ends."""
    if depth == _DEPTH:
        raise Unusual
    end = len(data)
    while True:
        if position + 8 > end:
            raise _Ended
        group, element, length = _implicit(data, position)
        tag = group << 16 | element
        position += 8
        if tag == _SEQUENCE_END:
            return position
        if tag != _ITEM:
            raise Unusual
        item_end = None if length == UNDEFINED_LENGTH else position + length
        position = _skip_item(data, position, item_end, explicit=explicit, depth=depth)


def _skip_item(data: bytes | memoryview, position: int, item_end: int | None, *, explicit: bool, depth: int) -> int:
    """Where the item's elements end; `item_end` is None where its length is undefined."""
    end = len(data)
    while item_end is None or position < item_end:
        if position + 8 > end:
            raise _Ended
        group, element, length = _implicit(data, position)
        tag = group << 16 | element
        if group == 0xFFFE:
            if tag != _ITEM_END or item_end is not None:
                raise Unusual
            return position + 8
        is_sequence = False
        if explicit:
            vr = bytes(data[position + 4 : position + 6])
            is_sequence = vr == b"SQ"
            position += 8
            if vr in _LONG_VRS:
                length, position = _long_length(data, position)
            elif vr in _SHORT_VRS:
                length >>= 16
            else:
                raise Unusual
        else:
            position += 8
        if tag == CHARACTER_SET:
            raise Unusual
        if length != UNDEFINED_LENGTH:
            position += length
            continue
        if not explicit:
            _check_sequence(data, tag, position)
        elif not is_sequence:
            raise Unusual
        position = _skip_sequence(data, position, explicit=explicit, depth=depth + 1)
    if position != item_end or position > end:
        raise Unusual if position != item_end else _Ended
    return position


def _check_character_set(value: bytes) -> None:
    if not _is_character_set(value):
        raise Unusual


def _is_character_set(value: bytes) -> bool:
    """Whether it is one, or several with code extensions (PS3.3 C.12.1.1.2): ASCII text is the same in each."""
    names = [name.strip() for name in value.decode().rstrip(" \0").split("\\")]
    known = all(name in python_encoding for name in names)
    return known and (len(names) == 1 or all(name in ("", *_EXTENDED) for name in names))


_EXTENDED = frozenset(name for name in python_encoding if name.startswith("ISO 2022 IR"))
