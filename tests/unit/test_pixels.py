"""Pixels: every encoding gives the stored values, and what is cut off, forged or ambiguous is refused."""

from __future__ import annotations

import io
import random
import struct
from dataclasses import replace
from pathlib import Path

import imagecodecs
import jpeg_ls
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from openjpeg.utils import encode_array
from pydicom import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels.encoders.base import RLELosslessEncoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from tomoray.dicom import pixels
from tomoray.dicom.codestreams import encoded_frame, read_size
from tomoray.dicom.headers import Instance, quiet_pydicom, read_instance
from tomoray.dicom.pixels import Frames
from tomoray.errors import Reason, Refused

ROWS, COLUMNS = 36, 33
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"


@pytest.fixture
def header(make_series) -> Dataset:
    """A header without pixels, whose stored values are HU."""
    dataset: Dataset = make_series(1).datasets[0]
    dataset.RescaleIntercept = 0
    del dataset.PixelData
    return dataset


def instance_of(data: bytes) -> Instance:
    instance = read_instance(data, root="mem", key="a.dcm", size_bytes=len(data))
    assert instance is not None
    return instance


def as_file(header: Dataset, values: bytes, syntax: UID = ExplicitVRLittleEndian) -> bytes:
    """A file whose Pixel Data are `values`: native in its byte order, or fragments."""
    header.file_meta.TransferSyntaxUID = syntax
    header.PixelData = values
    header["PixelData"].VR = "OB" if header.BitsAllocated == 8 or syntax.is_encapsulated else "OW"
    header["PixelData"].is_undefined_length = syntax.is_encapsulated
    buffer = io.BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def with_frames(header: Dataset, count: int) -> Dataset:
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = ENHANCED_CT
    header.NumberOfFrames = count
    rescale = Dataset()
    rescale.RescaleSlope, rescale.RescaleIntercept = 1, 0
    groups = Dataset()
    groups.PixelValueTransformationSequence = [rescale]
    header.SharedFunctionalGroupsSequence = [groups]
    header.PerFrameFunctionalGroupsSequence = [Dataset() for _ in range(count)]
    return header


def with_bits(header: Dataset, allocated: int, stored: int, *, signed: bool) -> np.dtype:
    header.BitsAllocated, header.BitsStored, header.HighBit = allocated, stored, stored - 1
    header.PixelRepresentation = int(signed)
    return np.dtype(f"<{'i' if signed else 'u'}{allocated // 8}")


def decode(data: bytes, frame: int = 0) -> np.ndarray:
    instance = instance_of(data)
    out = np.full((instance.rows, instance.columns), 77, dtype=np.int16)
    Frames(data, instance).decode_hu(frame, out)
    return out


def refusal_of(data: bytes, frame: int = 0) -> Refused:
    with pytest.raises(Refused) as caught:
        decode(data, frame)
    assert "SECRET" not in str(caught.value)
    return caught.value


def random_values(dtype: np.dtype, stored: int, shape: tuple[int, ...] = (ROWS, COLUMNS)) -> np.ndarray:
    """Values of all stored bits that are HU of 16 bits, the extremes among them."""
    low, high = (-(1 << stored - 1), (1 << stored - 1) - 1) if dtype.kind == "i" else (0, min((1 << stored) - 1, 32767))
    values = np.random.default_rng(stored).integers(low, high, shape, dtype, endpoint=True)
    values[..., 0, :2] = low, high
    return values


def encode_frame(syntax: UID, values: np.ndarray, stored: int) -> bytes:
    """One codestream. JPEG-LS knows no sign: a negative value is kept as its stored bits."""
    rows, columns = values.shape
    if syntax in (JPEGLSLossless, JPEGLSNearLossless):
        words = values.view(values.dtype.str.replace("i", "u")) & ((1 << stored) - 1)
        words = words.astype(np.uint8) if stored <= 8 else words
        return bytes(
            jpeg_ls.encode_buffer(words.tobytes(), rows, columns, 1, stored, int(syntax == JPEGLSNearLossless))
        )
    if syntax == JPEG2000Lossless:
        return bytes(encode_array(values, bits_stored=stored, photometric_interpretation=2))
    if syntax == HTJ2KLossless:
        return bytes(imagecodecs.htj2k_encode(values))
    return RLELosslessEncoder.encode(
        values.tobytes(),
        rows=rows,
        columns=columns,
        samples_per_pixel=1,
        bits_allocated=values.dtype.itemsize * 8,
        bits_stored=values.dtype.itemsize * 8,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
        number_of_frames=1,
    )


NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)
COMPRESSED = (RLELossless, JPEGLSLossless, JPEG2000Lossless, HTJ2KLossless)
BITS = [(8, 8), (8, 7), (16, 8), (16, 12), (16, 16)]


def fragments(*parts: bytes, table: bytes = b"", end: bool = True) -> bytes:
    """Items as they are, with a Basic Offset Table."""
    items = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(part)) + part for part in (table, *parts))
    return items + (struct.pack("<HHL", 0xFFFE, 0xE0DD, 0) if end else b"")


def even(codestream: bytes) -> bytes:
    return codestream + bytes(len(codestream) % 2)


# --- every encoding -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize(("allocated", "stored"), BITS)
@pytest.mark.parametrize("syntax", NATIVE, ids=lambda syntax: syntax.name)
def test_native_pixels(header, syntax, allocated, stored, signed):
    dtype = with_bits(header, allocated, stored, signed=signed)
    values = random_values(dtype, stored)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    raw = even(values.astype(dtype.newbyteorder(order)).tobytes())
    if syntax == ExplicitVRBigEndian and allocated == 8:
        header.Columns = COLUMNS - 1  # an even number of bytes, so that no padding is swapped into the pixels
        values = values[:, :-1]
        raw = values.tobytes()
    assert np.array_equal(decode(as_file(header, raw, syntax)), values)


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize(("allocated", "stored"), BITS)
@pytest.mark.parametrize("syntax", COMPRESSED, ids=lambda syntax: syntax.name)
def test_compressed_pixels(header, syntax, allocated, stored, signed):
    values = random_values(with_bits(header, allocated, stored, signed=signed), stored)
    frame = encode_frame(syntax, values, stored)
    assert np.array_equal(decode(as_file(header, encapsulate([frame]), syntax)), values)


def test_near_lossless_is_near(header):
    values = random_values(with_bits(header, 16, 12, signed=False), 12)
    data = as_file(header, encapsulate([encode_frame(JPEGLSNearLossless, values, 12)]), JPEGLSNearLossless)
    assert instance_of(data).lossy
    difference = np.abs(decode(data).astype(int) - values)
    assert 0 < difference.max() <= 1


@pytest.mark.parametrize("syntax", [*NATIVE[:3], *COMPRESSED], ids=lambda syntax: syntax.name)
def test_every_frame_of_many(header, syntax):
    values = random_values(with_bits(header, 16, 12, signed=True), 12, (3, ROWS, COLUMNS))
    if syntax.is_encapsulated:
        raw = encapsulate([encode_frame(syntax, frame, 12) for frame in values])
    else:
        raw = values.tobytes()
    data = as_file(with_frames(header, 3), raw, syntax)
    for frame in (2, 0, 1):
        assert np.array_equal(decode(data, frame), values[frame])


def test_real_syntaxes_equal_another_reader(real_ct):
    paths = sorted((real_ct / "syntaxes-cornerstone").glob("*.dcm"))
    assert len(paths) == 10
    for path in paths:
        data = path.read_bytes()
        instance = instance_of(data)
        wanted = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        dataset = pydicom.dcmread(path)
        stored = dataset.pixel_array.reshape(instance.n_frames, instance.rows, instance.columns)
        for frame, plane in enumerate(instance.planes):
            found = decode(data, frame)
            assert np.abs(found - wanted[frame]).max() <= (1.0 + plane.slope if instance.lossy else 0), path.name
            assert np.array_equal(found, np.rint(stored[frame] * plane.slope + plane.intercept)), path.name


@pytest.mark.parametrize(
    "name",
    [
        "693_J2KI.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "JPEG2000.dcm",
        "JPEGLSNearLossless_08.dcm",
        "JPGExtended.dcm",
        "MR_small_RLE.dcm",
        "MR_small_expb.dcm",
        "image_dfl.dcm",
    ],
)
def test_files_of_pydicom_equal_its_own_reading(name):
    path = Path(pydicom.__file__).parent / "data" / "test_files" / name
    data = path.read_bytes()
    instance = instance_of(data)
    rescale = replace(instance.planes[0], slope=1.0, intercept=0.0)
    pixels = replace(instance.pixels, padding=None)
    out = np.empty((instance.rows, instance.columns), np.int16)
    Frames(data, replace(instance, planes=(rescale,), pixels=pixels)).decode_hu(0, out)
    with quiet_pydicom():
        assert np.array_equal(out, pydicom.dcmread(path).pixel_array)


# --- where frames lie ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", COMPRESSED, ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("has_table", [False, True])
def test_one_frame_in_many_fragments(header, syntax, has_table):
    values = random_values(with_bits(header, 16, 12, signed=False), 12)
    frame = encode_frame(syntax, values, 12)
    raw = encapsulate([frame], fragments_per_frame=5, has_bot=has_table)
    assert np.array_equal(decode(as_file(header, raw, syntax)), values)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless], ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("has_table", [False, True])
def test_many_frames_in_many_fragments(header, syntax, has_table):
    values = random_values(with_bits(header, 16, 12, signed=False), 12, (3, ROWS, COLUMNS))
    frames = [encode_frame(syntax, frame, 12) for frame in values]
    data = as_file(with_frames(header, 3), encapsulate(frames, fragments_per_frame=2, has_bot=has_table), syntax)
    for frame in range(3):
        assert np.array_equal(decode(data, frame), values[frame])


def test_a_deflated_file_is_inflated_once_for_all_its_frames(header, monkeypatch):
    count, reads = 40, []
    dtype = with_bits(header, 16, 12, signed=True)
    values = random_values(dtype, 12, (count, ROWS, COLUMNS))
    data = as_file(with_frames(header, count), values.tobytes(), DeflatedExplicitVRLittleEndian)
    read = pixels.read_dataset
    monkeypatch.setattr(pixels, "read_dataset", lambda data: (reads.append(1), read(data))[1])
    out, frames = np.empty((count, ROWS, COLUMNS), np.int16), Frames(data, instance_of(data))
    for frame in range(count):
        frames.decode_hu(frame, out[frame])
    assert np.array_equal(out, values)
    assert len(reads) == 1


def test_extended_offset_table(header):
    values = random_values(with_bits(header, 16, 12, signed=False), 12, (2, ROWS, COLUMNS))
    raw, offsets, lengths = encapsulate_extended([encode_frame(JPEGLSLossless, frame, 12) for frame in values])
    header.ExtendedOffsetTable, header.ExtendedOffsetTableLengths = offsets, lengths
    data = as_file(with_frames(header, 2), raw, JPEGLSLossless)
    assert [np.array_equal(decode(data, frame), values[frame]) for frame in (0, 1)] == [True, True]


@pytest.mark.parametrize(
    "table", [[0, 8, 16], [4, 100, 200], [0], [0, 0, 0], [1, 2, 3, 4], b"123"], ids=lambda table: str(table)
)
def test_offset_table_that_points_elsewhere_is_refused(header, table):
    values = random_values(with_bits(header, 16, 12, signed=False), 12)
    frame = even(encode_frame(JPEGLSLossless, values, 12))
    halves = [frame[:100], frame[100:]] * 3
    table = table if isinstance(table, bytes) else struct.pack(f"<{len(table)}L", *table)
    data = as_file(with_frames(header, 3), fragments(*halves, table=table), JPEGLSLossless)
    assert refusal_of(data).reason == Reason.UNDECODABLE_PIXELS


@pytest.mark.parametrize("count", [2, 4])
def test_other_number_of_frames_than_the_header_says_is_refused(header, count):
    values = random_values(with_bits(header, 16, 12, signed=False), 12)
    frame = encode_frame(JPEGLSLossless, values, 12)
    data = as_file(with_frames(header, count), encapsulate([frame] * 3, has_bot=False), JPEGLSLossless)
    assert refusal_of(data).reason == Reason.UNDECODABLE_PIXELS
    native = as_file(with_frames(header, count), values.tobytes() * 3)
    assert refusal_of(native).reason == Reason.UNDECODABLE_PIXELS


def test_several_codestreams_in_one_frame_are_refused(header):
    values = random_values(with_bits(header, 16, 12, signed=False), 12)
    frame = encode_frame(JPEGLSLossless, values, 12)
    refusal = refusal_of(as_file(header, encapsulate([frame] * 2), JPEGLSLossless))
    assert refusal.reason == Reason.UNDECODABLE_PIXELS
    assert "several codestreams" in refusal.evidence


def test_codestream_in_a_jp2_file(header):
    values = random_values(with_bits(header, 16, 12, signed=False), 12)
    jp2 = bytes(encode_array(values, bits_stored=12, photometric_interpretation=2, codec_format=1))
    assert jp2[4:6] == b"jP"
    assert np.array_equal(decode(as_file(header, encapsulate([jp2]), JPEG2000Lossless)), values)


# --- cut off, forged, changed -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, *COMPRESSED],
    ids=lambda syntax: syntax.name,
)
def test_file_that_is_cut_off_anywhere_in_its_pixels_is_refused(header, syntax):
    values = random_values(with_bits(header, 16, 12, signed=False), 12)
    raw = values.astype(">u2" if syntax == ExplicitVRBigEndian else "<u2").tobytes()
    raw = encapsulate([encode_frame(syntax, values, 12)], fragments_per_frame=3) if syntax.is_encapsulated else raw
    data = as_file(header, raw, syntax)
    start = instance_of(data).pixels.offset
    for end in [*range(start, len(data), 29), *range(len(data) - 12, len(data))]:
        assert refusal_of(data[:end]).reason in (Reason.UNDECODABLE_PIXELS, Reason.NOT_AN_IMAGE)


@pytest.mark.parametrize("syntax", COMPRESSED, ids=lambda syntax: syntax.name)
def test_codestream_that_is_cut_off_in_its_fragment_is_refused(header, syntax):
    values = random_values(with_bits(header, 16, 12, signed=False), 12)
    frame = encode_frame(syntax, values, 12).rstrip(b"\0")
    for end in [*range(0, len(frame) - 2, 41), len(frame) - 2]:
        data = as_file(header, fragments(even(frame[:end])), syntax)
        assert refusal_of(data).reason == Reason.UNDECODABLE_PIXELS


def test_real_jpeg_that_is_cut_off_is_refused(real_ct):
    """Its decoder alone would make up the rest."""
    for last in ("50", "51", "70"):
        (path,) = (real_ct / "syntaxes-cornerstone").glob(f"CTImage*.4.{last}.dcm")
        data = path.read_bytes()
        instance = instance_of(data)
        frame = encoded_frame(data, instance.pixels.offset, 0, 1).rstrip(b"\0")
        for kept in (len(frame) - 2, len(frame) - 100, len(frame) // 2):
            cut = data[: instance.pixels.offset] + fragments(even(frame[:kept]))
            assert refusal_of(cut).reason == Reason.UNDECODABLE_PIXELS


def test_more_pixels_than_the_header_says_are_refused(header):
    values = random_values(with_bits(header, 16, 12, signed=False), 12)
    assert refusal_of(as_file(header, values.tobytes() + bytes(2))).reason == Reason.UNDECODABLE_PIXELS


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless], ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("forged", [(0, 33), (36, 65535), (65535, 65535), (35, 33)])
def test_forged_size_in_a_codestream_is_refused_before_it_is_decoded(header, syntax, forged):
    values = random_values(with_bits(header, 16, 12, signed=False), 12)
    frame = bytearray(encode_frame(syntax, values, 12))
    if syntax == JPEGLSLossless:
        at = frame.index(b"\xff\xf7") + 5
        frame[at : at + 4] = struct.pack(">HH", *forged)
    else:
        frame[8:16] = struct.pack(">LL", forged[1], forged[0])
    refusal = refusal_of(as_file(header, encapsulate([bytes(frame)]), syntax))
    assert refusal.reason == Reason.UNDECODABLE_PIXELS
    assert f"{forged[0]} x {forged[1]} of 1 samples; the header says 36 x 33" in refusal.evidence


@pytest.mark.parametrize("syntax", COMPRESSED, ids=lambda syntax: syntax.name)
def test_forged_size_in_the_header_is_refused(header, syntax):
    values = random_values(with_bits(header, 16, 12, signed=False), 12)
    frame = encode_frame(syntax, values, 12)
    header.Rows = 8000
    assert refusal_of(as_file(header, encapsulate([frame]), syntax)).reason == Reason.UNDECODABLE_PIXELS


def test_second_frame_header_in_a_jpeg_is_refused():
    sof = b"\xff\xc3\x00\x0b\x0c\x00\x24\x00\x21\x01\x01\x11\x00"
    sos = b"\xff\xda\x00\x08\x01\x01\x00\x01\x00\x00"
    assert read_size(b"\xff\xd8" + sof + sos + b"12\xff\xd9", JPEGLosslessSV1).rows == 36
    for forged in (sof + sof + sos, sof + sos + b"12" + sof, sos, b"\xff\xde" + sof[2:] + sos, sof[:9]):
        with pytest.raises(ValueError, match=r"frame header|ends within"):
            read_size(b"\xff\xd8" + forged + b"\xff\xd9", JPEGLosslessSV1)


def test_tiles_without_number_are_refused(header):
    values = random_values(with_bits(header, 16, 12, signed=False), 12)
    frame = bytearray(encode_frame(JPEG2000Lossless, values, 12))
    for tile in ((0, 33), (1, 0)):
        frame[24:32] = struct.pack(">LL", *tile)
        with pytest.raises(ValueError, match="samples"):
            read_size(bytes(frame), JPEG2000Lossless)


def test_pixels_beyond_any_ct_are_refused(header):
    values = random_values(with_bits(header, 16, 12, signed=False), 12)
    data = as_file(header, encapsulate([encode_frame(JPEGLSLossless, values, 12)]), JPEGLSLossless)
    instance = instance_of(data)
    with pytest.raises(Refused, match="too_large: 65535 x 65535 pixels"):
        Frames(data, replace(instance, rows=65535, columns=65535)).decode_hu(0, np.empty((1, 1), np.int16))
    out = np.empty((ROWS, COLUMNS), np.int16)
    with pytest.raises(Refused, match=f"too_large: 100000000 frames in {len(data)} bytes"):
        Frames(data, replace(instance, n_frames=10**8)).decode_hu(0, out)
    deflated = as_file(header, values.tobytes(), DeflatedExplicitVRLittleEndian)
    with pytest.raises(Refused, match="too_large"):
        Frames(deflated, replace(instance_of(deflated), n_frames=10**8)).decode_hu(0, out)


def test_file_that_changed_is_not_decoded_by_the_old_header(header):
    values = random_values(with_bits(header, 16, 12, signed=False), 12)
    data = as_file(header, values.tobytes())
    out = np.empty((ROWS, COLUMNS), np.int16)
    for changed in (data + b"12", data[:200] + b"12" + data[200:-2]):
        with pytest.raises(Refused, match="unreadable"):
            Frames(changed, instance_of(data)).decode_hu(0, out)


def test_wrong_use_is_an_error_of_the_caller(header):
    values = random_values(with_bits(header, 16, 12, signed=False), 12)
    data = as_file(header, values.tobytes())
    for frame, shape in ((1, (ROWS, COLUMNS)), (-1, (ROWS, COLUMNS)), (0, (COLUMNS, ROWS))):
        with pytest.raises(ValueError, match=r"frame|shape"):
            Frames(data, instance_of(data)).decode_hu(frame, np.empty(shape, np.int16))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"PhotometricInterpretation": "MONOCHROME1"}, Reason.UNSUPPORTED_PIXELS),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, Reason.UNSUPPORTED_PIXELS),
        ({"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}, Reason.UNSUPPORTED_PIXELS),
        ({"HighBit": 15}, Reason.UNSUPPORTED_PIXELS),
        ({"BitsStored": 0}, Reason.UNSUPPORTED_PIXELS),
        ({"PixelRepresentation": None}, Reason.UNSUPPORTED_PIXELS),
        ({"PixelRepresentation": 2}, Reason.UNSUPPORTED_PIXELS),
        ({"Rows": 0}, Reason.NOT_AN_IMAGE),
        ({"RescaleSlope": ""}, Reason.MISSING_RESCALE),
    ],
)
def test_other_formats_are_refused(header, change, reason):
    values = random_values(with_bits(header, 16, 12, signed=False), 12)
    for keyword, value in change.items():
        setattr(header, keyword, value)
    assert refusal_of(as_file(header, values.tobytes())).reason == reason


def test_syntax_without_decoder_is_refused(header):
    data = as_file(header, encapsulate([b"1234"]), UID("1.2.840.10008.1.2.4.100"))
    refusal = refusal_of(data)
    assert refusal.reason == Reason.UNSUPPORTED_PIXELS
    assert "1.2.840.10008.1.2.4.100" in refusal.evidence


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEGBaseline8Bit, JPEG2000Lossless, HTJ2KLossless, RLELossless])
def test_nonsense_in_fragments_is_refused(header, syntax):
    for nonsense in (b"", b"SECRET", b"\xff\xd8\xff\xd9", b"\xff\x4f\xff\x51\xff\xd9", bytes(64), b"\xff" * 70):
        data = as_file(header, fragments(even(nonsense)), syntax)
        assert refusal_of(data).reason == Reason.UNDECODABLE_PIXELS
    assert refusal_of(as_file(header, fragments(), syntax)).reason == Reason.UNDECODABLE_PIXELS


@pytest.mark.parametrize("syntax", COMPRESSED, ids=lambda syntax: syntax.name)
def test_damaged_pixels_are_decoded_or_refused(header, syntax):
    values = random_values(with_bits(header, 16, 12, signed=True), 12)
    data = as_file(header, encapsulate([encode_frame(syntax, values, 12)]), syntax)
    instance = instance_of(data)
    rng = random.Random(2)
    out = np.empty((ROWS, COLUMNS), np.int16)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 3))):
            damaged[
                instance.pixels.offset + min(int(rng.expovariate(1 / 60)), len(data) - 1 - instance.pixels.offset)
            ] = rng.randrange(256)
        try:
            Frames(bytes(damaged), instance).decode_hu(0, out)
        except Refused:
            refused += 1
    assert refused > 100


# --- signs and unused bits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
def test_bits_above_the_stored_ones_are_dropped(header, signed):
    dtype = with_bits(header, 16, 12, signed=signed)
    values = random_values(dtype, 12)
    overlaid = ((values.view("<u2") & 0x0FFF) | 0x6000).astype("<u2")
    assert np.array_equal(decode(as_file(header, overlaid.tobytes())), values)
    frame = encode_frame(RLELossless, overlaid.view(dtype), 16)
    assert np.array_equal(decode(as_file(header, encapsulate([frame]), RLELossless)), values)


@pytest.mark.parametrize("as_signed", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_sign_of_a_jpeg_2000_codestream_may_be_wrong(header, signed, as_signed):
    """The stored bits count, as two's complement where the header says so."""
    values = random_values(with_bits(header, 16, 12, signed=signed), 12)
    bits = values.view("<u2") & 0x0FFF
    words = ((bits.astype("<i2") << 4) >> 4) if as_signed else bits
    frame = encode_frame(JPEG2000Lossless, words, 12)
    assert read_size(frame, JPEG2000Lossless).signed is as_signed
    assert np.array_equal(decode(as_file(header, encapsulate([frame]), JPEG2000Lossless)), values)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless], ids=lambda syntax: syntax.name)
def test_codestream_of_whole_words_keeps_the_sign(header, syntax):
    dtype = with_bits(header, 16, 12, signed=True)
    values = random_values(dtype, 12)
    frame = encode_frame(syntax, values.view("<u2"), 16)
    assert np.array_equal(decode(as_file(header, encapsulate([frame]), syntax)), values)


def test_codestream_with_fewer_bits_than_stored_is_read_where_its_sign_is_sure(header):
    with_bits(header, 16, 16, signed=True)
    values = random_values(np.dtype("<u2"), 11)
    data = as_file(header, encapsulate([encode_frame(JPEGLSLossless, values, 12)]), JPEGLSLossless)
    assert np.array_equal(decode(data), values)

    values[3, 4] = 2048  # or -2048
    data = as_file(header, encapsulate([encode_frame(JPEGLSLossless, values, 12)]), JPEGLSLossless)
    refusal = refusal_of(data)
    assert refusal.reason == Reason.UNSUPPORTED_PIXELS
    assert "sign" in refusal.evidence


@pytest.mark.parametrize("signed", [False, True])
def test_codestream_with_fewer_bits_and_a_sign_is_read(header, signed):
    with_bits(header, 16, 16, signed=signed)
    values = random_values(np.dtype("<i2"), 12)
    data = as_file(header, encapsulate([encode_frame(JPEG2000Lossless, values, 12)]), JPEG2000Lossless)
    assert np.array_equal(decode(data), values if signed else values & 0x0FFF)


def test_codestream_with_more_bits_than_allocated_is_refused(header):
    with_bits(header, 8, 8, signed=False)
    frame = encode_frame(JPEGLSLossless, random_values(np.dtype("<u2"), 12), 12)
    assert refusal_of(as_file(header, encapsulate([frame]), JPEGLSLossless)).reason == Reason.UNDECODABLE_PIXELS


# --- stored values to HU ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "intercept", "hu"),
    [
        ([0, 33791], -1024, [-1024, 32767]),
        ([32768, 65535], -65535, [-32767, 0]),
        ([0, 1], 32766, [32766, 32767]),
        ([0, 1], -32768, [-32768, -32767]),
    ],
)
def test_sums_that_fit_are_right_though_terms_do_not(header, stored, intercept, hu):
    with_bits(header, 16, 16, signed=False)
    header.RescaleIntercept = intercept
    values = np.resize(np.array(stored, "<u2"), (ROWS, COLUMNS))
    assert sorted(np.unique(decode(as_file(header, values.tobytes())))) == hu


@pytest.mark.parametrize("slope", [1, 0.5, -1, -2.5])
def test_values_that_do_not_fit_are_refused(header, slope):
    with_bits(header, 16, 16, signed=False)
    header.RescaleSlope = slope
    values = np.full((ROWS, COLUMNS), 100, "<u2")
    header.RescaleIntercept = 32767.5 - 100 * slope if slope > 0 else -32769 - 100 * slope
    assert refusal_of(as_file(header, values.tobytes())).reason == Reason.HU_OUT_OF_RANGE


@pytest.mark.parametrize(("slope", "intercept"), [("0.5", "-1024"), ("-1", "10.5"), ("2", "-1024"), ("1", "0.25")])
@pytest.mark.parametrize("signed", [False, True])
def test_any_rescale_is_rounded_to_whole_hu(header, slope, intercept, signed):
    values = random_values(with_bits(header, 16, 12, signed=signed), 12)
    header.RescaleSlope, header.RescaleIntercept = slope, intercept
    wanted = np.rint(values.astype(float) * float(slope) + float(intercept))
    assert np.array_equal(decode(as_file(header, values.tobytes())), wanted)


@pytest.mark.parametrize("slope", ["1", "2"])
@pytest.mark.parametrize("written_as", ["US", "SS"])
def test_padding_becomes_air_whatever_its_sign(header, slope, written_as):
    with_bits(header, 16, 16, signed=True)
    values = np.full((ROWS, COLUMNS), 100, "<i2")
    values[0, :5], values[1, :3] = -32768, -3000
    header.add_new("PixelPaddingValue", written_as, -32768 if written_as == "SS" else 32768)
    header.add_new("PixelPaddingRangeLimit", written_as, -2000 if written_as == "SS" else 63536)
    header.RescaleSlope = slope
    data = as_file(header, values.tobytes())
    out = np.empty((ROWS, COLUMNS), np.int16)
    assert Frames(data, instance_of(data)).decode_hu(0, out) == 8
    assert (out[0, :5] == -1024).all()
    assert (out[1, :3] == -1024).all()
    assert np.unique(out).tolist() == [-1024, 100 * int(slope)]


def test_slice_of_nothing_but_padding_is_air(header):
    with_bits(header, 16, 16, signed=True)
    header.add_new("PixelPaddingValue", "SS", -32768)
    header.RescaleIntercept = -1024
    data = as_file(header, np.full((ROWS, COLUMNS), -32768, "<i2").tobytes())
    out = np.empty((ROWS, COLUMNS), np.int16)
    assert Frames(data, instance_of(data)).decode_hu(0, out) == ROWS * COLUMNS
    assert (out == -1024).all()


def test_padding_that_could_be_tissue_is_left_alone(header):
    values = random_values(with_bits(header, 16, 12, signed=False), 12)
    header.add_new("PixelPaddingValue", "US", 0)
    header.RescaleIntercept = -1024
    data = as_file(header, values.tobytes())
    out = np.empty((ROWS, COLUMNS), np.int16)
    assert Frames(data, instance_of(data)).decode_hu(0, out) == 0
    assert np.array_equal(out, values.astype(int) - 1024)
