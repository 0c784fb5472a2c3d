"""Patches straight from S3, and what they ask of it, counted on the wire."""

import re
import threading
from collections import Counter
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch

from tomoray.archive import Archive
from tomoray.config import Layout
from tomoray.patches import PatchStream
from tomoray.training.config import TrainConfig

PATCH = (24, 24, 24)  # to chunks of 16 as 96 to 64


@pytest.fixture
def counted(s3, monkeypatch):
    """The S3 server behind a proxy that counts requests by method."""
    server, seen = urlsplit(s3.endpoint), Counter()

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            there = HTTPConnection(server.hostname, server.port)
            there.request(self.command, self.path, body, dict(self.headers))
            reply = there.getresponse()
            data = reply.read()
            if re.search(r"/scans/", self.path):
                seen[self.command] += 1
            self.send_response_only(reply.status)
            for name, value in reply.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            length = reply.getheader("Content-Length") if self.command == "HEAD" else len(data)
            self.send_header("Content-Length", length or 0)
            self.end_headers()
            self.wfile.write(data)
            there.close()

        do_GET = do_HEAD = forward  # noqa: N815 - as the base class wants them

        def log_message(self, *_):
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_port}")
    yield seen
    proxy.shutdown()
    thread.join()
    proxy.server_close()


def config(**stream):
    return TrainConfig.model_validate({"labels": ["lungs", "nodules"], "patch_zyx": PATCH, "stream": stream})


@pytest.fixture
def bucket(s3, make_volume):
    url = f"{s3.bucket()}/ct"
    archive = Archive.create(url, Layout(chunk_zyx=(16, 16, 16), shard_zyx=(64, 64, 64), levels=1))
    for n in range(12):
        volume = make_volume((70, 100, 100), scan_id=f"{n:016x}", seed=n)
        archive.write_scan(volume)
    return url


def test_a_patch_asks_s3_six_times_at_most_also_when_every_scan_is_new(bucket, counted):
    archive = Archive.open(bucket)
    stream = PatchStream(archive, [f"{n:016x}" for n in range(12)], config())
    before = Counter(counted)
    patches = sum(len(batch.samples) for batch in islice(stream, 24))
    asked = counted - before
    assert patches == 48
    assert sum(asked.values()) <= stream.stats.requests + 16  # of the loaders, each may have been asking when it ended
    assert asked["GET"] / patches <= 6


def test_s3_gives_the_same_patches_as_a_disk_and_a_cache_spares_it(bucket, counted, tmp_path, make_volume):
    far = Archive.open(bucket)
    near = Archive.create(str(tmp_path / "near"), far.layout)
    ids = [f"{n:016x}" for n in range(2)]
    for n, scan_id in enumerate(ids):
        near.write_scan(make_volume((70, 100, 100), scan_id=scan_id, seed=n))
    cached = config(cache_folder=str(tmp_path / "cache"), cache_gb=0.2)
    streams = [PatchStream(archive, ids, cached) for archive in (far, far)] + [PatchStream(near, ids, config())]
    found = [torch.cat([batch.image for batch in islice(stream, 8)]) for stream in streams]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert streams[0].stats.fetched_bytes > 0
    assert streams[1].stats.fetched_bytes < streams[0].stats.fetched_bytes / 4  # it may look further ahead
    assert np.isfinite(found[0].numpy()).all()
