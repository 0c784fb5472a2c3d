"""Every folder of real CT (shared/ct), end to end: what is stored is what an independent reader sees, the rest is
refused with the reason in this table."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from jobs import preprocess
from tomoray import settings
from tomoray.archive import Archive, Scan
from tomoray.catalog import Catalog
from tomoray.config import PreprocessConfig
from tomoray.privacy.pseudonyms import Pseudonyms
from tomoray.storage import open_store

pytestmark = pytest.mark.usefixtures("ray_local")

Outcome = tuple[Any, ...]


def stored(*shape_zyx: int, mm: tuple[float, float, float], notes: tuple[str, ...] = (), labels=(), part="") -> Outcome:
    return ("stored", part, shape_zyx, mm, notes, tuple(labels))


def refused(reason: str, n_instances: int = 1, part: str = "") -> Outcome:
    return ("refused", part, reason, n_instances)


STS_MM = (3.27, 0.9766, 0.9766)

# Folder -> what its series end in, in any order. `sts-3mm` is in `nifti_outcomes`.
OUTCOMES: dict[str, list[Outcome]] = {
    # Loose slices of one study: four series with an axial slice each, eight coronal and sagittal reformats.
    "covid19-ny-sbu": [refused("too_few_slices")] * 4 + [refused("derived")] * 8,
    # The scanner wrote -3024 outside its round field of view; HU start at -1024.
    "crlm-ct-1004": [
        stored(41, 512, 512, mm=(5, 0.7969, 0.7969), notes=("2286652 padding voxels were set to -1024 HU",))
    ],
    "dcm-qa-ct": [
        # A GE head: steps of 1.08 to 7 mm under a gantry tilted by 18.5 degrees. It wants two repairs.
        refused("variable_spacing", 28),
        # A Philips folder of three kinds: 12 axial slices, one scout view, six pages of dose and exam summary.
        stored(12, 512, 512, mm=(5, 0.4512, 0.4512)),
        refused("localizer"),
        refused("derived", 6),
    ],
    "dcmqi": [
        # liver.dcm, its segmentation, lies in the folder pydicom: sources are read as one.
        stored(
            3, 512, 512, mm=(1, 0.8105, 0.8105), notes=("167316 padding voxels were set to -1024 HU",), labels=["liver"]
        ),
        # liver_1frame.dcm describes three frames and says nothing of how many it stores.
        refused("label_unsupported"),
        # mf24.dcm, an enhanced CT whose Rescale Type is US: unspecified, so no HU.
        refused("missing_rescale"),
    ],
    "dicom2nifti-failing": [
        # Positions slide sideways, and GantryDetectorTilt is absent: stored sheared, voxels untouched.
        stored(
            4,
            512,
            512,
            mm=(5, 0.418, 0.418),
            notes=("planes slide sideways at 14 degrees, a tilted gantry; GantryDetectorTilt is missing",),
        ),
        # Steps of 5, 5 and 10 mm.
        refused("missing_slices", 4),
    ],
    "idc-nlst-index": [],  # a table, which is no image; `idc:///…parquet` reads it
    "lidc-idri-0314": [stored(275, 512, 512, mm=(1, 0.7812, 0.7812))],
    # Two reconstructions of one acquisition; the boxes are XML, which is ignored.
    "lung-dx-a0001": [stored(64, 512, 512, mm=(5, 0.8418, 0.8418))] * 2,
    "pydicom": [
        refused("too_few_slices"),  # CT_small.dcm, one slice
        refused("not_ct"),  # MR_truncated.dcm
        # eCT_Supplemental.dcm, a perfusion map, and the CT0012 of syntaxes-cornerstone, which has its series UID.
        refused("derived", 2),
        # Neither preamble nor file meta: ExplVR_BigEndNoMeta.dcm, no_meta.dcm. And meta_missing_tsyntax.dcm is a
        # fragment without SOP class and modality.
        *[refused("unreadable")] * 3,
    ],
    # Crops of 51 to 63 slices; GTV_Mass_CT of the structure set is a label, tested by volume below.
    "sts-dicom": [
        stored(*shape, mm=STS_MM, labels=["gtv-mass-ct"])
        for shape in (
            (51, 158, 154),
            (55, 155, 150),
            (51, 137, 141),
            (63, 154, 139),
            (53, 155, 159),
            (49, 162, 134),
        )
    ],
    # One slice in nine encodings; the lossy ones were rescaled, so slope and intercept differ. The tenth: see pydicom.
    "syntaxes-cornerstone": [refused("mixed_rescale", 9)],
    "totalsegmentator": [
        refused("missing_uid", 20),  # study and series UIDs are empty; stored on request, below
        stored(112, 101, 122, mm=(3, 3, 3)),  # example_ct.nii.gz
        # By their names they are masks of example_ct; they lie on other grids.
        *[refused("label_geometry_mismatch")] * 3,
    ],
}


@dataclass
class Reading:
    """One run over every folder, and the rows of each."""

    archive: Archive
    result: dict[str, Any]
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def scans(self, folder: str) -> Iterator[tuple[dict[str, Any], Scan]]:
        for row in self.rows[folder]:
            if row["status"] == "stored":
                yield row, self.archive.scan(row["scan_id"])


@pytest.fixture(scope="module")
def reading(real_ct, tmp_path_factory) -> Reading:
    place = tmp_path_factory.mktemp("sources")
    names = {}
    for folder in [*OUTCOMES, "sts-3mm"]:  # their own names hold patients' ids, which would be scrubbed
        alias = place / f"source-{chr(ord('a') + len(names))}"
        alias.symlink_to(real_ct / folder, target_is_directory=True)
        names[str(alias)] = folder
    out = str(tmp_path_factory.mktemp("out") / "archive")
    result = preprocess.run(PreprocessConfig(sources=list(names), archive=out))
    found = Reading(Archive.open(out), result, {folder: [] for folder in names.values()})
    for row in Catalog(open_store(out)).rows():
        found.rows[names[row["source_uri"]]].append(row)
    return found


def outcome(row: dict[str, Any]) -> Outcome:
    if row["status"] == "refused":
        assert row["evidence"]
        return refused(row["reason"], row["n_instances"], row["part"])
    spacing_mm = tuple(round(step, 4) for step in row["spacing_zyx_mm"])
    return stored(
        *row["shape_zyx"], mm=spacing_mm, notes=tuple(row["notes"]), labels=row["labels"] or (), part=row["part"]
    )


def test_the_table_has_every_folder(real_ct):
    folders = {path.name for path in real_ct.iterdir() if path.is_dir()}
    assert folders == {*OUTCOMES, "sts-3mm"}


@pytest.mark.parametrize("folder", sorted(OUTCOMES))
def test_every_series_ends_as_the_table_says(reading, folder):
    assert sorted(map(outcome, reading.rows[folder]), key=str) == sorted(OUTCOMES[folder], key=str)


def test_nothing_failed_and_every_row_is_counted(reading):
    rows = [row for rows in reading.rows.values() for row in rows]
    assert reading.result["failed"] == []
    assert reading.result["stored"] == sum(row["status"] == "stored" for row in rows)
    assert reading.result["refused"] == sum(row["status"] == "refused" for row in rows)


# --- against independent readers ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def series_on_disk(real_ct, tmp_path_factory) -> dict[str, list[Path]]:
    """The pseudonym of each DICOM series -> its image files, archives unpacked."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    for path in real_ct.rglob("*.tar.xz"):
        with tarfile.open(path) as archive:
            archive.extractall(unpacked / path.name, filter="data")
    pseudonyms, found = Pseudonyms(settings.pseudonym_key()), {}
    for path in sorted([*real_ct.rglob("*"), *unpacked.rglob("*")]):
        if not path.is_file() or path.suffix in (".gz", ".xz", ".md", ".csv", ".xml", ".json", ".parquet"):
            continue
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
        except pydicom.errors.InvalidDicomError:
            continue
        if header.get("Modality") == "CT":
            found.setdefault(pseudonyms.token("series", str(header.SeriesInstanceUID)), []).append(path)
    return found


def itk_reading(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Voxels [z, y, x] and the 4 x 4 LPS affine that SimpleITK gives for files sorted by position."""
    headers = {path: pydicom.dcmread(path, stop_before_pixels=True) for path in files}
    row, column = np.reshape(next(iter(headers.values())).ImageOrientationPatient, (2, 3)).astype(float)
    normal = np.cross(row, column)
    files = sorted(files, key=lambda path: float(np.dot(normal, np.array(headers[path].ImagePositionPatient, float))))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in files])
    image = reader.Execute()
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    matrix[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), matrix


def padding_hu(header: pydicom.Dataset) -> float | None:
    """HU of what the header calls padding, by pydicom alone."""
    if "PixelPaddingValue" not in header:
        return None
    stored_value = int(header.PixelPaddingValue)
    if header.PixelRepresentation and stored_value >= 2**15:
        stored_value -= 2**16
    return stored_value * float(header.RescaleSlope) + float(header.RescaleIntercept)


DICOM_FOLDERS = ["crlm-ct-1004", "dcm-qa-ct", "dcmqi", "lidc-idri-0314", "lung-dx-a0001", "sts-dicom"]


@pytest.mark.parametrize("folder", DICOM_FOLDERS)
def test_stored_dicom_equals_simpleitk(reading, series_on_disk, folder):
    compared = 0
    for row, scan in reading.scans(folder):
        files = series_on_disk[row["series_id"]]
        voxels, matrix = itk_reading(files)
        padding = padding_hu(pydicom.dcmread(files[0], stop_before_pixels=True))
        wanted = voxels if padding is None else np.where(voxels == padding, -1024, voxels)
        assert row["n_instances"] == len(files) == scan.geometry.shape_zyx[0]
        assert np.array_equal(scan.image().read().result(), wanted)
        assert np.abs(scan.geometry.matrix - matrix).max() < 1e-4
        compared += 1
    assert compared == sum(outcome[0] == "stored" for outcome in OUTCOMES[folder])


def test_a_sheared_scan_lies_where_its_headers_say(reading, series_on_disk):
    """SimpleITK cannot hold a sheared grid, so headers and pixels are taken from pydicom."""
    ((row, scan),) = reading.scans("dicom2nifti-failing")
    datasets = sorted(
        (pydicom.dcmread(path) for path in series_on_disk[row["series_id"]]),
        key=lambda dataset: float(dataset.ImagePositionPatient[2]),
    )
    image = scan.image().read().result()
    for z, dataset in enumerate(datasets):
        hu = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
        assert np.array_equal(image[z], hu)
        position = scan.geometry.matrix @ [0, 0, z, 1]
        assert np.abs(position[:3] - np.array(dataset.ImagePositionPatient, float)).max() < 1e-4
        across, down = (float(v) for v in dataset.PixelSpacing[::-1])
        far = scan.geometry.matrix @ [511, 511, z, 1]
        orientation = np.array(dataset.ImageOrientationPatient, float)
        wanted = np.array(dataset.ImagePositionPatient, float) + 511 * (
            across * orientation[:3] + down * orientation[3:]
        )
        assert np.abs(far[:3] - wanted).max() < 1e-4


def test_contours_of_real_tumours_have_the_volumes_of_the_reference(reading, series_on_disk, real_ct):
    """The reference is a mask on another grid, three times as coarse in-plane: equal within a twentieth."""
    with (real_ct / "labels.csv").open() as file:
        reference_ml = {
            row["case"]: float(row["reference"].split()[2])
            for row in csv.DictReader(file)
            if row["reference"].startswith("GTV mask")
        }
    compared = set()
    for row, scan in reading.scans("sts-dicom"):
        header = pydicom.dcmread(series_on_disk[row["series_id"]][0], stop_before_pixels=True)
        mask = scan.label("gtv-mass-ct").read().result()
        volume_ml = int(mask.sum()) * float(np.prod(row["spacing_zyx_mm"])) / 1000
        assert volume_ml == pytest.approx(reference_ml[header.PatientID], rel=0.05), volume_ml
        compared.add(header.PatientID)
    assert compared == {"STS_003", "STS_008", "STS_012", "STS_024", "STS_035", "STS_042"}


def test_every_nifti_pair_stays_aligned(reading, real_ct):
    """All 34: image and mask are those of nibabel, and so is the affine; NIfTI is RAS, the archive LPS."""
    pseudonyms, to_lps = Pseudonyms(settings.pseudonym_key()), np.diag([-1, -1, 1, 1])
    rows = {row["patient_id"]: row for row in reading.rows["sts-3mm"]}
    images = sorted((real_ct / "sts-3mm").glob("*_ct.nii.gz"))
    assert len(images) == len(reading.rows["sts-3mm"]) == len(rows) == 34
    for path in images:
        case = path.name.removesuffix("_ct.nii.gz")
        row = rows[pseudonyms.token("patient", case)]
        image, mask = nibabel.load(path), nibabel.load(path.with_name(f"{case}_gtv.nii.gz"))
        assert (row["status"], row["labels"], row["notes"]) == ("stored", ["gtv"], [])
        volume = reading.archive.scan(row["scan_id"]).read()
        assert np.array_equal(volume.image_zyx, np.asarray(image.dataobj).T)
        assert np.array_equal(volume.labels["gtv"], np.asarray(mask.dataobj).T)
        assert np.abs(volume.geometry.matrix - to_lps @ image.affine).max() < 1e-4


def test_the_nifti_of_totalsegmentator_equals_nibabel(reading, real_ct):
    ((_, scan),) = reading.scans("totalsegmentator")
    image = nibabel.load(real_ct / "totalsegmentator" / "example_ct.nii.gz")
    assert np.array_equal(scan.image().read().result(), np.asarray(image.dataobj).T)
    assert np.abs(scan.geometry.matrix - np.diag([-1, -1, 1, 1]) @ image.affine).max() < 1e-4


def test_slices_without_study_and_series_uid_are_stored_on_request(real_ct, tmp_path):
    """Class and instance UIDs stand in the file meta information only. Slices overlap: 3 mm thick, 2 mm apart."""
    source = real_ct / "totalsegmentator" / "example_ct_dicom"
    archive = str(tmp_path / "archive")
    result = preprocess.run(PreprocessConfig(sources=[str(source)], archive=archive, repair=["missing_uid"]))

    assert (result["stored"], result["refused"]) == (1, 0)
    (row,) = Catalog(open_store(archive)).rows()
    note = "study, series or class UIDs are missing; slices were taken for a series as they lay together"
    assert outcome(row)[2:5] == ((20, 512, 512), (2.0, 0.9766, 0.9766), (note,))
    assert row["slice_thickness_mm"] == 3
    volume = Archive.open(archive).scan(row["scan_id"]).read()
    voxels, matrix = itk_reading(sorted(source.iterdir()))
    assert np.array_equal(volume.image_zyx, voxels)
    assert np.abs(volume.geometry.matrix - matrix).max() < 1e-4
    assert len(set(volume.info.uids.instances)) == 20
    written = b"".join(path.read_bytes() for path in Path(archive).rglob("*.json"))
    real = pydicom.dcmread(io.BytesIO(min(source.iterdir()).read_bytes())).file_meta.MediaStorageSOPInstanceUID
    assert str(real).encode() not in written
