"""What training refuses about an archive before it begins: one clear line each, nothing written."""

from __future__ import annotations

import numpy as np
import pytest

from jobs import train
from tomoray.catalog import Split
from tomoray.errors import Fatal
from tomoray.runs import begin_run, catalog_sha256
from tomoray.storage import open_store
from tomoray.training.config import TrainConfig

PARTS = {"train": ["a", "b"], "validation": ["c"], "test": []}


def row(scan_id, patient=None, labels=("lungs",), digest="0"):
    return {"scan_id": scan_id, "patient_id": patient or scan_id, "labels": list(labels), "input_sha256": digest}


@pytest.fixture
def archive(tiny_archive):
    """Nodules in the scans a and b, none in c."""
    image, full, empty = np.zeros((8, 8, 8)), np.ones((8, 8, 8), np.uint8), np.zeros((8, 8, 8), np.uint8)
    return tiny_archive(
        {scan_id: (image, {"lungs": full, "nodules": full if scan_id != "c" else empty}) for scan_id in ("a", "b", "c")}
    )


def test_a_label_that_a_part_never_shows_is_named_with_the_part(archive):
    train._check_classes(archive, PARTS, ["lungs"])
    told = r"label 'nodules' is empty in all 1 scans of part 'validation'; add patients .* or choose another split.seed"
    with pytest.raises(Fatal, match=told):
        train._check_classes(archive, PARTS, ["lungs", "nodules"])
    train._check_classes(archive, {**PARTS, "validation": ["a", "c"]}, ["lungs", "nodules"])


def test_a_part_without_patients_misses_nothing(archive):
    train._check_classes(archive, {**PARTS, "validation": []}, ["lungs", "nodules"])


def test_a_patient_in_two_parts_is_named_with_both():
    rows = [row("a"), row("b"), row("c")]
    split = Split(train=("a", "b"), validation=("c",), test=("b",))
    with pytest.raises(Fatal, match=r"patient b is in the parts train and test of the split; .* into one part"):
        train._scans_by_part(rows, split, ["lungs"])


def test_all_scans_of_a_patient_are_in_one_part():
    rows = [row("a1", "a"), row("b1", "b"), row("a2", "a"), row("d1", "d")]
    split = Split(train=("a",), validation=("b",), test=())
    assert train._scans_by_part(rows, split, ["lungs"]) == {"train": ["a1", "a2"], "validation": ["b1"], "test": []}


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[:2],
        lambda rows: [*rows, row("a2", "a")],
        lambda rows: [*rows[:2], row("c", digest="1")],
        lambda rows: [*rows[:2], row("c", labels=("lungs", "nodules"))],
    ],
    ids=["removed", "added", "made anew", "labelled anew"],
)
def test_an_archive_that_changed_since_the_run_began_is_refused(archive, tmp_path, change):
    rows, split = [row("a"), row("b"), row("c")], Split(train=("a", "b"), validation=("c",), test=())
    store = open_store(str(tmp_path / "run"))
    begin_run(store, TrainConfig(labels=["lungs"]), split, train._archive_sha256(rows, split))
    train._check_archive_is_the_same(store, archive, train._archive_sha256(rows[::-1], split))
    with pytest.raises(Fatal, match=r"has changed since run .* began: .* choose another --out"):
        train._check_archive_is_the_same(store, archive, train._archive_sha256(change(rows), split))


def test_patients_that_came_after_a_run_began_change_nothing(archive, tmp_path):
    rows, split = [row("a"), row("b"), row("c")], Split(train=("a", "b"), validation=("c",), test=())
    store = open_store(str(tmp_path / "run"))
    begin_run(store, TrainConfig(labels=["lungs"]), split, train._archive_sha256(rows, split))
    train._check_archive_is_the_same(store, archive, train._archive_sha256([*rows, row("d")], split))
    assert catalog_sha256([*rows, row("d")]) != catalog_sha256(rows)
