"""The phantom: its tissues, its truth, its DICOM, and that it is the same every time."""

from __future__ import annotations

import functools
import hashlib
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless
from scipy import ndimage

from tomoray.config import PhantomConfig
from tomoray.dicom.seg import read_segmentation
from tomoray.phantom import PhantomImage, make_patient, write_cohort, write_patient
from tomoray.phantom.cohort import sample_patient
from tomoray.phantom.scanner import acquire

SEED, MATRIX = 5, 64


@functools.cache
def small(seed: int, index: int) -> PhantomImage:
    return make_patient(seed, index, MATRIX)


@pytest.fixture(scope="module")
def patient() -> PhantomImage:
    return make_patient(SEED, 3, matrix=128)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(PhantomConfig(out=str(folder), patients=4, seed=SEED, matrix=MATRIX))
    return folder


def slices(folder: Path, patient_id: str) -> list[pydicom.Dataset]:
    datasets = [pydicom.dcmread(path) for path in (folder / patient_id / "ct").glob("*.dcm")]
    return sorted(datasets, key=lambda d: float(d.ImagePositionPatient[2]))


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_tissues_have_their_hounsfield_units(patient: PhantomImage) -> None:
    hu, lungs = patient.hu_zyx, patient.masks["lungs"] > 0
    assert abs(float(hu[:, :6, 40:80].mean()) + 1000) < 15  # air above the patient
    deep = ndimage.binary_erosion(lungs & (patient.masks["nodules"] == 0), iterations=3)
    assert -920 < float(np.median(hu[deep])) < -780
    peaks = np.histogram(ndimage.median_filter(hu, 3), bins=np.arange(-205, 206, 10))[0]
    soft = np.arange(-200, 201, 10)
    assert -120 <= soft[:20][peaks[:20].argmax()] <= -80  # fat
    assert 35 <= soft[20:][peaks[20:].argmax()] <= 75  # muscle
    assert 600 < int(hu.max()) < 2000  # cortical bone
    assert 0.002 < float((hu > 250).mean()) < 0.05


def test_lungs_are_two_and_heavier_behind(patient: PhantomImage) -> None:
    lungs = patient.masks["lungs"]
    parts, count = ndimage.label(lungs)
    litres = np.sort(np.bincount(parts.ravel())[1:])[::-1] * patient.geometry.voxel_volume_ml / 1000
    assert count == 2
    assert 0.8 < litres[1] < litres[0] < 3.5
    rows = np.arange(lungs.shape[1])[None, :, None] + 0 * lungs
    inside = (lungs > 0) & (patient.masks["nodules"] == 0)
    middle = np.median(rows[inside])
    front, back = patient.hu_zyx[inside & (rows < middle - 15)], patient.hu_zyx[inside & (rows > middle + 15)]
    assert float(np.median(back) - np.median(front)) > 15


def test_nodules_are_where_and_what_the_truth_says(patient: PhantomImage) -> None:
    parts, count = ndimage.label(patient.masks["nodules"])
    assert count == len(patient.nodules)
    assert (patient.masks["nodules"] <= patient.masks["lungs"]).all()
    to_voxel = np.linalg.inv(patient.geometry.matrix)
    found = set()
    for nodule in patient.nodules:
        x, y, z = np.rint(to_voxel @ [*nodule.centre, 1])[:3].astype(int)
        found.add(part := int(parts[z, y, x]))
        sphere_ml = np.pi / 6 * nodule.diameter_mm**3 / 1000
        share = (parts == part).sum() * patient.geometry.voxel_volume_ml / sphere_ml
        assert (0.3 if nodule.pleural else 0.6) < share < 1.5
        if nodule.kind != "part-solid" and nodule.diameter_mm > 12:
            core = patient.hu_zyx[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2]
            assert abs(float(np.median(core)) - nodule.hu) < 60
    assert found == set(range(1, count + 1))


def test_nodules_keep_apart_and_within_bounds() -> None:
    for index in range(4):
        nodules = small(SEED, index).nodules
        assert 3 <= len(nodules) <= 8
        assert all(8 <= nodule.diameter_mm <= 30 for nodule in nodules)
        for i, one in enumerate(nodules):
            for other in nodules[:i]:
                apart = np.linalg.norm(np.subtract(one.centre, other.centre))
                assert apart > (one.diameter_mm + other.diameter_mm) / 2


def noise_of(**changes: object) -> np.ndarray:
    scan = replace(sample_patient(SEED, 0, 96)[1], pixel_mm=1.4, tube_ma=220, **changes)
    return acquire(np.full((12, 96, 96), 40, np.float32), scan, np.random.default_rng(0))[:, 32:64, 32:64] - 40.0


def test_noise_depends_on_kernel_and_slice_thickness() -> None:
    soft, sharp = noise_of(sharp=False, slice_mm=2.0), noise_of(sharp=True, slice_mm=2.0)
    thick = noise_of(sharp=False, slice_mm=3.0)
    assert 7 < soft.std() < 15
    assert 25 < sharp.std() < 45
    assert soft.std() / thick.std() == pytest.approx(1.5**0.5, rel=0.1)
    neighbours = [float(np.corrcoef(n[:, :, 1:].ravel(), n[:, :, :-1].ravel())[0, 1]) for n in (soft, sharp)]
    assert neighbours[0] > 0.6 > 0.3 > neighbours[1]
    assert abs(float(soft.mean())) < 1


def test_patients_vary() -> None:
    samples = [sample_patient(SEED, index) for index in range(12)]
    scans = [scan for _, scan in samples]
    assert len({(scan.scanner.manufacturer, scan.syntax) for scan in scans}) == 12
    assert len({scan.kernel for scan in scans}) >= 5
    assert len({scan.slice_mm for scan in scans}) >= 3
    assert {scan.sex for scan in scans} == {"F", "M"}
    assert {scan.head_first for scan in scans} == {scan.contrast for scan in scans} == {True, False}
    for field in ("pixel_mm", "position_lps_mm", "table_height_mm", "uid_seed", "date"):
        assert len({getattr(scan, field) for scan in scans}) >= 11
    assert all(320 <= scan.rows * scan.pixel_mm <= 430.1 and 60 <= scan.planes <= 200 for scan in scans)
    assert len({anatomy.scale for anatomy, _ in samples}) == 12


@pytest.mark.parametrize("index", range(4))
def test_dicom_holds_the_patient_that_was_drawn(cohort: Path, index: int) -> None:
    image = small(SEED, index)
    planes = slices(cohort, f"TOMORAY-{index:04d}")
    hu = np.stack([d.pixel_array.astype(int) * int(d.RescaleSlope) + int(d.RescaleIntercept) for d in planes])
    assert hu.shape == image.geometry.shape_zyx
    drawn = np.ones(hu.shape, bool)
    if "PixelPaddingValue" in planes[0]:
        drawn = np.stack([d.pixel_array != d.PixelPaddingValue for d in planes])
        assert 0.75 < drawn.mean() < 0.81  # the circle in its square
    np.testing.assert_array_equal(hu[drawn], image.hu_zyx[drawn])
    for z, dataset in enumerate(planes):
        here = image.geometry.matrix @ [0, 0, z, 1]
        np.testing.assert_allclose(np.array(dataset.ImagePositionPatient, float), here[:3], atol=1e-9)
        assert dataset.PixelSpacing == [image.scan.pixel_mm] * 2


def test_a_cohort_holds_every_syntax_and_pixel_format(cohort: Path) -> None:
    first = [slices(cohort, f"TOMORAY-{index:04d}")[0] for index in range(4)]
    assert {d.file_meta.TransferSyntaxUID for d in first} == {ExplicitVRLittleEndian, JPEGLSLossless, JPEG2000Lossless}
    formats = {d.Manufacturer: (d.BitsStored, d.PixelRepresentation, int(d.RescaleIntercept)) for d in first}
    assert set(formats.values()) == {(12, 0, -1024), (16, 1, -1024), (16, 1, 0)}
    assert len(formats) == 4


def test_headers_of_a_series_agree_and_differ_where_they_must(cohort: Path) -> None:
    planes = slices(cohort, "TOMORAY-0001")
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SliceThickness", "PatientID"):
        assert len({str(d[keyword].value) for d in planes}) == 1
    assert len({d.SOPInstanceUID for d in planes}) == len(planes)
    steps = np.diff([float(d.ImagePositionPatient[2]) for d in planes])
    np.testing.assert_allclose(steps, float(planes[0].SliceThickness), atol=1e-9)
    numbers = [int(d.InstanceNumber) for d in planes]
    assert numbers in (list(range(1, len(planes) + 1)), list(range(len(planes), 0, -1)))
    assert (numbers[0] == 1) == (planes[0].PatientPosition == "FFS")


def test_the_segmentation_gives_the_true_masks_back(cohort: Path) -> None:
    image = small(SEED, 2)
    dataset = pydicom.dcmread(cohort / "TOMORAY-0002" / "seg" / "lungs-nodules.dcm")
    masks = read_segmentation(dataset, image.geometry)
    assert list(masks) == ["lungs", "nodules"]
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, image.masks[name])
    planes = slices(cohort, "TOMORAY-0002")
    assert dataset.StudyInstanceUID == planes[0].StudyInstanceUID
    assert dataset.FrameOfReferenceUID == planes[0].FrameOfReferenceUID
    referenced = {
        item.ReferencedSOPInstanceUID for item in dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    }
    assert referenced == {d.SOPInstanceUID for d in planes}


def test_same_seed_gives_the_same_bytes_in_another_process_and_cohort(cohort: Path, tmp_path: Path) -> None:
    code = (
        "from tomoray.config import PhantomConfig; from tomoray.phantom import write_patient; "
        f"write_patient(PhantomConfig(out={str(tmp_path)!r}, patients=1, seed={SEED}, matrix={MATRIX}), 1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    again = digests(tmp_path / "TOMORAY-0001")
    assert again == digests(cohort / "TOMORAY-0001")
    assert len(again) > 60


def test_seed_and_index_change_everything() -> None:
    one, other, next_one = (small(seed, index) for seed, index in ((SEED, 0), (1, 0), (SEED, 1)))
    assert len({p.scan.uid_seed for p in (one, other, next_one)}) == 3
    volumes = Counter(tuple(int(mask.sum()) for mask in p.masks.values()) for p in (one, other, next_one))
    assert len(volumes) == 3
    assert sample_patient(-1, 0) != sample_patient(1, 0)


def test_writing_again_leaves_no_slice_of_another_cohort(tmp_path: Path) -> None:
    stale = tmp_path / "TOMORAY-0000" / "ct" / "0999.dcm"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"a slice of another seed")
    bystander = tmp_path / "notes.txt"
    bystander.write_text("mine")
    written = write_patient(PhantomConfig(out=str(tmp_path), patients=1, seed=SEED, matrix=MATRIX), 0)
    assert not stale.exists()
    assert bystander.exists()
    files = digests(tmp_path / "TOMORAY-0000")
    assert len(files) == written.slices + 1
    assert written.size_bytes == sum(p.stat().st_size for p in (tmp_path / "TOMORAY-0000").rglob("*.dcm"))
