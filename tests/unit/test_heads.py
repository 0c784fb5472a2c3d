from __future__ import annotations

import dataclasses
import random
from pathlib import Path

from tomoray.dicom.headers import STRUCTURE_SET_STORAGE
from tomoray.errors import Reason
from tomoray.ingest.inventory import group_dicom, head_of, read_heads
from tomoray.privacy.pseudonyms import Pseudonyms
from tomoray.sources import list_source

NAMES = Pseudonyms(b"a key for tests only, of no worth")


def write(series, folder: Path) -> None:
    series.instances()
    folder.mkdir(parents=True)
    for name, data in series.files.items():
        (folder / name).write_bytes(data)


def test_loose_mixed_folder_is_grouped_by_series(make_series, tmp_path):
    one, other = make_series(4), make_series(5)
    for dataset in other.datasets:
        dataset.SeriesInstanceUID = "1.2.3.9"
        dataset.SOPInstanceUID += ".9"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    write(one, tmp_path / "a")
    write(other, tmp_path / "a" / "deep")
    (tmp_path / "readme.txt").write_text("no image")

    heads, bad, _ = read_heads(list(list_source(str(tmp_path))))
    random.Random(0).shuffle(heads)

    assert sorted(series.n_instances for series in group_dicom(heads, NAMES)) == [4, 5]
    assert bad == []


def test_file_that_should_be_dicom_and_is_not_is_accounted_for(tmp_path):
    (tmp_path / "broken.dcm").write_text("SECRET^NAME")
    (tmp_path / "empty.dcm").write_bytes(b"")
    heads, bad, _ = read_heads(list(list_source(str(tmp_path))))
    assert heads == []
    assert [entry.refusal.reason for entry in bad] == [Reason.UNREADABLE] * 2
    assert "SECRET" not in "".join(str(entry.refusal) for entry in bad)


def test_long_header_is_read_to_its_end(make_series, tmp_path):
    series = make_series(3)
    for dataset in series.datasets:
        dataset.add_new(0x00091010, "OB", bytes(200_000))  # private, before the pixels
    write(series, tmp_path / "a")
    heads, bad, _ = read_heads(list(list_source(str(tmp_path))))
    assert len(heads) == 3
    assert bad == []


def test_any_file_name_is_listed_and_links_in_a_ring_end(make_series, tmp_path):
    series = make_series(3)
    series.instances()
    for name, data in zip(["a#1", "b\x01.dcm", "c d [1]?.ima"], series.files.values(), strict=True):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "ring").symlink_to(tmp_path)
    (tmp_path / "nowhere.dcm").symlink_to(tmp_path / "gone")

    heads, bad, _ = read_heads(list(list_source(str(tmp_path))))

    assert len(heads) == 3
    assert [str(entry.refusal) for entry in bad] == ["unreadable: a file cannot be opened (No such file or directory)"]


def test_structure_set_goes_with_its_series_and_alone_it_is_its_own(make_series):
    image = make_series(3).instances()[0]
    drawn = dataclasses.replace(image, sop_class=STRUCTURE_SET_STORAGE, series_uid="9", key="rt", modality="RTSTRUCT")
    with_scan = dataclasses.replace(drawn, referenced_series=image.series_uid)

    [series] = group_dicom([head_of(with_scan), head_of(image)], NAMES)
    alone = group_dicom([head_of(drawn), head_of(image)], NAMES)

    assert [file.key for file in series.drawings] == ["rt"]
    assert sorted((found.series_uid, found.drawings) for found in alone) == [("1.2.3.4", ()), ("9", ())]


def test_structure_set_alone_is_refused(make_series):
    series = make_series(3)
    for dataset in series.datasets:
        dataset.SOPClassUID = STRUCTURE_SET_STORAGE
        dataset.file_meta.MediaStorageSOPClassUID = STRUCTURE_SET_STORAGE
    assert {part.refusal.reason for part in series.parts()} == {Reason.LABEL_WITHOUT_IMAGE}
