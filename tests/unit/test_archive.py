import dataclasses
import hashlib
import json
import pickle

import numpy as np
import pytest
import tensorstore
import zarr
from ome_zarr_models.v05 import Image
from ome_zarr_models.v05.labels import Labels

from tomoray.archive import Archive
from tomoray.config import Layout
from tomoray.errors import Fatal, Usage
from tomoray.multiscale import array_metadata, halve, open_array, random_voxels, write_levels
from tomoray.storage import open_store

LAYOUT = Layout(chunk_zyx=(16, 16, 16), shard_zyx=(32, 32, 32))


def sums(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def archive(tmp_path):
    return Archive.create(str(tmp_path / "archive"), LAYOUT)


def test_reads_back_voxels_masks_geometry_and_provenance(archive, make_volume):
    volume = make_volume()
    archive.write_scan(volume)
    found = Archive.open(archive.url).scan(volume.info.scan_id).read()
    assert np.array_equal(found.image_zyx, volume.image_zyx)
    assert found.labels.keys() == volume.labels.keys()
    assert all(np.array_equal(found.labels[name], volume.labels[name]) for name in volume.labels)
    assert found.geometry == volume.geometry
    assert found.info == volume.info


@pytest.mark.parametrize("shape_zyx", [(3, 16, 16), (32, 33, 31), (1, 1, 1), (70, 20, 16)])
def test_stores_any_shape(archive, make_volume, shape_zyx):
    volume = make_volume(shape_zyx, labels=())
    archive.write_scan(volume)
    assert np.array_equal(archive.scan(volume.info.scan_id).image().read().result(), volume.image_zyx)


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_shards_hold_the_chunks_that_tensorstore_would_write(tmp_path, make_volume, codec):
    layout = Layout(chunk_zyx=(16, 16, 16), shard_zyx=(32, 32, 32), codec=codec)
    image = make_volume().image_zyx.copy()
    image[20:] = np.random.default_rng(3).integers(-32768, 32768, image[20:].shape)  # cannot be compressed
    write_levels(open_store(str(tmp_path / "ours")), image, layout)
    theirs = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{tmp_path}/theirs/0/"}}
    theirs |= {"metadata": array_metadata(image, layout), "store_data_equal_to_fill_value": True}
    tensorstore.open(theirs, create=True).result().write(image).result()
    shards = sorted(path.relative_to(tmp_path / "theirs") for path in tmp_path.glob("theirs/0/c/*/*/*"))
    assert shards == sorted(path.relative_to(tmp_path / "ours") for path in tmp_path.glob("ours/0/c/*/*/*"))
    for shard in shards:
        there = [absent((tmp_path / side / shard).read_bytes()) for side in ("ours", "theirs")]
        assert there[0] == there[1]
    assert np.array_equal(open_array(open_store(str(tmp_path / "ours" / "0"))).read().result(), image)


def absent(shard):
    """Which of a shard's eight chunks lie beyond the array."""
    return [offset == 2**64 - 1 for offset in np.frombuffer(shard[-8 * 16 - 4 : -4], "<u8")[::2]]


def test_windows_equal_slices_of_the_volume(archive, make_volume):
    volume = make_volume()
    archive.write_scan(volume)
    scan = archive.scan(volume.info.scan_id)
    corners = [(0, 0, 0), (5, 20, 15), (13, 26, 17)]
    windows = [tuple(slice(at, at + 24) for at in corner) for corner in corners]
    pending = [(scan.image()[window].read(), scan.label("lungs")[window].read()) for window in windows]
    for window, (image, mask) in zip(windows, pending, strict=True):
        assert np.array_equal(image.result(), volume.image_zyx[window])
        assert np.array_equal(mask.result(), volume.labels["lungs"][window])


def test_the_same_volume_gives_the_same_bytes(tmp_path, make_volume):
    for name in ("a", "b"):
        Archive.create(str(tmp_path / name), LAYOUT).write_scan(make_volume())
    assert sums(tmp_path / "a") == sums(tmp_path / "b")


def test_writing_again_touches_nothing(tmp_path, archive, make_volume):
    archive.write_scan(make_volume())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    archive.write_scan(make_volume())
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_an_unfinished_scan_is_invisible_and_is_finished_with_the_same_bytes(tmp_path, archive, make_volume):
    volume = make_volume()
    scan_id = volume.info.scan_id
    archive.write_scan(volume)
    whole = sums(tmp_path)
    folder = tmp_path / "archive" / "scans" / scan_id
    (folder / "zarr.json").unlink()
    (folder / "0" / "c" / "1" / "0" / "0").write_bytes(b"torn")
    assert not archive.has_scan(scan_id)
    assert archive.scan_ids() == []
    with pytest.raises(Fatal, match=f"no complete scan '{scan_id}'"):
        archive.scan(scan_id)
    archive.write_scan(volume)
    assert archive.scan_ids() == [scan_id]
    assert sums(tmp_path) == whole


def test_the_mark_is_written_last(archive, make_volume, monkeypatch):
    order = []
    write = type(archive.store).write
    monkeypatch.setattr(
        type(archive.store),
        "write",
        lambda self, key, data: (order.append(f"{self.url}/{key}"), write(self, key, data)),
    )
    archive.write_scan(make_volume())
    assert order[-1] == f"{archive.url}/scans/{'5ca9' * 5}/zarr.json"
    assert len(order) == len(set(order)) == len(archive.store.list()) - 1  # each object once; tomoray.json was there


def test_every_other_zarr_reader_finds_the_same_voxels(archive, make_volume):
    volume = make_volume()
    archive.write_scan(volume)
    group = zarr.open_group(f"{archive.url}/scans/{volume.info.scan_id}", mode="r")
    assert np.array_equal(group["0"][:], volume.image_zyx)
    assert np.array_equal(group["labels/lungs/0"][:], volume.labels["lungs"])
    assert group["0"].metadata.dimension_names == ("z", "y", "x")
    assert group["0"].fill_value == -1024


def test_is_valid_ome_ngff(archive, make_volume):
    volume = make_volume()
    archive.write_scan(volume)
    group = zarr.open_group(f"{archive.url}/scans/{volume.info.scan_id}", mode="r")
    multiscale = Image.from_zarr(group).attributes.ome.multiscales[0]
    assert [(axis.name, axis.unit) for axis in multiscale.axes] == [(axis, "millimeter") for axis in "zyx"]
    assert Labels.from_zarr(group["labels"]).label_paths == ["lungs", "nodules"]


def test_levels_lie_where_they_belong(archive, make_volume):
    """The first voxel of level 2 spans four voxels: its centre is 1.5 voxels from the first voxel's."""
    volume = make_volume()
    archive.write_scan(volume)
    group = zarr.open_group(f"{archive.url}/scans/{volume.info.scan_id}", mode="r")
    scale, translation = Image.from_zarr(group).attributes.ome.multiscales[0].datasets[2].coordinateTransformations
    spacing = np.array(volume.geometry.spacing_zyx_mm)
    assert np.allclose(scale.scale, 4 * spacing)
    assert np.allclose(translation.translation, 1.5 * spacing)


def test_halving_takes_means_and_counts_odd_edges_twice():
    image = np.array([[[1, 3, 5], [2, 4, -7]], [[0, 0, 0], [1, 1, 1]]], dtype=np.int16)
    assert halve(image).tolist() == [[[2, 0]]]  # (1+3+2+4+0+0+1+1)/8 = 1.5; (5+5-7-7+0+0+1+1)/8 = -0.25
    assert halve(np.full((3, 3, 3), -1024, dtype=np.int16)).tolist() == np.full((2, 2, 2), -1024).tolist()


def test_halving_a_mask_keeps_voxels_that_are_at_least_half_full():
    mask = np.zeros((2, 2, 4), dtype=np.uint8)
    mask[0, :, :2] = 1
    mask[0, 0, 2:] = 1
    assert halve(mask).tolist() == [[[1, 0]]]


def test_a_lost_object_is_an_error_and_never_air(tmp_path, archive, make_volume):
    volume = make_volume()
    archive.write_scan(volume)
    scan_folder = tmp_path / "archive" / "scans" / volume.info.scan_id
    for lost in ("0/c/0/0/0", "labels/lungs/0/c/0/0/0"):
        data = (scan_folder / lost).read_bytes()
        (scan_folder / lost).unlink()
        with pytest.raises(Fatal, match="missing or damaged"):
            archive.scan(volume.info.scan_id).read()
        (scan_folder / lost).write_bytes(data)


def test_foreground_voxels_are_a_repeatable_even_draw_from_the_mask(archive, make_volume):
    volume = make_volume()
    archive.write_scan(volume)
    voxels = archive.scan(volume.info.scan_id).foreground_voxels_zyx("lungs")
    assert 500 <= len(voxels) <= 512
    assert len(np.unique(voxels, axis=0)) == len(voxels)
    assert volume.labels["lungs"][tuple(voxels.T)].all()
    assert np.all(np.abs(voxels.mean(axis=0) / np.array(volume.image_zyx.shape) - 0.5) < 0.1)


def test_foreground_voxels_of_a_small_mask_are_all_of_it():
    mask = np.zeros((4, 5, 6), dtype=np.uint8)
    mask[1, 2, 3] = mask[3, 0, 5] = 1
    assert random_voxels(mask, b"seed").tolist() == [[1, 2, 3], [3, 0, 5]]
    assert random_voxels(np.zeros_like(mask), b"seed").shape == (0, 3)


def test_masks_alone_are_stored_as_predictions_are(archive, make_volume):
    volume = make_volume()
    archive.write_masks("case1", volume.labels, volume.geometry, {"run": "abc"})
    scan = archive.scan("case1")
    assert scan.attributes == {"run": "abc"}
    assert scan.label_names == ("lungs", "nodules")
    assert np.array_equal(scan.label("nodules").read().result(), volume.labels["nodules"])
    with pytest.raises(Fatal, match="masks only"):
        scan.image()


def test_masks_of_another_model_replace_the_old_ones(archive, make_volume):
    volume = make_volume()
    archive.write_masks("case1", volume.labels, volume.geometry, {"run": "old"})
    archive.write_masks("case1", {"lungs": volume.labels["nodules"]}, volume.geometry, {"run": "new"})
    scan = archive.scan("case1")
    assert (scan.attributes, scan.label_names) == ({"run": "new"}, ("lungs",))
    assert np.array_equal(scan.label("lungs").read().result(), volume.labels["nodules"])
    assert not archive.store.list("scans/case1/labels/nodules")


def test_a_deleted_scan_leaves_nothing(tmp_path, archive, make_volume):
    volume = make_volume()
    archive.write_scan(volume)
    archive.delete_scan(volume.info.scan_id)
    assert sums(tmp_path).keys() == {"archive/tomoray.json"}


def test_archives_and_scans_pickle(archive, make_volume):
    volume = make_volume()
    archive.write_scan(volume)
    scan = archive.scan(volume.info.scan_id)
    scan.image()
    for copy in (pickle.loads(pickle.dumps(scan)), pickle.loads(pickle.dumps(archive)).scan(scan.scan_id)):
        assert np.array_equal(copy.image().read().result(), volume.image_zyx)


def test_names_that_lead_out_of_the_archive_are_refused(archive, make_volume):
    volume = make_volume(labels=("../x",))
    with pytest.raises(ValueError, match=r"label '\.\./x'"):
        archive.write_scan(volume)
    outside = dataclasses.replace(volume, info=dataclasses.replace(volume.info, scan_id="../../x"))
    with pytest.raises(ValueError, match=r"scan id '\.\./\.\./x'"):
        archive.write_scan(outside)
    assert not archive.has_scan("../../x")
    with pytest.raises(Fatal, match="no complete scan"):
        archive.scan("../../x")


def test_an_unknown_label_is_answered_with_the_known_ones(archive, make_volume):
    volume = make_volume()
    archive.write_scan(volume)
    with pytest.raises(ValueError, match=r"no label 'lung'; it has: lungs, nodules"):
        archive.scan(volume.info.scan_id).label("lung")


def test_opening_what_is_no_archive_says_how_to_make_one(tmp_path):
    with pytest.raises(Fatal, match=r"is not an archive .*tomoray preprocess SOURCE"):
        Archive.open(str(tmp_path))
    (tmp_path / "tomoray.json").write_text("{}")
    with pytest.raises(Fatal, match="not an archive's header"):
        Archive.open(str(tmp_path))


def test_an_archive_of_a_later_release_is_not_guessed_at(tmp_path, archive):
    header = json.loads(archive.store.read("tomoray.json"))
    archive.store.write("tomoray.json", json.dumps(header | {"format": 99}).encode())
    with pytest.raises(Fatal, match="has format 99; this release reads up to 1: upgrade"):
        Archive.open(archive.url)


def test_the_layout_of_an_archive_is_fixed(archive):
    assert Archive.create(archive.url, LAYOUT).layout == LAYOUT
    with pytest.raises(Usage, match=r"zstd_level 1, not 9"):
        Archive.create(archive.url, LAYOUT.model_copy(update={"zstd_level": 9}))


def test_an_archive_can_be_read_where_it_cannot_be_written(archive, make_volume, monkeypatch):
    volume = make_volume()
    archive.write_scan(volume)
    monkeypatch.setattr(
        "tempfile.TemporaryFile", lambda **_: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    assert Archive.open(archive.url).scan_ids() == [volume.info.scan_id]
    with pytest.raises(Fatal, match="Permission denied; choose a folder"):
        Archive.create(archive.url, LAYOUT)


@pytest.mark.parametrize("at", [100, -20], ids=["chunk", "index"])
def test_one_flipped_bit_is_an_error_of_one_line(archive, make_volume, at):
    volume = make_volume()
    archive.write_scan(volume)
    key = f"scans/{volume.info.scan_id}/0/c/0/0/0"
    data = bytearray(archive.store.read(key))
    data[at] ^= 1
    archive.store.write(key, bytes(data))
    with pytest.raises(Fatal, match=r"missing or damaged .* preprocess it again") as caught:
        archive.scan(volume.info.scan_id).read()
    assert "\n" not in str(caught.value)
