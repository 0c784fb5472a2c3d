from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tomoray.config import NiftiPattern
from tomoray.errors import Fatal, Reason, Refused
from tomoray.pseudonyms import Pseudonyms
from tomoray.sources import SourceFile, group_dicom, group_volumes, list_source, read_headers, read_zip

NAMES = Pseudonyms(b"a key for tests only, of no worth")


def write(series, folder: Path) -> None:
    series.instances()
    folder.mkdir(parents=True)
    for name, data in series.files.items():
        (folder / name).write_bytes(data)


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_loose_mixed_folder_is_grouped_by_series(make_series, tmp_path):
    one, other = make_series(4), make_series(5)
    for dataset in other.datasets:
        dataset.SeriesInstanceUID = "1.2.3.9"
        dataset.SOPInstanceUID += ".9"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    write(one, tmp_path / "a")
    write(other, tmp_path / "a" / "deep")
    (tmp_path / "readme.txt").write_text("no image")

    instances, bad = read_headers(list(list_source(str(tmp_path))))
    random.Random(0).shuffle(instances)

    assert [len(series.instances) for series in group_dicom(instances)] == [4, 5]
    assert bad == []


def test_file_that_should_be_dicom_and_is_not_is_accounted_for(tmp_path):
    (tmp_path / "broken.dcm").write_text("SECRET^NAME")
    (tmp_path / "empty.dcm").write_bytes(b"")
    instances, bad = read_headers(list(list_source(str(tmp_path))))
    assert instances == []
    assert [entry.refusal.reason for entry in bad] == [Reason.UNREADABLE] * 2
    assert "SECRET" not in "".join(str(entry.refusal) for entry in bad)


def test_long_header_is_read_to_its_end(make_series, tmp_path):
    series = make_series(3)
    for dataset in series.datasets:
        dataset.add_new(0x00091010, "OB", bytes(200_000))  # private, before the pixels
    write(series, tmp_path / "a")
    instances, bad = read_headers(list(list_source(str(tmp_path))))
    assert len(instances) == 3
    assert bad == []


def test_nifti_masks_find_their_image_though_names_hold_underscores():
    names = ["STS_001_ct.nii.gz", "STS_001_gtv.nii.gz", "STS_001_lung_left.nii.gz", "STS_002_gtv.nii.gz"]
    files = [SourceFile(root="r", key=f"deep/{name}", size_bytes=1) for name in names]

    cases, unpaired = group_volumes(files, NiftiPattern())

    assert [(case.case, [name for name, *_ in case.labels]) for case in cases] == [("STS_001", ["gtv", "lung_left"])]
    assert [entry.file.key for entry in unpaired] == ["deep/STS_002_gtv.nii.gz"]


def test_nifti_pattern_is_free():
    files = [SourceFile(root="r", key=key, size_bytes=1) for key in ("img-7.nii", "liver-of-7.nii")]
    cases, unpaired = group_volumes(files, NiftiPattern(image="img-{case}.nii", label="{label}-of-{case}.nii"))
    assert [(case.case, case.labels) for case in cases] == [("7", (("liver", "liver-of-7.nii", 1),))]
    assert unpaired == []


def test_one_scan_comes_out_of_a_zip(make_series):
    series = make_series(5)
    wanted = series.load().volume

    loaded = read_zip(zip_of({**series.files, "notes.txt": b"hello"}), 10**6, NAMES)

    assert np.array_equal(loaded.volume.image_zyx, wanted.image_zyx)
    assert [float(h.ImagePositionPatient[2]) for h in loaded.headers] == [-100, -97.5, -95, -92.5, -90]


def test_zip_bomb_and_nonsense_are_turned_away(make_series):
    with pytest.raises(Fatal, match="more than 1000 bytes"):
        read_zip(zip_of({"a.dcm": b"\0" * 10**7}), 1000, NAMES)
    with pytest.raises(Fatal, match="cannot be read"):
        read_zip(b"PK\x03\x04 nonsense", 1000, NAMES)
    with pytest.raises(Fatal, match="no DICOM file"):
        read_zip(zip_of({"a.txt": b"hello"}), 1000, NAMES)


def test_zip_of_a_broken_series_is_refused_with_its_reason(make_series):
    series = make_series(6)
    del series.datasets[2]
    series.instances()
    with pytest.raises(Refused, match="missing_slices"):
        read_zip(zip_of(series.files), 10**6, NAMES)


def test_missing_source_is_one_clear_line():
    with pytest.raises(Fatal, match="no folder or file at /no/such/place"):
        list_source("/no/such/place")


def test_any_file_name_is_listed_and_links_in_a_ring_end(make_series, tmp_path):
    series = make_series(3)
    series.instances()
    for name, data in zip(["a#1", "b\x01.dcm", "c d [1]?.ima"], series.files.values(), strict=True):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "ring").symlink_to(tmp_path)
    (tmp_path / "nowhere.dcm").symlink_to(tmp_path / "gone")

    instances, bad = read_headers(list(list_source(str(tmp_path))))

    assert len(instances) == 3
    assert [str(entry.refusal) for entry in bad] == ["unreadable: a file cannot be opened (No such file or directory)"]
