"""The elements of a DICOM file's header that TomoRay reads, found by a walk over its bytes.

`walk` reads what nearly every CT file is: little endian, explicit or implicit VR, tags in ascending order, no sequence
that matters. It is some eight times as fast as pydicom, and declines everything else (`Unusual`): then
`datasets.parse` finds the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32

from tomoray.dicom.tags import (
    CHARACTER_SET,
    EXPLICIT,
    FIRST_PIXEL_TAGS,
    IMPLICIT,
    META_LENGTH,
    META_SOP_CLASS,
    META_SOP_UID,
    PIXEL_DATA,
    SEQUENCES,
    SOP_CLASS,
    SOP_UID,
    TRANSFER_SYNTAX,
    WANTED,
)

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
        values: of the elements of the data set; SOP class and instance UID of the file meta information where the data
            set has none.
        frames: of an enhanced instance, the values of each frame's functional groups, under the tags of the classic
            elements that say the same.
        referenced_series: the UID that a segmentation or a structure set refers to, or an empty string.
        n_drawn: segments, or regions of interest, that it describes.
        pixels_offset: where the value of Pixel Data starts in the file; None where it is not there, or deflated.
        pixels_length: its bytes; None where undefined.
    """

    transfer_syntax: str
    values: Values
    frames: tuple[Values, ...] = ()
    referenced_series: str = ""
    n_drawn: int = 0
    pixels_offset: int | None = None
    pixels_length: int | None = None


class FileMeta(NamedTuple):
    """What is read of the file meta information (PS3.10 7.1): UIDs or empty strings, and where it ends."""

    transfer_syntax: str
    sop_class: str
    sop_uid: str
    end: int

    def fill(self, values: dict[int, bytes]) -> Values:
        """`values`, with the class and the instance UID from here where they have none."""
        for tag, uid in ((SOP_CLASS, self.sop_class), (SOP_UID, self.sop_uid)):
            if uid and not values.get(tag, b"").strip(b" \0"):
                values[tag] = uid.encode()
        return values


class Unusual(Exception):
    """Not a header that `walk` reads."""


class Ended(Exception):
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
        meta = file_meta(data)
        syntax = meta.transfer_syntax
        if syntax == IMPLICIT:
            return _walk_implicit(data, meta, whole=whole)
        if syntax != EXPLICIT and not syntax.startswith(_WALKED_SYNTAX_PREFIXES):
            raise Unusual
        return _walk_explicit(data, meta, whole=whole)
    except Ended:
        if whole:
            raise Unusual from None
        return None


def file_meta(data: bytes | memoryview) -> FileMeta:
    """The file meta information of a file with a preamble (PS3.10 7.1).

    Raises:
        Unusual: the file meta information needs a general parser.
        Ended: `data` ends within it.
    """
    end = len(data)
    position, last = 132, -1
    uids = {TRANSFER_SYNTAX: "", META_SOP_CLASS: "", META_SOP_UID: ""}
    while True:
        if position + 8 > end:
            raise Ended
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
        if tag in uids:
            value = bytes(data[position : position + length])
            if vr != b"UI" or not value.isascii():
                raise Unusual
            uids[tag] = value.decode().strip(" \0")
        position += length
    if group == 0:  # a command set
        raise Unusual
    return FileMeta(uids[TRANSFER_SYNTAX], uids[META_SOP_CLASS], uids[META_SOP_UID], position)


def _walk_explicit(data: bytes | memoryview, meta: FileMeta, *, whole: bool) -> Elements | None:
    end, position, last = len(data), meta.end, 0
    values: dict[int, bytes] = {}
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
                return _with_pixels(meta, values, position, length)
            if tag != CHARACTER_SET or vr != b"CS":
                raise Unusual
            _check_character_set(_value(data, position, length, b""))
        elif length == UNDEFINED_LENGTH:
            if vr != b"SQ":
                raise Unusual
            position = _skip_sequence(data, position, explicit=True, depth=0)
            continue
        position += length
    return _without_pixels(meta, values, position, end, whole=whole)


def _walk_implicit(data: bytes | memoryview, meta: FileMeta, *, whole: bool) -> Elements | None:
    end, position, last = len(data), meta.end, 0
    values: dict[int, bytes] = {}
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
                return _with_pixels(meta, values, position, length)
            if tag != CHARACTER_SET:
                raise Unusual
            _check_character_set(_value(data, position, length, b""))
        elif length == UNDEFINED_LENGTH:
            _check_sequence(data, tag, position)
            position = _skip_sequence(data, position, explicit=False, depth=0)
            continue
        position += length
    return _without_pixels(meta, values, position, end, whole=whole)


_STOPS = {CHARACTER_SET, *SEQUENCES, *FIRST_PIXEL_TAGS}


def _with_pixels(meta: FileMeta, values: dict[int, bytes], position: int, length: int) -> Elements:
    return Elements(
        transfer_syntax=meta.transfer_syntax,
        values=meta.fill(values),
        pixels_offset=position,
        pixels_length=length if length != UNDEFINED_LENGTH else None,
    )


def _without_pixels(
    meta: FileMeta, values: dict[int, bytes], position: int, end: int, *, whole: bool
) -> Elements | None:
    if not whole:
        return None
    if position != end:
        raise Unusual
    return Elements(transfer_syntax=meta.transfer_syntax, values=meta.fill(values))


def _long_length(data: bytes | memoryview, position: int) -> tuple[int, int]:
    """The 4-byte length at `position`, and where the value starts."""
    if position + 4 > len(data):
        raise Ended
    length: int = _long(data, position)[0]
    return length, position + 4


def _value(data: bytes | memoryview, position: int, length: int, vr: bytes) -> bytes:
    if position + length > len(data):
        raise Ended
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
            raise Ended from None
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
            raise Ended
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
            raise Ended
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
        raise Unusual if position != item_end else Ended
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
