from __future__ import annotations

import io
import os
import pickle
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorstore

from tomoray import credentials
from tomoray.errors import Fatal, Refused, Usage
from tomoray.ingest.inventory import read_heads
from tomoray.privacy.pseudonyms import public_root
from tomoray.sources import list_series, list_source, listing, packed, read_file, read_head
from tomoray.storage import open_store

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


@pytest.fixture
def no_keys(monkeypatch, tmp_path):
    """This process has no credentials of its own, and no files that give some."""
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


def profile(path, name, s3, secret=None) -> None:
    path.write_text(
        f"[{name}]\naws_access_key_id = {s3.access_key_id}\naws_secret_access_key = {secret or s3.secret_access_key}\n"
    )


def public(s3, url: str) -> None:
    """Let anybody list a bucket and read what is in it."""
    client, bucket = s3.client(), url.removeprefix("s3://")
    client.put_bucket_acl(Bucket=bucket, ACL="public-read")
    for found in client.list_objects_v2(Bucket=bucket)["Contents"]:
        client.put_object_acl(Bucket=bucket, Key=found["Key"], ACL="public-read")


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tar_of(files: dict[str, bytes], mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def test_prefix_is_listed_by_key_over_many_requests_and_not_before_it_is_asked_for(s3):
    url = s3.bucket()
    store = open_store(url)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: store.write(f"ct/{n:05}", b"x" * (n % 3)), range(2100)))
    store.write("ct-other/a", b"1")

    files = list_source(f"{url}/ct")

    assert next(files).key == "00000"
    assert [file.key for file in files] == [f"{n:05}" for n in range(1, 2100)]


def test_long_listing_in_pieces_is_the_same_as_in_one(s3, monkeypatch):
    monkeypatch.setattr(listing, "_FOLDERS_A_PIECE", 4)
    monkeypatch.setattr(listing, "_PAGES_AHEAD", 1)
    url = s3.bucket()
    store = open_store(url).child("ct")
    keys = [f"{folder:03}/{n:03}" for folder in range(60) for n in range(50)]
    keys += ["030", "030-1/a", "030.x", "04", "059/deep/er/a", "zz", "ß/ü"]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: store.write(key, b"1"), keys))

    found = [file.key for file in list_source(f"{url}/ct")]

    assert found == sorted(keys)
    some = list_source(f"{url}/ct")
    assert [next(some).key for _ in range(1500)] == sorted(keys)[:1500]
    some.close()


def test_trouble_in_a_later_piece_is_raised_where_it_is_read(s3, monkeypatch):
    store = open_store(s3.bucket())
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: store.write(f"{n // 40:03}/{n}", b"1"), range(1600)))
    monkeypatch.setattr(listing, "_FOLDERS_A_PIECE", 2)
    files = listing.walk_store(store)
    next(files)
    for found in s3.client().list_objects_v2(Bucket=store.url.removeprefix("s3://"))["Contents"]:
        store.delete([found["Key"]])
    store.delete([info.key for info in store.list()])
    s3.client().delete_bucket(Bucket=store.url.removeprefix("s3://"))
    with pytest.raises(Fatal, match="there is no bucket"):
        list(files)


def test_heads_and_empty_and_absent_objects_are_read_in_many_threads(s3):
    url = s3.bucket()
    data = os.urandom(100_000)
    open_store(url).write("a", data)
    open_store(url).write("empty", b"")
    with ThreadPoolExecutor(16) as pool:
        heads = list(pool.map(lambda _: read_head(url, "a", 65_536), range(64)))
    assert set(heads) == {data[:65_536]}
    assert read_head(url, "a", 10**6) == data
    assert read_head(url, "empty", 10) == read_file(url, "empty") == b""
    for read in (read_file, lambda root, key: read_head(root, key, 5)):
        with pytest.raises(Refused, match="deleted after it was listed"):
            read(url, "gone")


def test_archives_in_a_bucket_stand_for_their_members(s3, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    url, files = s3.bucket(), {"a/1": os.urandom(3_000_000), "b": b"text" * 10_000}
    store = open_store(url).child("ct")
    for key, data in (
        ("one.zip", zip_of(files)),
        ("deep/two.tar", tar_of(files, "w")),
        ("three.tgz", tar_of(files, "w:gz")),
        ("wrong.zip", b"nonsense"),
        ("plain", b"1"),
    ):
        store.write(key, data)

    found = list(list_source(f"{url}/ct"))

    members = [file for file in found if file.key in files]
    assert [public_root(file.root) for file in members] == [f"{url}/ct"] * 6
    assert all(read_file(file.root, file.key) == files[file.key] for file in members)
    assert all(read_head(file.root, file.key, 5) == files[file.key][:5] for file in members)
    _, [bad], _ = read_heads([file for file in found if file not in members])
    assert bad.file.key == "wrong.zip"
    assert [file.key for file in list_source(f"{url}/ct/one.zip")] == ["a/1", "b"]
    packed._close()


def test_public_bucket_is_read_without_keys_and_a_private_one_is_not(s3, no_keys):
    url = s3.bucket()
    s3.client().put_object(Bucket=url.removeprefix("s3://"), Key="a", Body=b"public")
    anonymous = url.replace("s3://", "s3://anonymous@")
    if s3.kind == "rgw":
        with pytest.raises(Fatal, match="access denied"):
            list_source(anonymous)
    public(s3, url)
    [file] = list_source(anonymous)
    assert (file.root, file.key) == (anonymous, "a")
    assert read_file(anonymous, "a") == b"public"


def test_unsigned_requests_stay_unsigned_though_there_are_keys(s3, monkeypatch):
    url = s3.bucket()
    s3.client().put_object(Bucket=url.removeprefix("s3://"), Key="a", Body=b"public")
    public(s3, url)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert read_file(url.replace("s3://", "s3://anonymous@"), "a") == b"public"


def test_profile_of_the_config_files_is_used_and_a_pickle_holds_its_name_only(s3, no_keys, tmp_path):
    profile(tmp_path / "credentials", "ct-reader", s3)
    url = s3.bucket()
    s3.client().put_object(Bucket=url.removeprefix("s3://"), Key="a", Body=b"mine")
    named = url.replace("s3://", "s3://ct-reader@")

    store = open_store(named)

    assert store.read("a") == b"mine"
    assert store.url == named
    assert pickle.loads(pickle.dumps(store)).read("a") == b"mine"
    assert s3.secret_access_key.encode() not in pickle.dumps(store)
    assert [(file.root, file.key) for file in list_source(named)] == [(named, "a")]
    values = tensorstore.KvStore.open(store.tensorstore_kvstore()).result()
    assert values.read("a").result().value == b"mine"


def test_profile_wins_over_keys_in_the_environment(s3, no_keys, tmp_path, monkeypatch):
    profile(tmp_path / "credentials", "ct-reader", s3)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "wrong")
    store = open_store(s3.bucket().replace("s3://", "s3://ct-reader@"))
    store.write("a", b"mine")
    assert store.read("a") == b"mine"
    assert tensorstore.KvStore.open(store.tensorstore_kvstore()).result().read("a").result().value == b"mine"


def test_default_profile_and_environment_profile_are_found(s3, no_keys, tmp_path, monkeypatch):
    url = s3.bucket()
    s3.client().put_object(Bucket=url.removeprefix("s3://"), Key="a", Body=b"mine")
    profile(tmp_path / "credentials", "default", s3)
    assert read_file(url, "a") == b"mine"
    profile(tmp_path / "credentials", "other", s3)
    monkeypatch.setenv("AWS_PROFILE", "other")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")  # other settings, a new client
    assert read_file(url, "a") == b"mine"


def test_endpoint_of_a_profile_is_its_own(s3, no_keys, tmp_path, monkeypatch):
    url = s3.bucket()
    profile(tmp_path / "credentials", "there", s3)
    (tmp_path / "config").write_text(f"[profile there]\nendpoint_url = {s3.endpoint}\nregion = us-east-1\n")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    store = open_store(url.replace("s3://", "s3://there@"))
    store.write("a", b"1")
    assert store.read("a") == b"1"
    assert store.tensorstore_kvstore()["endpoint"] == s3.endpoint


def test_wrong_profile_is_named_with_those_there_are(s3, no_keys, tmp_path):
    profile(tmp_path / "credentials", "ct-reader", s3)
    with pytest.raises(Usage, match="no AWS profile 'ct-raeder'; known: ct-reader"):
        list_source("s3://ct-raeder@bucket/ct")
    with pytest.raises(Usage, match="holds a password"):
        list_source("s3://key:secret@bucket/ct")


def test_nothing_at_all_on_amazon_is_one_clear_line(no_keys, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(Fatal, match="no credentials for S3; set AWS_ACCESS_KEY_ID") as caught:
        list_source("s3://bucket/no-keys")
    assert "\n" not in str(caught.value)


class _TokenService(BaseHTTPRequestHandler):
    """Answers AssumeRoleWithWebIdentity as STS does."""

    asked: ClassVar[list[bytes]] = []
    keys = ("", "")

    def do_POST(self) -> None:
        self.asked.append(self.rfile.read(int(self.headers["Content-Length"])))
        key, secret = self.keys
        body = (
            '<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
            f"<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{key}</AccessKeyId>"
            f"<SecretAccessKey>{secret}</SecretAccessKey><SessionToken></SessionToken>"
            "<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials><AssumedRoleUser><Arn>a</Arn>"
            "<AssumedRoleId>b</AssumedRoleId></AssumedRoleUser></AssumeRoleWithWebIdentityResult>"
            "<ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></AssumeRoleWithWebIdentityResponse>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_web_identity_as_kubernetes_gives_it_is_changed_for_keys(s3, no_keys, tmp_path, monkeypatch):
    url = s3.bucket()
    s3.client().put_object(Bucket=url.removeprefix("s3://"), Key="a", Body=b"mine")
    (tmp_path / "token").write_text("a-token-of-kubernetes")
    monkeypatch.setattr(_TokenService, "keys", (s3.access_key_id, s3.secret_access_key))
    with ThreadingHTTPServer(("127.0.0.1", 0), _TokenService) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
        monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/ct")
        monkeypatch.setenv("AWS_REGION", "eu-north-1")  # other settings, a new client
        assert read_file(url, "a") == b"mine"
        server.shutdown()
    [asked] = _TokenService.asked
    assert b"a-token-of-kubernetes" in asked


def test_region_of_a_public_bucket_falls_back_where_amazon_is_out_of_reach(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    credentials._public_region.cache_clear()
    assert credentials._public_region("no-such-bucket-at-all", "eu-west-1") == "eu-west-1"
    credentials._public_region.cache_clear()


def test_series_of_an_index_come_unsigned_from_its_bucket(s3, tmp_path):
    url = s3.bucket()
    for name in ("b.dcm", "a.dcm"):
        s3.client().put_object(Bucket=url.removeprefix("s3://"), Key=f"uuid-1/{name}", Body=name.encode())
    public(s3, url)
    rows = {"SeriesInstanceUID": ["1.2"], "series_aws_url": [f"{url}/uuid-1/*"], "instanceCount": [2]}
    pq.write_table(pa.table(rows), tmp_path / "index.parquet")
    source = f"idc://{tmp_path}/index.parquet?where=instanceCount > 1"

    [found] = list_series(source)
    files = list(list_source(source))

    assert found.root == url.replace("s3://", "s3://anonymous@") + "/uuid-1"
    assert (found.series_uid, found.n_instances, found.version) == ("1.2", 2, "uuid-1")
    assert [file.key for file in files] == ["a.dcm", "b.dcm"]
    assert read_file(files[0].root, files[0].key) == b"a.dcm"
