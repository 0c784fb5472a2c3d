import pickle
import socket

import numpy as np
import pytest
from pyarrow import fs

from tomoray.archive import Archive
from tomoray.catalog import Catalog, stored_row
from tomoray.config import Layout
from tomoray.errors import Fatal
from tomoray.storage import open_store

LAYOUT = Layout(chunk_zyx=(16, 16, 16), shard_zyx=(32, 32, 32))


def objects(store):
    return {info.key: store.read(info.key) for info in store.list()}


def test_disk_and_s3_hold_the_same_bytes_per_object(s3, tmp_path, make_volume):
    volume = make_volume()
    stores = []
    for url in (str(tmp_path / "ct"), f"{s3.bucket()}/ct"):
        archive = Archive.create(url, LAYOUT)
        archive.write_scan(volume)
        Catalog(archive.store).upsert([stored_row(volume, "0" * 64)])
        stores.append(objects(archive.store))
    assert len(stores[0]) > 10
    assert stores[0] == stores[1]


def test_writing_again_puts_nothing(s3, make_volume):
    bucket = s3.bucket()
    volume = make_volume()
    versions = []
    for _ in range(2):
        archive = Archive.create(bucket, LAYOUT)
        archive.write_scan(volume)
        Catalog(archive.store).upsert([stored_row(volume, "0" * 64)])
        listed = s3.client().list_objects_v2(Bucket=bucket.removeprefix("s3://"))["Contents"]
        versions.append({found["Key"]: (found["ETag"], found["LastModified"]) for found in listed})
    assert versions[0] == versions[1]


def test_windows_come_straight_from_s3(s3, make_volume):
    volume = make_volume()
    archive = Archive.create(f"{s3.bucket()}/a/b", LAYOUT)
    archive.write_scan(volume)
    assert archive.scan_ids() == [volume.info.scan_id]
    scan = pickle.loads(pickle.dumps(archive)).scan(volume.info.scan_id)
    windows = [(slice(z, z + 20), slice(9, 40), slice(None)) for z in range(0, 17, 2)]
    pending = [scan.image()[window].read() for window in windows]
    for window, future in zip(windows, pending, strict=True):
        assert np.array_equal(future.result(), volume.image_zyx[window])


def test_an_unfinished_scan_on_s3_is_invisible(s3, make_volume):
    volume = make_volume(labels=())
    archive = Archive.create(s3.bucket(), LAYOUT)
    archive.write_scan(volume)
    archive.store.delete([f"scans/{volume.info.scan_id}/zarr.json"])
    assert not archive.has_scan(volume.info.scan_id)
    assert archive.scan_ids() == []


def test_only_the_first_writer_of_a_new_object_wins_on_s3(s3):
    store = open_store(s3.bucket())
    assert store.write_new("a", b"first")
    assert not store.write_new("a", b"second")
    assert store.read("a") == b"first"


def test_large_objects_arrive_whole(s3):
    store = open_store(s3.bucket())
    data = np.random.default_rng(0).bytes(70 * 2**20)
    store.write("large", data)
    assert store.read_range("large", 65 * 2**20, 100) == data[65 * 2**20 : 65 * 2**20 + 100]
    assert store.read("large") == data


def test_arrow_copies_folders_to_s3_and_back(s3, tmp_path):
    store = open_store(s3.bucket()).child("run")
    filesystem, path = pickle.loads(pickle.dumps(store.arrow_filesystem()))
    (tmp_path / "out" / "deep").mkdir(parents=True)
    (tmp_path / "out" / "deep" / "weights").write_bytes(bytes(20 * 2**20) + b"end")
    (tmp_path / "out" / "empty").write_bytes(b"")
    fs.copy_files(str(tmp_path / "out"), f"{path}/1", destination_filesystem=filesystem)
    assert [info.key for info in store.list()] == ["1/deep/weights", "1/empty"]
    fs.copy_files(f"{path}/1", str(tmp_path / "back"), source_filesystem=filesystem)
    assert (tmp_path / "back" / "deep" / "weights").read_bytes() == bytes(20 * 2**20) + b"end"


def test_arrow_tells_files_from_folders_and_from_nothing_on_s3(s3):
    store = open_store(s3.bucket()).child("run")
    filesystem, path = store.arrow_filesystem()
    for key in ("a/b", "a/c/d", "ab"):
        store.write(key, b"1")
    infos = filesystem.get_file_info([f"{path}/a", f"{path}/a/b", f"{path}/x"])
    assert [info.type.name for info in infos] == ["Directory", "File", "NotFound"]
    below = filesystem.get_file_info(fs.FileSelector(f"{path}/a"))
    assert sorted((info.base_name, info.type.name) for info in below) == [("b", "File"), ("c", "Directory")]
    filesystem.delete_dir(f"{path}/a")
    assert [info.key for info in store.list()] == ["ab"]


def test_arrow_names_a_missing_bucket_in_one_line(s3):
    filesystem, path = open_store("s3://nope/run").arrow_filesystem()
    for action in (lambda: filesystem.get_file_info(path), lambda: filesystem.open_output_stream(f"{path}/a").close()):
        with pytest.raises(Fatal, match="there is no bucket 'nope'") as caught:
            action()
        assert "\n" not in str(caught.value)


def test_a_missing_bucket_is_named(s3):
    for action in (lambda store: store.check(), lambda store: store.read("a"), lambda store: store.write("a", b"")):
        with pytest.raises(Fatal, match=f"^s3://nope/x: there is no bucket 'nope' at {s3.endpoint}; make it"):
            action(open_store("s3://nope/x"))


def test_wrong_keys_are_told_apart_from_a_missing_bucket(s3, monkeypatch):
    if s3.kind == "moto":
        pytest.skip("moto checks no keys: apt-get install ceph-mon ceph-osd ceph-mgr radosgw ceph-common")
    url = s3.bucket()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for action in (lambda store: store.check(), lambda store: store.read("a"), lambda store: store.write("a", b"")):
        with pytest.raises(Fatal, match=r"access denied .* check AWS_ACCESS_KEY_ID"):
            action(open_store(url))


def test_a_store_without_its_bucket_explains_tensorstores_errors(s3, make_volume):
    volume = make_volume(labels=())
    archive = Archive.create(s3.bucket(), LAYOUT)
    archive.write_scan(volume)
    archive.store.delete([f"scans/{volume.info.scan_id}/0/c/0/0/0"])
    with pytest.raises(Fatal, match="missing") as caught:
        archive.scan(volume.info.scan_id).read()
    assert "\n" not in str(caught.value)


def test_a_server_that_never_answers_is_given_up_on(monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(Fatal, match=r"cannot reach .* \(no answer in time\)"):
            open_store("s3://nope/x").check()
