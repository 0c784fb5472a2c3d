"""Zip and tar files as sources: their members are files, whose keys are the members' names.

Names are keys only: nothing is ever written under them. Zip and plain tar files are read at random, on S3 by ranges;
a compressed tar is unpacked once a machine (`unpacked`).
"""

from __future__ import annotations

import atexit
import io
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from tomoray.errors import Reason, Refused
from tomoray.sources import unpacked
from tomoray.sources.files import SourceFile
from tomoray.storage import Store, open_store

MAX_MEMBERS = 1_000_000
MAX_MEMBER_BYTES = 8 * 2**30  # one is read into memory
BOMB_BYTES, BOMB_RATIO = 2**30, 200  # smaller than the one is harmless; beyond the other is no CT

_COMPRESSED_TAR = (".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
_SUFFIXES = (".zip", ".tar", *_COMPRESSED_TAR)
_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, OSError, NotImplementedError, RuntimeError, ValueError, OverflowError),
)


def is_packed(name: str) -> bool:
    """True by the name's end."""
    return name.lower().endswith(_SUFFIXES)


def packed_root(file: SourceFile) -> str:
    """The root of an archive's members. The two slashes say where the source ends and what was found in it begins."""
    return f"{file.root}//{file.key}"


def list_packed(url: str) -> Iterator[SourceFile]:
    """The members of an archive, sorted by name.

    Args:
        url: the archive's absolute path or `s3://` URL; it is the members' root.

    Raises:
        Refused: UNREADABLE; damaged, encrypted, or more than the limits allow. Raised by the call.
    """
    sizes = _open(url).sizes
    return (SourceFile(root=url, key=key, size_bytes=sizes[key]) for key in sorted(sizes))


def read_packed(url: str, key: str, length: int | None = None) -> bytes:
    """The bytes of a member, or its first `length`. Safe in many threads. Raises `Refused` (UNREADABLE)."""
    archive = _open(url)
    size_bytes = archive.sizes.get(key)
    if size_bytes is None:
        raise Refused(Reason.UNREADABLE, "a member is no longer in its archive; run the command again")
    wanted = size_bytes if length is None else min(length, size_bytes)
    if wanted > MAX_MEMBER_BYTES:
        raise Refused(
            Reason.UNREADABLE, f"a member of an archive has {wanted} bytes; wanted {MAX_MEMBER_BYTES} at most"
        )
    try:
        data = archive.read(key, wanted)
    except _DAMAGED as error:
        raise Refused(Reason.UNREADABLE, f"a member of an archive is damaged ({type(error).__name__})") from error
    if len(data) < wanted:
        raise Refused(Reason.UNREADABLE, f"a member of an archive ends after {len(data)} of {wanted} bytes")
    return data


class _Archive(Protocol):
    """An opened archive."""

    @property
    def sizes(self) -> Mapping[str, int]: ...
    def read(self, key: str, length: int) -> bytes: ...


class _Bytes(Protocol):
    """Bytes that are read at random, from many threads."""

    @property
    def size_bytes(self) -> int: ...
    def read_at(self, start: int, length: int) -> bytes: ...


def _open(url: str) -> _Archive:
    """The archive at `url`, kept open in this process until it changes or many others were opened."""
    try:
        if "://" in url:
            scheme, _, place = url.partition("://")
            folder, _, key = f"{scheme}://{place.replace('//', '/')}".rpartition("/")
            size_bytes, tag = _stat(folder, key)
        else:
            folder, key, found = "", url, Path(url).stat()
            size_bytes, tag = found.st_size, f"{found.st_mtime_ns} {found.st_ino}"
        return _opened(folder, key, size_bytes, tag)
    except (FileNotFoundError, PermissionError) as error:
        raise Refused(
            Reason.UNREADABLE, f"an archive cannot be opened ({error.strerror or 'no such object'})"
        ) from error
    except _DAMAGED as error:
        raise Refused(Reason.UNREADABLE, f"an archive is damaged, or none ({type(error).__name__})") from error


@lru_cache(maxsize=256)
def _stat(folder: str, key: str) -> tuple[int, str]:
    """Asked once a process: a source does not change while it is read, and a request a member would be slow."""
    return open_store(folder).stat(key)


@lru_cache(maxsize=16)
def _opened(folder: str, key: str, size_bytes: int, tag: str) -> _Archive:
    """`size_bytes` and `tag` tell one state of the file from another."""
    packed: _Bytes = _Remote(open_store(folder), key, size_bytes) if folder else _Local(os.open(key, os.O_RDONLY))
    if key.lower().endswith(".zip"):
        return _Zip(packed)
    if not key.lower().endswith(_COMPRESSED_TAR):
        return _Tar(packed)
    stream = io.BufferedReader(_Seekable(packed), 2**22)
    limit = max(BOMB_BYTES, BOMB_RATIO * size_bytes)
    return _Tar(_Local(unpacked.unpack(f"{folder}/{key} {size_bytes} {tag}", stream, key, limit)))


@atexit.register
def _close() -> None:
    _opened.cache_clear()
    unpacked.sweep()


class _Zip:
    def __init__(self, packed: _Bytes) -> None:
        self._packed = packed
        with zipfile.ZipFile(io.BufferedReader(_Seekable(packed), 2**16)) as archive:
            self._members = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
        _check_count(len(self._members))
        if any(entry.flag_bits & 1 for entry in self._members.values()):
            raise Refused(Reason.UNREADABLE, "a zip file is encrypted; send a plain one")
        self.sizes = {name: entry.file_size for name, entry in self._members.items()}
        total = sum(self.sizes.values())
        if total > max(BOMB_BYTES, BOMB_RATIO * packed.size_bytes):
            raise Refused(
                Reason.UNREADABLE,
                f"a zip file of {packed.size_bytes} bytes holds {total}; wanted a ratio of {BOMB_RATIO} at most",
            )

    def read(self, key: str, length: int) -> bytes:
        entry = self._members[key]
        # stored or deflated bytes are never longer than this; the other methods are read whole
        bounded = entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) and length < entry.file_size
        wanted = min(entry.compress_size, length + length // 100 + 4096) if bounded else entry.compress_size
        guess = 30 + len(entry.orig_filename.encode()) + 256
        found = self._packed.read_at(entry.header_offset, guess + wanted)
        if found[:4] != b"PK\x03\x04":
            raise zipfile.BadZipFile("no local header")
        start = 30 + sum(struct.unpack("<HH", found[26:30]))  # name and extra field, whose length only stands here
        if start > guess:
            found += self._packed.read_at(entry.header_offset + guess + wanted, start - guess)
        with zipfile.ZipExtFile(io.BytesIO(found[start : start + wanted]), "r", entry) as member:
            return member.read(length)


class _Tar:
    def __init__(self, packed: _Bytes) -> None:
        self._packed = packed
        self._places: dict[str, tuple[int, int]] = {}  # offset, bytes
        with tarfile.open(fileobj=io.BufferedReader(_Seekable(packed), 2**16), mode="r:") as archive:
            while member := archive.next():
                archive.members = []  # type: ignore[attr-defined] # else it holds every header again
                if member.issparse():
                    raise Refused(Reason.UNREADABLE, "a tar file holds sparse files; pack it without --sparse")
                if member.isreg():
                    self._places[member.name] = member.offset_data, member.size
                elif member.islnk() and member.linkname in self._places:
                    self._places[member.name] = self._places[member.linkname]
                _check_count(len(self._places))
        self.sizes = {name: size for name, (_, size) in self._places.items()}

    def read(self, key: str, length: int) -> bytes:
        return self._packed.read_at(self._places[key][0], length)


def _check_count(found: int) -> None:
    if found > MAX_MEMBERS:
        raise Refused(Reason.UNREADABLE, f"an archive holds more than {MAX_MEMBERS} files; split it")


class _Local:
    """An open file; owns its descriptor, and with it any lock."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size_bytes = os.fstat(descriptor).st_size

    def __del__(self) -> None:
        os.close(self._descriptor)

    def read_at(self, start: int, length: int) -> bytes:
        parts = []
        while length > 0 and (part := os.pread(self._descriptor, min(length, 2**30), start)):
            parts.append(part)
            start, length = start + len(part), length - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class _Remote:
    """An object of a store."""

    def __init__(self, store: Store, key: str, size_bytes: int) -> None:
        self._store, self._key, self.size_bytes = store, key, size_bytes

    def read_at(self, start: int, length: int) -> bytes:
        length = min(length, self.size_bytes - start)
        return self._store.read_range(self._key, start, length) if length > 0 else b""


class _Seekable(io.RawIOBase):
    """Bytes as a file with a position, as parsers want it; one parser, one thread."""

    def __init__(self, packed: _Bytes) -> None:
        self._packed, self._position = packed, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._packed.size_bytes}[whence]
        if start + offset < 0:
            raise OSError("before the start")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._packed.read_at(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
