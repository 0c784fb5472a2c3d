"""Every file is read once: of a series that its source lists, and of one whose headers were read before."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tomoray.assembly.stack import Rules
from tomoray.ingest.ingester import task_bytes
from tomoray.ingest.inventory import group_dicom, head_of
from tomoray.ingest.listed import read_listed
from tomoray.ingest.loader import LoadedScan, load_dicom
from tomoray.ingest.series import ListedSeries
from tomoray.privacy.deidentify import Deidentifier
from tomoray.privacy.pseudonyms import Pseudonyms
from tomoray.sources import SeriesListing, list_series, list_source, places, read_file

NAMES = Pseudonyms(b"a key for tests only, of no worth")


@pytest.fixture
def reads(monkeypatch) -> Counter[str]:
    """How often each file was read, whole or in part."""
    counted: Counter[str] = Counter()
    read = places._read

    def counting(root: str, key: str, length: int | None) -> bytes:
        counted[key] += 1
        return read(root, key, length)

    monkeypatch.setattr(places, "_read", counting)
    return counted


@pytest.fixture
def indexed(make_series, tmp_path):
    """`indexed(series)`: its files in a folder, and the URL of an index that lists it."""

    def make(series) -> str:
        series.instances()
        folder = tmp_path / "series"
        folder.mkdir()
        for name, data in series.files.items():
            (folder / name).write_bytes(data)
        row = {
            "SeriesInstanceUID": ["1.2.3.4"],
            "series_aws_url": [f"{folder}/*"],
            "instanceCount": [len(series.files)],
        }
        pq.write_table(pa.table(row), tmp_path / "index.parquet")
        return f"idc://{tmp_path}/index.parquet"

    return make


def test_files_of_a_listed_series_are_read_once(make_series, indexed, load_source, reads):
    series = make_series(7)
    found = load_source(indexed(series))
    assert [part.volume.image_zyx.shape[0] for part in found] == [7]
    assert set(reads) == set(series.files)
    assert set(reads.values()) == {1}


def test_a_listed_series_is_the_same_scan_as_one_whose_headers_are_read_first(make_series, indexed, load_source):
    url = indexed(make_series(7))
    (listed,) = load_source(url)
    (loose,) = load_source(next(iter(list_series(url))).root)
    ours, theirs = listed.volume.info, loose.volume.info
    assert (ours.scan_id, ours.instances_sha256, ours.input_sha256) == (
        theirs.scan_id,
        theirs.instances_sha256,
        theirs.input_sha256,
    )
    assert (listed.volume.image_zyx == loose.volume.image_zyx).all()


def test_what_is_not_all_ct_of_the_listed_series_is_told_apart_as_ever(make_series, indexed, load_source, tmp_path):
    url = indexed(make_series(6))
    (tmp_path / "series" / "licence.txt").write_text("not an image")
    (tmp_path / "series" / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"no element")
    found = load_source(url)
    assert sorted(type(part).__name__ for part in found) == ["LoadedScan", "RefusedPart"]
    (scan,) = (part for part in found if isinstance(part, LoadedScan))
    assert scan.volume.image_zyx.shape[0] == 6


@pytest.mark.parametrize("changes", [{"modality": "MR"}, {"series_uid": "1.9"}, {"series_uid": ""}])
def test_a_listing_that_names_another_series_is_not_believed(make_series, indexed, changes):
    (listing,) = list_series(indexed(make_series(3)))
    values = {name: getattr(listing, name) for name in SeriesListing.__slots__}
    files = list(list_source(listing.root))
    assert read_listed(listing, files, read_file, NAMES) is not None
    assert read_listed(SeriesListing(**(values | changes)), files, read_file, NAMES) is None


def test_files_whose_headers_were_read_are_read_once_more_and_no_header_again(make_series):
    series = make_series(8)
    for n, dataset in enumerate(series.datasets):  # two parts, with a header each
        dataset.AcquisitionNumber = 1 + n // 4
        dataset.ImagePositionPatient = [-20, -30, 2.5 * (n % 4)]
    counted: Counter[str] = Counter()

    def read(_root: str, key: str) -> bytes:
        counted[key] += 1
        return series.files[key]

    (found,) = group_dicom(map(head_of, series.instances()), NAMES)
    parts = list(load_dicom(found, read, Deidentifier(NAMES), Rules()))
    assert len(parts) == 2
    assert counted == Counter(series.files.keys())


@pytest.fixture
def dicomweb(make_series):
    """A DICOMweb server with one series, which it does not count, and what it was asked for."""
    series = make_series(6)
    files = {instance.sop_uid: series.files[instance.key] for instance in series.instances()}
    asked: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked[path.rpartition("/")[2]] += 1
            if match := re.search(r"/instances/([\d.]+)$", path):
                content, form = files[match[1]], "application/dicom"
            else:
                listed = [{"00080018": {"vr": "UI", "Value": [uid]}} for uid in files]
                uids = {"0020000E": {"vr": "UI", "Value": ["1.2.3.4"]}, "0020000D": {"vr": "UI", "Value": ["1.2.3"]}}
                content = json.dumps(listed if path.endswith("/instances") else [uids]).encode()
                form = "application/dicom+json"
            self.send_response(200)
            self.send_header("Content-Type", form)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"dicomweb+http://127.0.0.1:{server.server_port}", asked, files
        server.shutdown()


def test_instances_of_a_dicomweb_server_are_fetched_once(dicomweb, load_source):
    url, asked, files = dicomweb
    (scan,) = load_source(url)
    assert scan.volume.image_zyx.shape[0] == 6
    assert {uid: asked[uid] for uid in files} == dict.fromkeys(files, 1)


def test_a_series_that_its_server_does_not_count_asks_for_memory_all_the_same(dicomweb):
    (listing,) = list_series(dicomweb[0])
    item = ListedSeries(listing=listing)
    assert (item.n_instances, item.voxel_bytes) == (0, 0)
    assert task_bytes(item.working_bytes) > task_bytes(0) + 1.6 * 500 * 2**20
