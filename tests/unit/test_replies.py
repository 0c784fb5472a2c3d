from __future__ import annotations

import io
import json

import numpy as np
import pytest
from highdicom import sr
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, generate_uid
from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError

from serving.failures import HttpError, explain
from serving.messages import Box, Detections
from serving.replies import choose_kind, encode
from serving.results import Result
from serving.schemas import ServedModel
from tomoray.errors import Busy, Fatal, Reason, Refused, Transient
from tomoray.geometry import Geometry


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("application/dicom", "application/dicom"),
        ("Application/DICOM; q=1", "application/dicom"),
        ("application/x-nifti", "application/x-nifti"),
        ("application/gzip, application/dicom", "application/gzip"),
        ("application/gzip;q=0.4, application/dicom;q=0.5", "application/dicom"),
        ("application/dicom, */*;q=0.1", "application/dicom"),
        ("*/*, application/json;q=0", "application/dicom"),
        ("text/html, */*;q=0.8", "application/json"),
        ("application/json;q=many, application/dicom;q=0.1", "application/dicom"),
        ("application/dicom; kind=sr", "application/dicom; kind=sr"),
        ("application/dicom; kind=labelmap; q=0.5, application/json;q=0.1", "application/dicom; kind=labelmap"),
    ],
)
def test_accept_decides(accept, chosen):
    assert str(choose_kind(accept)) == chosen


@pytest.mark.parametrize(
    "accept", ["text/html", "application/dicom;q=0", "application/dicom; kind=pdf", "image/*", ","]
)
def test_accept_that_cannot_be_met_is_told_what_can(accept):
    with pytest.raises(HttpError, match="application/json, application/dicom, ") as refused:
        choose_kind(accept)
    assert refused.value.status == 406


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Refused(Reason.MISSING_SLICES, "3 gaps; wanted none"), 422, "missing_slices"),
        (Transient("the bucket is away"), 503, "try_again"),
        (BackPressureError(33, 32), 429, "busy"),
        (Busy("100 jobs wait already"), 429, "busy"),
        (Fatal("no such archive"), 500, "failed"),
        (KeyError("DOE^JANE"), 500, "internal"),
    ],
)
def test_each_error_has_its_status_and_one_line(error, status, code):
    wrapped = RayTaskError("segment", "Traceback (most recent call last):\n  DOE^JANE", error).as_instanceof_cause()
    for each in (error, wrapped):
        reply = explain(each)
        told = json.loads(reply.body)["error"]
        assert (reply.status_code, told["code"]) == (status, code)
        assert "DOE" not in told["message"]
        assert "Traceback" not in told["message"]
        assert ("retry-after" in reply.headers) == (status in (429, 503))


@pytest.mark.parametrize("boxes", [0, 2])
def test_a_report_says_how_many_lesions_there_are_also_none(boxes):
    """A scan without a lesion is an answer that a hospital waits for, not a failure."""
    header = Dataset()
    header.SOPClassUID, header.SOPInstanceUID, header.Modality = CTImageStorage, generate_uid(), "CT"
    header.StudyInstanceUID, header.SeriesInstanceUID = generate_uid(), generate_uid()
    header.FrameOfReferenceUID, header.Rows, header.Columns, header.PixelSpacing = generate_uid(), 8, 8, [1, 1]
    header.ImageOrientationPatient, header.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 0]
    model = ServedModel(
        name="m",
        labels=["nodules"],
        spacing_zyx_mm=None,
        sha256="0f" * 32,
        version="1",
        operation="detect",
        calibrated=False,
    )
    box = Box(label="nodules", center_lps_mm=(1, 2, 3), size_mm=(4, 4, 4), probability=0.9)
    finding = Detections(geometry=Geometry.from_matrix((4, 8, 8), np.eye(4)), boxes=[box] * boxes)
    result = Result(model=model, finding=finding, sent_headers=[header], read_image=lambda: np.zeros((4, 8, 8)))
    report = sr.srread(io.BytesIO(encode(result, choose_kind("application/dicom; kind=sr")).body)).content
    (group,) = report.get_image_measurement_groups()
    assert group.get_measurements(codes.SCT.NumberOfLesions)[0].value == boxes
    assert len(report.get_volumetric_roi_measurement_groups()) == boxes
