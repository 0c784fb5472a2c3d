"""Everything that tests/unit/test_queue.py asks of SQLite, asked of PostgreSQL and Redis; and what servers add."""

from __future__ import annotations

import runpy
from contextlib import closing
from pathlib import Path

import pytest

from serving.queue.place import open_queue
from tomoray.errors import Fatal, Transient

_contract = runpy.run_path(str(Path(__file__).parents[1] / "unit" / "test_queue.py"))
_servers = runpy.run_path(str(Path(__file__).parent / "queue_servers.py"))
_free_port = runpy.run_path(str(Path(__file__).parent / "s3_server.py"))["free_port"]
globals().update({name: test for name, test in _contract.items() if name.startswith("test_") and "file" not in name})
add, LEASE = _contract["add"], _contract["LEASE"]


@pytest.fixture(scope="module", params=["Postgres", "Redis"])
def server(request):
    kind = _servers[request.param]
    if kind.program() is None:
        pytest.skip(f"no {request.param}: {_servers['INSTALL']}")
    server = kind(_free_port())
    yield server
    server.stop()


@pytest.fixture
def queue_url(server):
    server.clear()
    return server.url


@pytest.fixture
def queue(queue_url):
    with closing(open_queue(queue_url)) as queue:
        yield queue


def test_jobs_survive_a_server_that_is_killed(server, queue):
    waiting, running = add(queue, key="k"), add(queue)
    assert queue.take("a", **LEASE).id == waiting.id
    server.kill()
    with pytest.raises(Transient, match="does not answer"):
        queue.get(running.id)
    server.start()
    assert queue.counts() == {"queued": 1, "running": 1}
    assert queue.finish(waiting.id, "a", result="1", error=None, keep_s=60)
    assert add(queue, key="k").id == waiting.id


def test_redis_that_keeps_nothing_is_refused():
    kind = _servers["Forgetful"]
    if kind.program() is None:
        pytest.skip(f"no Redis: {_servers['INSTALL']}")
    server = kind(_free_port())
    try:
        with pytest.raises(Fatal, match="set appendonly yes"):
            open_queue(server.url)
    finally:
        server.stop()
