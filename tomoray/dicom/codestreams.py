"""Compressed frames: where they lie in a DICOM file, what they say of themselves, and their decoders.

A codestream's own size is compared with the header's before it is decoded, so that a forged one cannot make a decoder
allocate more than the header allows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from struct import Struct, error
from typing import cast

import jpeg_ls
from libjpeg.utils import decode_pixel_data as decode_jpeg
from openjpeg.utils import decode_pixel_data as decode_j2k
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import RLELosslessDecoder

from tomoray.errors import Reason, Refused

JPEG_LOSSY = frozenset({"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"})  # baseline, extended
JPEG_LOSSLESS = frozenset({"1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"})
JPEG_LS = frozenset({"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"})
JPEG_2000 = frozenset({"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"})
HTJ2K = frozenset({f"1.2.840.10008.1.2.4.{last}" for last in (201, 202, 203)})
RLE = "1.2.840.10008.1.2.5"
SYNTAXES = JPEG_LOSSY | JPEG_LOSSLESS | JPEG_LS | JPEG_2000 | HTJ2K | {RLE}

_ITEM, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_UNDEFINED_LENGTH = 0xFFFFFFFF
_FRAME_STARTS = (b"\xff\xd8", b"\xff\x4f\xff\x51")  # JPEG and JPEG-LS, JPEG 2000
_FRAME_END = b"\xff\xd9"  # of all of them; within a codestream it cannot stand
_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "

_item = Struct("<4sL").unpack_from
_offsets = Struct("<L").iter_unpack
_jpeg_size = Struct(">BHHB").unpack_from  # precision, rows, columns, components
_j2k_size = Struct(">8L3xB").unpack_from


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """What a codestream says of itself.

    Attributes:
        precision: bits of a sample. They fill one byte up to 8, else two.
        signed: whether samples are extended by their sign (JPEG 2000 only; others know no sign).
    """

    rows: int
    columns: int
    components: int
    precision: int
    signed: bool


def encoded_frame(data: bytes, offset: int, frame: int, n_frames: int) -> bytes:
    """The codestream of one frame from encapsulated Pixel Data (PS3.5 A.4).

    Frames of several fragments are told apart by the Basic Offset Table, or by where codestreams start and end. An
    Extended Offset Table is not needed: it demands one fragment a frame.

    Args:
        data: the whole file.
        offset: where the value of Pixel Data starts.
        frame: 0-based index.
        n_frames: as the header says.

    Raises:
        Refused: UNDECODABLE_PIXELS where the fragments are cut off, or do not make up `n_frames` frames.
    """
    table, *fragments = _items(data, offset)
    if n_frames == 1:
        mine = fragments
        if len(fragments) > 1 and len(_starts_of_codestreams(data, fragments)) > 1:
            raise Refused(Reason.UNDECODABLE_PIXELS, "several codestreams in what the header calls one frame")
    elif len(fragments) == n_frames:
        mine = fragments[frame : frame + 1]
    else:
        starts = _starts_in_table(data, table, fragments) or _starts_of_codestreams(data, fragments)
        if len(starts) != n_frames:
            raise Refused(
                Reason.UNDECODABLE_PIXELS, f"{len(fragments)} fragments of pixels do not make up {n_frames} frames"
            )
        mine = fragments[slice(*[*starts, len(fragments)][frame : frame + 2])]
    if not mine:
        raise Refused(Reason.UNDECODABLE_PIXELS, "there are no fragments of pixels")
    return b"".join(data[start:end] for start, end in mine)


def read_size(codestream: bytes, syntax: str) -> Size:
    """The size in a codestream's header. RLE has none, and is not asked for one.

    Raises:
        ValueError: there is no such header, or one that could mislead a decoder, or the codestream is cut off.
    """
    if not _is_ended(codestream):  # libjpeg would make up what is missing
        raise ValueError("the codestream has no end")
    try:
        return _read_j2k_size(codestream) if syntax in JPEG_2000 | HTJ2K else _read_jpeg_size(codestream, syntax)
    except (IndexError, error) as short:
        raise ValueError("the codestream ends within its header") from short


def decode(codestream: bytes, syntax: str) -> bytes | bytearray:
    """Samples of a codestream whose size was checked: one byte each up to a precision of 8, else two, little endian.

    Raises whatever the decoders raise; broken bytes can make them raise anything.
    """
    return _DECODERS[syntax](codestream)


def decode_rle(codestream: bytes, rows: int, columns: int, bits_allocated: int) -> bytes | bytearray:
    """Samples of an RLE frame (PS3.5 annex G), little endian. Raises as `decode`."""
    samples, _ = RLELosslessDecoder.as_buffer(
        encapsulate([codestream], has_bot=False),
        raw=True,
        rows=rows,
        columns=columns,
        number_of_frames=1,
        samples_per_pixel=1,
        bits_allocated=bits_allocated,
        bits_stored=bits_allocated,
        photometric_interpretation="MONOCHROME2",
        pixel_representation=0,
        pixel_keyword="PixelData",
    )
    return cast("bytes | bytearray", samples)


def _items(data: bytes, position: int) -> list[tuple[int, int]]:
    """Start and end of each item: the Basic Offset Table, then the fragments."""
    found: list[tuple[int, int]] = []
    while True:
        if position + 8 > len(data):
            raise Refused(Reason.UNDECODABLE_PIXELS, "the fragments of pixels are cut off")
        tag, length = _item(data, position)
        position += 8
        if tag == _SEQUENCE_END and found:
            return found
        if tag != _ITEM or length == _UNDEFINED_LENGTH:
            raise Refused(Reason.UNDECODABLE_PIXELS, "the pixels are not in fragments as their transfer syntax demands")
        if position + length > len(data):
            raise Refused(Reason.UNDECODABLE_PIXELS, "a fragment of pixels is cut off")
        found.append((position, position + length))
        position += length


def _starts_in_table(data: bytes, table: tuple[int, int], fragments: list[tuple[int, int]]) -> list[int]:
    """The first fragment of each frame by the Basic Offset Table; none where it is empty."""
    if table[0] == table[1]:
        return []
    by_offset = {start - 8 - table[1]: number for number, (start, _) in enumerate(fragments)}
    try:
        starts = [by_offset[offset] for (offset,) in _offsets(data[slice(*table)])]
    except (KeyError, error) as wrong:
        raise Refused(
            Reason.UNDECODABLE_PIXELS, "the offset table points elsewhere than to fragments of pixels"
        ) from wrong
    if starts[0] != 0 or any(a >= b for a, b in pairwise(starts)):
        raise Refused(Reason.UNDECODABLE_PIXELS, "the offset table of the pixels is out of order")
    return starts


def _starts_of_codestreams(data: bytes, fragments: list[tuple[int, int]]) -> list[int]:
    """The fragments that start a codestream, each after one that ends a codestream."""
    starts, ended = [], True
    for number, (start, end) in enumerate(fragments):
        if ended and data.startswith(_FRAME_STARTS, start):
            starts.append(number)
        ended = _is_ended(data[max(start, end - 4096) : end])
    return starts if starts[:1] == [0] and ended else []


def _is_ended(codestream: bytes) -> bool:
    """Whether the last marker is there; after it there may be padding."""
    return _FRAME_END in codestream.rstrip(b"\0")[-64:]


def _read_jpeg_size(codestream: bytes, syntax: str) -> Size:
    """From the frame header (ISO 10918-1 B.2.2; of JPEG-LS, ISO 14495-1 C.2.2)."""
    if codestream[:2] != b"\xff\xd8":
        raise ValueError("no JPEG codestream")
    found = None
    for marker, position in _segments(codestream):
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            if found is not None or marker not in _frame_markers(syntax):
                raise ValueError("a frame header that the transfer syntax does not allow")
            precision, rows, columns, components = _jpeg_size(codestream, position + 2)
            found = Size(rows=rows, columns=columns, components=components, precision=precision, signed=False)
    if found is None:
        raise ValueError("no frame header")
    return found


def _segments(codestream: bytes) -> Iterator[tuple[int, int]]:
    """Marker and position of the length of each segment before the first scan."""
    position = 2
    while True:
        if codestream[position] != 0xFF:
            raise ValueError("no marker where one must be")
        marker = codestream[position + 1]
        if marker == 0xFF:  # fill
            position += 1
            continue
        position += 2
        yield marker, position
        if marker == 0xDA:
            if _FURTHER_FRAMES.search(codestream, position):
                raise ValueError("a frame header after the first scan")
            return
        position += max(int.from_bytes(codestream[position : position + 2], "big"), 2)


# Within a scan a byte 0xFF is followed by 0 or a marker, so this is a second frame (hierarchical JPEG, or forged).
_FURTHER_FRAMES = re.compile(rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf\xde\xf7]")


def _frame_markers(syntax: str) -> tuple[int, ...]:
    if syntax in JPEG_LS:
        return (0xF7,)
    return (0xC3,) if syntax in JPEG_LOSSLESS else (0xC0, 0xC1, 0xC2)


def _read_j2k_size(codestream: bytes) -> Size:
    """From the SIZ marker segment (ISO 15444-1 A.5.1), which must come first."""
    codestream = _without_jp2(codestream)
    if codestream[:4] != b"\xff\x4f\xff\x51":
        raise ValueError("no JPEG 2000 codestream")
    x_end, y_end, x_start, y_start, tile_x, tile_y, _, _, components = _j2k_size(codestream, 8)
    depth, x_step, y_step = codestream[42:45]
    columns, rows = x_end - x_start, y_end - y_start
    if (x_step, y_step) != (1, 1) or not tile_x or not tile_y:
        raise ValueError("samples are not one a pixel")
    if -(-columns // tile_x) * -(-rows // tile_y) > max(rows * columns, 1):
        raise ValueError("more tiles than pixels")
    return Size(
        rows=rows, columns=columns, components=components, precision=(depth & 0x7F) + 1, signed=bool(depth & 0x80)
    )


def _without_jp2(codestream: bytes) -> bytes:
    """The codestream alone, where it came in a JP2 file (which PS3.5 A.4.4 forbids, and some write)."""
    if not codestream.startswith(_JP2_SIGNATURE):
        return codestream
    start = codestream.find(_FRAME_STARTS[1], 0, 4096)
    return codestream[max(start, 0) :]


def _decode_jpeg(codestream: bytes) -> bytearray:
    return cast("bytearray", decode_jpeg(codestream, version=2))


def _decode_jpeg_ls(codestream: bytes) -> bytearray:
    return cast("bytearray", jpeg_ls.decode_pixel_data(codestream)[0])


def _decode_j2k(codestream: bytes) -> bytearray:
    return cast("bytearray", decode_j2k(_without_jp2(codestream), version=2))


# The fastest kept decoder of each syntax; of JPEG-LS that is CharLS, some four times as fast as libjpeg.
_DECODERS: dict[str, Callable[[bytes], bytearray]] = {
    **dict.fromkeys(JPEG_LOSSY | JPEG_LOSSLESS, _decode_jpeg),
    **dict.fromkeys(JPEG_LS, _decode_jpeg_ls),
    **dict.fromkeys(JPEG_2000 | HTJ2K, _decode_j2k),
}
