"""Bytes of far objects on the node's own disk: shared by its processes, bounded in size, safe against kills.

    FOLDER/<2 hex>/<30 hex>      one block: its bytes, then their length and CRC-32 with its name
    FOLDER/size                  bytes that blocks take, an upper bound; also the lock

A block is written under another name and renamed, by one process at a time, after its size is added to `size`: so the
bound holds at every moment, whoever is killed. Blocks used longest ago go first. A block that is short, or not what was
written, is deleted and read anew. A full or broken disk never stops a training: blocks are then not kept.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tomoray.errors import Fatal

_TAIL = struct.Struct("<QII")  # bytes, CRC-32 of them, CRC-32 of the name
_ROOM = 0.9  # of the limit is left when blocks have to go
_TOUCH_EVERY_S = 60
_log = logging.getLogger(__name__)


class BlockCache:
    """Blocks by name. Pickles; any number of threads and processes may share a folder.

    Args:
        folder: on a local disk, made where absent; for blocks only.
        limit_bytes: never exceeded. All who share the folder name the same.

    Raises:
        Fatal: the folder cannot be used.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder, self._limit = folder, limit_bytes
        self._warned = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                pass
        except OSError as error:
            raise Fatal(f"{folder}: {error.strerror}; choose another stream.cache_folder, or none") from error

    def get(self, name: str) -> bytes | None:
        """The block, or None where it is not held whole."""
        path = self._path(name)
        try:
            stored = path.read_bytes()
            if time.time() - path.stat().st_mtime > _TOUCH_EVERY_S:
                os.utime(path)
        except OSError:
            return None
        data = stored[: -_TAIL.size]
        if stored[-_TAIL.size :] == _tail(name, data):
            return data
        with suppress(OSError):
            path.unlink()
        return None

    def put(self, name: str, data: bytes) -> None:
        """Keep a block, and let go of others where it needs the room. Too large a block is not kept."""
        path, size = self._path(name), len(data) + _TAIL.size
        if size > self._limit * _ROOM:
            return
        partial = path.with_name(f"{path.name}.partial")
        try:
            with self._locked() as lock:
                if path.exists():
                    return
                known = os.pread(lock, 8, 0)
                used = int.from_bytes(known, "little")
                if not known or used + size > self._limit:
                    used = self._make_room(int(self._limit * _ROOM) - size)
                os.pwrite(lock, (used + size).to_bytes(8, "little"), 0)
                path.parent.mkdir(exist_ok=True)
                partial.write_bytes(data + _tail(name, data))
                partial.replace(path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            if not self._warned:
                _log.warning("%s: %s; blocks are not kept", self._folder, error.strerror)
                self._warned = True

    def _path(self, name: str) -> Path:
        digest = hashlib.sha256(name.encode()).hexdigest()
        return self._folder / digest[:2] / digest[2:32]

    def _make_room(self, most: int) -> int:
        """Delete leftovers and the blocks used longest ago until the others take `most` bytes; what they take."""
        blocks = []
        for folder in self._folder.iterdir():
            for path in folder.iterdir() if folder.is_dir() else ():
                found = path.stat()
                blocks.append((0.0 if path.suffix else found.st_mtime, found.st_size, path))
        used = sum(size for _, size, _ in blocks)
        for _, size, path in sorted(blocks):
            if used <= most and not path.suffix:
                break
            path.unlink(missing_ok=True)
            used -= size
        return used

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The one writer. The kernel frees the lock of a process that ends."""
        lock = os.open(self._folder / "size", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield lock
        finally:
            os.close(lock)


def _tail(name: str, data: bytes) -> bytes:
    return _TAIL.pack(len(data), zlib.crc32(data), zlib.crc32(name.encode()))
