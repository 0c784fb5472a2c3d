from __future__ import annotations

import json

import numpy as np
import pytest

from cluster import cli
from tomoray.archive import Archive
from tomoray.catalog import Catalog, stored_row
from tomoray.config import Layout
from tomoray.statistics.fingerprint import save_fingerprint, take_fingerprint
from tomoray.windows import axial_windows

LAYOUT = Layout(chunk_zyx=(16, 16, 16), shard_zyx=(32, 32, 32), levels=2)


@pytest.fixture
def archives(s3, tmp_path, make_volume):
    """The same scan on disk and on S3."""
    made = [Archive.create(url, LAYOUT) for url in (str(tmp_path / "ct"), f"{s3.bucket()}/ct")]
    for archive in made:
        archive.write_scan(make_volume())
        Catalog(archive.store).upsert([stored_row(make_volume(), "0" * 64)])
    return made


def test_disk_and_s3_have_the_same_fingerprint(archives):
    taken = [take_fingerprint(archive, archive.scan_ids()) for archive in archives]
    for archive, each in zip(archives, taken, strict=True):
        save_fingerprint(archive.store, each)
    assert archives[0].store.read("fingerprint.json") == archives[1].store.read("fingerprint.json")


def test_plans_from_a_fingerprint_on_s3(archives, capsys):
    archive = archives[1]
    save_fingerprint(archive.store, take_fingerprint(archive, archive.scan_ids()))
    documents = []
    for source in (archive.url, f"{archive.url}/fingerprint.json"):
        assert cli.main(["plan-training", source, "--json"]) == 0
        documents.append(json.loads(capsys.readouterr().out))
    assert documents[0]["train"]["archive"] == archive.url
    assert documents[0]["choices"] == documents[1]["choices"]


def test_windows_are_read_from_s3(archives, make_volume):
    volume = make_volume()
    windows = axial_windows(archives[1].scan(volume.info.scan_id), (50, 41))
    np.testing.assert_array_equal(windows.read(list(windows)), volume.image_zyx)
