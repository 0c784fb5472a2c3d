import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tomoray import settings
from tomoray.bucket import Bucket
from tomoray.errors import Fatal, Transient, Usage
from tomoray.storage import ObjectInfo, open_store


def test_reads_back_what_was_written_whole_and_in_part(tmp_path):
    store = open_store(f"{tmp_path}/new/place")
    store.write("a/b", b"12345")
    assert store.read("a/b") == b"12345"
    assert store.read_range("a/b", 1, 2) == b"23"
    assert [store.read_end("a/b", n) for n in (2, 5, 9)] == [b"45", b"12345", b"12345"]
    with pytest.raises(FileNotFoundError):
        store.read_end("a/c", 2)
    assert (tmp_path / "new" / "place" / "a" / "b").read_bytes() == b"12345"


def test_lists_below_a_folder_and_never_a_neighbour_with_the_same_beginning(tmp_path):
    store = open_store(str(tmp_path))
    for key in ("scan/b", "scan/a/c", "scan2/d", "e"):
        store.write(key, b"1")
    assert store.list("scan") == [ObjectInfo(key="scan/a/c", size_bytes=1), ObjectInfo(key="scan/b", size_bytes=1)]
    assert store.folders() == ["scan", "scan2"]
    assert [info.key for info in store.child("scan").list()] == ["a/c", "b"]


def test_a_place_that_does_not_exist_is_empty_and_is_not_made_by_looking(tmp_path):
    store = open_store(f"{tmp_path}/absent")
    store.check()
    assert store.list() == []
    assert store.folders() == []
    assert not store.exists("a")
    with pytest.raises(FileNotFoundError, match="no object a"):
        store.read("a")
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_writer_of_a_new_object_wins(tmp_path):
    store = open_store(str(tmp_path))
    assert store.write_new("a", b"first")
    assert not store.write_new("a", b"second")
    assert store.read("a") == b"first"


def test_a_write_leaves_no_other_file(tmp_path):
    store = open_store(str(tmp_path))
    store.write("a", b"old")
    store.write("a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_deletes_objects_and_their_empty_folders_and_forgives_absent_ones(tmp_path):
    store = open_store(str(tmp_path))
    store.write("a/b/c", b"1")
    store.write("d", b"1")
    store.delete(["a/b/c", "never/was"])
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


@pytest.mark.parametrize("url", ["/data/ct", "s3://bucket/ct"])
def test_pickles_as_its_url_without_credentials(url, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    store = open_store(url).child("scans")
    store.tensorstore_kvstore()
    pickled = pickle.dumps(store)
    assert pickle.loads(pickled).url == f"{url}/scans"
    assert b"very-secret" not in pickled


def test_understands_home_file_urls_and_relative_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert open_store("~/ct").url == f"{tmp_path}/ct"
    assert open_store("ct/../mr").url == f"{tmp_path}/mr"
    assert open_store(f"file://{tmp_path}/a%20b").url == f"{tmp_path}/a b"


@pytest.mark.parametrize("url", ["gs://bucket/x", "s3://", "s3:///x", ""])
def test_refuses_urls_it_cannot_store_at(url):
    with pytest.raises(Usage, match="s3://bucket/prefix"):
        open_store(url)


def test_an_unreachable_bucket_is_one_line_that_names_the_endpoint(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(Fatal) as caught:
        open_store("s3://nope/x").check()
    assert str(caught.value) == (
        "s3://nope/x: cannot reach the bucket at http://127.0.0.1:1 (connection refused); "
        "check AWS_ENDPOINT_URL and the bucket's name"
    )


def test_a_file_in_the_place_of_a_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("text")
    for action in (lambda s: s.check(), lambda s: s.write("a", b"")):
        with pytest.raises(Fatal, match=r"(?i)not a (folder|directory); choose a folder") as caught:
            action(open_store(f"{tmp_path}/file/ct"))
        assert "\n" not in str(caught.value)


def test_arrow_sees_the_same_objects(tmp_path):
    store = open_store(str(tmp_path)).child("run")
    filesystem, path = store.arrow_filesystem()
    filesystem.create_dir(path)
    with filesystem.open_output_stream(f"{path}/checkpoint") as stream:
        stream.write(b"weights")
    assert store.read("checkpoint") == b"weights"


@contextmanager
def answering(*answers: tuple[int, bytes], cut: int = 0) -> Iterator[tuple[str, list[str]]]:
    """A server that gives these answers one after the other, the last for ever: its URL, and what it was asked.

    Of the first `cut` answers the end is missing.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = answers[min(len(asked), len(answers) - 1)]
            asked.append(f"{self.command} {self.path}")
            self.send_response(status)
            self.close_connection = len(asked) <= cut
            self.send_header("Content-Length", str(len(body) + 9 * self.close_connection))
            self.send_header("ETag", '"1"')
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT  # noqa: N815

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            serving.join()


def test_a_busy_bucket_is_asked_until_it_answers(monkeypatch):
    busy = (503, b"<Error><Code>SlowDown</Code></Error>")
    with answering(*[busy] * 12, (200, b"")) as (url, asked):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        open_store("s3://b").write("a", b"bytes")
    assert asked == ["PUT /b/a"] * 13


def test_patience_with_a_busy_bucket_can_be_short(monkeypatch):
    with answering((503, b"<Error><Code>SlowDown</Code></Error>")) as (url, asked):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("TOMORAY_S3_PATIENCE", "1")
        with pytest.raises(Transient, match="try again"):
            open_store("s3://b").read("a")
    assert asked
    monkeypatch.setenv("TOMORAY_S3_PATIENCE", "soon")
    with pytest.raises(Usage, match="wanted whole seconds"):
        open_store("s3://b").read("a")


def test_serving_is_impatient_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("TOMORAY_S3_PATIENCE", raising=False)
    monkeypatch.delenv("RAY_worker_niceness", raising=False)
    assert settings.s3().patience_s == 180
    assert settings.serving_environment() == {"TOMORAY_S3_PATIENCE": "10", "RAY_worker_niceness": "0"}
    monkeypatch.setenv("TOMORAY_S3_PATIENCE", "33")
    assert settings.serving_environment() == {"TOMORAY_S3_PATIENCE": "33", "RAY_worker_niceness": "0"}


@pytest.mark.parametrize(
    ("endpoint", "unsigned"), [("http://127.0.0.1:9", False), ("https://s3.example.org", True), ("", True)]
)
def test_what_tls_guards_is_not_hashed_for_its_signature_too(monkeypatch, endpoint, unsigned):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert Bucket("ct").reader.config["unsigned_payload"] == str(unsigned).lower()


def test_an_upload_that_another_writer_cut_off_can_be_tried_again(monkeypatch):
    with answering((404, b"<Error><Code>NoSuchUpload</Code></Error>")) as (url, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(Transient, match=r"^s3://b: an object went away while it was written; try again$"):
            open_store("s3://b").write("a", b"bytes")


PAGE = b"""<ListBucketResult><Name>b</Name><Prefix>x/</Prefix><KeyCount>1</KeyCount><IsTruncated>false</IsTruncated>
<Contents><Key>x/a</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>"1"</ETag><Size>7</Size></Contents>
</ListBucketResult>"""


def test_an_answer_that_is_cut_off_is_asked_for_again(monkeypatch):
    with answering((200, PAGE), cut=2) as (url, asked):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        assert open_store("s3://b/x").list() == [ObjectInfo(key="a", size_bytes=7)]
    assert len(asked) == 3
    with answering((404, b"<Error><Code>NoSuchKey</Code></Error>"), cut=2) as (url, asked):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(FileNotFoundError):
            open_store("s3://b/x").read("a")
    assert len(asked) == 3
