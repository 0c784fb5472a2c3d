"""Compressed tar files, unpacked once a machine for all processes of one user.

A compressed stream cannot be read at random, and many tasks read one archive. So the first that wants it writes the
plain tar, as one file and under a hashed name, to a folder of its user alone; the others wait and share it. A shared
lock says that a file is in use: it is removed once no process has it open, even where one was killed, and there are
never more than `MAX_UNPACKED_BYTES` of them.
"""

from __future__ import annotations

import bz2
import fcntl
import gzip
import hashlib
import io
import lzma
import os
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from tomoray.errors import Fatal, Reason, Refused

MAX_UNPACKED_BYTES = 256 * 2**30
KEEP_FREE_BYTES = 2**30
_BLOCK = 2**20
_ABANDONED_S = 24 * 3600


def unpack(identity: str, packed: BinaryIO, name: str, limit_bytes: int) -> int:
    """A descriptor of the plain tar; who closes it gives it up.

    Args:
        identity: names one state of the archive; two processes that say the same share the file.
        packed: the compressed bytes, read only where no other process has unpacked them.
        name: its end says how it is compressed.
        limit_bytes: more than this is taken for a bomb.

    Raises:
        Refused: UNREADABLE; larger than `limit_bytes`.
        Fatal: no room for it, or the folder belongs to somebody else.
        EOFError, OSError, lzma.LZMAError, zlib.error: damaged.
    """
    folder = _folder()
    path = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.tar"
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one unpacks, the others wait
        while True:
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                sweep()
                _write(path, packed, name, limit_bytes)
                continue  # another process may sweep before it is opened
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            return descriptor
    finally:
        os.close(lock)


def sweep() -> None:
    """Remove what no process has open, and what killed ones left a day ago."""
    folder = Path(tempfile.gettempdir(), _NAME)
    for path in (*folder.glob("*.part"), *folder.glob("*.lock")) if folder.is_dir() else ():
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                path.unlink()
    for path in folder.glob("*.tar") if folder.is_dir() else ():
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:  # removed by another process just now
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)
        except BlockingIOError:
            pass  # in use
        finally:
            os.close(descriptor)


_NAME = f"tomoray-{os.getuid()}"


def _folder() -> Path:
    folder = Path(tempfile.gettempdir(), _NAME)
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise Fatal(f"{folder} is not a folder of this user alone, and patient data would go there; set TMPDIR")
    return folder


def _write(path: Path, packed: BinaryIO, name: str, limit_bytes: int) -> None:
    room = min(MAX_UNPACKED_BYTES - _used(path.parent), shutil.disk_usage(path.parent).free - KEEP_FREE_BYTES)
    descriptor, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file, _decompressed(packed, name) as plain:
            written = 0
            while block := plain.read(_BLOCK):
                written += len(block)
                if written > limit_bytes:
                    evidence = f"a compressed tar holds more than {limit_bytes} bytes, far more than CT packed so small"
                    raise Refused(Reason.UNREADABLE, evidence)
                if written > room:
                    raise Fatal(
                        f"no room for a compressed tar of more than {room} bytes in {path.parent}; "
                        "set TMPDIR to a larger disk, or unpack it and name the folder"
                    )
                file.write(block)
        Path(part).replace(path)
    finally:
        Path(part).unlink(missing_ok=True)


def _used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.tar"))


def _decompressed(packed: BinaryIO, name: str) -> io.BufferedIOBase:
    end = name.lower()
    if end.endswith("xz"):
        return lzma.open(packed)
    if end.endswith("bz2"):
        return bz2.open(packed)
    return gzip.open(packed)
