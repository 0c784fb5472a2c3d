"""DICOM Segmentation: written as any reader expects it, read by geometry alone."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from tomoray.config import DeidentifyConfig
from tomoray.dicom.derived import hashed_uid
from tomoray.dicom.seg import archived_headers, read_segmentation, write_segmentation
from tomoray.errors import Reason, Refused
from tomoray.geometry import Geometry
from tomoray.ingest.drawings import Drawing, draw
from tomoray.ingest.series import DicomFile
from tomoray.privacy.deidentify import Deidentifier
from tomoray.privacy.pseudonyms import Pseudonyms
from tomoray.volume import Mask, ScanInfo, ScanUids

SHAPE = (6, 20, 24)
AFFINE = np.array([[0.7, 0, 0, -90.5], [0, 0.8, 0, -210.25], [0, 0, 2.5, -411.5], [0, 0, 0, 1]])
GEOMETRY = Geometry.from_matrix(SHAPE, AFFINE)


def info(planes: int = SHAPE[0], **changes: object) -> ScanInfo:
    uids = ScanUids(
        study=hashed_uid("study"),
        series=hashed_uid("series"),
        frame_of_reference=hashed_uid("frame"),
        instances=tuple(hashed_uid("instance", str(z)) for z in range(planes)),
    )
    values = {
        "scan_id": "s",
        "series_id": "r",
        "patient_id": "p1",
        "source_uri": "x",
        "n_instances": planes,
        "instances_sha256": "0",
        "input_sha256": "0",
        "uids": uids,
    }
    return ScanInfo(**(values | changes))


def headers(geometry: Geometry = GEOMETRY, *, keep_identifiers: bool = False) -> list[Dataset]:
    options = DeidentifyConfig(keep_identifiers=keep_identifiers)
    described = Deidentifier(Pseudonyms(b"a key for tests only, of no worth"), options).describe(Dataset())
    of_scan = info(geometry.shape_zyx[0], sex="F", manufacturer="M", slice_thickness_mm=3.0)
    return archived_headers(geometry, of_scan, described.attributes)


def masks(*, overlap: bool) -> dict[str, Mask]:
    rng = np.random.default_rng(0)
    lungs = (rng.random(SHAPE) < 0.4).astype(np.uint8)
    lungs[4] = 0
    nodules = np.zeros(SHAPE, np.uint8)
    nodules[2:4, 5:9, 7:12] = 1
    return {"lungs": lungs | nodules if overlap else lungs & (1 - nodules), "nodules": nodules}


def write(
    given: dict[str, Mask], sources: list[Dataset] | None = None, seed: str | None = "a", **options: object
) -> bytes:
    return write_segmentation(
        given,
        sources or headers(),
        algorithm="test",
        algorithm_version="1.2",
        uid_seed=seed,
        series_description="Segmentation",
        **options,
    )


def parse(data: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(data))


def highdicom_seg(kind: str, pixels: np.ndarray, sources: list[Dataset], **options: object) -> Dataset:
    algorithm = hd.AlgorithmIdentificationSequence("x", codes.DCM.ArtificialIntelligence, "1")
    segments = [
        hd.seg.SegmentDescription(n, name, codes.SCT.Tissue, codes.SCT.Tissue, "AUTOMATIC", algorithm)
        for n, name in ((1, "Left Lung"), (2, "GTV-1 "))
    ]
    uid = hashed_uid("other")
    made = hd.seg.Segmentation(sources, pixels, kind, segments, uid, 1, uid + "1", 1, "m", "m", "1", "1", **options)
    file = io.BytesIO()
    made.save_as(file)
    return parse(file.getvalue())


@pytest.mark.parametrize("overlap", [True, False])
def test_masks_come_back_as_they_were(overlap: bool) -> None:
    given = masks(overlap=overlap)
    dataset = parse(write(given))
    read = read_segmentation(dataset, GEOMETRY)
    assert list(read) == ["lungs", "nodules"]
    for name, mask in given.items():
        np.testing.assert_array_equal(read[name], mask)
        assert read[name].dtype == np.uint8
    assert dataset.SegmentsOverlap == ("YES" if overlap else "NO")
    assert dataset.NumberOfFrames == 5 + 2  # sparse: only planes that hold something


def test_in_a_labelmap_the_last_of_overlapping_masks_wins() -> None:
    given = masks(overlap=True)
    dataset = parse(write(given, kind="LABELMAP"))
    read = read_segmentation(dataset, GEOMETRY)
    np.testing.assert_array_equal(read["lungs"], given["lungs"] & (1 - given["nodules"]))
    np.testing.assert_array_equal(read["nodules"], given["nodules"])
    assert (dataset.SegmentationType, dataset.NumberOfFrames) == ("LABELMAP", 5)
    assert dataset.SOPInstanceUID != parse(write(given)).SOPInstanceUID


def test_the_moment_of_making_can_be_told() -> None:
    dataset = parse(write(masks(overlap=True), made=datetime(2026, 11, 28, 3, 4, 5)))
    assert (dataset.ContentDate, dataset.SeriesTime, dataset.InstanceCreationTime) == ("20261128", "030405", "030405")


def test_highdicom_reads_the_same_masks() -> None:
    given = masks(overlap=True)
    segmentation = hd.seg.segread(io.BytesIO(write(given)))
    volume = segmentation.get_volume(combine_segments=False, allow_missing_positions=True)
    inverse = np.linalg.inv(volume.affine) @ np.array([*AFFINE[:3, 3] + AFFINE[:3, 2] * 2, 1])
    plane = round(inverse[0])
    for index, mask in enumerate(given.values()):
        np.testing.assert_array_equal(volume.array[plane, ..., index], mask[2])


def test_segments_carry_number_label_and_codes() -> None:
    odd = {**masks(overlap=False), "gtv": masks(overlap=False)["nodules"], "blob": masks(overlap=False)["nodules"]}
    segments = parse(write(odd)).SegmentSequence
    assert [int(s.SegmentNumber) for s in segments] == [1, 2, 3, 4]
    assert [s.SegmentLabel for s in segments] == ["Lungs", "Nodules", "Gtv", "Blob"]
    meanings = [s.SegmentedPropertyTypeCodeSequence[0].CodeMeaning for s in segments]
    assert meanings == ["Lung", "Nodule", "Neoplasm", "Tissue"]
    assert {s.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator for s in segments} == {"SCT"}
    assert segments[1].AnatomicRegionSequence[0].CodeValue == "39607008"
    assert segments[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == "1.2"


@pytest.mark.parametrize("empty", [("nodules",), ("lungs", "nodules")])
def test_empty_masks_are_a_result(empty: tuple[str, ...]) -> None:
    given = {name: mask * (name not in empty) for name, mask in masks(overlap=True).items()}
    dataset = parse(write(given))
    for name, mask in read_segmentation(dataset, GEOMETRY).items():
        np.testing.assert_array_equal(mask, given[name])
    assert dataset.NumberOfFrames <= 5
    assert len(dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == SHAPE[0]


def test_same_seed_gives_the_same_bytes_and_none_gives_new_ones() -> None:
    given = masks(overlap=True)
    assert write(given) == write(given)
    first, other, new, newer = (parse(write(given, seed=seed)) for seed in ("a", "b", None, None))
    assert len({d.SOPInstanceUID for d in (first, other, new, newer)}) == 4
    assert first.ContentDate == "19000101"  # the source has no date, and the clock is not asked
    assert new.ContentDate > "20200101"


def test_source_headers_are_passed_on_and_left_alone() -> None:
    sources = headers()
    for source in sources:
        source.SpecificCharacterSet = "ISO_IR 192"
        source.PatientName = "Ångström"  # one component only: highdicom alone would warn
        source.PatientSex = "W"
        source.PatientBirthDate = ""
        source.StudyDate, source.StudyTime, source.PatientAge = "20100203", "101112.5", "061Y"
        del source.FrameOfReferenceUID
    before = [source.to_json() for source in sources]
    dataset = parse(write(masks(overlap=False), sources))
    assert [source.to_json() for source in sources] == before
    assert (dataset.PatientName, dataset.PatientSex, dataset.PatientAge) == ("Ångström", "W", "061Y")
    assert (dataset.StudyDate, dataset.ContentDate, dataset.ContentTime) == ("20100203", "20100203", "101112.5")
    assert dataset.FrameOfReferenceUID.startswith("2.25.")


def test_reference_of_the_source_that_is_half_missing_is_not_passed_on() -> None:
    sources = headers()
    half = Dataset()
    half.ReferencedSOPInstanceUID = hashed_uid("another study")
    for source in sources:
        source.ReferencedStudySequence = [half]
    assert "ReferencedStudySequence" not in parse(write(masks(overlap=False), sources))
    assert sources[0].ReferencedStudySequence[0] == half


def test_bare_headers_are_enough() -> None:
    bare = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "Rows", "Columns")
    where = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    sources = []
    for header in headers():
        source = Dataset()
        source.update({header[k].tag: header[k] for k in (*bare, *where)})
        source.SliceThickness = None
        sources.append(source)
    dataset = parse(write(masks(overlap=True), sources))
    assert dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 2.5
    assert sources[0].SliceThickness is None
    read = read_segmentation(dataset, GEOMETRY)
    np.testing.assert_array_equal(read["lungs"], masks(overlap=True)["lungs"])


def test_refuses_masks_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"mask 'lungs' is \(5, 20, 24\); its series is \(6, 20, 24\)"):
        write({"lungs": np.zeros((5, 20, 24), np.uint8)})
    with pytest.raises(ValueError, match="needs a mask"):
        write({})


@pytest.mark.parametrize(
    "matrix",
    [
        AFFINE,
        AFFINE @ np.diag([1, 1, -1, 1]),  # planes from head to feet: left-handed
        AFFINE @ np.diag([-1, 1, 1, 1]),  # rows run to the right, as in much NIfTI
        np.array([[0, 0, 2.5, 1], [0.7, 0, 0, 2], [0, -0.8, 0, 3], [0, 0, 0, 1.0]]),  # sagittal
        np.array([[0.6, -0.64, 0, 1], [0.8, 0.48, 0, 2], [0, 0, 2.5, 3], [0, 0, 0, 1.0]]),  # turned about z
    ],
)
def test_archived_scans_of_any_orientation(matrix: np.ndarray) -> None:
    geometry = Geometry.from_matrix(SHAPE, matrix)
    given = masks(overlap=True)
    read = read_segmentation(parse(write(given, headers(geometry))), geometry)
    for name, mask in given.items():
        np.testing.assert_array_equal(read[name], mask)


def test_archived_headers_hold_pseudonyms_only() -> None:
    header = headers()[1]
    assert (header.PatientID, header.PatientSex, header.Manufacturer) == ("p1", "F", "M")
    assert header.SOPInstanceUID == hashed_uid("instance", "1")
    assert header.ImagePositionPatient == [-90.5, -210.25, -409.0]
    assert header.PixelSpacing == [0.8, 0.7]
    assert (header.SliceThickness, header.SpacingBetweenSlices) == (3.0, 2.5)
    assert "PatientName" not in header
    with pytest.raises(ValueError, match="5 instance UIDs for 6 planes"):
        archived_headers(GEOMETRY, info(5), {})


def test_segmentation_of_an_archived_scan_says_how_it_was_deidentified() -> None:
    dataset = parse(write(masks(overlap=False)))
    assert dataset.PatientIdentityRemoved == "YES"
    assert dataset.DeidentificationMethod.startswith("TomoRay")
    assert dataset.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
    assert dataset.LongitudinalTemporalInformationModified == "REMOVED"
    of_volume_files = archived_headers(GEOMETRY, info(), {})[0]
    assert of_volume_files.PatientIdentityRemoved == "YES"


@pytest.mark.parametrize(("of_scan", "fits"), [((), False), (None, True)])
def test_a_label_that_is_named_after_the_patient_of_its_own_file_is_refused(of_scan, fits: bool) -> None:
    sources = headers()
    for source in sources:
        source.PatientName = "Mabuse^Kara"
    dataset = parse(write({"lung-of-mabuse": masks(overlap=False)["lungs"]}, sources))
    drawing = Drawing(DicomFile("mem", "a.dcm", 1, "1.2"), "0", dataset)
    labels, _ = draw([drawing], GEOMETRY, of_scan)
    assert (drawing.fits, list(labels)) == (fits, ["lung-of-mabuse"] if fits else [])
    assert fits or (drawing.refusal.reason == Reason.LABEL_UNSUPPORTED and "mabuse" not in drawing.refusal.evidence)


def test_segmentation_of_a_scan_archived_with_its_identifiers_says_so() -> None:
    dataset = parse(write(masks(overlap=False), headers(keep_identifiers=True)))
    assert dataset.PatientIdentityRemoved == "NO"
    assert "DeidentificationMethod" not in dataset


def test_frames_are_placed_by_position_not_by_order() -> None:
    dataset = parse(write(masks(overlap=True)))
    order = np.random.default_rng(1).permutation(int(dataset.NumberOfFrames)).tolist()
    frames, groups = dataset.pixel_array, dataset.PerFrameFunctionalGroupsSequence
    packed = np.packbits(frames[order].ravel(), bitorder="little").tobytes()
    dataset.PixelData = packed + b"\0" * (len(packed) % 2)
    dataset.PerFrameFunctionalGroupsSequence = [groups[i] for i in order]
    read = read_segmentation(dataset, GEOMETRY)
    for name, mask in masks(overlap=True).items():
        np.testing.assert_array_equal(read[name], mask)


def test_frames_may_run_against_the_grid_and_cover_a_part_of_it() -> None:
    part = (slice(1, 5), slice(3, 17), slice(4, 20))
    given = masks(overlap=True)
    flipped = AFFINE.copy()
    flipped[:3, 3] += AFFINE[:3, :3] @ [19, 16, 4]  # its first voxel is the part's last
    flipped[:3, :3] *= -1
    inner = Geometry.from_matrix((4, 14, 16), flipped)
    cropped = {name: mask[part][::-1, ::-1, ::-1] for name, mask in given.items()}
    read = read_segmentation(parse(write(cropped, headers(inner))), GEOMETRY)
    for name, mask in given.items():
        np.testing.assert_array_equal(read[name][part], mask[part])
        assert read[name].sum() == mask[part].sum()


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_reads_label_maps(syntax: str) -> None:
    pixels = np.random.default_rng(2).integers(0, 3, SHAPE).astype(np.uint8)
    dataset = highdicom_seg("LABELMAP", pixels, [complete(h) for h in headers()], transfer_syntax_uid=syntax)
    read = read_segmentation(dataset, GEOMETRY)
    assert list(read) == ["left-lung", "gtv-1"]
    np.testing.assert_array_equal(read["left-lung"], pixels == 1)
    np.testing.assert_array_equal(read["gtv-1"], pixels == 2)


def complete(header: Dataset) -> Dataset:
    """What highdicom alone asks of a source."""
    for keyword in ("PatientName", "PatientBirthDate", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"):
        setattr(header, keyword, "A^B" if keyword == "PatientName" else "")
    header.StudyDate, header.StudyTime = "20200101", "000000"
    return header


def test_labels_without_a_letter_are_named_by_code_or_number() -> None:
    dataset = parse(write(masks(overlap=False)))
    dataset.SegmentSequence[0].SegmentLabel = "?"
    dataset.SegmentSequence[1].SegmentLabel = ""
    del dataset.SegmentSequence[1].SegmentedPropertyTypeCodeSequence
    assert list(read_segmentation(dataset, GEOMETRY)) == ["lung", "segment-2"]


def test_segments_of_one_name_become_one_mask() -> None:
    dataset = parse(write(masks(overlap=False)))
    for segment in dataset.SegmentSequence:
        segment.SegmentLabel = "Finding"
    read = read_segmentation(dataset, GEOMETRY)
    assert list(read) == ["finding"]
    np.testing.assert_array_equal(read["finding"], masks(overlap=True)["lungs"] | masks(overlap=True)["nodules"])


def shift(dataset: Dataset, mm: float) -> None:
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        position = groups.PlanePositionSequence[0]
        x, y, z = position.ImagePositionPatient
        position.ImagePositionPatient = [x, y, z + mm]


def rename(dataset: Dataset) -> None:
    dataset.SegmentSequence = dataset.SegmentSequence[:1]


def coarsen(dataset: Dataset) -> None:
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0.82, 0.7]


def turn(dataset: Dataset) -> None:
    orientation = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    orientation.ImageOrientationPatient = [0.8, 0.6, 0, -0.6, 0.8, 0]


def truncate(dataset: Dataset) -> None:
    dataset.PixelData = dataset.PixelData[:20]


def unplace(dataset: Dataset) -> None:
    del dataset.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence


def shorten(dataset: Dataset) -> None:
    del dataset.PerFrameFunctionalGroupsSequence[-1]


@pytest.mark.parametrize(
    ("spoil", "reason", "evidence"),
    [
        (lambda d: shift(d, 1.0), Reason.LABEL_GEOMETRY_MISMATCH, "0.40 voxels off"),
        (lambda d: shift(d, 25.0), Reason.LABEL_GEOMETRY_MISMATCH, "outside the scan"),
        (coarsen, Reason.LABEL_GEOMETRY_MISMATCH, "voxels off"),
        (turn, Reason.LABEL_GEOMETRY_MISMATCH, "voxels"),
        (rename, Reason.LABEL_UNSUPPORTED, "segment 2 has pixels but no description"),
        (unplace, Reason.LABEL_UNSUPPORTED, "PlanePositionSequence"),
        (shorten, Reason.LABEL_UNSUPPORTED, "7 frames are stored, 6 are described"),
        (truncate, Reason.UNDECODABLE_PIXELS, "truncated or damaged"),
        (lambda d: setattr(d, "SegmentationType", "FRACTIONAL"), Reason.LABEL_UNSUPPORTED, "FRACTIONAL"),
        (lambda d: delattr(d, "SegmentSequence"), Reason.LABEL_UNSUPPORTED, "segment"),
    ],
)
def test_refuses_what_it_does_not_understand(spoil: Callable[[Dataset], None], reason: Reason, evidence: str) -> None:
    dataset = parse(write(masks(overlap=True)))
    spoil(dataset)
    with pytest.raises(Refused, match=evidence) as refused:
        read_segmentation(dataset, GEOMETRY)
    assert refused.value.reason == reason
    assert "\n" not in str(refused.value)


def test_small_rounding_of_positions_is_no_mismatch() -> None:
    dataset = parse(write(masks(overlap=True)))
    shift(dataset, 0.02)
    np.testing.assert_array_equal(read_segmentation(dataset, GEOMETRY)["lungs"], masks(overlap=True)["lungs"])


def test_reads_a_real_segmentation_of_another_maker(real_ct: Path) -> None:
    planes = [pydicom.dcmread(p, stop_before_pixels=True) for p in (real_ct / "dcmqi" / "ct-3slice").glob("*.dcm")]
    planes.sort(key=lambda d: float(d.ImagePositionPatient[2]))
    first, last = (np.array(planes[i].ImagePositionPatient, float) for i in (0, -1))
    matrix = np.eye(4)
    matrix[:3, 0] = np.array(planes[0].ImageOrientationPatient[:3], float) * planes[0].PixelSpacing[1]
    matrix[:3, 1] = np.array(planes[0].ImageOrientationPatient[3:], float) * planes[0].PixelSpacing[0]
    matrix[:3, 2], matrix[:3, 3] = (last - first) / 2, first
    geometry = Geometry.from_matrix((3, 512, 512), matrix)
    dataset = pydicom.dcmread(real_ct / "pydicom" / "liver.dcm")
    read = read_segmentation(dataset, geometry)
    heights = [
        groups.PlanePositionSequence[0].ImagePositionPatient[2] for groups in dataset.PerFrameFunctionalGroupsSequence
    ]
    frames = dataset.pixel_array[np.argsort([float(h) for h in heights])]
    assert list(read) == ["liver"]
    np.testing.assert_array_equal(read["liver"], frames)
    assert read["liver"].sum() > 100_000
