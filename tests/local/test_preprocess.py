from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from jobs import preprocess
from tomoray import phantom
from tomoray.archive import Archive
from tomoray.catalog import Catalog
from tomoray.config import PhantomConfig, PreprocessConfig
from tomoray.errors import Fatal, Transient
from tomoray.storage import open_store

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cohort")
    phantom.write_cohort(PhantomConfig(out=str(out), patients=3, seed=7, matrix=64))
    return out


def config_of(cohort: Path, archive: Path, **fields) -> PreprocessConfig:
    return PreprocessConfig(sources=[str(cohort)], archive=str(archive), **fields)


def bytes_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_second_run_decodes_nothing_and_changes_no_byte(cohort, tmp_path):
    first = preprocess.run(config_of(cohort, tmp_path / "archive"))
    before = bytes_of(tmp_path / "archive")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "archive").rglob("*")}

    second = preprocess.run(config_of(cohort, tmp_path / "archive"))

    assert (first["stored"], first["refused"], first["skipped"]) == (3, 0, 0)
    assert (second["stored"], second["refused"], second["skipped"]) == (0, 0, 3)
    assert second["voxel_mb"] == 0
    assert bytes_of(tmp_path / "archive") == before
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "archive").rglob("*")} == times


def test_archives_in_a_folder_give_the_voxels_of_their_members(cohort, tmp_path):
    for number, patient in enumerate(sorted(cohort.iterdir())):
        shutil.make_archive(str(tmp_path / "packed" / patient.name), ("zip", "tar", "xztar")[number % 3], patient)

    plain = preprocess.run(config_of(cohort, tmp_path / "plain"))
    packed = preprocess.run(config_of(tmp_path / "packed", tmp_path / "from-packed"))

    assert (packed["stored"], packed["refused"], packed["files_ignored"]) == (plain["stored"], 0, 0)
    voxels = [
        {name: found for name, found in bytes_of(tmp_path / out / "scans").items() if not name.endswith(".json")}
        for out in ("plain", "from-packed")
    ]
    assert voxels[0] == voxels[1]
    rows = Catalog(open_store(str(tmp_path / "from-packed"))).rows()
    assert {row["source_uri"] for row in rows} == {str(tmp_path / "packed")}


def test_an_interrupted_run_ends_with_the_same_bytes(cohort, tmp_path):
    preprocess.run(config_of(cohort, tmp_path / "whole"))
    preprocess.run(config_of(cohort, tmp_path / "cut"))
    scan = next((tmp_path / "cut" / "scans").iterdir())
    (scan / "zarr.json").unlink()  # as if the machine had been lost before the mark was written
    next(path for path in scan.rglob("*") if path.is_file() and path.name != "zarr.json").unlink()
    for part in (tmp_path / "cut" / "catalog").iterdir():
        part.unlink()
    assert scan.name not in Archive.open(str(tmp_path / "cut")).scan_ids()

    again = preprocess.run(config_of(cohort, tmp_path / "cut"))

    assert again["stored"] == 3
    assert bytes_of(tmp_path / "cut") == bytes_of(tmp_path / "whole")


def test_segmentations_become_labels_on_the_scans_grid(cohort, tmp_path):
    preprocess.run(config_of(cohort, tmp_path / "archive"))
    archive = Archive.open(str(tmp_path / "archive"))
    for scan_id in archive.scan_ids():
        volume = archive.scan(scan_id).read()
        lungs, nodules = volume.labels["lungs"] > 0, volume.labels["nodules"] > 0
        assert volume.image_zyx[lungs & ~nodules].mean() < -700
        assert volume.image_zyx[nodules].mean() > volume.image_zyx[lungs].mean() + 150


def test_a_truncated_slice_is_refused_and_the_run_goes_on(cohort, tmp_path):
    broken = tmp_path / "broken"
    for path in cohort.rglob("*.dcm"):
        target = broken / path.relative_to(cohort)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    victim = next(iter(sorted(broken.rglob("ct/*.dcm"))))
    data = victim.read_bytes()
    victim.unlink()
    victim.write_bytes(data[: len(data) - len(data) // 4])

    result = preprocess.run(config_of(broken, tmp_path / "archive"))

    assert result["stored"] == 2
    assert result["refused"] == 1
    assert set(result["reasons"]) <= {"undecodable_pixels", "unreadable"}
    rows = Catalog(open_store(str(tmp_path / "archive"))).rows()
    assert sorted(row["status"] for row in rows) == ["refused", "stored", "stored"]


def test_a_scan_once_stored_is_kept_when_its_files_are_found_damaged(cohort, tmp_path):
    source = tmp_path / "source"
    patient = sorted(cohort.iterdir())[0]
    for path in patient.rglob("*.dcm"):
        target = source / path.relative_to(cohort)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    preprocess.run(config_of(source, tmp_path / "archive"))
    before = bytes_of(tmp_path / "archive")
    sorted(source.rglob("ct/*.dcm"))[5].unlink()

    result = preprocess.run(config_of(source, tmp_path / "archive"))

    assert result["reasons"] == {"missing_slices": 1}
    assert bytes_of(tmp_path / "archive") == before


@pytest.mark.parametrize("content", [None, "just text"])
def test_nothing_to_read_is_one_line_and_leaves_nothing_behind(tmp_path, content):
    source = tmp_path / "source"
    source.mkdir()
    if content:
        (source / "notes.txt").write_text(content)
    with pytest.raises(Fatal) as caught:
        preprocess.run(config_of(source, tmp_path / "archive"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "archive").exists()


def test_a_scan_that_was_deleted_is_stored_again(cohort, tmp_path):
    preprocess.run(config_of(cohort, tmp_path / "archive"))
    before = bytes_of(tmp_path / "archive")
    archive = Archive.open(str(tmp_path / "archive"))
    archive.delete_scan(archive.scan_ids()[0])

    result = preprocess.run(config_of(cohort, tmp_path / "archive"))

    assert (result["stored"], result["skipped"]) == (1, 2)
    assert bytes_of(tmp_path / "archive") == before


def test_a_scan_that_was_replaced_while_the_run_was_killed_is_removed_by_the_next(cohort, tmp_path):
    source, archive = tmp_path / "source", tmp_path / "archive"
    shutil.copytree(sorted(cohort.iterdir())[0], source)
    preprocess.run(config_of(source, archive))
    (old,) = (archive / "scans").iterdir()
    shutil.copytree(old, tmp_path / "old")
    sorted(source.rglob("ct/*.dcm"), key=lambda path: path.name)[-1].unlink()
    preprocess.run(config_of(source, archive))
    after = bytes_of(archive)
    shutil.copytree(tmp_path / "old", old)  # as if it had been killed after the rows and before the deletion

    preprocess.run(config_of(source, archive))

    assert not old.exists()
    assert bytes_of(archive) == after


def test_complete_scans_outlive_a_lost_catalog(cohort, tmp_path):
    preprocess.run(config_of(cohort, tmp_path / "archive"))
    before = bytes_of(tmp_path / "archive")
    shutil.rmtree(tmp_path / "archive" / "catalog")
    one = tmp_path / "one"
    one.symlink_to(sorted(cohort.iterdir())[0])

    preprocess.run(config_of(one, tmp_path / "archive"))

    after = bytes_of(tmp_path / "archive")
    assert {path: after[path] for path in before if path.startswith("scans/")} == {
        path: digest for path, digest in before.items() if path.startswith("scans/")
    }


def test_rows_of_a_flush_that_met_trouble_come_with_the_next(cohort, tmp_path, monkeypatch):
    preprocess.run(config_of(cohort, tmp_path / "whole"))
    upsert, troubles = Catalog.upsert, iter([Transient("the bucket is busy")] * 2)

    def in_trouble(self, rows):
        for trouble in troubles:
            raise trouble
        upsert(self, rows)

    monkeypatch.setattr(Catalog, "upsert", in_trouble)
    monkeypatch.setattr(preprocess, "FLUSH_EVERY_S", 0)

    preprocess.run(config_of(cohort, tmp_path / "archive"))

    assert next(troubles, None) is None
    assert bytes_of(tmp_path / "archive") == bytes_of(tmp_path / "whole")
