"""Pixel data of one slice of a DICOM instance -> Hounsfield units."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.pixels.utils import pixel_array

from tomoray.dicom import codestreams
from tomoray.dicom.headers import Instance, NotDicomError, PixelFormat, quiet_pydicom, read_dataset
from tomoray.dicom.tags import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT
from tomoray.errors import Reason, Refused
from tomoray.volume import AIR_HU

MAX_FRAME_PIXELS = 16384 * 16384 // 4

Stored = npt.NDArray[np.integer[Any]]

_DEFLATE_RATIO = 1032  # deflate cannot do better
_FRAGMENT_BYTES = 8  # nor can a fragment be shorter
_PHOTOMETRIC_LETTERS = frozenset(string.ascii_uppercase + string.digits + "_ ")
_PIXEL_DATA = b"\xe0\x7f\x10\x00"  # its tag


class Frames:
    """The frames of one file, decoded one by one. A file that must be read whole for that is so once.

    Args:
        data: the whole file.
        instance: what `read_instance` read of it.
    """

    def __init__(self, data: bytes, instance: Instance) -> None:
        self._data, self._instance = data, instance
        self._dataset: Dataset | None = None

    def decode_hu(self, frame: int, out: npt.NDArray[np.int16]) -> int:
        """Decode one slice into `out` as HU: rescale slope and intercept applied once (PS3.3 C.11.1.1.2).

        Padding (PS3.3 C.7.5.1.1.2) that lies below -1024 HU is written as -1024: it is no tissue and no air, and would
        bend every statistic. Values of a fractional slope are rounded to whole HU. Only the stored bits of a word are
        pixels: others (old overlays) are dropped.

        Args:
            frame: 0-based index of the slice in its file; its header has a slope and an intercept.
            out: int16 [y, x], filled in place.

        Returns:
            The number of padding voxels that were set to -1024.

        Raises:
            Refused: the pixels cannot be decoded (UNSUPPORTED_PIXELS, UNDECODABLE_PIXELS, NOT_AN_IMAGE, TOO_LARGE), do
                not fit 16-bit HU (HU_OUT_OF_RANGE), or the file is not the one whose header was read (UNREADABLE).
            ValueError: there is no such frame, or `out` has another shape than it.
        """
        instance = self._instance
        if not 0 <= frame < len(instance.planes):
            raise ValueError(f"frame {frame} of {len(instance.planes)}")
        slope, intercept = instance.planes[frame].slope, instance.planes[frame].intercept
        if slope is None or intercept is None:
            raise Refused(Reason.MISSING_RESCALE, "no usable rescale slope and intercept, so HU are unknown")
        form = _format(instance)
        if out.shape != form.shape:
            raise ValueError(f"out has shape {out.shape}; wanted {form.shape}")
        stored = _without_high_bits(_stored_values(self._data, instance, form, frame, self._read), form)
        padding = _padding(stored, instance.pixels, slope, intercept, signed=form.signed)
        _write_hu(stored, padding, slope, intercept, out)
        return 0 if padding is None else int(np.count_nonzero(padding))

    def _read(self) -> Dataset:
        if self._dataset is None:
            self._dataset = read_dataset(self._data)
        return self._dataset


@dataclass(frozen=True, kw_only=True, slots=True)
class _Format:
    """What is known to be there of a frame's format."""

    rows: int
    columns: int
    n_frames: int
    bits_allocated: int
    bits_stored: int
    signed: bool

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.columns

    @property
    def n_pixels(self) -> int:
        return self.rows * self.columns

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a stored word."""
        return np.dtype(f"<{'i' if self.signed else 'u'}{self.bits_allocated // 8}")

    @property
    def size_bytes(self) -> int:
        """Of all frames, uncompressed."""
        return self.n_frames * self.n_pixels * self.dtype.itemsize

    @property
    def lowest(self) -> int:
        return -(1 << (self.bits_stored - 1)) if self.signed else 0

    @property
    def highest(self) -> int:
        return (1 << (self.bits_stored - 1 if self.signed else self.bits_stored)) - 1


def _format(instance: Instance) -> _Format:
    """The format of a CT slice; raises `Refused` for any other."""
    pixels = instance.pixels
    if pixels.photometric != "MONOCHROME2" or pixels.samples != 1:
        found = pixels.photometric if set(pixels.photometric) <= _PHOTOMETRIC_LETTERS else "another"
        raise Refused(
            Reason.UNSUPPORTED_PIXELS,
            f"found {found[:16] or 'none'}, {pixels.samples} samples; wanted MONOCHROME2, 1 sample",
        )
    allocated, stored = pixels.bits_allocated, pixels.bits_stored
    if allocated not in (8, 16) or not stored or stored > allocated or pixels.high_bit != stored - 1:
        raise Refused(
            Reason.UNSUPPORTED_PIXELS,
            f"bits allocated {allocated}, stored {stored}, high bit {pixels.high_bit}; wanted 8 or 16 allocated with "
            "the high bit at stored - 1",
        )
    if pixels.signed is None:
        raise Refused(Reason.UNSUPPORTED_PIXELS, "pixel representation is missing; wanted 0 or 1")
    if not instance.rows or not instance.columns:
        raise Refused(Reason.NOT_AN_IMAGE, "no rows and columns")
    if instance.rows * instance.columns > MAX_FRAME_PIXELS:
        raise Refused(
            Reason.TOO_LARGE, f"{instance.rows} x {instance.columns} pixels; wanted {MAX_FRAME_PIXELS} at most"
        )
    return _Format(
        rows=instance.rows,
        columns=instance.columns,
        n_frames=instance.n_frames,
        bits_allocated=allocated,
        bits_stored=stored,
        signed=pixels.signed,
    )


def _stored_values(
    data: bytes, instance: Instance, form: _Format, frame: int, dataset: Callable[[], Dataset]
) -> Stored:
    """The stored integers [y, x] of a frame: words whose bits above the stored ones may be anything."""
    syntax, offset, length = instance.transfer_syntax, instance.pixels.offset, instance.pixels.length
    if len(data) != instance.size_bytes:
        raise Refused(Reason.UNREADABLE, "an instance changed while it was read; run the command again")
    if syntax in (DEFLATED, BIG_ENDIAN):
        return _through_pydicom(data, form, frame, dataset)
    if syntax not in (IMPLICIT, EXPLICIT) and syntax not in codestreams.SYNTAXES:
        known = syntax if syntax.replace(".", "").isdigit() else "none"
        raise Refused(Reason.UNSUPPORTED_PIXELS, f"no decoder for transfer syntax {known[:64]}")
    if offset is None:
        raise Refused(Reason.NOT_AN_IMAGE, "no pixel data")
    if _PIXEL_DATA not in (data[offset - 12 : offset - 8], data[offset - 8 : offset - 4]):
        raise Refused(Reason.UNREADABLE, "an instance changed while it was read; run the command again")
    if syntax not in codestreams.SYNTAXES:
        return _native(data, offset, length, form, frame)
    if length is not None:
        raise Refused(Reason.UNDECODABLE_PIXELS, "the pixels are not in fragments as their transfer syntax demands")
    return _decompressed(data, offset, syntax, form, frame)


def _native(data: bytes, offset: int, length: int | None, form: _Format, frame: int) -> Stored:
    """A view of `data`."""
    wanted = form.size_bytes
    if length not in (wanted, wanted + wanted % 2) or offset + wanted > len(data):
        there = len(data) - offset if length is None else min(length, len(data) - offset)
        raise Refused(Reason.UNDECODABLE_PIXELS, f"pixel data hold {there} bytes; wanted {wanted}")
    start = offset + frame * form.n_pixels * form.dtype.itemsize
    return np.frombuffer(data, form.dtype, count=form.n_pixels, offset=start).reshape(form.shape)


def _decompressed(data: bytes, offset: int, syntax: str, form: _Format, frame: int) -> Stored:
    if form.n_frames > len(data) // _FRAGMENT_BYTES:
        raise Refused(Reason.TOO_LARGE, f"{form.n_frames} frames in {len(data)} bytes; a file cannot hold as many")
    codestream = codestreams.encoded_frame(data, offset, frame, form.n_frames)
    try:
        if syntax == codestreams.RLE:
            bits, signed = form.bits_allocated, False
            with quiet_pydicom():
                samples = codestreams.decode_rle(codestream, form.rows, form.columns, bits)
        else:
            size = codestreams.read_size(codestream, syntax)
            _check_size(size, form)
            bits, signed = size.precision, size.signed
            samples = codestreams.decode(codestream, syntax)
    except Refused:
        raise
    except Exception as error:  # a codec fed with broken bytes can raise anything
        raise _undecodable(error) from error
    words = np.frombuffer(samples, "<u1" if bits <= 8 else "<u2")
    if words.size != form.n_pixels:
        raise Refused(Reason.UNDECODABLE_PIXELS, f"{words.size} pixels are decoded; wanted {form.n_pixels}")
    return _of_precision(words.reshape(form.shape), bits, form, signed=signed)


def _check_size(size: codestreams.Size, form: _Format) -> None:
    if (size.rows, size.columns, size.components) != (form.rows, form.columns, 1):
        raise Refused(
            Reason.UNDECODABLE_PIXELS,
            f"compressed pixels are {size.rows} x {size.columns} of {size.components} samples; the header says "
            f"{form.rows} x {form.columns} of 1",
        )
    if not 1 <= size.precision <= form.bits_allocated:
        raise Refused(
            Reason.UNDECODABLE_PIXELS,
            f"compressed pixels have {size.precision} bits; the header allocates {form.bits_allocated}",
        )


def _of_precision(words: Stored, bits: int, form: _Format, *, signed: bool) -> Stored:
    """Samples of `bits` bits, extended by their sign where `signed`, as stored values.

    Most codecs know no sign: a negative value is kept as the bits of its two's complement, as many as are stored.
    Where a codec kept fewer, readers differ on which bit is the sign; such a value is refused.
    """
    if bits >= form.bits_stored:
        return words.view(form.dtype) if words.itemsize == form.dtype.itemsize else words.astype(form.dtype)
    if signed:
        values = words.view(f"<i{words.itemsize}").astype(form.dtype)
        return values if form.signed else values & ((1 << bits) - 1)
    if form.signed and int(words.max()) >> (bits - 1):
        raise Refused(
            Reason.UNSUPPORTED_PIXELS,
            f"compressed pixels have {bits} bits, the header says {form.bits_stored} with a sign, so which bit is the "
            "sign is unknown",
        )
    return words.astype(form.dtype)


def _through_pydicom(data: bytes, form: _Format, frame: int, read: Callable[[], Dataset]) -> Stored:
    """Of deflated and big endian files, which `read` reads whole."""
    if form.size_bytes > len(data) * _DEFLATE_RATIO:
        raise Refused(Reason.TOO_LARGE, f"{form.size_bytes} bytes of pixels in {len(data)}; a file cannot hold as many")
    try:
        dataset = read()
    except NotDicomError as error:
        raise Refused(Reason.UNREADABLE, f"an instance cannot be read: {error}") from error
    if "PixelData" not in dataset:
        raise Refused(Reason.NOT_AN_IMAGE, "no pixel data")
    if len(dataset.PixelData) not in (form.size_bytes, form.size_bytes + form.size_bytes % 2):
        raise Refused(
            Reason.UNDECODABLE_PIXELS, f"pixel data hold {len(dataset.PixelData)} bytes; wanted {form.size_bytes}"
        )
    try:
        with quiet_pydicom():
            values = pixel_array(dataset, raw=True, index=frame)
    except Exception as error:  # broken bytes can raise anything
        raise _undecodable(error) from error
    if values.shape != form.shape or values.dtype.newbyteorder("<") != form.dtype:
        raise Refused(Reason.UNREADABLE, "an instance changed while it was read; run the command again")
    return cast("Stored", values)


def _undecodable(error: Exception) -> Refused:
    return Refused(Reason.UNDECODABLE_PIXELS, f"pixel data are truncated or damaged ({type(error).__name__})")


def _write_hu(
    stored: Stored, padding: npt.NDArray[np.bool_] | None, slope: float, intercept: float, out: npt.NDArray[np.int16]
) -> None:
    low, high = _range_hu(stored, slope, intercept)
    if padding is not None and (low < -32768 or high > 32767):
        low, high = _range_hu(stored[~padding], slope, intercept)
    if low < -32768 or high > 32767:
        raise Refused(Reason.HU_OUT_OF_RANGE, f"HU from {low} to {high}; wanted -32768 to 32767")
    if slope == 1.0 and intercept.is_integer():
        # The sums fit 16 bits, so that it does not matter that the terms may not: arithmetic is modulo 2^16.
        words = stored.view(np.int16) if stored.dtype == np.uint16 else stored
        np.add(words, np.array(int(intercept)).astype(np.int16), out=out, dtype=np.int16, casting="unsafe")
    else:
        hu = stored * slope
        hu += intercept
        np.rint(hu, out=hu)
        if padding is not None:
            hu[padding] = AIR_HU
        out[...] = hu
    if padding is not None:
        out[padding] = AIR_HU


def _range_hu(stored: Stored, slope: float, intercept: float) -> tuple[int, int]:
    if not stored.size:
        return 0, 0
    low, high = sorted(int(end) * slope + intercept for end in (stored.min(), stored.max()))
    return round(low), round(high)


def _without_high_bits(stored: Stored, form: _Format) -> Stored:
    """Drop what stands above the stored bits (old overlays), and extend the sign of signed values."""
    if form.lowest <= int(stored.min()) and int(stored.max()) <= form.highest:
        return stored
    unused = form.bits_allocated - form.bits_stored
    return cast("Stored", np.right_shift(np.left_shift(stored, unused), unused))


def _padding(
    stored: Stored, pixels: PixelFormat, slope: float, intercept: float, *, signed: bool
) -> npt.NDArray[np.bool_] | None:
    """Which voxels are padding below -1024 HU, or None where there are none."""
    value = _same_sign(pixels.padding, signed=signed)
    if value is None:
        return None
    limit = _same_sign(pixels.padding_limit, signed=signed)
    low, high = sorted((value, value if limit is None else limit))
    if max(low * slope, high * slope) + intercept >= AIR_HU:
        return None
    found = stored == low if low == high else (stored >= low) & (stored <= high)
    return cast("npt.NDArray[np.bool_]", found) if found.any() else None


def _same_sign(value: int | None, *, signed: bool) -> int | None:
    """The padding value as the pixels hold it: writers often store a signed one as unsigned, or the other way."""
    return value - 0x10000 if value is not None and signed and value >= 0x8000 else value
