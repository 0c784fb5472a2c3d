"""One writer at a time: who may write an archive, who may take over, and what is left when they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from cluster import watch
from tomoray import lease as leases
from tomoray.archive import Archive
from tomoray.config import Layout
from tomoray.errors import Fatal
from tomoray.lease import MARK, RUN_MARK, Lease, Progress, read_run
from tomoray.storage import open_store


@pytest.fixture
def store(tmp_path):
    return Archive.create(str(tmp_path / "archive"), Layout()).store


def mark_of(pid: int, *, born: str | None = "1", host: str = "elsewhere", age_s: float = 0.0) -> bytes:
    mark = {"host": host, "pid": pid, "born": born, "id": "0", "renewed": time.time() - age_s, "progress": {"done": 1}}
    return json.dumps(mark).encode()


def here(mark: bytes) -> bytes:
    with_host = json.loads(mark) | {"host": leases.socket.gethostname()}
    return json.dumps(with_host).encode()


def test_a_second_writer_is_refused_in_one_line(store):
    with Lease(store, Progress(total=3)):
        with pytest.raises(Fatal, match=f"is being written by process {os.getpid()} on .*tomoray watch") as caught:
            Lease(store, Progress()).__enter__()
        assert "\n" not in str(caught.value)
        assert read_run(store)["progress"] == {"total": 3}


def test_the_mark_of_a_process_that_is_dead_is_taken_over_at_once(store):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    born = leases._born(dead.pid)
    dead.wait()
    store.write(MARK, here(mark_of(dead.pid, born=born or "1")))
    with Lease(store, Progress()) as lease:
        lease.check()
        assert read_run(store)["pid"] == os.getpid()


def test_a_process_that_was_killed_is_dead_before_its_parent_looks(store):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        store.write(MARK, here(mark_of(child.pid, born=leases._born(child.pid))))
        with pytest.raises(Fatal, match="is being written"):
            Lease(store, Progress()).__enter__()
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table of processes
        with Lease(store, Progress()):
            assert read_run(store)["pid"] == os.getpid()


def test_a_process_id_that_is_used_again_is_another_process(store):
    store.write(MARK, here(mark_of(os.getpid(), born="1")))
    with Lease(store, Progress()) as lease:
        lease.check()


def test_a_mark_of_another_machine_is_taken_over_when_it_is_stale(store):
    store.write(MARK, mark_of(7, age_s=leases.STALE_S - 10))
    with pytest.raises(Fatal, match="process 7 on elsewhere"):
        Lease(store, Progress()).__enter__()
    store.write(MARK, mark_of(7, age_s=leases.STALE_S + 10))
    with Lease(store, Progress()):
        assert read_run(store)["pid"] == os.getpid()


def test_who_waits_takes_over_from_a_machine_that_is_gone(store):
    store.write(RUN_MARK, mark_of(7, age_s=leases.STALE_S - 1))
    with Lease(store, Progress(), mark=RUN_MARK, waits=True):
        assert read_run(store, RUN_MARK)["pid"] == os.getpid()
        assert read_run(store) is None
    assert not store.exists(RUN_MARK)


def test_who_waits_is_refused_as_soon_as_the_other_machine_gives_a_sign(store):
    store.write(RUN_MARK, mark_of(7, age_s=5))
    renewal = threading.Timer(0.1, store.write, (RUN_MARK, mark_of(7)))
    renewal.start()
    with pytest.raises(Fatal, match="is being written by process 7 on elsewhere; wait for it, or stop it"):
        Lease(store, Progress(), mark=RUN_MARK, waits=True).__enter__()
    renewal.join()


def test_who_waits_goes_on_when_the_other_machine_is_done(store):
    store.write(RUN_MARK, mark_of(7, age_s=5))
    end = threading.Timer(0.1, store.delete, ([RUN_MARK],))
    end.start()
    with Lease(store, Progress(), mark=RUN_MARK, waits=True) as lease:
        lease.check()
    end.join()


def test_the_mark_is_gone_after_the_end_and_after_an_error(store):
    with Lease(store, Progress()):
        assert store.exists(MARK)
    assert not store.exists(MARK)
    with pytest.raises(KeyboardInterrupt), Lease(store, Progress()):
        raise KeyboardInterrupt
    assert not store.exists(MARK)


def test_what_killed_writers_left_is_gone_at_the_end(store, tmp_path):
    left = [tmp_path / "archive" / name for name in ("run.json#1", "scans/a/0/c/0/0/0#2", "catalog/a.parquet#1")]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half of it")
    with Lease(store, Progress()):
        pass
    assert [info.key for info in store.list()] == ["tomoray.json"]
    assert not any(path.parent.exists() for path in left[1:])
    assert not left[0].exists()


def test_a_run_that_was_taken_over_stops_and_leaves_the_mark_alone(store, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_S", 0.01)
    other = mark_of(7)
    with Lease(store, Progress()) as lease:
        renewed = read_run(store)["age_s"]
        while read_run(store)["age_s"] >= renewed:  # it renews
            renewed = max(renewed, read_run(store)["age_s"])
        while store.read(MARK) != other:  # a renewal under way may come after
            store.write(MARK, other)
            time.sleep(0.1)
        with pytest.raises(Fatal, match="was taken over by process 7 on elsewhere"):
            lease.check()
    assert store.read(MARK) == other


@pytest.mark.parametrize(
    "mark", [b"", b"{", b"[]", b"null", b'{"renewed": 1}', b'{"renewed": "x", "host": 1}', mark_of(7)[:-9], b"\xff"]
)
def test_a_mark_that_makes_no_sense_is_nobodys(store, mark):
    store.write(MARK, mark)
    assert read_run(store) is None
    with Lease(store, Progress()) as lease:
        lease.check()


def test_nobody_writes_where_there_is_no_mark(store):
    assert read_run(store) is None


def test_watch_follows_a_run_to_its_end(store):
    progress, seen = Progress(total=20, done=0), threading.Event()
    done = []

    def run():
        with Lease(store, progress):
            seen.wait(10)
            progress.update(done=20, stored=19, refused=1, voxel_mb=3.5, mb_per_s=7.0)
            done.append(True)

    running = threading.Thread(target=run)
    running.start()
    while read_run(store) is None:
        time.sleep(0.01)
    follower = threading.Timer(0.05, seen.set)
    follower.start()
    found = watch.follow(store.url, every_s=0.01)
    running.join()
    follower.join()
    assert done == [True]
    assert (found["archive"], found["total"]) == (store.url, 20)


def test_watch_says_what_was_last_written(store):
    store.write(MARK, mark_of(7))
    ending = threading.Timer(0.1, store.delete, ([MARK],))
    ending.start()
    assert watch.follow(store.url, every_s=0.02) == {"archive": store.url, "done": 1}
    ending.join()


def test_watch_says_so_where_nothing_writes(store):
    with pytest.raises(Fatal, match=r"nothing writes .*tomoray preprocess SOURCE"):
        watch.follow(store.url)


def test_watch_gives_up_on_a_run_that_was_killed(store):
    store.write(MARK, mark_of(7, age_s=leases.STALE_S + 5))
    with pytest.raises(Fatal, match=r"on elsewhere has said nothing for 6[5-9] s; run its command again"):
        watch.follow(store.url)


def test_a_folder_and_its_child_are_one_place(tmp_path):
    store = open_store(str(tmp_path))
    with Lease(store.child("a"), Progress()), pytest.raises(Fatal, match="is being written"):
        Lease(open_store(str(tmp_path / "a")), Progress()).__enter__()
