from __future__ import annotations

import os
from pathlib import Path

from tomoray.inventory import Head, Inventory
from tomoray.pseudonyms import Pseudonyms


def head(number: int) -> Head:
    return Head(
        series_uid=f"1.2.{number % 50}",
        folder="",
        root="/data",
        key=f"SECRET-NAME/{number}.dcm",
        size_bytes=10,
        sop_uid=f"1.3.{number}",
        study_uid="1.2",
        patient_id="SECRET-ID",
        is_ct=True,
        draws_on=None,
        voxel_bytes=8,
    )


def open_files() -> set[str]:
    links = (path for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
    return {name for name in map(os.readlink, links) if name.startswith("/")}


def test_a_large_inventory_is_on_disk_and_no_file_is_left_if_its_process_is_killed():
    before = open_files()
    with Inventory() as inventory:
        inventory.add_heads(head(number) for number in range(20_000))
        inventory.seal(Pseudonyms(b"a key for tests only, of no worth"))
        assert len(inventory) == 50
        files = open_files() - before
        assert files
        assert all(name.endswith(" (deleted)") for name in files)  # none has a name that could stay
