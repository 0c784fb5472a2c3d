from __future__ import annotations

import io
import json
import runpy
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
import requests
import torch

from cluster.endpoint import serving
from cluster.local import local_ray
from jobs import predict, preprocess
from tomoray import phantom
from tomoray.archive import Archive
from tomoray.catalog import Split
from tomoray.config import PhantomConfig, PredictConfig, PreprocessConfig
from tomoray.networks import build_network
from tomoray.runs import begin_run, finish_run
from tomoray.serving_config import ServeConfig
from tomoray.storage import open_store
from tomoray.training.config import TrainConfig

SERVICES = Path(__file__).parents[1] / "services"
_orthanc = runpy.run_path(str(SERVICES / "orthanc.py"))
_free_port = runpy.run_path(str(SERVICES / "s3_server.py"))["free_port"]
JSON, ZIP = "application/json", "application/zip"
MAX_BODY_MB = 20


@pytest.fixture(scope="session")
def ray_local():
    """One Ray cluster on this machine for the whole run; its four CPUs are logical. It knows a PACS of tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOMORAY_DICOMWEB_USER", _orthanc["USER"])
        patch.setenv("TOMORAY_DICOMWEB_PASSWORD", _orthanc["PASSWORD"])
        with local_ray(num_cpus=4):
            yield


@dataclass(frozen=True)
class Served:
    """A cohort of two, an archive of it, a run whose network was never trained, its predictions, and its endpoint."""

    url: str
    run: str
    study: Path
    scan_id: str
    archive: Archive
    predictions: Archive
    pacs_port: int

    def segment(self, body, content_type=ZIP, accept=JSON, **parameters):
        headers = {"Content-Type": content_type, "Accept": accept}
        return requests.post(f"{self.url}/v1/segment", data=body, headers=headers, params=parameters, timeout=300)

    def refer(self, accept=JSON, **reference):
        return self.segment(json.dumps({"scan_id": self.scan_id} | reference), JSON, accept)

    def zipped(self, *folders, without=()):
        """The study, or others, as a zip."""
        return zipped(*(folders or (self.study,)), without=without)

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
    pacs_port = _free_port()
    pacs = f"http://127.0.0.1:{pacs_port}/dicom-web"
    config = ServeConfig(
        run=run,
        port=0,
        cpus=1,
        limits={"body_mb": MAX_BODY_MB},
        queue={"url": str(folder / "queue"), "lease_s": 2},
        references={"s3": ["s3://studies/in/"], "dicomweb": {"pacs": pacs}},
        destinations={
            "files": {"files": str(folder / "files")},
            "labels": {"archive": str(folder / "labels")},
            "pacs": {"stow": pacs},
        },
    )
    with serving(config) as url:
        scan_id = next(i for i in opened.scan_ids() if opened.scan(i).info.n_instances == len(list(study.iterdir())))
        yield Served(url, run, study, scan_id, opened, Archive.open(f"{run}/predictions"), pacs_port)


def never_trained(run, archive, seed=0):
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
    torch.manual_seed(seed)
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
