from __future__ import annotations

import gzip
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import requests

from serving.client import LABELMAP, REPORT, Client
from tomoray import dicomweb
from tomoray.archive import Archive
from tomoray.errors import Refused, Transient, Usage

ORTHANC = Path(__file__).parents[1] / "services" / "orthanc.py"
_orthanc = runpy.run_path(str(ORTHANC))
DICOM, JSON, NIFTI, ZIP = "application/dicom", "application/json", "application/gzip", "application/zip"


class Hand:
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
    return Hand(served)


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
        ({"input": {"dicomweb": "other", "study": "1.2.3"}}, 403, "server_not_allowed"),
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


def replicas(deployment):
    """Processes of a deployment, among those that this one began."""
    parents = {}
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])

    def is_ours(pid):
        return pid == os.getpid() or (pid in parents and is_ours(parents[pid]))

    found = []
    for pid in filter(is_ours, parents):
        with suppress(OSError):
            if f"ServeReplica:tomoray:{deployment}" in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
    return found


@pytest.mark.parametrize("deployment", ["Runner", "Gateway", "model-run"])
def test_every_accepted_job_ends_once_though_a_replica_is_killed(served, jobs, deployment):
    client = Client(served.url)
    submitted = [client.submit("segment", {"scan_id": served.scan_id}) for _ in range(30)]
    while not any(job.look().state == "running" for job in submitted):
        time.sleep(0.01)
    (killed,) = replicas(deployment)
    os.kill(killed, signal.SIGKILL)
    submitted += [client.submit("segment", {"scan_id": served.scan_id}) for _ in range(10)]
    labels = {json.dumps(job.wait(within_s=180).result().json()["labels"]) for job in submitted}
    assert {job.state for job in submitted} == {"done"}
    assert len(labels) == 1
    assert replicas(deployment) not in ([], [killed])


def test_client_does_by_itself_what_the_api_asks(served, tmp_path):
    client = Client(served.url)
    assert [model["name"] for model in client.models()] == ["run"]
    assert client.segment(served.study).json()["labels"] == client.segment(served.zipped()).json()["labels"]
    assert client.segment({"scan_id": served.scan_id}, accept=REPORT).headers["Content-Type"] == DICOM
    seen = []
    job = client.submit("segment", served.study, idempotency_key="once").wait(on_progress=seen.append)
    assert client.submit("segment", served.study, idempotency_key="once").id == job.id
    assert pydicom.dcmread(io.BytesIO(job.result(LABELMAP).content)).SegmentationType == "LABELMAP"
    job.cancel()
    with pytest.raises(Usage, match="unknown_job"):
        job.look()


def test_client_raises_what_went_wrong(served, tmp_path):
    client = Client(served.url, patience_s=0)
    with pytest.raises(Refused, match="missing_slices"):
        client.segment(served.zipped(without={7, 8}))
    with pytest.raises(Refused, match="missing_slices"):
        client.submit("segment", served.zipped(without={7, 8})).wait().result()
    with pytest.raises(Usage, match="unknown_scan"):
        client.segment({"scan_id": "x"})
    with pytest.raises(Usage, match="unknown option 'modle'"):
        client.segment({"scan_id": "x"}, modle="run")
    with pytest.raises(Usage, match="no folder or file"):
        client.segment(tmp_path / "nothing")
    with pytest.raises(Transient, match="cannot be reached"):
        Client("http://127.0.0.1:9", patience_s=0).models()


@pytest.mark.parametrize("queued", [True, False])
def test_result_is_stored_where_it_was_asked_for(served, queued):
    client = Client(served.url)
    for destination in ("files", "labels"):
        if queued:
            told = client.submit("segment", served.study, destination=destination).wait().result().json()
        else:
            told = client.segment({"scan_id": served.scan_id}, destination=destination).json()
        assert told["stored"]["destination"] == destination
        place = Path(told["stored"]["reference"])
        if destination == "files":
            names = {"segmentation.dcm", "report.dcm", "segmentation.nii.gz", "result.json"}
            assert {path.name for path in place.iterdir()} == names
        else:
            masks = Archive.open(str(place.parents[1])).scan(place.name)
            np.testing.assert_array_equal(masks.label("lungs").read().result(), served.predicted["lungs"])


@pytest.fixture
def pacs(served, tmp_path):
    """An Orthanc that holds the study, at the place that the server knows: its DICOMweb root."""
    if not _orthanc["program"]():
        pytest.skip(f"no Orthanc with DICOMweb: {_orthanc['INSTALL']}")
    command = [sys.executable, str(ORTHANC), str(tmp_path / "orthanc"), str(served.pacs_port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline(), "Orthanc did not start"
        root = f"http://127.0.0.1:{served.pacs_port}/dicom-web"
        dicomweb.store(root, [path.read_bytes() for path in served.study.iterdir()])
        yield root
        process.stdin.close()


def test_study_on_a_pacs_is_read_from_it_and_stored_beside(served, pacs):
    study = str(served.headers[0].StudyInstanceUID)
    job = Client(served.url).submit("segment", {"dicomweb": "pacs", "study": study}, destination="pacs").wait()
    labels = job.result().json()["labels"]
    assert {label: told["voxels"] for label, told in labels.items()} == {
        label: int(mask.sum()) for label, mask in served.predicted.items()
    }
    series = dicomweb.search(f"{pacs}/studies/{study}/series", {}, "0020000E")
    assert sorted(dicomweb.text(each, "00080060") for each in series) == ["CT", "SEG", "SR"]
    reply = requests.post(f"{served.url}/v1/segment", json={"dicomweb": "pacs", "study": "1.2.3"}, timeout=60)
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "unknown_study")


def test_study_below_an_s3_prefix_is_read_from_there(served, s3):
    client = s3.client()
    client.create_bucket(Bucket="studies")
    for path in served.study.iterdir():
        client.put_object(Bucket="studies", Key=f"in/17/{path.name}", Body=path.read_bytes())
    told = Client(served.url).segment({"s3": "s3://studies/in/17/"}).json()
    assert told["labels"]["lungs"]["voxels"] == int(served.predicted["lungs"].sum())
    with pytest.raises(Usage, match="unknown_study"):
        Client(served.url).segment({"s3": "s3://studies/in/18/"})
