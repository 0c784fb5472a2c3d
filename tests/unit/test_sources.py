from __future__ import annotations

import dataclasses
import io
import os
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tomoray.config import NiftiPattern
from tomoray.dicom import STRUCTURE_SET_STORAGE
from tomoray.errors import Fatal, Reason, Refused, Usage
from tomoray.pseudonyms import Pseudonyms, public_root
from tomoray.sources import (
    SourceFile,
    group_dicom,
    group_volumes,
    list_series,
    list_source,
    read_file,
    read_head,
    read_headers,
    read_zip,
)
from tomoray.stack import build_stack

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


def test_folder_is_listed_by_key_and_a_folder_at_a_time(tmp_path, monkeypatch):
    for key in ("b/2", "a.dcm", "a/z", "a/b/c", "a-b", "b/1", "ß"):
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(b"1")
    read = []
    scandir = os.scandir
    monkeypatch.setattr("os.scandir", lambda folder: read.append(Path(folder).name) or scandir(folder))

    files = list_source(str(tmp_path))

    assert read == []
    assert [next(files).key, next(files).key] == ["a-b", "a.dcm"]
    assert read == [tmp_path.name]
    assert [file.key for file in files] == ["a/b/c", "a/z", "b/1", "b/2", "ß"]
    assert read == [tmp_path.name, "a", "b", "b"]


def test_source_that_does_not_know_its_series_says_so(tmp_path):
    assert list_series(str(tmp_path)) is None
    assert list_series("s3://bucket/ct") is None


def test_head_of_a_file_is_no_longer_than_asked_for(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_head(str(tmp_path), "a", 2) == b"12"
    assert read_head(str(tmp_path), "a", 9) == read_file(str(tmp_path), "a") == b"12345"


def test_unknown_scheme_is_wrong_usage():
    with pytest.raises(Usage, match="gs://bucket/ct"):
        list_source("gs://bucket/ct")


@pytest.mark.parametrize(
    ("root", "public"),
    [
        ("/data/ct", "/data/ct"),
        ("/data/ct//DOE/JANE.zip", "/data/ct"),
        ("s3://me@bucket//DOE.zip", "s3://me@bucket"),
        ("s3://bucket/ct//DOE/a.tar", "s3://bucket/ct"),
        ("dicomweb+https://host/pacs/studies/1.2.3/series/1.2.3.4", "dicomweb+https://host/pacs"),
        ("s3://anonymous@idc-open-data/0a1b", "s3://anonymous@idc-open-data/0a1b"),
    ],
)
def test_no_name_from_within_a_source_is_stored(root, public):
    assert public_root(root) == public


def test_structure_set_goes_with_its_series_and_alone_it_is_refused(make_series):
    image = make_series(3).instances()[0]
    drawn = dataclasses.replace(image, sop_class=STRUCTURE_SET_STORAGE, series_uid="9", key="rt", modality="RTSTRUCT")
    with_scan = dataclasses.replace(drawn, referenced_series=image.series_uid)

    [series] = group_dicom([with_scan, image])
    [_, alone] = group_dicom([drawn, image])

    assert [found.key for found in series.segmentations] == ["rt"]
    with pytest.raises(Refused, match="label_without_image"):
        build_stack(alone.instances, 1)
