import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from tomoray.block_cache import BlockCache
from tomoray.errors import Fatal

WRITES = """
import sys
from pathlib import Path
from tomoray.block_cache import BlockCache
cache = BlockCache(Path(sys.argv[1]), int(sys.argv[2]))
n = 0
while n < int(sys.argv[4]):
    name = f"{n}" if n % 3 else f"{sys.argv[3]} {n}"
    found = cache.get(name)
    assert found in (None, name.encode() * 500), name
    cache.put(name, name.encode() * 500)
    n += 1
    if n == 20:
        print("under way", flush=True)
"""


def start(folder, limit, who, count):
    command = [sys.executable, "-c", WRITES, str(folder), str(limit), who, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def blocks(folder):
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "size"]


def size(folder):
    total = 0
    for path in blocks(folder):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def test_what_was_put_is_got_by_another_process_too(tmp_path):
    BlockCache(tmp_path, 10_000).put("a", b"12")
    assert BlockCache(tmp_path, 10_000).get("a") == b"12"
    assert BlockCache(tmp_path, 10_000).get("b") is None


def test_the_bound_is_kept_and_blocks_used_longest_ago_go_first(tmp_path):
    cache = BlockCache(tmp_path, 10_000)
    for n in range(9):
        cache.put(str(n), bytes(1000))
        os.utime(cache._path(str(n)), (n, n))
    assert cache.get("0") is not None  # which is a use
    for n in range(9, 13):
        cache.put(str(n), bytes(1000))
        assert size(tmp_path) <= 10_000
    assert cache.get("0") is not None
    assert cache.get("1") is None


@pytest.mark.parametrize("harm", ["cut", "changed", "emptied", "moved"])
def test_a_damaged_block_is_never_served_and_is_written_anew(tmp_path, harm):
    cache = BlockCache(tmp_path, 10_000)
    cache.put("a", b"0123456789")
    cache.put("b", b"9876543210")
    stored = cache._path("a").read_bytes()
    harmed = {
        "cut": stored[:-1],
        "changed": b"x" + stored[1:],
        "emptied": b"",
        "moved": cache._path("b").read_bytes(),
    }
    cache._path("a").write_bytes(harmed[harm])
    assert cache.get("a") is None
    cache.put("a", b"0123456789")
    assert cache.get("a") == b"0123456789"


def test_two_processes_share_it_and_a_third_that_is_killed_leaves_it_whole(tmp_path):
    limit = 60_000
    processes = [start(tmp_path, limit, who, count) for who, count in (("killed", 10**9), ("one", 300), ("two", 300))]
    try:
        for process in processes:
            assert process.stdout.readline() == "under way\n"
            assert size(tmp_path) <= limit
        processes[0].send_signal(signal.SIGKILL)
        for process in processes:
            process.communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [-signal.SIGKILL, 0, 0]
    assert 0 < size(tmp_path) <= limit


def test_what_a_killed_writer_left_goes_when_room_is_made(tmp_path):
    cache = BlockCache(tmp_path, 5000)
    cache.put("a", bytes(1000))
    left = cache._path("a").with_name("left.partial")
    left.write_bytes(bytes(3000))
    for n in range(6):
        cache.put(str(n), bytes(1000))
    assert not left.exists()
    assert size(tmp_path) <= 5000


def test_threads_put_the_same_blocks_at_once(tmp_path):
    cache = BlockCache(tmp_path, 50_000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: cache.put(str(n % 5), bytes([n % 5]) * 1000), range(100)))
    assert [cache.get(str(n)) for n in range(5)] == [bytes([n]) * 1000 for n in range(5)]
    assert len(blocks(tmp_path)) == 5


def test_a_lost_account_of_sizes_is_made_again(tmp_path):
    cache = BlockCache(tmp_path, 5000)
    for n in range(4):
        cache.put(str(n), bytes(1000))
    (tmp_path / "size").write_bytes(b"")
    cache.put("4", bytes(1000))
    assert size(tmp_path) <= 5000


def test_a_disk_that_refuses_is_no_error_once_it_is_open(tmp_path, caplog):
    cache = BlockCache(tmp_path / "cache", 5000)
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").write_text("no folder any more")
    cache.put("a", b"1")
    assert cache.get("a") is None
    assert "blocks are not kept" in caplog.text


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Fatal, match=r"choose another stream.cache_folder"):
        BlockCache(tmp_path / "file", 100)
