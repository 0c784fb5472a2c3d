"""Exactly once on S3: a server is killed, is busy, hangs up, falls silent, and the archive does not show it."""

from __future__ import annotations

import http.client
import random
import runpy
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest

once = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "exactly_once.py")))
s3_server = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "s3_server.py")))
BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@dataclass
class Gateway:
    """A Ceph gateway of these tests alone, to be killed. Its objects are in another process, and stay."""

    folder: Path
    port: int
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bucket(self, name: str) -> str:
        keys = {"aws_access_key_id": s3_server.ACCESS_KEY_ID, "aws_secret_access_key": s3_server.SECRET_ACCESS_KEY}
        boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1", **keys).create_bucket(Bucket=name)
        return f"s3://{name}/archive"

    def kill(self) -> None:
        gateway = self.daemons.pop()
        gateway.kill()
        gateway.wait()

    def start(self) -> None:
        self.daemons.append(s3_server.serve(self.folder, *s3_server.GATEWAY))
        s3_server.wait_for(self.endpoint, self.daemons, self.folder)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory) -> Iterator[Gateway]:
    if s3_server.kind() != "rgw":
        pytest.skip(
            "moto keeps nothing when it is killed: apt-get install ceph-mon ceph-osd ceph-mgr radosgw ceph-common"
        )
    made = Gateway(tmp_path_factory.mktemp("s3"), s3_server.free_port())
    try:
        s3_server.start_gateway(made.folder, made.port, made.daemons)
        yield made
    finally:
        s3_server.stop(made.daemons)


def run_again_until_done(cohort: Path, archive: str, endpoint: str, out: Path) -> None:
    """The same command until it succeeds; each failure has to be one line of its own."""
    for number in range(6):
        folder = out / f"again-{number}"
        if once.start(cohort, archive, folder, {"AWS_ENDPOINT_URL": endpoint}).wait() == 0:
            return
        said = once.answer(folder)
        assert said.get("failed") or said["error"]["type"] in ("transient", "fatal"), said
    pytest.fail(f"six runs were not enough; the last said {said}")


def test_a_server_that_is_killed_and_comes_back_changes_no_byte(
    gateway, every_kind, undisturbed, tmp_path, monkeypatch
):
    archive, rng = gateway.bucket("killed"), random.Random(4)
    monkeypatch.setenv("AWS_ENDPOINT_URL", gateway.endpoint)
    driver = once.start(every_kind, archive, tmp_path / "run")
    for _ in range(3):
        while driver.poll() is None and not once.workers(driver.pid):
            time.sleep(0.02)
        assert driver.poll() is None, once.answer(tmp_path / "run")
        time.sleep(rng.uniform(0, 0.5))
        gateway.kill()
        time.sleep(rng.uniform(1, 5))
        gateway.start()

    assert driver.wait() == 0, once.answer(tmp_path / "run")  # it rode out all of it

    once.check(archive, undisturbed)


@dataclass
class Troubles:
    """What the proxy has done so far, drawn from a seed."""

    rng: random.Random
    lock: threading.Lock = field(default_factory=threading.Lock)
    done: Counter[str] = field(default_factory=Counter)

    def draw(self) -> str:
        with self.lock:
            kinds = ("none", "busy", "hang up", "lose the answer", "cut the answer", "stall")
            (kind,) = self.rng.choices(kinds, (80, 8, 4, 4, 2, 2))
            self.done[kind] += 1
            return kind


@contextmanager
def unreliable(gateway: Gateway, seed: int) -> Iterator[tuple[str, Troubles]]:
    """A proxy before the gateway that is in trouble at one of five requests."""
    troubles = Troubles(random.Random(seed))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            trouble = troubles.draw()
            if trouble == "busy":
                self.reply(503, [], BUSY)
            elif trouble == "hang up":
                self.hang_up()
            else:
                time.sleep(1.5 if trouble == "stall" else 0)
                status, headers, answer = self.ask(body)
                if trouble == "lose the answer":
                    self.hang_up()
                elif trouble == "cut the answer" and len(answer) > 1:
                    self.reply(status, headers, answer[: len(answer) // 2], length=len(answer))
                    self.hang_up()
                else:
                    self.reply(status, headers, answer)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815

        def ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            """The gateway's answer to the very same request: its signature covers `Host`."""
            connection = http.client.HTTPConnection("127.0.0.1", gateway.port)
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            return answer.status, answer.getheaders(), data

        def reply(self, status: int, headers: list[tuple[str, str]], body: bytes, length: int | None = None) -> None:
            self.send_response_only(status)
            kept = [pair for pair in headers if pair[0].lower() not in ("transfer-encoding", "connection")]
            for name, value in kept:
                if name.lower() != "content-length" or self.command == "HEAD":
                    self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body)
            self.wfile.flush()

        def hang_up(self) -> None:
            """Reset the connection: what is under way is lost."""
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: Any) -> None:
            """Clients of the other end hang up too."""

    with Server(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", troubles
        finally:
            server.shutdown()
            serving.join()


def test_a_server_in_trouble_changes_no_byte(gateway, every_kind, undisturbed, tmp_path, monkeypatch):
    archive = gateway.bucket("troubled")
    with unreliable(gateway, seed=8) as (endpoint, troubles):
        run_again_until_done(every_kind, archive, endpoint, tmp_path)
    assert min(troubles.done.values()) > 5
    assert len(troubles.done) == 6

    monkeypatch.setenv("AWS_ENDPOINT_URL", gateway.endpoint)
    once.check(archive, undisturbed)
