from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tomoray.archive import Archive
from tomoray.config import Layout
from tomoray.errors import Fatal
from tomoray.geometry import Geometry
from tomoray.statistics.arrays import image_array, label_array
from tomoray.statistics.body import find_body
from tomoray.statistics.fingerprint import (
    Fingerprint,
    current_fingerprint,
    read_fingerprint,
    save_fingerprint,
    take_fingerprint,
)
from tomoray.statistics.histograms import Histogram

LAYOUT = Layout(chunk_zyx=(8, 16, 16), shard_zyx=(16, 32, 32), levels=2)
IDS = ["a" * 20, "b" * 20]


@pytest.fixture
def volumes(make_volume):
    return [make_volume((37, 50, 41), scan_id=IDS[0]), make_volume((20, 33, 64), scan_id=IDS[1], seed=1)]


@pytest.fixture
def archive(tmp_path: Path, volumes) -> Archive:
    made = Archive.create(str(tmp_path / "archive"), LAYOUT)
    for volume in volumes:
        made.write_scan(volume)
    return made


def test_histogram_agrees_with_numpy_on_the_voxels() -> None:
    rng = np.random.default_rng(3)
    hu = rng.integers(-1024, 3071, (5, 60, 70), dtype=np.int16)
    hu[0, 0, :2] = np.iinfo(np.int16).min, np.iinfo(np.int16).max
    counted = Histogram.of(hu)
    assert (counted.n, counted.min, counted.max) == (hu.size, hu.min(), hu.max())
    assert counted.mean == pytest.approx(hu.mean(dtype=np.float64), rel=1e-12)
    assert counted.std == pytest.approx(hu.std(dtype=np.float64), rel=1e-12)
    for percent in (0, 0.5, 10, 50, 99.5, 100):
        assert counted.percentile(percent) == pytest.approx(np.percentile(hu, percent), rel=1e-12)


def test_histograms_add_up_in_any_order() -> None:
    rng = np.random.default_rng(4)
    parts = [Histogram.of(rng.integers(low, low + 90, 500, dtype=np.int16)) for low in (-900, -20, 1500)]
    forward = Histogram.total([Histogram.empty(), *parts])
    backward = Histogram.total(reversed(parts))
    assert forward.first_hu == backward.first_hu
    np.testing.assert_array_equal(forward.counts, backward.counts)
    assert forward.n == 1500


def test_coarse_bins_keep_every_voxel() -> None:
    counted = Histogram.of(np.array([-1024, -901, -900, 0, 99, 2000], dtype=np.int16))
    assert counted.rebinned(100, -1000, 100).tolist() == [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 3]


def test_no_voxel_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="no voxel"):
        Histogram.of(np.zeros((0, 4), dtype=np.int16)).percentile(50)


def test_arrays_hold_a_chunk_for_each_shard_and_the_same_voxels(archive: Archive, volumes) -> None:
    scan = archive.scan(IDS[0])
    image, lungs = image_array(scan), label_array(scan, "lungs")
    assert image.chunks == lungs.chunks == ((16, 16, 5), (32, 18), (32, 9))
    np.testing.assert_array_equal(image.compute(scheduler="threads"), volumes[0].image_zyx)
    np.testing.assert_array_equal(lungs.compute(scheduler="threads"), volumes[0].labels["lungs"])


def test_numbers_are_those_of_the_voxels(archive: Archive, volumes) -> None:
    found = take_fingerprint(archive, IDS)
    for volume, scan in zip(volumes, found.scans, strict=True):
        inside = volume.image_zyx[volume.labels["lungs"] > 0]
        assert scan.label_hu["lungs"].n_voxels == inside.size
        assert scan.label_hu["lungs"].percentile_99_5 == pytest.approx(np.percentile(inside, 99.5))
        assert scan.label_hu["lungs"].std == pytest.approx(inside.std(dtype=np.float64))
        assert scan.volume_ml["lungs"] == pytest.approx(inside.size * volume.geometry.voxel_volume_ml)
        assert scan.size_bytes == 4 * volume.image_zyx.size
    anywhere = [v.image_zyx[(v.labels["lungs"] | v.labels["nodules"]) > 0] for v in volumes]
    assert found.hu["foreground"].mean == pytest.approx(np.concatenate(anywhere).mean())
    assert found.hu["scan"].n_voxels == sum(volume.image_zyx.size for volume in volumes)
    assert sum(found.histogram["scan"].counts) == found.hu["scan"].n_voxels
    assert found.shape["z"].median == pytest.approx((37 + 20) / 2)
    assert found.label_scans == {"lungs": 2, "nodules": 2}


def test_scans_without_labels_stand_beside_those_with(tmp_path: Path, make_volume) -> None:
    archive = Archive.create(str(tmp_path / "archive"), LAYOUT)
    archive.write_scan(make_volume((9, 20, 20), scan_id=IDS[0], labels=()))
    archive.write_scan(make_volume((9, 20, 20), scan_id=IDS[1], labels=("lungs",)))
    found = take_fingerprint(archive, IDS)
    assert found.label_scans == {"lungs": 1}
    assert found.volume_ml["lungs"].n == 1
    assert "foreground" not in found.scans[0].hu
    assert found.hu["foreground"].n_voxels == found.label_hu["lungs"].n_voxels


def test_shares_of_labels_within_labels(tmp_path: Path, make_volume) -> None:
    volume = make_volume((16, 16, 16))
    outer, inner = volume.labels["lungs"], volume.labels["nodules"]
    outer[4:12], inner[:] = 1, 0
    inner[3:5, :, :4] = 1
    outer[3] = 0
    archive = Archive.create(str(tmp_path / "archive"), LAYOUT)
    archive.write_scan(volume)
    assert take_fingerprint(archive, archive.scan_ids()).inside == {"lungs": {"nodules": 0.5}}


def test_same_archive_gives_the_same_bytes_whatever_the_order_of_work(archive: Archive) -> None:
    texts = [
        take_fingerprint(archive, ids, scheduler=scheduler, in_flight=n).model_dump_json()
        for ids, scheduler, n in ((IDS, "threads", 4), (IDS[::-1], "synchronous", 1), (IDS, "threads", 1))
    ]
    assert texts[0] == texts[1] == texts[2]


def test_saved_fingerprint_holds_for_its_very_scans(archive: Archive) -> None:
    assert current_fingerprint(archive, IDS) is None
    taken = take_fingerprint(archive, IDS)
    save_fingerprint(archive.store, taken)
    assert read_fingerprint(archive.store) == taken
    assert current_fingerprint(archive, reversed(IDS)) == taken
    assert current_fingerprint(archive, IDS[:1]) is None
    assert Fingerprint.model_validate_json(taken.model_dump_json()) == taken


def test_refuses_what_is_no_fingerprint(archive: Archive) -> None:
    archive.store.write("fingerprint.json", json.dumps({"format": 1}).encode())
    with pytest.raises(Fatal, match="not a fingerprint"):
        read_fingerprint(archive.store)
    archive.store.write("fingerprint.json", json.dumps({"format": 99}).encode())
    with pytest.raises(Fatal, match="upgrade"):
        read_fingerprint(archive.store)


def test_empty_archive_says_how_to_fill_it(tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "archive"), LAYOUT)
    with pytest.raises(Fatal, match="tomoray preprocess"):
        take_fingerprint(archive, [])


def test_a_lost_shard_is_an_error_and_never_air(archive: Archive) -> None:
    Path(archive.url, "scans", IDS[0], "0", "c", "1", "0", "1").unlink()
    with pytest.raises(Fatal):
        take_fingerprint(archive, IDS)


def test_body_is_without_the_table_and_with_the_lungs() -> None:
    image = np.full((6, 64, 64), -1000, dtype=np.int16)
    y, x = np.mgrid[:64, :64]
    trunk = ((y - 28) / 16) ** 2 + ((x - 32) / 22) ** 2 <= 1
    image[:, trunk] = 40
    lung = ((y - 28) / 8) ** 2 + ((x - 22) / 6) ** 2 <= 1
    image[:, lung] = -850
    table = (y >= 44) & (y < 46) & (x >= 4) & (x < 60)  # touches the back
    image[:, table] = 100
    geometry = Geometry.from_matrix(image.shape, np.diag([4.0, 4.0, 5.0, 1.0]))
    body = find_body(image, geometry)
    assert body[:, lung].all()
    assert not body[:, table & (abs(x - 32) > 10)].any()
    assert body[0].sum() == pytest.approx(trunk.sum(), rel=0.03)


def test_body_is_the_same_whatever_the_stored_order(make_volume) -> None:
    image = make_volume((12, 30, 28)).image_zyx
    geometry = Geometry.from_matrix(image.shape, np.diag([2.0, 2.0, 5.0, 1.0]))
    turned = np.ascontiguousarray(np.transpose(image, (2, 0, 1))[::-1])
    matrix = geometry.matrix @ np.array([[0, 0, -1, 27], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=float)
    body = find_body(turned, Geometry.from_matrix(turned.shape, matrix))
    np.testing.assert_array_equal(body, np.transpose(find_body(image, geometry), (2, 0, 1))[::-1])


def test_nothing_but_air_has_no_body() -> None:
    image = np.full((3, 8, 8), -1000, dtype=np.int16)
    assert not find_body(image, Geometry.from_matrix(image.shape, np.eye(4))).any()
