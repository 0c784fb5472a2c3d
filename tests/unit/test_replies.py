from __future__ import annotations

import json

import pytest
from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError

from serving.failures import HttpError, explain
from serving.replies import choose_kind
from tomoray.errors import Busy, Fatal, Reason, Refused, Transient


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
