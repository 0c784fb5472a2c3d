"""Headers: what is read, that both ways of reading agree, and that broken bytes end in an answer."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

from tomoray.dicom import datasets, elements
from tomoray.dicom.elements import Elements, Unusual
from tomoray.dicom.headers import Instance, NotDicomError, looks_like_dicom, read_dataset, read_instance

ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"


def as_file(dataset: Dataset, syntax: UID = ExplicitVRLittleEndian) -> bytes:
    dataset.file_meta.TransferSyntaxUID = syntax
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OW"
        dataset["PixelData"].is_undefined_length = syntax.is_encapsulated
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def read(data: bytes) -> Instance:
    instance = read_instance(data, root="mem", key="a.dcm", size_bytes=len(data))
    assert instance is not None
    return instance


def item(**values: object) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def element(group: int, number: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """An element of explicit VR, little endian, with a length that may lie."""
    length = len(value) if length is None else length
    if vr in (b"SQ", b"UN", b"OB", b"OW"):
        return struct.pack("<HH2sHL", group, number, vr, 0, length) + value
    return struct.pack("<HH2sH", group, number, vr, length) + value


def insert(data: bytes, more: bytes, before: bytes = b"\x10\x00\x20\x00") -> bytes:
    """`more` in front of an element, Patient ID by default."""
    at = data.index(before)
    return data[:at] + more + data[at:]


def walked(data: bytes, *, whole: bool = True) -> Elements | str | None:
    try:
        return elements.walk(data, whole=whole)
    except Unusual:
        return "declined"


def parsed(data: bytes, *, whole: bool = True) -> Elements | str | None:
    try:
        return datasets.parse(data, whole=whole)
    except NotDicomError:
        return "not DICOM"


@pytest.fixture
def header(make_series) -> Dataset:
    dataset: Dataset = make_series(1).datasets[0]
    dataset.ManufacturerModelName, dataset.ConvolutionKernel = "Scanner 3", ["B30f", "1"]
    dataset.KVP, dataset.GantryDetectorTilt, dataset.BodyPartExamined = "120", "-2.5", "CHEST"
    dataset.AcquisitionNumber, dataset.TemporalPositionIdentifier, dataset.TriggerTime = 4, 2, "350.5"
    dataset.add_new("PixelPaddingValue", "US", 63536)
    return dataset


@pytest.fixture
def enhanced(header) -> Dataset:
    dataset = header
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = ENHANCED_CT
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "KVP", "ConvolutionKernel"):
        delattr(dataset, keyword)
    del dataset.RescaleSlope, dataset.RescaleIntercept, dataset.SliceThickness
    dataset.NumberOfFrames = 3
    dataset.PixelData = dataset.PixelData * 3
    dataset.SharedFunctionalGroupsSequence = [
        item(
            PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
            PixelMeasuresSequence=[item(PixelSpacing=[0.8, 0.7], SliceThickness=2.5)],
            PixelValueTransformationSequence=[item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")],
            CTXRayDetailsSequence=[item(KVP=100)],
        )
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[-20, -30, 5 * z])],
            FrameContentSequence=[item(FrameAcquisitionNumber=7, TemporalPositionIndex=z + 1)],
            CTImageFrameTypeSequence=[item(FrameType=["ORIGINAL", "PRIMARY", "AXIAL", "NONE"])],
            CTReconstructionSequence=[item(ConvolutionKernel=f"K{z}")],
            CTExposureSequence=[item(ExposureInmAs=50.5 + z)],
            CardiacSynchronizationSequence=[item(NominalCardiacTriggerDelayTime=100.25 * z)],
        )
        for z in range(3)
    ]
    return dataset


# --- what is read -------------------------------------------------------------------------------------------------


def test_reads_a_classic_header(header):
    data = as_file(header)
    instance = read(data)

    assert (instance.root, instance.key, instance.size_bytes) == ("mem", "a.dcm", len(data))
    assert (instance.sop_uid, instance.series_uid, instance.study_uid) == ("1.2.3.4.1", "1.2.3.4", "1.2.3")
    assert (instance.rows, instance.columns, instance.n_frames) == (36, 33, 1)
    assert (instance.kernel, instance.kvp, instance.gantry_tilt_degrees) == ("B30f\\1", 120.0, -2.5)
    (plane,) = instance.planes
    assert plane.orientation == (1, 0, 0, 0, 1, 0)
    assert plane.position == (-20, -30, -100)
    assert plane.pixel_spacing == (0.8, 0.7)
    assert (plane.slope, plane.intercept, plane.slice_thickness_mm) == (1, -1024, 2.5)
    assert (plane.acquisition_number, plane.temporal_position, plane.trigger_time_ms) == (4, 2, 350.5)
    assert (plane.frame, plane.instance_number, plane.image_type) == (0, 1, ("ORIGINAL", "PRIMARY", "AXIAL"))
    pixels = instance.pixels
    assert (pixels.bits_allocated, pixels.bits_stored, pixels.high_bit, pixels.signed) == (16, 12, 11, False)
    assert (pixels.padding, pixels.padding_limit, pixels.length) == (63536, None, 36 * 33 * 2)
    assert data[pixels.offset :] == header.PixelData


@pytest.mark.parametrize(
    ("keyword", "value", "field"),
    [
        ("ImagePositionPatient", [1, 2], "position"),
        ("ImagePositionPatient", ["1", "2", "nan"], "position"),
        ("ImagePositionPatient", ["1", "2", "1e12"], "position"),
        ("PixelSpacing", ["0,8", "0,8"], "pixel_spacing"),
        ("RescaleSlope", "", "slope"),
        ("RescaleSlope", "1_0", "slope"),
        ("RescaleIntercept", ["-1024", "-1024"], "intercept"),
        ("AcquisitionNumber", "1.5", "acquisition_number"),
    ],
)
def test_malformed_value_is_none(header, keyword, value, field):
    tag = pydicom.datadict.tag_for_keyword(keyword)
    text = ("\\".join(map(str, value)) if isinstance(value, list) else value).encode()
    del header[keyword]
    before = struct.pack("<HH", *min(divmod(e.tag, 0x10000) for e in header if e.tag > tag))
    data = insert(
        as_file(header), element(*divmod(tag, 0x10000), b"DS" if "Acq" not in keyword else b"IS", text), before
    )
    assert getattr(read(data).planes[0], field) is None


@pytest.mark.parametrize(
    ("syntax", "claim", "lossy"),
    [
        (JPEGLSLossless, None, False),
        (JPEGLSLossless, "01", True),
        (JPEGLSNearLossless, None, True),
        (JPEGLSNearLossless, "00", False),
        (ExplicitVRLittleEndian, "01", True),
    ],
)
def test_loss_is_what_the_header_says_or_else_the_syntax(header, syntax, claim, lossy):
    if claim:
        header.LossyImageCompression = claim
    header.PixelData = pydicom.encaps.encapsulate([b"1234"]) if syntax.is_encapsulated else header.PixelData
    assert read(as_file(header, syntax)).lossy is lossy


@pytest.mark.parametrize(
    ("charset", "encoding"), [("ISO_IR 192", "utf-8"), ("ISO_IR 100", "latin-1"), (None, "latin-1")]
)
def test_patient_id_is_read_in_the_character_set_of_the_file(header, charset, encoding):
    del header.PatientID
    if charset:
        header.SpecificCharacterSet = charset
    data = insert(as_file(header), element(0x10, 0x20, b"LO", "Zoë-1 ".encode(encoding)), b"\x10\x00\x40\x00")
    assert read(data).patient_id == "Zoë-1"


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_every_encoding_gives_the_same_header(header, syntax):
    wanted = read(as_file(header))
    found = read(as_file(header, syntax))
    for field in set(Instance.__slots__) - {"size_bytes", "transfer_syntax", "pixels"}:
        assert getattr(found, field) == getattr(wanted, field), field
    assert (found.pixels.bits_stored, found.pixels.padding) == (12, 63536)
    assert (found.pixels.offset is None) == (syntax == DeflatedExplicitVRLittleEndian)


def test_frames_of_an_enhanced_instance_are_planes(enhanced):
    instance = read(as_file(enhanced))

    assert (instance.n_frames, len(instance.planes)) == (3, 3)
    assert (instance.kvp, instance.kernel) == (100, "K0")
    for z, plane in enumerate(instance.planes):
        assert plane.position == (-20, -30, 5 * z)
        assert plane.exposure_mas == 50.5 + z
        assert (plane.orientation, plane.pixel_spacing) == ((1, 0, 0, 0, 1, 0), (0.8, 0.7))
        assert (plane.slope, plane.intercept, plane.rescale_type, plane.slice_thickness_mm) == (1, -1024, "HU", 2.5)
        assert plane.image_type == ("ORIGINAL", "PRIMARY", "AXIAL", "NONE")
        assert (plane.acquisition_number, plane.temporal_position, plane.trigger_time_ms) == (7, z + 1, 100.25 * z)
        assert (plane.frame, plane.instance_number) == (z, z + 1)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_frames_are_the_same_in_every_encoding(enhanced, syntax):
    assert read(as_file(enhanced, syntax)).planes == read(as_file(enhanced)).planes


def test_frame_says_more_than_what_all_share(enhanced):
    enhanced.PerFrameFunctionalGroupsSequence[1].PixelMeasuresSequence = [item(PixelSpacing=[0.5, 0.5])]
    planes = read(as_file(enhanced)).planes
    assert [plane.pixel_spacing for plane in planes] == [(0.8, 0.7), (0.5, 0.5), (0.8, 0.7)]


@pytest.mark.parametrize(("count", "found"), [(2, 2), (4, 4), (999_999_999, 999_999_999), ("", 1), (-3, 0)])
def test_frames_that_are_not_all_described_give_no_planes(enhanced, count, found):
    enhanced.NumberOfFrames = count
    instance = read(as_file(enhanced))
    assert (instance.n_frames, instance.planes) == (found, ())


def test_segmentation_and_structure_set_refer_to_their_series(header):
    segmentation = header
    segmentation.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    segmentation.ReferencedSeriesSequence = [item(SeriesInstanceUID="1.2.9")]
    assert read(as_file(segmentation)).referenced_series == "1.2.9"
    assert read(as_file(segmentation)).planes == ()

    structures = segmentation
    del structures.ReferencedSeriesSequence, structures.PixelData
    structures.SOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    series = item(RTReferencedSeriesSequence=[item(SeriesInstanceUID="1.2.8")])
    structures.ReferencedFrameOfReferenceSequence = [item(), item(RTReferencedStudySequence=[series])]
    instance = read(as_file(structures))
    assert (instance.referenced_series, instance.planes, instance.pixels.offset) == ("1.2.8", (), None)


# --- broken bytes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_head_that_ends_too_early_asks_for_the_whole_file(header, syntax):
    data = as_file(header, syntax)
    needed = read(data).pixels.offset
    for length in range(132, needed):
        assert read_instance(data[:length], root="", key="", size_bytes=len(data)) is None
    assert read_instance(data[:needed], root="mem", key="a.dcm", size_bytes=len(data)) == read(data)
    assert read_instance(memoryview(data), root="mem", key="a.dcm", size_bytes=len(data)) == read(data)


def test_other_bytes_are_not_dicom():
    for data in (b"", b"SECRET^NAME", bytes(200), b"\x08\x00" * 100):
        assert not looks_like_dicom(data[:132]) or data[:1] == b"\x08"
        with pytest.raises(NotDicomError) as caught:
            read_instance(data, root="", key="", size_bytes=len(data))
        assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("explicit", [False, True])
def test_deep_nesting_ends(header, explicit):
    syntax = ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian
    opening = (
        struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) if explicit else b"\x08\0\x40\x11" + b"\xff" * 4
    )
    bomb = (opening + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)) * 20_000
    data = insert(as_file(header, syntax), bomb)
    assert walked(data) == "declined"
    with pytest.raises(NotDicomError, match="RecursionError"):
        read(data)


def test_deflated_file_that_is_cut_off_is_not_dicom(header):
    data = as_file(header, DeflatedExplicitVRLittleEndian)
    for length in range(400, len(data), 101):
        assert read_instance(data[:length], root="mem", key="a.dcm", size_bytes=len(data)) in (None, read(data))
        with pytest.raises(NotDicomError, match=r"cut off|cannot be parsed"):
            read(data[:length])


def test_header_of_a_deflated_file_is_read_from_its_first_bytes(header):
    header.PixelData = random.Random(0).randbytes(10**6)
    data = as_file(header, DeflatedExplicitVRLittleEndian)
    found = read_instance(data[:65_536], root="mem", key="a.dcm", size_bytes=len(data))
    assert found == read(data)
    assert found.transfer_syntax == DeflatedExplicitVRLittleEndian
    assert found.pixels.offset is None


def test_deflated_bomb_is_not_inflated(header, monkeypatch):
    header.PixelData = bytes(10**6)
    data = as_file(header, DeflatedExplicitVRLittleEndian)
    assert read(data).rows == 36
    monkeypatch.setattr(datasets, "FREE_BYTES", 10**5)
    with pytest.raises(NotDicomError, match="deflated bytes inflate to more than 100000"):
        read(data)
    with pytest.raises(NotDicomError, match="inflate"):
        datasets.read_dataset(data)


# --- the walk and pydicom -----------------------------------------------------------------------------------------

NESTED = item(SourceImageSequence=[item(ReferencedSOPInstanceUID="1.2", PurposeOfReferenceCodeSequence=[item()])])


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
@pytest.mark.parametrize("undefined", [False, True])
def test_sequences_are_skipped(header, syntax, undefined):
    wanted = read(as_file(header, syntax))
    header.ReferencedImageSequence = [NESTED, NESTED]
    for sequence in (header["ReferencedImageSequence"], NESTED["SourceImageSequence"]):
        sequence.is_undefined_length = undefined
        for part in sequence.value:
            part.is_undefined_length_sequence_item = undefined
    data = as_file(header, syntax)
    assert walked(data) == parsed(data)
    assert read(data).planes == wanted.planes


ODD: dict[str, Callable[[bytes], bytes]] = {
    "tags out of order": lambda d: insert(d, element(0x40, 0x254, b"LO", b"late")),
    "a tag twice": lambda d: insert(d, element(0x10, 0x20, b"LO", b"first ")),
    "another VR": lambda d: d.replace(b"LO\x0c\x00SECRET-ID-17", b"UT\0\0\x0c\0\0\0SECRET-ID-17"),
    "an unknown VR": lambda d: insert(d, element(0x9, 0x10, b"ZZ", b"1234")),
    "UN of undefined length": lambda d: insert(
        d, element(0x9, 0x1010, b"UN", struct.pack("<HHL", 0xFFFE, 0xE0DD, 0), 0xFFFFFFFF)
    ),
    "OB of undefined length": lambda d: insert(
        d, element(0x9, 0x1010, b"OB", struct.pack("<HHL", 0xFFFE, 0xE0DD, 0), 0xFFFFFFFF)
    ),
    "an unknown character set": lambda d: insert(d, element(8, 5, b"CS", b"ISO_IR 7"), b"\x08\x00\x08\x00"),
    "a length beyond the end": lambda d: insert(d, element(0x9, 0x1010, b"UN", b"", 0x7FFFFFFF)),
    "no file meta length": lambda d: d[:132] + d[144:],
    "implicit, said to be explicit": lambda d: d,
}


@pytest.mark.parametrize("oddity", ODD)
def test_walk_declines_what_is_odd_and_pydicom_reads_it(header, oddity):
    data = ODD[oddity](as_file(header))
    if oddity.startswith("implicit"):
        data = as_file(header, ImplicitVRLittleEndian)
        data = data.replace(b"UI\x12\x001.2.840.10008.1.2\0", b"UI\x14\x001.2.840.10008.1.2.1\0")
    assert walked(data) == "declined"
    assert read(data) is not None


def test_walk_and_pydicom_agree_on_the_files_of_pydicom():
    """Character sets, odd VRs, nested sequences, broken lengths: written to trip a parser."""
    compared = 0
    for path in sorted((Path(pydicom.__file__).parent / "data").rglob("*")):
        data = path.read_bytes() if path.is_file() else b""
        if data[128:132] == b"DICM":
            found = walked(data)
            assert found in ("declined", parsed(data)), path.name
            compared += found != "declined"
    assert compared > 100


def test_walk_and_pydicom_agree_on_real_headers(real_ct, tmp_path):
    counts = {"same": 0, "declined": 0}
    for name, data in real_files(real_ct, tmp_path):
        for head in (data, data[:65_536], data[:3000]):
            found, wanted = walked(head, whole=len(head) == len(data)), parsed(head, whole=len(head) == len(data))
            assert found in ("declined", wanted), name
            counts["declined" if found == "declined" else "same"] += 1
    assert counts["same"] > 10 * counts["declined"]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("how", ["empty", "missing"])
def test_class_and_instance_uid_of_the_file_meta_stand_in_for_those_of_the_data_set(header, syntax, how):
    for keyword in ("SOPClassUID", "SOPInstanceUID"):
        if how == "empty":
            setattr(header, keyword, "")
        else:
            delattr(header, keyword)
    header.file_meta.MediaStorageSOPInstanceUID = "1.2.3.99"
    buffer = io.BytesIO()
    header.file_meta.TransferSyntaxUID = syntax
    header.preamble, header.file_meta.FileMetaInformationGroupLength = bytes(128), 0
    pydicom.dcmwrite(buffer, header)
    data = buffer.getvalue()

    instance = read(data)

    assert (instance.sop_class, instance.sop_uid) == (CTImageStorage, "1.2.3.99")
    assert len(instance.planes) == 1
    assert (read_dataset(data).SOPClassUID, read_dataset(data).SOPInstanceUID) == (CTImageStorage, "1.2.3.99")
    assert walked(data) in ("declined", parsed(data))


def test_the_data_sets_own_uids_win_over_those_of_the_file_meta(header):
    header.file_meta.MediaStorageSOPInstanceUID = "1.2.3.99"
    buffer = io.BytesIO()
    header.preamble, header.file_meta.FileMetaInformationGroupLength = bytes(128), 0
    pydicom.dcmwrite(buffer, header)
    assert read(buffer.getvalue()).sop_uid == "1.2.3.4.1"


def test_values_are_those_that_pydicom_gives(real_ct, tmp_path):
    for name, data in real_files(real_ct, tmp_path):
        if name.endswith("meta_missing_tsyntax.dcm"):
            continue
        instance = read(data)
        dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
        of_the_file = dataset.file_meta.get("MediaStorageSOPInstanceUID", "")
        assert instance.sop_uid == (dataset.get("SOPInstanceUID") or of_the_file), name
        assert instance.patient_id == dataset.get("PatientID", ""), name
        assert (instance.rows, instance.columns) == (dataset.get("Rows"), dataset.get("Columns")), name
        assert instance.kvp == (float(dataset.KVP) if dataset.get("KVP") else instance.kvp), name
        if instance.sop_class != ENHANCED_CT and instance.planes and "ImagePositionPatient" in dataset:
            assert instance.planes[0].position == tuple(map(float, dataset.ImagePositionPatient)), name
            assert instance.planes[0].slope == dataset.get("RescaleSlope"), name


def test_walk_and_pydicom_agree_on_mutations(header, enhanced, real_ct_or_none):
    seeds = [as_file(header), as_file(header, ImplicitVRLittleEndian), as_file(enhanced)]
    header.ReferencedImageSequence = [NESTED]
    header["ReferencedImageSequence"].is_undefined_length = True
    seeds.append(as_file(header))
    for folder in (
        ("crlm-ct-1004", "lidc-idri-0314", "syntaxes-cornerstone", "dcmqi", "pydicom") if real_ct_or_none else ()
    ):
        seeds += [path.read_bytes()[:9000] for path in sorted((real_ct_or_none / folder).rglob("*.dcm"))[:4]]
    rng = random.Random(1)
    compared = 0
    for _ in range(3000):
        data, whole = mutated(rng.choice(seeds), rng), rng.random() < 0.5
        found = walked(data, whole=whole)
        if found != "declined":
            compared += 1
            assert found == parsed(data, whole=whole)
        with contextlib.suppress(NotDicomError):
            read_instance(data, root="", key="", size_bytes=len(data) + (not whole))
    assert compared > 500


@pytest.fixture
def real_ct_or_none(request) -> Path | None:
    try:
        folder: Path = request.getfixturevalue("real_ct")
    except pytest.skip.Exception:
        return None
    return folder


def mutated(data: bytes, rng: random.Random) -> bytes:
    marks = (b"\xff" * 4, b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0", b"\xe0\x7f\x10\x00", bytes(4))
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(128, min(len(changed), 8000))
        kind = rng.randrange(5)
        if kind == 0:
            del changed[at : at + rng.choice((1, 2, 8, 50))]
        elif kind == 1:
            changed[at:at] = rng.randbytes(rng.choice((1, 2, 8)))
        elif kind == 2:
            changed[at : at + 4] = rng.choice(marks)
        else:
            changed[at] = rng.randrange(256)
    return bytes(changed)


def real_files(real_ct: Path, tmp_path: Path) -> Iterator[tuple[str, bytes]]:
    """Every DICOM file, those in archives too; of a series of many alike the first few."""
    for archive in sorted(real_ct.rglob("*.tar.xz"))[:6]:
        with tarfile.open(archive) as tar:
            tar.extractall(tmp_path / archive.stem, filter="data")
    for folder in sorted({path.parent for root in (real_ct, tmp_path) for path in root.rglob("*") if path.is_file()}):
        for path in sorted(p for p in folder.iterdir() if p.is_file())[:12]:
            data = path.read_bytes()
            if data[128:132] == b"DICM":
                yield str(path), data
