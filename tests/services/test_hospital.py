"""`tomoray pacs` between a real Orthanc and the jobs API without a model: there and back, once each."""

from __future__ import annotations

import io
import json
import runpy
import socket
import subprocess
import sys
import time
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
import requests
import yaml
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage
from pynetdicom import AE

from tomoray.config import PhantomConfig
from tomoray.dicom.seg import read_segmentation
from tomoray.dicomweb import retrieve, search, text
from tomoray.ingest.uploads import read_zip
from tomoray.phantom import write_patient
from tomoray.privacy.pseudonyms import Pseudonyms

HERE = Path(__file__).parent
REAL_CT = HERE.parents[2] / "shared" / "ct"
_orthanc = runpy.run_path(str(HERE / "orthanc.py"))
free_port = _orthanc["_s3_server"]["free_port"]
complaints = runpy.run_path(str(HERE / "test_dciodvfy.py"))["complaints"]
STUDY_UID, SERIES_UID, INSTANCE_UID = "0020000D", "0020000E", "00080018"


@contextmanager
def running(*command):
    """A server that says in one line of JSON where it is."""
    with subprocess.Popen(
        [sys.executable, *map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield json.loads(process.stdout.readline())
        process.stdin.close()
        process.wait(timeout=30)


@dataclass(frozen=True, kw_only=True)
class Hospital:
    """A PACS, a server, and a config that ties them."""

    pacs: dict
    server: str
    folder: Path

    @property
    def root(self):
        return f"{self.pacs['url']}/dicom-web"

    def send(self, paths):
        """Files into the PACS."""
        for path in paths:
            who = (self.pacs["user"], self.pacs["password"])
            assert requests.post(f"{self.pacs['url']}/instances", path.read_bytes(), auth=who, timeout=30).ok

    def configure(self, **changes):
        values = {
            "server": self.server,
            "state": str(self.folder / "state"),
            "pacs": {"dicomweb": self.root, "days": 0, "every_s": 0.2},
            "settle_s": 0,
        }
        written = yaml.safe_dump({k: v for k, v in {**values, **changes}.items() if v is not None})
        (self.folder / "hospital.yaml").write_text(written)

    def command(self, *options):
        return [sys.executable, "-m", "cluster.cli", "pacs", str(self.folder / "hospital.yaml"), *options]

    def run(self):
        """All that is there, answered; orders by state."""
        done = subprocess.run(
            self.command("--once", "--json"), capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def results(self, modality):
        """The instances of this modality that the PACS has."""
        found = search(f"{self.root}/series", {"Modality": modality}, SERIES_UID)
        urls = [f"{self.root}/studies/{text(f, STUDY_UID)}/series/{text(f, SERIES_UID)}/instances" for f in found]
        return [(url, text(f, INSTANCE_UID)) for url in urls for f in search(url, {}, INSTANCE_UID)]

    def dataset(self, modality):
        ((url, uid),) = self.results(modality)
        return pydicom.dcmread(io.BytesIO(retrieve(f"{url}/{uid}")))

    def told(self):
        """Jobs that the server was asked for."""
        return requests.get(f"{self.server}/told", timeout=30).json()


@pytest.fixture
def hospital(tmp_path, monkeypatch):
    if not _orthanc["program"]():
        pytest.skip(f"no Orthanc with DICOMweb: {_orthanc['INSTALL']}")
    monkeypatch.setenv("TOMORAY_DICOMWEB_USER", _orthanc["USER"])
    monkeypatch.setenv("TOMORAY_DICOMWEB_PASSWORD", _orthanc["PASSWORD"])
    monkeypatch.delenv("TOMORAY_DICOMWEB_TOKEN", raising=False)
    with (
        running(HERE / "orthanc.py", tmp_path / "orthanc") as pacs,
        running(HERE / "jobs_api.py", "--seconds", "0.3", "--pacs", f"{pacs['url']}/dicom-web") as server,
    ):
        made = Hospital(pacs=pacs, server=server["url"], folder=tmp_path)
        made.configure()
        yield made


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    config = PhantomConfig(out=str(tmp_path_factory.mktemp("phantom")), patients=1, seed=1, matrix=64)
    return sorted((Path(write_patient(config, 0).folder) / "ct").iterdir())


def test_real_study_comes_back_with_seg_and_sr(hospital, tmp_path):
    series = REAL_CT / "lung-dx-a0001" / "series2"
    if not series.is_dir():
        pytest.skip(f"no real CT at {series}")
    paths = sorted(series.iterdir())
    hospital.send(paths)
    counts = hospital.run()
    assert (counts["returned"], counts["failed"]) == (1, 0)
    source = pydicom.dcmread(paths[0], stop_before_pixels=True)
    seg, report = hospital.dataset("SEG"), hospital.dataset("SR")
    for made in (seg, report):
        assert made.StudyInstanceUID == source.StudyInstanceUID
        assert made.PatientID == source.PatientID
        made.save_as(tmp_path / "made.dcm")
        assert [line for line in complaints(tmp_path / "made.dcm") if line.startswith("Error")] == []
    scan = read_zip(zipped(paths), 10**10, Pseudonyms(b"of tests only, of no worth at all")).volume
    lungs = read_segmentation(seg, scan.geometry)["lungs"]  # placed by its own geometry, frame by frame
    np.testing.assert_array_equal(lungs, (scan.image_zyx > -950) & (scan.image_zyx < -400))
    volume = next(item for item in walk(report) if concept(item) == codes.SCT.Volume.value)
    measured = float(volume.MeasuredValueSequence[0].NumericValue)
    assert measured == pytest.approx(lungs.sum() * scan.geometry.voxel_volume_ml, rel=1e-4)
    assert hospital.run() == counts
    assert len(hospital.told()) == 1


def zipped(paths):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in paths:
            archive.write(path, path.name)
    return packed.getvalue()


def concept(item):
    return item.ConceptNameCodeSequence[0].CodeValue if "ConceptNameCodeSequence" in item else None


def walk(item):
    yield item
    for child in item.get("ContentSequence", ()):
        yield from walk(child)


def test_killed_at_every_step_each_result_is_there_once(hospital, slices):
    hospital.send(slices)
    orders = hospital.folder / "state" / "orders"
    moments = (
        lambda: list(orders.glob("*/study.*")),
        hospital.told,
        lambda: list(orders.glob("*/segmentation.dcm")),
        lambda: hospital.results("SEG"),
    )
    for has_come in moments:
        process = subprocess.Popen(hospital.command(), stderr=subprocess.DEVNULL)
        until = time.monotonic() + 180
        while not has_come():
            assert time.monotonic() < until
        process.kill()
        process.wait()
    counts = hospital.run()
    assert (counts["returned"], counts["failed"]) == (1, 0)
    assert (len(hospital.results("SEG")), len(hospital.results("SR"))) == (1, 1)
    assert len({job["key"] for job in hospital.told()}) == 1
    assert list(orders.iterdir()) == []


def test_server_that_knows_the_pacs_is_told_where_the_series_is(hospital, slices):
    hospital.send(slices)
    hospital.configure(pacs={"dicomweb": hospital.root, "days": 0, "known_as": "pacs"})
    assert hospital.run()["returned"] == 1
    assert [job["size"] < 1000 for job in hospital.told()] == [True]
    assert hospital.dataset("SEG").StudyInstanceUID == pydicom.dcmread(slices[0]).StudyInstanceUID


def test_series_that_is_sent_to_us_comes_back_by_c_store(hospital, slices):
    port = free_port()
    node = {"host": "127.0.0.1", "port": hospital.pacs["dicom_port"], "ae_title": "ORTHANC"}
    hospital.configure(
        pacs=None,
        receiver={"port": port, "senders": ["SCANNER"]},
        back_to=node,
        settle_s=1,
        rules=[{"results": ["sr"]}],
    )
    process = subprocess.Popen(hospital.command())
    try:
        wait_for_port(port)
        assert send("SOMEBODY", port, slices[:1]) == []
        assert send("SCANNER", port, slices) == [0x0000] * len(slices)
        until = time.monotonic() + 60
        while not hospital.results("SR"):
            assert time.monotonic() < until
            time.sleep(0.2)
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 0
    assert hospital.results("SEG") == []
    assert hospital.dataset("SR").StudyInstanceUID == pydicom.dcmread(slices[0]).StudyInstanceUID
    assert list((hospital.folder / "state" / "spool").iterdir()) == []


def wait_for_port(port):
    until = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            assert time.monotonic() < until
            time.sleep(0.1)


def send(who, port, paths):
    """What a receiver says of each file; of none where it does not let us in."""
    datasets = [pydicom.dcmread(path) for path in paths]
    node = AE(ae_title=who)
    node.add_requested_context(CTImageStorage, sorted({d.file_meta.TransferSyntaxUID for d in datasets}))
    association = node.associate("127.0.0.1", port, ae_title="TOMORAY")
    if not association.is_established:
        return []
    statuses = [association.send_c_store(dataset).Status for dataset in datasets]
    association.release()
    return statuses


def test_study_that_is_refused_fails_once_with_its_reason(hospital, slices):
    hospital.send([*slices[:5], *slices[8:]])
    counts = hospital.run()
    assert (counts["failed"], counts["returned"]) == (1, 0)
    assert "missing_slices" in counts["failures"][0]["error"]
    assert hospital.run() == counts
    status = subprocess.run(hospital.command("--status"), capture_output=True, text=True, check=True).stdout
    assert "missing_slices" in status


def test_what_is_away_is_waited_for(hospital, slices):
    hospital.send(slices)
    hospital.configure(server=f"http://127.0.0.1:{free_port()}")
    with subprocess.Popen(hospital.command(), stderr=subprocess.PIPE, text=True) as process:
        assert any("cannot be reached" in line for line in process.stderr)
        process.kill()
    hospital.configure()
    assert hospital.run()["returned"] == 1
