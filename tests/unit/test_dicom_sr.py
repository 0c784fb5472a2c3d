"""DICOM Structured Reports: TID 1500, read back by highdicom."""

from __future__ import annotations

import io
from datetime import datetime

import numpy as np
import pydicom
import pytest
from highdicom import sr
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage

from tomoray.dicom.derived import hashed_uid
from tomoray.dicom.sr import Lesion, Measurements, write_report
from tomoray.predictions import report_file, segmentation_file

MODEL = "0f" * 32
VOLUMES = Measurements(volumes_ml={"lungs": 4021.716, "nodules": 1 / 3})


@pytest.fixture
def headers() -> list[Dataset]:
    made = []
    for z in range(4):
        header = Dataset()
        header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, hashed_uid("instance", str(z))
        header.StudyInstanceUID, header.SeriesInstanceUID = hashed_uid("study"), hashed_uid("series")
        header.FrameOfReferenceUID, header.Modality = hashed_uid("frame"), "CT"
        header.PatientID, header.PatientName, header.StudyDate = "p1", "Ångström", "20100203"
        header.SpecificCharacterSet = "ISO_IR 192"
        header.Rows, header.Columns, header.PixelSpacing = 8, 10, [1, 1]
        header.ImageOrientationPatient, header.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2.5 * z]
        made.append(header)
    return made


def groups(data: bytes, kind: str = "volumetric_roi") -> list:
    content = sr.srread(io.BytesIO(data)).content
    if kind == "volumetric_roi":
        return content.get_volumetric_roi_measurement_groups()
    return content.get_image_measurement_groups()


def test_volumes_are_of_the_segments_of_the_same_job(headers) -> None:
    masks = {name: np.zeros((4, 8, 10), np.uint8) for name in VOLUMES.volumes_ml}
    segmentation = pydicom.dcmread(io.BytesIO(segmentation_file(masks, headers, MODEL, "job-1")))
    lungs, nodules = groups(report_file(VOLUMES, headers, MODEL, "job-1"))
    for segment, group in zip(segmentation.SegmentSequence, (lungs, nodules), strict=True):
        assert group.referenced_segment.referenced_sop_instance_uid == segmentation.SOPInstanceUID
        assert group.referenced_segment.referenced_segment_numbers == [segment.SegmentNumber]
        assert group.tracking_uid == segment.TrackingUID
        assert group.finding_type == segment.SegmentedPropertyTypeCodeSequence[0]
    (volume,) = lungs.get_measurements(codes.SCT.Volume)
    assert (volume.value, volume.unit.value) == (4021.716, "ml")


def test_without_a_segmentation_volumes_are_of_the_images(headers) -> None:
    data = report_file(VOLUMES, headers, MODEL, None)
    assert groups(data) == []
    volumes = [group.get_measurements(codes.SCT.Volume)[0].value for group in groups(data, "image")]
    assert volumes == pytest.approx(list(VOLUMES.volumes_ml.values()))
    evidence = {row[2] for row in sr.srread(io.BytesIO(data)).get_evidence()}
    assert evidence == {header.SOPInstanceUID for header in headers}


def test_a_box_comes_back_from_its_ellipsoid(headers) -> None:
    axes = [[0.6, 0.8, 0], [-0.8, 0.6, 0], [0, 0, 1]]
    lesion = Lesion(
        label="nodules", center_lps_mm=(-60.5, 12, 300), size_mm=(8, 9, 10.5), axes_lps=axes, probability=0.9
    )
    (group,) = groups(report_file(Measurements(lesions=[lesion]), headers, MODEL, None))
    points = np.asarray(group.roi.graphic_data).reshape(3, 2, 3)
    np.testing.assert_allclose(points.mean(axis=1), [lesion.center_lps_mm] * 3, atol=1e-4)
    np.testing.assert_allclose(points[:, 1] - points[:, 0], np.array(axes) * [[8], [9], [10.5]], atol=1e-4)
    assert group.get_measurements(codes.DCM.Probability)[0].value == 0.9
    assert group.finding_sites[0].value == codes.SCT.Lung


def test_that_nothing_was_found_is_said_too(headers) -> None:
    nothing, one = groups(report_file(Measurements(counts={"nodules": 0, "mass": 1}), headers, MODEL, None), "image")
    for group, label, kind, count in ((nothing, "nodules", "Nodule", 0), (one, "mass", "Mass", 1)):
        (measured,) = group.get_measurements(codes.SCT.NumberOfLesions)
        assert (group.tracking_identifier, group.finding_type.meaning, measured.value) == (label, kind, count)


def test_probabilities_of_classes_are_told_by_name(headers) -> None:
    said = Measurements(probabilities={"emphysema": 0.25, "no finding": 0.75})
    found = {
        group.tracking_identifier: (group.finding_type.meaning, group.get_measurements()[0].value)
        for group in groups(report_file(said, headers, MODEL, None), "image")
    }
    assert found == {"emphysema": ("Emphysema", 0.25), "no finding": ("No finding", 0.75)}


def test_patient_and_study_are_those_of_the_source(headers) -> None:
    report = pydicom.dcmread(io.BytesIO(report_file(VOLUMES, headers, MODEL, None)))
    assert (report.PatientName, report.PatientID, report.StudyDate) == ("Ångström", "p1", "20100203")
    assert report.StudyInstanceUID == headers[0].StudyInstanceUID
    assert report.SeriesInstanceUID != headers[0].SeriesInstanceUID
    assert (report.Modality, report.CompletionFlag, report.VerificationFlag) == ("SR", "COMPLETE", "UNVERIFIED")


def test_same_name_and_moment_give_the_same_bytes(headers) -> None:
    moment = datetime(2026, 11, 28, 3, 4, 5)
    first, again = (report_file(VOLUMES, headers, MODEL, "job-1", moment) for _ in range(2))
    assert first == again
    report = pydicom.dcmread(io.BytesIO(first))
    assert (report.ContentDate, report.ContentTime) == ("20261128", "030405")
    other = pydicom.dcmread(io.BytesIO(report_file(VOLUMES, headers, MODEL, "job-2", moment)))
    assert other.SOPInstanceUID != report.SOPInstanceUID


def test_refuses_to_report_nothing(headers) -> None:
    with pytest.raises(ValueError, match="needs a measurement"):
        report_file(Measurements(), headers, MODEL, None)
    with pytest.raises(ValueError, match="needs its seed"):
        write_report(
            VOLUMES,
            headers,
            algorithm="a",
            algorithm_version="1",
            uid_seed=None,
            series_description="x",
            segmented=True,
        )
