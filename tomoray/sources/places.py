"""A source's URL to its files: which kind of place it is, and how each is listed and read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tomoray.errors import Fatal, Reason, Refused
from tomoray.sources import dicomweb, idc
from tomoray.sources.files import SeriesListing, SourceFile
from tomoray.sources.listing import walk_store
from tomoray.sources.packed import is_packed, list_packed, packed_root, read_packed
from tomoray.storage import open_store


def list_source(url: str) -> Iterator[SourceFile]:
    """Every file of a source, in an order that stays the same; nothing is held but the folder that is being read.

    Folders and S3 prefixes come sorted by key. Links are followed, each folder once. The members of a zip or tar file
    stand in its place; one that cannot be opened is listed itself, and `read_headers` says why.

    Raises:
        Fatal: there is nothing at `url`, or it cannot be reached. Raised by the call, or while listing goes on.
        Usage: `url` is of no known form.
    """
    if idc.is_idc(url) or dicomweb.is_query(url):
        series = list_series(url)
        assert series is not None, "both kinds know their series"
        return (file for listing in series for file in list_source(listing.root))
    if dicomweb.is_dicomweb(url):
        return dicomweb.list_instances(url)
    if is_packed(url) and (_is_remote(url) or Path(url).expanduser().is_file()):
        return _list_one_packed(url if _is_remote(url) else str(Path(url).expanduser().absolute()))
    if _is_remote(url):
        store = open_store(url)
        store.check(writable=False)
        files = (SourceFile(root=store.url, key=item.key, size_bytes=item.size_bytes) for item in walk_store(store))
        return _unpacking(files)
    path = Path(url).expanduser().absolute()
    if path.is_file():
        return iter([SourceFile(root=str(path.parent), key=path.name, size_bytes=path.stat().st_size)])
    if not path.is_dir():
        raise Fatal(f"no folder or file at {url}; check the path")
    return _unpacking(_walk(str(path), "", set()))


def list_series(url: str) -> Iterator[SeriesListing] | None:
    """The series of a source that knows them without reading a file (IDC, DICOMweb); None for every other.

    Raises:
        Fatal, Usage: as for `list_source`.
    """
    if idc.is_idc(url):
        return idc.list_series(url)
    if dicomweb.is_query(url):
        return dicomweb.list_series(url)
    return None


def read_file(root: str, key: str) -> bytes:
    """The bytes of one file of a source.

    Raises:
        Refused: UNREADABLE; the file cannot be opened, is gone, or is damaged within its archive.
        Transient, Fatal: the place cannot be reached.
    """
    return _read(root, key, None)


def read_head(root: str, key: str, length: int) -> bytes:
    """The first `length` bytes of a file, all where it is shorter. Raises as `read_file` does."""
    return _read(root, key, length)


def _read(root: str, key: str, length: int | None) -> bytes:
    if dicomweb.is_dicomweb(root):
        return dicomweb.read_instance(root, key, length)
    if is_packed(root) and (_is_remote(root) or Path(root).is_file()):
        return read_packed(root, key, length)
    return _read_remote(root, key, length) if _is_remote(root) else _read_local(root, key, length)


def _is_remote(source: str) -> bool:
    return "://" in source


def _list_one_packed(url: str) -> Iterator[SourceFile]:
    try:
        return list_packed(url)
    except Refused as refusal:
        raise Fatal(f"{url}: {refusal.evidence}") from refusal


def _unpacking(files: Iterator[SourceFile]) -> Iterator[SourceFile]:
    """`files`, with the members of an archive in its place."""
    for file in files:
        if is_packed(file.key):
            try:
                yield from list_packed(packed_root(file))
            except Refused:
                yield file
        else:
            yield file


def _walk(root: str, folder: str, seen: set[tuple[int, int]]) -> Iterator[SourceFile]:
    """Files below a local folder, whatever their names, sorted by key; each folder once, though links make a ring."""
    try:
        here = Path(root, folder).stat()
        if (here.st_dev, here.st_ino) in seen:
            return
        seen.add((here.st_dev, here.st_ino))
        with os.scandir(Path(root, folder)) as entries:
            found = sorted(
                (f"{entry.name}/" if entry.is_dir() else entry.name, _size_bytes(entry)) for entry in entries
            )
    except OSError as error:
        raise Fatal(f"{root}: a folder in it cannot be listed ({error.strerror}); change its permissions") from error
    for name, size_bytes in found:
        if name.endswith("/"):
            yield from _walk(root, folder + name, seen)
        else:
            yield SourceFile(root=root, key=folder + name, size_bytes=size_bytes)


def _size_bytes(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a link to nothing; reading it says so
        return 0


def _read_local(root: str, key: str, length: int | None) -> bytes:
    try:
        with Path(root, key).open("rb") as file:
            return file.read(-1 if length is None else length)
    except OSError as error:
        raise Refused(Reason.UNREADABLE, f"a file cannot be opened ({error.strerror})") from error


def _read_remote(root: str, key: str, length: int | None) -> bytes:
    store = open_store(root)
    try:
        if length is None:
            return store.read(key)
        try:
            return store.read_range(key, 0, length)
        except Fatal:
            if store.stat(key)[0] == 0:  # of an empty object there is no range
                return b""
            raise
    except FileNotFoundError as error:
        raise Refused(Reason.UNREADABLE, "a file was deleted after it was listed; run the command again") from error
