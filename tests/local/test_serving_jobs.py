from __future__ import annotations

import gzip
import io
import json
import time

import nibabel
import numpy as np
import pydicom
import pytest
import requests

DICOM, JSON, NIFTI, ZIP = "application/dicom", "application/json", "application/gzip", "application/zip"


class Client:
    """The jobs API by hand."""

    def __init__(self, served):
        self.url, self._scan_id = f"{served.url}/v1/jobs", served.scan_id

    def send(self, body, content_type=ZIP, key=None, **parameters):
        headers = {"Content-Type": content_type, **({"Idempotency-Key": key} if key else {})}
        parameters = parameters or {"operation": "segment"}
        return requests.post(self.url, data=body, headers=headers, params=parameters, timeout=60)

    def refer(self, key=None, **ask):
        ask = {"operation": "segment", "input": {"scan_id": self._scan_id}} | ask
        headers = {"Idempotency-Key": key} if key else {}
        return requests.post(self.url, json=ask, headers=headers, timeout=60)

    def wait(self, reply, within_s=120):
        assert reply.status_code == 202, reply.text
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            job = self.get(reply.json()["id"]).json()
            if job["state"] not in ("queued", "running"):
                return job
            time.sleep(0.1)
        raise AssertionError("the job did not end")

    def get(self, job_id, what="", accept=JSON):
        return requests.get(f"{self.url}/{job_id}{what}", headers={"Accept": accept}, timeout=60)


@pytest.fixture
def jobs(served):
    return Client(served)


def test_job_of_a_sent_study_gives_what_the_direct_route_gives(served, jobs):
    reply = jobs.send(served.zipped())
    assert reply.headers["Location"] == f"/v1/jobs/{reply.json()['id']}"
    job = jobs.wait(reply)
    assert (job["state"], job["model"], job["attempts"], job["error"]) == ("done", "run", 1, None)
    assert jobs.get(job["id"], "/result").json()["labels"] == served.segment(served.zipped()).json()["labels"]
    dataset = pydicom.dcmread(io.BytesIO(jobs.get(job["id"], "/result", DICOM).content))
    assert dataset.PatientID == served.headers[0].PatientID
    assert dataset.ReferencedSeriesSequence[0].SeriesInstanceUID == served.headers[0].SeriesInstanceUID


def test_report_of_a_job_refers_to_its_segmentation(served, jobs):
    job = jobs.wait(jobs.send(served.zipped()))
    seg, again, report = (
        pydicom.dcmread(io.BytesIO(jobs.get(job["id"], "/result", f"{DICOM}; kind={kind}").content))
        for kind in ("seg", "seg", "sr")
    )
    assert (seg.Modality, report.Modality) == ("SEG", "SR")
    assert seg.SOPInstanceUID == again.SOPInstanceUID
    assert seg.SOPInstanceUID in str(report)


def test_image_of_a_job_is_the_scan(served, jobs):
    for reply in (jobs.send(served.zipped()), jobs.refer()):
        job = jobs.wait(reply)
        image = nibabel.Nifti1Image.from_bytes(gzip.decompress(jobs.get(job["id"], "/image").content))
        scan = served.archive.scan(served.scan_id).image().read().result()
        np.testing.assert_array_equal(np.asarray(image.dataobj).T, scan)


def test_multipart_and_nifti_are_studies_too(served, jobs):
    files = [("file", (path.name, path.read_bytes(), DICOM)) for path in sorted(served.study.iterdir())]
    request = requests.Request("POST", jobs.url, files=files).prepare()
    by_parts = jobs.wait(jobs.send(request.body, request.headers["Content-Type"]))
    nifti = jobs.wait(jobs.send(jobs.get(by_parts["id"], "/image").content, NIFTI))
    for job in (by_parts, nifti):
        labels = jobs.get(job["id"], "/result").json()["labels"]
        for label, mask in served.predicted.items():  # NIfTI says where voxels are in float32
            assert labels[label]["voxels"] == pytest.approx(int(mask.sum()), rel=1e-4)
    refused = jobs.get(nifti["id"], "/result", DICOM)
    assert (refused.status_code, refused.json()["error"]["code"]) == (406, "not_acceptable")


def test_same_key_is_the_same_job(served, jobs):
    first, second = jobs.refer(key="k1"), jobs.refer(key="k1")
    assert first.json()["id"] == second.json()["id"]
    other = jobs.refer(key="k1", input={"scan_id": served.scan_id, "archive": served.archive.url})
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert jobs.refer(key="k2").json()["id"] != first.json()["id"]


def test_refused_study_fails_with_its_reason_and_without_the_patient(served, jobs):
    job = jobs.wait(jobs.send(served.zipped(without={7, 8})))
    assert (job["state"], job["error"]["code"]) == ("failed", "missing_slices")
    reply = jobs.get(job["id"], "/result")
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "missing_slices")
    assert str(served.headers[0].PatientID) not in json.dumps(job)


def test_events_end_with_the_final_state(served, jobs):
    job_id = jobs.refer().json()["id"]
    reply = requests.get(f"{jobs.url}/{job_id}/events", stream=True, timeout=60)
    assert reply.headers["Content-Type"].startswith("text/event-stream")
    events = [
        line.removeprefix("event: ") for line in reply.iter_lines(decode_unicode=True) if line.startswith("event")
    ]
    assert events[-1] == "done"
    assert set(events[:-1]) <= {"progress"}


def test_cancelled_job_has_no_result_and_is_gone_when_it_is_removed(jobs):
    job_ids = [jobs.refer().json()["id"] for _ in range(8)]
    reply = requests.delete(f"{jobs.url}/{job_ids[-1]}", timeout=60)
    assert (reply.status_code, reply.json()["state"]) == (200, "cancelled")
    assert jobs.get(job_ids[-1], "/result").json()["error"]["code"] == "not_done"
    assert requests.delete(f"{jobs.url}/{job_ids[-1]}", timeout=60).status_code == 204
    for job_id in job_ids[:-1]:
        requests.delete(f"{jobs.url}/{job_id}", timeout=60)


@pytest.mark.parametrize(
    ("ask", "status", "code"),
    [
        ({"operation": "detect"}, 404, "unknown_model"),
        ({"operation": "detect", "model": "run"}, 400, "wrong_operation"),
        ({"operation": "guess"}, 400, "bad_json"),
        ({"input": {"scan_id": "x"}}, 404, "unknown_scan"),
        ({"input": {"s3": "s3://other/prefix"}}, 403, "prefix_not_allowed"),
        ({"input": {"dicomweb": "pacs", "study": "1.2.3"}}, 403, "server_not_allowed"),
        ({"input": {"file": "/etc/passwd"}}, 400, "bad_json"),
        ({"destination": "nowhere"}, 404, "unknown_destination"),
    ],
)
def test_job_that_cannot_be_is_refused_at_once(jobs, ask, status, code):
    reply = jobs.refer(**ask)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)


def test_unknown_job_is_none(jobs):
    for what in ("", "/events", "/result", "/image"):
        assert jobs.get("nothing", what).json()["error"]["code"] == "unknown_job"
