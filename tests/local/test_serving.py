from __future__ import annotations

import gzip
import io
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import requests

from jobs import predict
from tomoray.config import PredictConfig
from tomoray.dicom.seg import read_segmentation
from tomoray.serving_config import ServeConfig

DICOM, JSON, NIFTI, ZIP = "application/dicom", "application/json", "application/gzip", "application/zip"
MAX_BODY_MB = 20
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def seg(served):
    reply = served.segment(served.zipped(), accept=DICOM)
    assert (reply.status_code, reply.headers["Content-Type"]) == (200, DICOM), reply.text
    return reply.content


def test_sent_study_gets_the_masks_of_predict(served, seg):
    masks = read_segmentation(pydicom.dcmread(io.BytesIO(seg)), served.geometry)
    assert 0 < served.predicted["lungs"].sum() < served.predicted["lungs"].size, "masks worth comparing"
    assert {label: mask.tolist() for label, mask in masks.items()} == {
        label: mask.tolist() for label, mask in served.predicted.items()
    }


def test_seg_refers_to_the_study_as_it_was_sent(served, seg):
    dataset, source = pydicom.dcmread(io.BytesIO(seg)), served.headers
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert dataset[keyword].value == source[0][keyword].value, keyword
    (referenced,) = dataset.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == source[0].SeriesInstanceUID
    uids = {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence}
    assert uids == {header.SOPInstanceUID for header in source}


def test_seg_satisfies_highdicom_and_dciodvfy(seg, tmp_path):
    assert highdicom.seg.segread(io.BytesIO(seg)).number_of_segments == 2
    if shutil.which("dciodvfy") is None:
        pytest.skip("no dciodvfy: make install")
    (tmp_path / "seg.dcm").write_bytes(seg)
    checked = subprocess.run(["dciodvfy", tmp_path / "seg.dcm"], capture_output=True, text=True, check=False)
    assert [line for line in checked.stderr.splitlines() if line.startswith("Error")] == []


def test_nifti_has_the_geometry_of_the_source_and_later_labels_win(served):
    reply = served.segment(served.zipped(), accept=NIFTI)
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(reply.content))
    np.testing.assert_allclose(image.affine, np.diag([-1, -1, 1, 1]) @ served.geometry.matrix, atol=1e-4)
    classes = np.where(served.predicted["nodules"], 2, served.predicted["lungs"])
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, classes)
    assert reply.headers["TomoRay-Labels"] == "1=lungs, 2=nodules"


def test_numbers_are_those_of_the_masks(served):
    reply = served.segment(served.zipped(), accept="*/*").json()
    for label, mask in served.predicted.items():
        volume_ml = int(mask.sum()) * served.geometry.voxel_volume_ml
        assert reply["labels"][label] == {"voxels": int(mask.sum()), "volume_ml": pytest.approx(volume_ml, abs=1e-3)}
    assert reply["geometry"]["affine_lps"] == pytest.approx(served.geometry.affine_lps)
    assert set(reply["seconds"]) == {"read", "segment"}


def test_reference_gets_the_file_that_predict_writes(served, tmp_path):
    out = tmp_path / "predictions"
    config = PredictConfig(run=served.run, archive=served.archive.url, out=str(out), part="all", format="dicom-seg")
    predict.run(config)
    reply = served.refer(accept=DICOM).content
    assert reply == (out / served.scan_id / "segmentation.dcm").read_bytes()
    dataset, info = pydicom.dcmread(io.BytesIO(reply)), served.archive.scan(served.scan_id).info
    assert (dataset.PatientID, dataset.StudyInstanceUID) == (info.patient_id, info.uids.study)


def test_archive_may_be_named(served):
    assert served.refer(archive=f"{served.archive.url}/").json()["labels"] == served.refer().json()["labels"]


def test_models_say_what_they_are(served):
    (model,) = requests.get(f"{served.url}/v1/models", timeout=60).json()["models"]
    assert (model["name"], model["labels"], model["spacing_zyx_mm"]) == ("run", ["lungs", "nodules"], [6, 6, 6])
    reply = served.segment(served.zipped(), model="run").json()
    assert reply["model"] == {key: model[key] for key in ("name", "sha256", "version")}
    assert requests.get(f"{served.url}/healthz", timeout=60).json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"body": b"PK\3\4 and then nothing"}, 400, "bad_zip"),
        ({"body": b"{", "content_type": JSON}, 400, "bad_json"),
        ({"body": b'{"scan_id": "../x"}', "content_type": JSON}, 400, "bad_json"),
        ({"body": b'{"scan_id": "x", "archiv": "y"}', "content_type": JSON}, 400, "bad_json"),
        ({"body": b'{"scan_id": "x", "archive": "/etc"}', "content_type": JSON}, 403, "archive_not_allowed"),
        ({"body": b'{"scan_id": "x"}', "content_type": JSON}, 404, "unknown_scan"),
        ({"body": b"", "model": "liver"}, 404, "unknown_model"),
        ({"body": b"", "accept": "text/html, application/dicom;q=0"}, 406, "not_acceptable"),
        ({"body": bytes(100_000), "content_type": JSON}, 413, "too_large"),
        ({"body": bytes(1_000_000 * MAX_BODY_MB + 1)}, 413, "too_large"),
        ({"body": b"", "content_type": "text/plain"}, 415, "unsupported_media_type"),
        ({"body": b"", "content_type": "multipart/form-data"}, 400, "bad_multipart"),
        ({"body": b"no gzip", "content_type": NIFTI}, 422, "unreadable"),
    ],
)
def test_refuses_what_it_cannot_answer(served, changes, status, code):
    reply = served.segment(**changes)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert "\n" not in reply.json()["error"]["message"]


def test_unknown_model_is_told_the_known_ones(served):
    assert served.segment(b"", model="liver").json()["error"]["message"] == "no model 'liver'; known: run"


def test_unknown_paths_and_methods_get_json_too(served):
    assert requests.get(f"{served.url}/v2", timeout=60).json()["error"]["code"] == "not_found"
    assert requests.get(f"{served.url}/v1/segment", timeout=60).json()["error"]["code"] == "method_not_allowed"


def test_chunked_body_is_stopped_at_the_limit(served):
    reply = served.segment(bytes(1_000_000) for _ in range(MAX_BODY_MB + 1))
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")


def test_bomb_is_not_unpacked(served):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.dcm", bytes(4_000_000 * MAX_BODY_MB + 1))
    assert len(packed.getvalue()) < 100_000
    reply = served.segment(packed.getvalue())
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")


def test_study_with_a_gap_is_refused_with_the_reason_and_without_the_patient(served):
    reply = served.segment(served.zipped(without={7, 8}))
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "missing_slices")
    header = served.headers[0]
    assert not any(str(header[k].value) in reply.text for k in ("PatientID", "PatientName", "StudyInstanceUID"))


def test_study_of_two_scans_is_refused(served):
    reply = served.segment(served.zipped(*sorted(served.study.parents[1].glob("*/ct"))))
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "several_scans")


def test_openapi_describes_every_status_with_an_example(served):
    operation = requests.get(f"{served.url}/openapi.json", timeout=60).json()["paths"]["/v1/segment"]["post"]
    assert {ZIP, JSON, NIFTI, "multipart/form-data"} == set(operation["requestBody"]["content"])
    assert {"200", "400", "401", "403", "404", "406", "413", "415", "422", "429", "500", "503"} == set(
        operation["responses"]
    )
    assert {DICOM, JSON, NIFTI} < set(operation["responses"]["200"]["content"])
    for status, reply in operation["responses"].items():
        assert status == "200" or reply["content"][JSON]["example"]["error"]["code"]


@pytest.mark.parametrize(
    ("page", "made"),
    [
        ("serving.md", {"segmentation.dcm", "report.dcm", "segmentation.nii.gz", "metrics.txt", "openapi.json"}),
        ("serving-jobs.md", {"segmentation.dcm", "scan.nii.gz"}),
    ],
)
def test_documented_commands_work(served, tmp_path, page, made):
    shutil.copytree(served.study, tmp_path / "study")
    blocks = re.findall(r"```sh\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    script = "set -e\n" + "\n".join(block for block in blocks if "curl" in block)
    script = script.replace("http://127.0.0.1:8000", served.url).replace("$SCAN_ID", served.scan_id)
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert made < {path.name for path in tmp_path.iterdir()}


def test_run_that_is_none_is_refused_in_one_line(tmp_path):
    from serving.app import app
    from tomoray.errors import Fatal

    with pytest.raises(Fatal, match="is not a run; make one with"):
        app(ServeConfig(run=str(tmp_path / "nothing")))


def test_documented_python_works(served, tmp_path):
    shutil.copytree(served.study, tmp_path / "study")
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "serving.md").read_text(encoding="utf-8"), re.DOTALL)
    code = code.replace("http://127.0.0.1:8000", served.url)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "segmentation.dcm").read_bytes()[128:132] == b"DICM"
