"""The stages of the demo: each is what a user would run, and says how many megabytes it went through.

MB are megabytes of voxels as int16, before compression: of the cohort (phantom, preprocess), of the patches seen
(train), of the held-out scans (predict, evaluate), of the study that was sent (serve).
"""

from __future__ import annotations

import importlib
import io
import math
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from cluster.endpoint import serving
from tomoray import settings
from tomoray.archive import Archive, Scan
from tomoray.catalog import Catalog
from tomoray.config import (
    Config,
    EvaluateConfig,
    PhantomConfig,
    PredictConfig,
    PreprocessConfig,
    load_config,
)
from tomoray.dicom.seg import read_segmentation
from tomoray.errors import Fatal
from tomoray.metrics import dice
from tomoray.privacy.pseudonyms import Pseudonyms
from tomoray.progress import console
from tomoray.reports import run_report as report
from tomoray.reports.pictures import Case
from tomoray.runs import open_run
from tomoray.serving_config import ServeConfig
from tomoray.storage import open_store
from tomoray.training.config import TrainConfig

GOALS = {"lungs": 0.95, "nodules": 0.60}


@dataclass(frozen=True, kw_only=True, slots=True)
class Worked:
    """What a stage gave (JSON can hold it), its megabytes, and in a few words what it did."""

    result: dict[str, Any]
    megabytes: float | None
    what: str


class Stages:
    """The stages, in one folder.

    Args:
        folder: for everything.
        cohort: fields of `PhantomConfig`.
        recipe: what to train.
        steps: None: the recipe's.
    """

    def __init__(self, folder: Path, *, cohort: Mapping[str, Any], recipe: str, steps: int | None) -> None:
        self._cohort, self._archive, self._run = folder / "cohort", folder / "archive", folder / "run"
        self._predictions, self._report = self._run / "predictions", folder / "report.html"
        self._phantom = PhantomConfig(out=str(self._cohort), **cohort)
        flags = {"archive": str(self._archive), "out": str(self._run)} | ({"steps": steps} if steps else {})
        self._train = load_config(recipe, TrainConfig, flags)

    def phantom(self) -> Worked:
        """Make the cohort."""
        result = _job("phantom", self._phantom)
        return Worked(result=result, megabytes=result["voxel_mb"], what=f"{result['files']} DICOM files")

    def preprocess(self) -> Worked:
        """Bring it into the archive, whole."""
        result = _job("preprocess", PreprocessConfig(sources=[str(self._cohort)], archive=str(self._archive)))
        if result["refused"] or result["failed"]:
            raise Fatal(f"the cohort was not stored whole: {result['reasons']}, {len(result['failed'])} failed")
        return Worked(result=result, megabytes=result["voxel_mb"], what=f"{result['stored']} scans to OME-Zarr")

    def train(self) -> Worked:
        """Train on most of the patients."""
        config = self._train
        result = _job("train", config)
        megabytes = config.steps * config.batch_size * math.prod(config.patch_zyx) * 2 / 1e6
        return Worked(result=result, megabytes=megabytes, what=f"{config.steps} steps, {config.workers} workers")

    def predict(self) -> Worked:
        """Segment the patients held out."""
        result = _job("predict", PredictConfig(run=str(self._run), archive=str(self._archive)))
        return Worked(result=result, megabytes=self._held_out_mb(), what=f"{len(self._held_out())} held-out scans")

    def evaluate(self) -> Worked:
        """Compare with the truth."""
        config = EvaluateConfig(run=str(self._run), archive=str(self._archive), predictions=str(self._predictions))
        return Worked(result=_job("evaluate", config), megabytes=self._held_out_mb(), what="Dice per patient and label")

    def serve(self, *, verbose: bool) -> Worked:
        """Send one held-out study as DICOM; the masks that come back must be those of `predict`."""
        scan, patient_id = self._held_out()[0]
        study = _zip(self._patient_folder(patient_id) / "ct")
        with serving(ServeConfig(run=str(self._run), port=0), verbose=verbose) as url:
            started = time.monotonic()
            with console.status("segmenting a study"):
                reply = _post(url, study)
            answer_s = time.monotonic() - started
        served = read_segmentation(pydicom.dcmread(io.BytesIO(reply)), scan.geometry)
        scores = {}
        for label, predicted in _masks(Archive.open(str(self._predictions)).scan(scan.scan_id)).items():
            mask = served.get(label, np.zeros_like(predicted))  # a SEG has no segment for an empty mask
            if not np.array_equal(mask, predicted):
                raise Fatal(f"the served mask of {label} is not that of `tomoray predict` for scan {scan.scan_id}")
            scores[label] = dice(mask, scan.label(label).read().result())
        result = {"scan_id": scan.scan_id, "dice": scores, "answer_s": round(answer_s, 3), "seg_bytes": len(reply)}
        what = f"one study sent, its DICOM SEG back in {answer_s:.1f} s"
        return Worked(result=result, megabytes=_voxel_mb([scan]), what=what)

    def report(self, results: Mapping[str, Any], timings: Sequence[report.Stage]) -> Worked:
        """Write it all down."""
        patients = results["train"]["patients"]
        path = report.write_report(
            self._report,
            report.Report(
                title="TomoRay: the whole way once",
                lead=f"{self._phantom.patients} made-up patients, {patients['train']} to train on, "
                f"{patients['test']} held out; from DICOM to a served segmentation, on this machine.",
                dice=results["evaluate"]["dice"],
                goals=GOALS,
                cases=self._cases(),
                history=results["train"]["metrics"]["loss_curve"],
                stages=timings,
                stored=results["preprocess"]["stored"],
                refused=results["preprocess"]["reasons"],
                facts={"seed": str(self._phantom.seed), "model": results["train"]["model_sha256"][:16]},
                versions={name: version(name) for name in ("tomoray", "ray", "torch", "monai", "tensorstore")},
            ),
        )
        return Worked(result={"path": str(path)}, megabytes=None, what="this page")

    def _cases(self) -> Iterator[Case]:
        predictions = Archive.open(str(self._predictions))
        for scan, patient_id in self._held_out():
            volume = scan.read()
            yield Case(
                patient_id=patient_id,
                image_zyx=volume.image_zyx,
                geometry=volume.geometry,
                truth=volume.labels,
                prediction=_masks(predictions.scan(scan.scan_id)),
            )

    def _held_out(self) -> list[tuple[Scan, str]]:
        """Scans of the test patients, each with its patient; sorted by patient."""
        archive, run = Archive.open(str(self._archive)), open_run(str(self._run))
        rows = Catalog(open_store(archive.url)).rows()
        patient_of = {row["scan_id"]: row["patient_id"] for row in rows if row["status"] == "stored"}
        scans = sorted((patient, scan) for scan, patient in patient_of.items() if patient in run.split.test)
        return [(archive.scan(scan), patient) for patient, scan in scans]

    def _held_out_mb(self) -> float:
        return _voxel_mb([scan for scan, _ in self._held_out()])

    def _patient_folder(self, patient_id: str) -> Path:
        """Where the DICOM of a pseudonym lies."""
        pseudonyms = Pseudonyms(settings.pseudonym_key())
        folders = {pseudonyms.token("patient", folder.name): folder for folder in self._cohort.iterdir()}
        return folders[patient_id]


def _job(name: str, config: Config) -> dict[str, Any]:
    """By name, as the command line does: `cluster` does not import `jobs`."""
    result: dict[str, Any] = importlib.import_module(f"jobs.{name}").run(config)
    return result


def _masks(scan: Scan) -> dict[str, Any]:
    return {label: scan.label(label).read().result() for label in scan.label_names}


def _voxel_mb(scans: Sequence[Scan]) -> float:
    return sum(math.prod(scan.geometry.shape_zyx) for scan in scans) * 2 / 1e6


def _zip(folder: Path) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return packed.getvalue()


def _post(url: str, study: bytes) -> bytes:
    connection = HTTPConnection(url.removeprefix("http://"), timeout=600)
    headers = {"Content-Type": "application/zip", "Accept": "application/dicom"}
    try:
        connection.request("POST", "/v1/segment", body=study, headers=headers)
        reply = connection.getresponse()
        body = reply.read()
    except (OSError, HTTPException) as error:
        raise Fatal(f"the endpoint at {url} did not answer: {error}") from error
    finally:
        connection.close()
    if reply.status != 200:
        raise Fatal(f"the endpoint answered {reply.status}: {body[:500].decode(errors='replace')}")
    return body
