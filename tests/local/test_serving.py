from __future__ import annotations

import gzip
import io
import json
import re
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import requests
import torch

from cluster.endpoint import serving
from jobs import predict, preprocess
from tomoray import phantom
from tomoray.archive import Archive
from tomoray.catalog import Split
from tomoray.config import PhantomConfig, PredictConfig, PreprocessConfig
from tomoray.dicom.seg import read_segmentation
from tomoray.networks import build_network
from tomoray.runs import begin_run, finish_run
from tomoray.serving_config import ServeConfig
from tomoray.storage import open_store
from tomoray.training.config import TrainConfig

DICOM, JSON, NIFTI, ZIP = "application/dicom", "application/json", "application/gzip", "application/zip"
MAX_BODY_MB = 20
DOCS = Path(__file__).parents[2] / "docs" / "serving.md"


@dataclass(frozen=True)
class Served:
    """A cohort of two, an archive of it, a run whose network was never trained, its predictions, and its endpoint."""

    url: str
    run: str
    study: Path
    scan_id: str
    archive: Archive
    predictions: Archive

    def segment(self, body, content_type=ZIP, accept=JSON, **parameters):
        headers = {"Content-Type": content_type, "Accept": accept}
        return requests.post(f"{self.url}/v1/segment", data=body, headers=headers, params=parameters, timeout=300)

    def refer(self, accept=JSON, **reference):
        return self.segment(json.dumps({"scan_id": self.scan_id} | reference), JSON, accept)

    @property
    def predicted(self):
        scan = self.predictions.scan(self.scan_id)
        return {label: scan.label(label).read().result() for label in ("lungs", "nodules")}

    @property
    def geometry(self):
        return self.archive.scan(self.scan_id).geometry

    @property
    def headers(self):
        found = [pydicom.dcmread(path, stop_before_pixels=True) for path in self.study.iterdir()]
        return sorted(found, key=lambda header: header.ImagePositionPatient[2])


@pytest.fixture(scope="module")
def served(ray_local, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    cohort, archive, run = (str(folder / name) for name in ("cohort", "archive", "run"))
    patient, _ = phantom.write_cohort(PhantomConfig(out=cohort, patients=2, seed=3, matrix=64))
    preprocess.run(PreprocessConfig(sources=[cohort], archive=archive))
    never_trained(run, archive)
    predict.run(PredictConfig(run=run, archive=archive, part="all"))
    study = Path(patient.folder) / "ct"
    opened = Archive.open(archive)
    with serving(ServeConfig(run=run, port=0, cpus=1, max_body_mb=MAX_BODY_MB)) as url:
        scan_id = next(i for i in opened.scan_ids() if opened.scan(i).info.n_instances == len(list(study.iterdir())))
        yield Served(url, run, study, scan_id, opened, Archive.open(f"{run}/predictions"))


def never_trained(run, archive):
    config = TrainConfig(
        archive=archive,
        out=run,
        labels=["lungs", "nodules"],
        contains={"lungs": ["nodules"]},
        spacing_zyx_mm=(6.0, 6.0, 6.0),
        patch_zyx=(32, 32, 32),
        network={"channels": [4, 8]},
        steps=1,
    )
    store, split = open_store(run), Split(train=(), validation=(), test=())
    begin_run(store, config, split)
    torch.manual_seed(0)
    weights = io.BytesIO()
    torch.save(build_network(config.network, out_channels=3).state_dict(), weights)
    store.write("checkpoints/step-00000001/model.pt", weights.getvalue())
    finish_run(store, config, split, {})


def zipped(*folders, without=()):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number, folder in enumerate(folders):
            for n, path in enumerate(sorted(folder.iterdir())):
                if n not in without:
                    archive.write(path, f"{number}/{path.name}")
    return packed.getvalue()


@pytest.fixture(scope="module")
def seg(served):
    reply = served.segment(zipped(served.study), accept=DICOM)
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
        pytest.skip("no dciodvfy: apt-get install dicom3tools")
    (tmp_path / "seg.dcm").write_bytes(seg)
    checked = subprocess.run(["dciodvfy", tmp_path / "seg.dcm"], capture_output=True, text=True, check=False)
    assert [line for line in checked.stderr.splitlines() if line.startswith("Error")] == []


def test_nifti_has_the_geometry_of_the_source_and_later_labels_win(served):
    reply = served.segment(zipped(served.study), accept=NIFTI)
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(reply.content))
    np.testing.assert_allclose(image.affine, np.diag([-1, -1, 1, 1]) @ served.geometry.matrix, atol=1e-4)
    classes = np.where(served.predicted["nodules"], 2, served.predicted["lungs"])
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, classes)
    assert reply.headers["TomoRay-Labels"] == "1=lungs, 2=nodules"


def test_numbers_are_those_of_the_masks(served):
    reply = served.segment(zipped(served.study), accept="*/*").json()
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
    reply = served.segment(zipped(served.study), model="run").json()
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
        ({"body": b"", "content_type": "multipart/form-data"}, 415, "unsupported_media_type"),
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
    reply = served.segment(zipped(served.study, without={7, 8}))
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "missing_slices")
    header = served.headers[0]
    assert not any(str(header[k].value) in reply.text for k in ("PatientID", "PatientName", "StudyInstanceUID"))


def test_study_of_two_scans_is_refused(served):
    reply = served.segment(zipped(*sorted(served.study.parents[1].glob("*/ct"))))
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "several_scans")


def test_openapi_describes_every_status_with_an_example(served):
    operation = requests.get(f"{served.url}/openapi.json", timeout=60).json()["paths"]["/v1/segment"]["post"]
    assert set(operation["requestBody"]["content"]) == {ZIP, JSON}
    assert {"200", "400", "403", "404", "406", "413", "415", "422", "500", "503"} == set(operation["responses"])
    assert {DICOM, JSON, NIFTI} < set(operation["responses"]["200"]["content"])
    for status, reply in operation["responses"].items():
        assert status == "200" or reply["content"][JSON]["example"]["error"]["code"]


def test_documented_commands_work(served, tmp_path):
    shutil.copytree(served.study, tmp_path / "study")
    blocks = re.findall(r"```sh\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    script = "set -e\n" + "\n".join(block for block in blocks if "curl" in block)
    script = script.replace("http://127.0.0.1:8000", served.url).replace("$SCAN_ID", served.scan_id)
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"segmentation.dcm", "segmentation.nii.gz", "openapi.json"} < {path.name for path in tmp_path.iterdir()}


def test_run_that_is_none_is_refused_in_one_line(tmp_path):
    from serving.app import app
    from tomoray.errors import Fatal

    with pytest.raises(Fatal, match="is not a run; make one with"):
        app(ServeConfig(run=str(tmp_path / "nothing")))
