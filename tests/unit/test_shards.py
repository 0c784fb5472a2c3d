import json

import numpy as np
import pytest

from tomoray.archive import Archive
from tomoray.block_cache import BlockCache
from tomoray.config import Layout
from tomoray.errors import Fatal
from tomoray.shards import Indices, Reader, Reads, ShardedArray

BOXES = [(0, 37, 0, 50, 0, 41), (3, 20, 30, 50, 16, 17), (36, 37, 49, 50, 40, 41), (16, 32, 16, 32, 16, 32)]
LAYOUTS = [
    Layout(chunk_zyx=(16, 16, 16), shard_zyx=(32, 32, 32), levels=1),
    Layout(),
    Layout(codec="lz4", chunk_zyx=(32, 16, 8)),
]


def box(z0, z1, y0, y1, x0, x1):
    return slice(z0, z1), slice(y0, y1), slice(x0, x1)


@pytest.fixture(params=LAYOUTS, ids=["several shards", "default layout", "lz4, uneven chunks"])
def stored(request, tmp_path, make_volume):
    volume = make_volume()
    archive = Archive.create(str(tmp_path / "archive"), request.param)
    archive.write_scan(volume)
    return volume, archive.store.child(f"scans/{volume.info.scan_id}")


@pytest.mark.parametrize("cached", [False, True])
def test_boxes_are_those_of_the_volume(stored, tmp_path, cached):
    volume, store = stored
    cache = BlockCache(tmp_path / "cache", 10**8) if cached else None
    for _ in range(2):
        reads = Reads()
        reader = Reader(store, reads, cache)
        image, mask = (ShardedArray(reader, path, Indices()) for path in ("0", "labels/lungs/0"))
        for sides in BOXES:
            assert np.array_equal(image.read(box(*sides)), volume.image_zyx[box(*sides)])
            assert np.array_equal(mask.read(box(*sides)), volume.labels["lungs"][box(*sides)])
    assert (reads.requests == 0) == cached


def test_a_box_in_one_shard_is_one_request_once_its_index_is_known(stored):
    _, store = stored
    reads = Reads()
    image = ShardedArray(Reader(store, reads), "0", Indices())
    image.read(box(0, 30, 0, 30, 0, 30))
    before = reads.requests
    image.read(box(2, 32, 2, 32, 2, 32))
    assert reads.requests == before + 1


def test_a_small_mask_is_one_request(tmp_path, make_volume):
    volume = make_volume()
    archive = Archive.create(str(tmp_path / "archive"), LAYOUTS[1])
    archive.write_scan(volume)
    reads = Reads()
    mask = ShardedArray(Reader(archive.store.child(f"scans/{volume.info.scan_id}"), reads), "labels/lungs/0", Indices())
    before = reads.requests
    mask.read(box(*BOXES[0]))
    assert reads.requests == before + 1


@pytest.mark.parametrize("harm", ["lost", "cut", "chunk", "index"])
def test_damage_is_named_and_never_read_as_voxels(stored, harm):
    _, store = stored
    key = "0/c/0/0/0"
    data = store.read(key)
    if harm == "lost":
        store.delete([key])
    else:
        at = {"chunk": 40, "index": len(data) - 30}.get(harm, 0)
        store.write(key, data[:-9] if harm == "cut" else data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    image = ShardedArray(Reader(store, Reads()), "0", Indices())
    with pytest.raises(Fatal, match=r"missing or damaged .*preprocess it again") as caught:
        image.read(box(0, 10, 0, 10, 0, 10))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["not sharded", "index first", "gzip", "big endian"])
def test_an_array_that_is_stored_otherwise_is_named(stored, change):
    _, store = stored
    metadata = json.loads(store.read("0/zarr.json"))
    inner = metadata["codecs"][0]["configuration"]
    if change == "not sharded":
        metadata["codecs"] = inner["codecs"]
    elif change == "index first":
        inner["index_location"] = "start"
    elif change == "gzip":
        inner["codecs"][1] = {"name": "gzip", "configuration": {"level": 1}}
    else:
        inner["codecs"][0]["configuration"]["endian"] = "big"
    store.write("0/zarr.json", json.dumps(metadata).encode())
    with pytest.raises(Fatal, match="no sharded array"):
        ShardedArray(Reader(store, Reads()), "0", Indices())


def test_indices_are_bounded():
    indices = Indices(limit_bytes=1000)
    for n in range(50):
        indices.put(n, np.zeros((4, 2), np.uint64))
    assert indices.get(0) is None
    assert indices.get(49) is not None
    assert sum(indices.get(n) is not None for n in range(50)) == 15
