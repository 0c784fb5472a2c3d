"""What we write as DICOM, judged by dciodvfy (David Clunie's dicom3tools)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset

from tomoray.config import PhantomConfig
from tomoray.dicom.derived import hashed_uid
from tomoray.dicom.seg import archived_headers
from tomoray.dicom.sr import Lesion, Measurements
from tomoray.geometry import Geometry
from tomoray.phantom import write_patient
from tomoray.predictions import report_file, segmentation_file
from tomoray.privacy.deidentify import Deidentifier
from tomoray.privacy.pseudonyms import Pseudonyms
from tomoray.volume import ScanInfo, ScanUids


def complaints(path: Path) -> list[str]:
    """Every line of dciodvfy about `path` but the name of the IOD; warnings included."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("no dciodvfy: make install")
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, timeout=60, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    assert any(line in {"CTImage", "Segmentation", "Comprehensive3DSR"} for line in lines), (
        f"dciodvfy did not know the IOD: {lines}"
    )
    return [line for line in lines if line.startswith(("Error", "Warning"))]


@pytest.mark.parametrize("index", range(4))  # four vendors, three transfer syntaxes
def test_finds_nothing_in_a_phantom(tmp_path: Path, index: int) -> None:
    written = write_patient(PhantomConfig(out=str(tmp_path), patients=4, seed=1, matrix=64), index)
    slices = sorted((Path(written.folder) / "ct").iterdir())
    for path in (slices[0], slices[len(slices) // 2], slices[-1]):
        assert complaints(path) == []
    assert complaints(Path(written.folder) / "seg" / "lungs-nodules.dcm") == []


def test_finds_an_error_where_there_is_one(tmp_path: Path) -> None:
    written = write_patient(PhantomConfig(out=str(tmp_path), patients=1, matrix=64), 0)
    path = min((Path(written.folder) / "ct").iterdir())
    path.write_bytes(path.read_bytes().replace(b"MONOCHROME2", b"MONOCHROME3"))
    assert any("MONOCHROME3" in line for line in complaints(path))


@pytest.fixture(scope="module")
def archived():
    """Headers of an archived scan of four planes, 16 by 20."""
    geometry = Geometry.from_matrix((4, 16, 20), np.diag([0.7, 0.7, 2.0, 1.0]))
    uids = ScanUids(
        study=hashed_uid("study"),
        series=hashed_uid("series"),
        frame_of_reference=hashed_uid("frame"),
        instances=tuple(hashed_uid(str(z)) for z in range(4)),
    )
    info = ScanInfo(
        scan_id="s",
        series_id="r",
        patient_id="0123456789abcdef",
        source_uri="x",
        n_instances=4,
        instances_sha256="0",
        input_sha256="0",
        uids=uids,
    )
    described = Deidentifier(Pseudonyms(b"a key for tests only, of no worth")).describe(Dataset())
    return archived_headers(geometry, info, described.attributes)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("voxels", [0, 9])
def test_finds_no_error_in_the_segmentation_of_an_archived_scan(tmp_path, archived, voxels, kind) -> None:
    mask = np.zeros((4, 16, 20), np.uint8)
    mask.flat[200 : 200 + voxels] = 1
    path = tmp_path / "seg.dcm"
    path.write_bytes(segmentation_file({"lungs": mask, "gtv": mask}, archived, "0f" * 32, "s", kind))
    assert [line for line in complaints(path) if line.startswith("Error")] == []


@pytest.mark.parametrize("name", ["s", None])
def test_finds_no_error_in_a_report(tmp_path, archived, name) -> None:
    lesion = Lesion(label="nodules", center_lps_mm=(1, 2, 3), size_mm=(4, 5, 6), axes_lps=np.eye(3), probability=0.9)
    volumes, counts, probabilities = {"lungs": 4021.7}, {"nodules": 1, "mass": 0}, {"emphysema": 0.25}
    said = Measurements(volumes_ml=volumes, lesions=[lesion], counts=counts, probabilities=probabilities)
    path = tmp_path / "sr.dcm"
    path.write_bytes(report_file(said, archived, "0f" * 32, name))
    assert [line for line in complaints(path) if line.startswith("Error")] == []
