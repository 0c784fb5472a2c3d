"""Real scans, end to end: what is stored is what an independent reader sees."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from jobs import preprocess
from tomoray.archive import Archive
from tomoray.catalog import Catalog
from tomoray.config import PreprocessConfig
from tomoray.storage import open_store

pytestmark = pytest.mark.usefixtures("ray_local")


def archive_of(source: Path, out: Path):
    result = preprocess.run(PreprocessConfig(sources=[str(source)], archive=str(out)))
    return result, Archive.open(str(out)), Catalog(open_store(str(out))).rows()


def itk_reading(folder: Path):
    """Voxels [z, y, x] and the 4 x 4 LPS affine that SimpleITK gives for the one series in `folder`."""
    reader = sitk.ImageSeriesReader()
    (series,) = reader.GetGDCMSeriesIDs(str(folder))
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), series))
    image = reader.Execute()
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    matrix[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), matrix


def test_lidc_becomes_one_scan_equal_to_simpleitk(real_ct, tmp_path):
    result, archive, rows = archive_of(real_ct / "lidc-idri-0314", tmp_path / "archive")
    voxels, matrix = itk_reading(real_ct / "lidc-idri-0314" / "ct")

    assert (result["stored"], result["refused"]) == (1, 0)
    volume = archive.scan(rows[0]["scan_id"]).read()
    assert rows[0]["n_instances"] == 275
    assert np.array_equal(volume.image_zyx, voxels)
    assert volume.geometry.matrix == pytest.approx(matrix, abs=1e-4)


def test_two_series_of_one_patient_become_two_scans(real_ct, tmp_path):
    result, archive, rows = archive_of(real_ct / "lung-dx-a0001", tmp_path / "archive")
    wanted = [itk_reading(real_ct / "lung-dx-a0001" / name)[0] for name in ("series2", "series3")]

    assert (result["stored"], result["refused"]) == (2, 0)
    assert len({row["patient_id"] for row in rows}) == 1
    for row in rows:
        found = archive.scan(row["scan_id"]).read().image_zyx
        assert any(np.array_equal(found, voxels) for voxels in wanted)


def test_padding_of_an_abdomen_becomes_air_and_all_else_stays(real_ct, tmp_path):
    result, archive, rows = archive_of(real_ct / "crlm-ct-1004", tmp_path / "archive")
    voxels, matrix = itk_reading(real_ct / "crlm-ct-1004" / "ct")

    assert (result["stored"], result["refused"]) == (1, 0)
    volume = archive.scan(rows[0]["scan_id"]).read()
    assert np.array_equal(volume.image_zyx, np.where(voxels == -3024, -1024, voxels))
    assert volume.geometry.matrix == pytest.approx(matrix, abs=1e-4)
    assert "padding" in rows[0]["notes"][0]


def test_loose_slices_and_reformats_are_refused_each_with_a_reason(real_ct, tmp_path):
    result, archive, rows = archive_of(real_ct / "covid19-ny-sbu", tmp_path / "archive")

    assert (result["stored"], result["refused"]) == (0, 12)
    assert result["reasons"] == {"derived": 8, "too_few_slices": 4}
    assert all(row["status"] == "refused" and row["evidence"] for row in rows)
    assert archive.scan_ids() == []


def test_nifti_image_and_mask_stay_aligned(real_ct, tmp_path):
    pair = tmp_path / "pair"
    pair.mkdir()
    for name in ("STS_001_ct.nii.gz", "STS_001_gtv.nii.gz"):
        (pair / name).symlink_to(real_ct / "sts-3mm" / name)

    result, archive, rows = archive_of(pair, tmp_path / "archive")

    assert (result["stored"], result["refused"]) == (1, 0)
    scan = archive.scan(rows[0]["scan_id"])
    assert scan.label_names == ("gtv",)
    volume = scan.read()
    image, mask = (nibabel.load(pair / f"STS_001_{name}.nii.gz") for name in ("ct", "gtv"))
    assert np.array_equal(volume.image_zyx, np.asarray(image.dataobj).T)
    assert np.array_equal(volume.labels["gtv"], np.asarray(mask.dataobj).T)
    to_lps = np.diag([-1, -1, 1, 1])
    assert volume.geometry.matrix == pytest.approx(to_lps @ mask.affine, abs=1e-4)
