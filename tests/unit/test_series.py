from __future__ import annotations

import copy
import random

import numpy as np
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
)

from tomoray.errors import Reason, Refused
from tomoray.ingest.loader import RefusedPart


def stored_values(series):
    return np.stack([np.frombuffer(d.PixelData, dtype=np.uint16).reshape(d.Rows, d.Columns) for d in series.datasets])


def refusals_of(series) -> list[Refused]:
    """What the series, or parts of it, are refused with."""
    return [part.refusal for part in series.parts() if isinstance(part, RefusedPart)]


def refusal_of(series) -> Refused:
    (refusal,) = refusals_of(series)
    return refusal


def test_planes_are_sorted_by_position_whatever_the_file_order(make_series):
    series = make_series(8)
    wanted = stored_values(series).astype(int) - 1024
    random.Random(3).shuffle(series.datasets)

    volume = series.load().volume

    assert np.array_equal(volume.image_zyx, wanted)
    assert volume.geometry.spacing_zyx_mm == pytest.approx((2.5, 0.8, 0.7))
    assert volume.geometry.matrix @ [0, 0, 0, 1] == pytest.approx([-20, -30, -100, 1])
    assert volume.geometry.matrix @ [4, 5, 7, 1] == pytest.approx([-20 + 4 * 0.7, -30 + 5 * 0.8, -82.5, 1])


def test_affine_of_an_oblique_series_maps_each_plane_to_its_position(make_series):
    series = make_series(5)
    row, column = np.array([0.8, 0.6, 0]), np.array([0, 0, -1.0])
    normal = np.cross(row, column)
    for z, dataset in enumerate(series.datasets):
        dataset.ImageOrientationPatient = [*row, *column]
        dataset.ImagePositionPatient = list(np.array([10.0, 20.0, 30.0]) + 1.25 * z * normal)

    geometry = series.load().volume.geometry

    for z, dataset in enumerate(series.datasets):
        assert (geometry.matrix @ [0, 0, z, 1])[:3] == pytest.approx(np.array(dataset.ImagePositionPatient, float))
    assert (geometry.matrix @ [2, 0, 0, 1] - geometry.matrix @ [0, 0, 0, 1])[:3] == pytest.approx(row * 1.4)


def test_position_wins_over_instance_number_and_says_so(make_series):
    series = make_series(6)
    wanted = series.load().volume.image_zyx
    for number, dataset in zip([3, 1, 6, 2, 5, 4], series.datasets, strict=True):
        dataset.InstanceNumber = number

    volume = series.load().volume

    assert np.array_equal(volume.image_zyx, wanted)
    assert any("InstanceNumber" in note for note in volume.info.notes)


def test_rescale_is_applied_once_and_rounded(make_series):
    series = make_series(3)
    wanted = np.rint(stored_values(series) * 1.5 - 1000.25).astype(np.int16)
    for dataset in series.datasets:
        dataset.RescaleSlope, dataset.RescaleIntercept = "1.5", "-1000.25"
    assert np.array_equal(series.load().volume.image_zyx, wanted)


@pytest.mark.parametrize("as_unsigned", [False, True])
def test_padding_below_air_becomes_air(make_series, as_unsigned):
    series = make_series(3)
    for dataset in series.datasets:
        pixels = np.full((36, 33), 1100, dtype=np.int16)
        pixels[0, :2] = -2000
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 15, 1
        dataset.add_new("PixelPaddingValue", "US" if as_unsigned else "SS", 63536 if as_unsigned else -2000)
        dataset.PixelData = pixels.tobytes()

    volume = series.load().volume

    assert sorted(np.unique(volume.image_zyx)) == [-1024, 76]
    assert (volume.image_zyx[:, 0, :2] == -1024).all()
    assert volume.info.notes == ("6 padding voxels were set to -1024 HU",)


def test_padding_that_could_be_tissue_is_left_alone(make_series):
    series = make_series(3)
    for dataset in series.datasets:
        dataset.add_new("PixelPaddingValue", "US", 1024)
        dataset.PixelData = np.full((36, 33), 1024, dtype=np.uint16).tobytes()
    assert (series.load().volume.image_zyx == 0).all()


def test_unused_high_bits_are_dropped(make_series):
    series = make_series(3)
    wanted = series.load().volume.image_zyx
    for dataset in series.datasets:
        dataset.PixelData = (np.frombuffer(dataset.PixelData, np.uint16) | 0xA000).tobytes()
    assert np.array_equal(series.load().volume.image_zyx, wanted)


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGLSLossless,
        JPEG2000Lossless,
    ],
)
def test_every_lossless_syntax_gives_the_same_voxels(make_series, syntax):
    series = make_series(3)
    wanted = series.load().volume.image_zyx
    for dataset in series.datasets:
        if syntax.is_encapsulated:
            dataset.compress(syntax, generate_instance_uid=False)
        else:
            dataset.file_meta.TransferSyntaxUID = syntax
    assert np.array_equal(series.load().volume.image_zyx, wanted)


def test_big_endian_gives_the_same_voxels(make_series):
    series = make_series(3)
    wanted = series.load().volume.image_zyx
    for dataset in series.datasets:
        dataset["PixelData"].VR = "OW"
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    assert np.array_equal(series.load().volume.image_zyx, wanted)


def test_identical_copy_of_an_instance_is_left_out(make_series):
    series = make_series(5)
    wanted = series.load().volume.image_zyx
    series.datasets.append(series.datasets[2])

    volume = series.load().volume

    assert np.array_equal(volume.image_zyx, wanted)
    assert volume.info.notes == ("1 identical copies of slices were left out",)


def test_nothing_that_names_the_patient_reaches_the_volume(make_series):
    series = make_series(4)
    info = repr(series.load().volume.info)
    for secret in ("SECRET", "1.2.3"):
        assert secret not in info


def test_same_input_gives_same_ids_and_another_slice_another_scan(make_series):
    one, again, longer = (make_series(n).load().volume.info for n in (6, 6, 7))
    assert one == again
    assert (longer.series_id, longer.patient_id) == (one.series_id, one.patient_id)
    assert longer.scan_id != one.scan_id


# --- one mutation each: a refusal with its code, never a volume ---------------------------------------------------


def _set(series, index, **values):
    for key, value in values.items():
        setattr(series.datasets[index], key, value)


MUTATIONS = {
    Reason.MISSING_SLICES: lambda s: s.datasets.pop(3),
    Reason.VARIABLE_SPACING: lambda s: _set(s, 7, ImagePositionPatient=[-20, -30, -100 + 7 * 2.5 + 0.7]),
    Reason.DUPLICATE_POSITION: lambda s: _set(s, 4, ImagePositionPatient=[-20, -30, -100 + 3 * 2.5]),
    Reason.DUPLICATE_INSTANCE: lambda s: _set(s, 4, SOPInstanceUID="1.2.3.4.1"),
    Reason.MIXED_ORIENTATION: lambda s: _set(s, 2, ImageOrientationPatient=[0.9998, 0.02, 0, -0.02, 0.9998, 0]),
    Reason.MIXED_SPACING: lambda s: _set(s, 2, PixelSpacing=[0.8, 0.71]),
    Reason.MIXED_RESCALE: lambda s: _set(s, 2, RescaleIntercept=-1000),
    Reason.MIXED_FRAME_OF_REFERENCE: lambda s: _set(s, 2, FrameOfReferenceUID="1.2.3.6"),
    Reason.MIXED_PATIENT: lambda s: _set(s, 2, PatientID="SECRET-ID-18"),
    Reason.MIXED_STUDY: lambda s: _set(s, 2, StudyInstanceUID="1.2.4"),
    Reason.MIXED_MATRIX: lambda s: _set(s, 2, Rows=3),
    Reason.MISSING_GEOMETRY: lambda s: _set(s, 2, ImagePositionPatient=None),
    Reason.MISSING_RESCALE: lambda s: delattr(s.datasets[5], "RescaleSlope"),
    Reason.MISSING_UID: lambda s: [_set(s, i, SeriesInstanceUID="") for i in range(8)],
    Reason.LOCALIZER: lambda s: _set(s, 0, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
    Reason.DERIVED: lambda s: _set(s, 0, ImageType=["DERIVED", "SECONDARY", "REFORMATTED"]),
    Reason.NOT_CT: lambda s: _set(s, 0, Modality="MR"),
    Reason.BURNED_IN_ANNOTATION: lambda s: _set(s, 0, BurnedInAnnotation="YES"),
    Reason.TOO_FEW_SLICES: lambda s: s.datasets.__delitem__(slice(2, None)),
    Reason.NOT_ORTHOGONAL: lambda s: [_set(s, i, ImageOrientationPatient=[1, 0, 0, 0.1, 1, 0]) for i in range(8)],
    Reason.IRREGULAR_POSITIONS: lambda s: _set(s, 4, ImagePositionPatient=[-20, -28, -90]),
    Reason.TILT_MISMATCH: lambda s: [_set(s, i, GantryDetectorTilt="18.5") for i in range(8)],
    Reason.UNDECODABLE_PIXELS: lambda s: _set(s, 2, PixelData=s.datasets[2].PixelData[:-20]),
    Reason.UNSUPPORTED_PIXELS: lambda s: _set(s, 2, PhotometricInterpretation="MONOCHROME1"),
    Reason.HU_OUT_OF_RANGE: lambda s: [_set(s, i, RescaleSlope=100) for i in range(8)],
    Reason.NOT_AN_IMAGE: lambda s: delattr(s.datasets[3], "Rows"),
}


@pytest.mark.parametrize("reason", MUTATIONS)
def test_refuses_each_mutation_with_its_own_code(make_series, reason):
    series = make_series(8)
    MUTATIONS[reason](series)
    refusals = refusals_of(series)
    assert reason in {refusal.reason for refusal in refusals}
    assert all(refusal.evidence and "SECRET" not in str(refusal) for refusal in refusals)


def test_refusal_says_where_slices_are_missing(make_series):
    series = make_series(9)
    del series.datasets[4:6]
    assert "2 planes are missing at a step of 2.5 mm: 2 after plane 3" in str(refusal_of(series))


def test_rounded_positions_are_still_one_grid(make_series):
    series = make_series(40, step_mm=0.625)
    for dataset in series.datasets:
        dataset.ImagePositionPatient = [-20, -30, round(float(dataset.ImagePositionPatient[2]), 2)]
    assert series.load().volume.geometry.spacing_zyx_mm[0] == pytest.approx(0.625, abs=1e-3)


def test_truncated_jpeg_ls_is_refused(make_series):
    series = make_series(4)
    for dataset in series.datasets:
        dataset.compress(JPEGLSLossless, generate_instance_uid=False)
    series.instances()
    _set(series, 1, PixelData=series.datasets[1].PixelData[:40])
    assert refusal_of(series).reason in (Reason.UNDECODABLE_PIXELS, Reason.UNREADABLE)


def test_of_another_modality_one_file_is_read_and_all_are_accounted_for(make_series):
    series = make_series(6)
    for dataset in series.datasets:
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
        dataset.Modality = "MR"
    files = series.files
    series.instances()
    series.files = Counting(files)
    (part,) = series.parts()
    assert (part.refusal.reason, part.n_instances) == (Reason.NOT_CT, 6)
    assert series.files.read == {"0.dcm"}


class Counting(dict):
    """Files that remember which of them were read."""

    def __init__(self, files) -> None:
        super().__init__(files)
        self.read = set()

    def __getitem__(self, key):
        self.read.add(key)
        return super().__getitem__(key)


def test_copies_in_a_refused_stack_are_accounted_for(make_series):
    series = make_series(4)
    series.datasets.append(copy.deepcopy(series.datasets[1]))  # the same instance, sent twice
    for dataset in series.datasets:
        dataset.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]  # and silent about burned-in text
    (part,) = series.parts()
    assert (part.refusal.reason, part.n_instances) == (Reason.BURNED_IN_ANNOTATION, 5)
