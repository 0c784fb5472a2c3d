"""What becomes of files on their way into series: every one is in exactly one item."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from tomoray.assembly.stack import Rules
from tomoray.errors import Reason, Refused
from tomoray.ingest.drawings import read_drawings
from tomoray.ingest.inventory import Head, Inventory
from tomoray.ingest.loader import RefusedPart, load_volume_files
from tomoray.ingest.series import BadFile, DicomFile, DicomSeries, VolumeCase
from tomoray.nifti import write
from tomoray.privacy.deidentify import Deidentifier
from tomoray.privacy.pseudonyms import Pseudonyms
from tomoray.sources import SourceFile, read_file

NAMES = Pseudonyms(b"a key for tests only, of no worth")


def head(name: str, *, series: str = "1.1", ct: bool = True, draws_on: str | None = None, root: str = "/a") -> Head:
    return Head(
        series_uid=series,
        folder="" if series else root,
        root=root,
        key=name,
        size_bytes=100,
        sop_uid=f"2.{name}",
        study_uid="3",
        patient_id="p",
        is_ct=ct,
        draws_on=draws_on,
        voxel_bytes=10 if ct else 0,
    )


def sealed(*heads: Head) -> list[DicomSeries]:
    with Inventory() as inventory:
        inventory.add_heads(heads)
        inventory.seal(NAMES)
        assert len(inventory) == len(list(inventory.sizes()))
        return sorted((entry.item for entry in inventory.entries()), key=lambda item: item.series_uid)


def names(files: tuple[DicomFile, ...]) -> list[str]:
    return [file.key for file in files]


def test_files_of_one_series_come_together_in_order_whatever_source_they_are_from():
    (series,) = sealed(head("c"), head("a", root="/b"), head("b"))
    assert [(file.root, file.key) for file in series.files] == [("/a", "b"), ("/a", "c"), ("/b", "a")]
    assert (series.n_instances, series.size_bytes, series.voxel_bytes) == (3, 300, 30)


def test_files_without_a_series_are_told_apart_by_their_folder():
    found = sealed(head("a", series=""), head("b", series="", root="/b"), head("c", series=""))
    assert sorted(names(series.files) for series in found) == [["a", "c"], ["b"]]


def test_drawing_goes_to_the_ct_that_it_refers_to():
    (series,) = sealed(head("ct"), head("seg", series="1.9", ct=False, draws_on="1.1"))
    assert (names(series.files), names(series.drawings)) == (["ct"], ["seg"])


@pytest.mark.parametrize("draws_on", ["", "1.7"])
def test_drawings_of_one_series_on_a_ct_that_is_not_there_are_all_kept(draws_on):
    strays = [head(name, series="1.9", ct=False, draws_on=draws_on) for name in ("s1", "s2", "s3")]
    ct, stray = sealed(head("ct"), *strays)
    assert (names(ct.files), names(stray.files)) == (["ct"], ["s1", "s2", "s3"])


def test_drawing_under_the_series_uid_of_other_images_is_one_of_their_files():
    (series,) = sealed(head("ct"), head("seg", ct=False, draws_on="1.7"))
    assert names(series.files) == ["ct", "seg"]


def test_entries_come_sorted_and_by_their_first_digit():
    with Inventory() as inventory:
        inventory.add_heads(head(str(n), series=f"1.{n}") for n in range(100))
        inventory.add_items(
            [BadFile(file=SourceFile(root="/a", key="x", size_bytes=5), refusal=Refused(Reason.UNREADABLE, "broken"))],
            NAMES,
        )
        inventory.seal(NAMES)
        ids = [entry.identity.series_id for entry in inventory.entries()]
        by_digit = [e.identity.series_id for digit in "0123456789abcdef" for e in inventory.entries(like=digit)]
        assert (len(inventory), inventory.size_bytes, inventory.voxel_bytes) == (101, 100 * 100 + 5, 1000)
    assert ids == sorted(ids) == by_digit


def test_mask_that_is_damaged_in_its_zip_is_refused_and_its_image_stored(make_volume, tmp_path):
    volume = make_volume((4, 5, 6), labels=("mass",))
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a_ct.nii.gz", write(volume.image_zyx, volume.geometry))
        archive.writestr("a_mass.nii.gz", mask := write(volume.labels["mass"], volume.geometry))
    data = bytearray(path.read_bytes())
    data[data.find(mask) + len(mask) // 2] ^= 0xFF
    path.write_bytes(data)
    case = VolumeCase(
        root=str(path), case="a", image="a_ct.nii.gz", size_bytes=1, labels=(("mass", "a_mass.nii.gz", 1),)
    )
    scan, refused = load_volume_files(case, read_file, Deidentifier(NAMES), Rules())
    assert scan.volume.labels == {}
    assert isinstance(refused, RefusedPart)
    assert refused.refusal.reason == Reason.UNREADABLE


def test_drawing_that_cannot_be_read_is_refused_by_itself():
    (drawing,) = read_drawings([DicomFile("/nowhere", "seg.dcm", 1, "1")], read_file)
    assert (drawing.fits, drawing.refusal.reason) == (False, Reason.UNREADABLE)


def open_files() -> set[str]:
    links = (path for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
    return {name for name in map(os.readlink, links) if name.startswith("/")}


def test_a_large_inventory_is_on_disk_and_no_file_is_left_if_its_process_is_killed():
    before = open_files()
    with Inventory() as inventory:
        inventory.add_heads(head(f"SECRET-NAME/{number}.dcm", series=f"1.2.{number % 50}") for number in range(20_000))
        inventory.seal(NAMES)
        assert len(inventory) == 50
        files = open_files() - before
        assert files
        assert all(name.endswith(" (deleted)") for name in files)  # none has a name that could stay
