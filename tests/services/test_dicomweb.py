from __future__ import annotations

import io
import json
import runpy
import subprocess
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import requests
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from tomoray.errors import Fatal, Reason, Refused, Transient, Usage
from tomoray.sources import list_series, list_source, read_file, read_head

SCRIPT = Path(__file__).parent / "orthanc.py"
_orthanc = runpy.run_path(str(SCRIPT))
USERS = ("TOMORAY_DICOMWEB_TOKEN", "TOMORAY_DICOMWEB_USER", "TOMORAY_DICOMWEB_PASSWORD")


@dataclass(frozen=True, kw_only=True)
class Orthanc:
    """A running Orthanc, and the files that were sent to it by SOP Instance UID."""

    source: str
    files: dict[str, bytes]


def slice_of(patient: int, z: int, syntax: str) -> tuple[str, bytes]:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.{patient}.3.{z + 1}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"1.2.{patient}", f"1.2.{patient}.3"
    dataset.PatientID, dataset.PatientName, dataset.Modality = f"SECRET-{patient}", "SECRET^NAME", "CT"
    dataset.FrameOfReferenceUID, dataset.ImageType = "1.2.9", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Rows = dataset.Columns = 64
    dataset.PixelSpacing, dataset.ImageOrientationPatient = [0.7, 0.7], [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [0, 0, 2.5 * z]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation, dataset.SamplesPerPixel = 0, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.PixelData = np.random.default_rng(z).integers(900, 1200, (64, 64), dtype=np.uint16).tobytes()
    if syntax != ExplicitVRLittleEndian:
        dataset.compress(syntax, generate_instance_uid=False)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return dataset.SOPInstanceUID, file.getvalue()


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    """Four patients, in three transfer syntaxes; one page of its answers has three."""
    if not _orthanc["program"]():
        pytest.skip(f"no Orthanc with DICOMweb: {_orthanc['INSTALL']}")
    command = [sys.executable, str(SCRIPT), str(tmp_path_factory.mktemp("orthanc"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        said = process.stdout.readline()
        assert said, f"Orthanc did not start; run it to see why: {' '.join(command)}"
        server = json.loads(said)
        syntaxes = {1: ExplicitVRLittleEndian, 2: RLELossless, 3: JPEGLSLossless, 4: ExplicitVRLittleEndian}
        files = dict(slice_of(patient, z, syntax) for patient, syntax in syntaxes.items() for z in range(5))
        for data in files.values():
            sent = requests.post(
                f"{server['url']}/instances", data=data, auth=(server["user"], server["password"]), timeout=30
            )
            assert sent.status_code == 200
        yield Orthanc(source=f"dicomweb+{server['url']}/dicom-web", files=files)


@pytest.fixture(autouse=True)
def _who_asks(monkeypatch):
    for name in USERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TOMORAY_DICOMWEB_USER", _orthanc["USER"])
    monkeypatch.setenv("TOMORAY_DICOMWEB_PASSWORD", _orthanc["PASSWORD"])


def test_series_are_listed_over_several_pages(orthanc):
    found = list(list_series(orthanc.source))
    assert {(s.series_uid, s.study_uid, s.patient_id, s.modality, s.n_instances) for s in found} == {
        (f"1.2.{n}.3", f"1.2.{n}", f"SECRET-{n}", "CT", 5) for n in (1, 2, 3, 4)
    }
    assert len(found) == 4


def test_query_of_the_url_chooses(orthanc):
    [chosen] = list_series(f"{orthanc.source}?PatientID=SECRET-2")
    assert chosen.series_uid == "1.2.2.3"
    assert len(list(list_series(f"{orthanc.source}/?Modality="))) == 4
    with pytest.raises(Fatal, match="no such CT series") as caught:
        list_series(f"{orthanc.source}?PatientID=SECRET-7")
    assert "SECRET" not in str(caught.value)


def test_instances_come_to_the_byte_as_they_are_stored(orthanc):
    files = list(list_source(orthanc.source))
    assert sorted(file.key for file in files) == sorted(orthanc.files)
    assert all(read_file(file.root, file.key) == orthanc.files[file.key] for file in files)
    assert read_head(files[0].root, files[0].key, 132) == orthanc.files[files[0].key][:132]


def test_series_of_a_server_becomes_a_volume_and_its_root_is_stored_without_uids(orthanc, load_source):
    [scan] = load_source(f"{orthanc.source}?PatientID=SECRET-3")
    volume = scan.volume
    wanted = np.random.default_rng(4).integers(900, 1200, (64, 64), dtype=np.uint16).astype(np.int16) - 1024
    assert (volume.image_zyx[4] == wanted).all()
    assert volume.info.source_uri == orthanc.source


def test_instance_that_is_gone_is_refused(orthanc):
    [listing] = list_series(f"{orthanc.source}?PatientID=SECRET-1")
    with pytest.raises(Refused, match="no longer on its server") as caught:
        read_file(listing.root, "1.2.3.4.5.6")
    assert caught.value.reason == Reason.UNREADABLE


def test_wrong_password_names_the_variables(orthanc, monkeypatch):
    monkeypatch.setenv("TOMORAY_DICOMWEB_PASSWORD", "wrong")
    with pytest.raises(Fatal, match=r"access denied \(401\); check TOMORAY_DICOMWEB_TOKEN") as caught:
        list_series(f"{orthanc.source}?PatientID=SECRET-1")
    assert "SECRET" not in str(caught.value)
    assert "wrong" not in str(caught.value)


def test_url_with_a_user_is_turned_away_as_it_would_be_kept():
    with pytest.raises(Usage, match="TOMORAY_DICOMWEB_USER") as caught:
        list_series("dicomweb+https://me:secret@pacs.example/dicom-web")
    assert "secret" not in str(caught.value)


def test_server_that_is_not_there_is_one_line():
    with pytest.raises(
        Fatal, match=r"^http://127\.0\.0\.1:1/dicom-web: the DICOMweb server cannot be reached"
    ) as caught:
        list_series("dicomweb+http://127.0.0.1:1/dicom-web?PatientID=SECRET-1")
    assert "SECRET" not in str(caught.value)
    assert "\n" not in str(caught.value)


class _Awkward(BaseHTTPRequestHandler):
    """A server that is busy at first, gives every match on each page, and a part with a length."""

    busy = 1
    tokens: ClassVar[list[str | None]] = []
    body = b"\x00" * 128 + b"DICM\r\n--not-a-boundary\r\n\r\nrest"

    def do_GET(self) -> None:
        kind = type(self)
        kind.tokens.append(self.headers.get("Authorization"))
        path = self.path.partition("?")[0]
        if kind.busy or path.endswith("/broken"):
            kind.busy = 0
            self.send_response(503 if not path.endswith("/broken") else 500)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if path.endswith("/cut"):
            content, form = (
                b"--xx\r\nContent-Type: application/dicom\r\n\r\nhalf of it",
                "multipart/related; boundary=xx",
            )
        elif path.endswith("/plain"):
            content, form = self.body, "application/dicom"
        elif "/instances/" in path:
            head = b"preamble\r\n--a b=c\r\nContent-Type: application/dicom\r\n\r\n"
            content, form = head + self.body + b"\r\n--a b=c--\r\n", 'multipart/related; boundary="a b=c"'
        elif path.endswith("/html/series"):
            content, form = b"<html>", "text/html"
        else:
            uid = {"vr": "UI", "Value": ["1.2.3"]}
            found = [{"0020000E": uid, "0020000D": uid, "00100020": {"vr": "LO"}}]
            content, form = json.dumps(found).encode(), "application/dicom+json"
        self.send_response(200)
        self.send_header("Content-Type", form)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def awkward(monkeypatch):
    monkeypatch.setattr(_Awkward, "tokens", [])
    monkeypatch.setattr(_Awkward, "busy", 1)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Awkward) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"dicomweb+http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_busy_server_is_asked_again_with_the_token_and_a_repeated_page_ends(awkward, monkeypatch):
    monkeypatch.setenv("TOMORAY_DICOMWEB_TOKEN", "abc")
    [listing] = list_series(awkward)
    assert (listing.series_uid, listing.patient_id, listing.n_instances) == ("1.2.3", "", 0)
    assert set(_Awkward.tokens) == {"Bearer abc"}
    assert len(_Awkward.tokens) == 3


def test_answers_of_other_shapes_are_read_or_refused(awkward):
    [listing] = list_series(awkward)
    assert read_file(listing.root, "1.2") == _Awkward.body
    assert read_file(listing.root, "plain") == _Awkward.body
    with pytest.raises(Refused, match="was cut off"):
        read_file(listing.root, "cut")
    with pytest.raises(Transient, match="answers 500; try again"):
        read_file(listing.root, "broken")
    with pytest.raises(Fatal, match="is no DICOM JSON"):
        list_series(f"{awkward}/html")
