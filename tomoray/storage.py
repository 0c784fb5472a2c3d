"""Where bytes live: one URL, a folder or an S3 prefix, behind the same few calls.

Keys are relative, with `/` between parts, and never start with one. The same objects under the same keys make the
same archive, on disk and on S3.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, S3Store
from pyarrow import fs

from tomoray import settings
from tomoray.bucket import Bucket, other_trouble
from tomoray.errors import Fatal, TomoRayError, Transient, Usage

T = TypeVar("T")

_PART = 16 * 2**20  # larger objects go to S3 in parts of this size


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectInfo:
    """One object of a store."""

    key: str
    size_bytes: int


class Store:
    """A folder or an S3 prefix. Pickles as its URL: clients and credentials are made anew in each process.

    Every call raises `Fatal` (no such bucket, access denied, disk full) or `Transient` (connection lost, server busy)
    in one line; reading an absent object raises `FileNotFoundError`. Every call is safe to repeat.
    """

    def __init__(self, place: _Place, prefix: str = "") -> None:
        self._place = place
        self._prefix = prefix.strip("/")

    @property
    def url(self) -> str:
        """The absolute path, or `s3://bucket/prefix`."""
        return f"{self._place.url}/{self._prefix}" if self._prefix else self._place.url

    @property
    def gap_bytes(self) -> int:
        """Bytes that are read in the time that another request takes: about so many are worth reading along."""
        return self._place.gap_bytes

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def child(self, prefix: str) -> Store:
        """The store below `prefix`, on the same connections."""
        return Store(self._place, self._path(prefix))

    def read(self, key: str) -> bytes:
        """The whole object. Raises `FileNotFoundError` where there is none."""
        return self._patiently(key, lambda: bytes(obstore.get(self._place.reader, self._path(key)).bytes()))

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`, which lies in the object; fewer where it ends. Raises `FileNotFoundError`."""
        return self._patiently(key, lambda: self._place.read_range(self._path(key), start, length))

    def read_end(self, key: str, length: int) -> bytes:
        """The last `length` bytes; all where there are fewer. Raises `FileNotFoundError`."""
        options: Any = {"range": {"suffix": length}}
        return self._patiently(
            key, lambda: bytes(obstore.get(self._place.reader, self._path(key), options=options).bytes())
        )

    def write(self, key: str, data: bytes) -> None:
        """Put an object in one step: readers see the old bytes or the new ones, never a part."""
        try:
            self._patiently(key, lambda: obstore.put(self._place.writer, self._path(key), data, chunk_size=_PART))
        except FileNotFoundError as error:  # its temporary name, or its upload in parts: another writer tidied up
            raise Transient(f"{self.url}: an object went away while it was written; try again") from error

    def write_file(self, key: str, file: IO[bytes]) -> None:
        """As `write`, of all that an open file holds; a part of it is in memory at a time."""

        def put() -> None:
            file.seek(0)
            obstore.put(self._place.writer, self._path(key), file, chunk_size=_PART)

        self._patiently(key, put)

    def read_file(self, key: str, file: IO[bytes]) -> None:
        """Append the object to an open file; a part of it is in memory at a time. Raises `FileNotFoundError`."""
        size_bytes, _ = self.stat(key)
        for start in range(0, size_bytes, _PART):
            file.write(self.read_range(key, start, min(_PART, size_bytes - start)))

    def write_new(self, key: str, data: bytes) -> bool:
        """Put an object only where there is none; False where there is one. One of many writers wins."""
        with self._translated(key):
            try:
                obstore.put(self._place.writer, self._path(key), data, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def exists(self, key: str) -> bool:
        """True where `read` would find an object."""
        try:
            self._patiently(key, lambda: obstore.head(self._place.reader, self._path(key)))
        except FileNotFoundError:
            return False
        return True

    def folders(self, prefix: str = "") -> list[str]:
        """Names of the folders right below `prefix`, sorted. Costs one request per 1000, however deep they are."""
        return sorted(self.walk_folders(prefix))

    def walk_folders(self, prefix: str = "") -> Iterator[str]:
        """As `folders`, in any order; on disk they come one by one."""
        try:
            with self._translated(prefix):
                yield from self._patiently(prefix, lambda: self._place.folders(self._path(prefix)))
        except FileNotFoundError:
            return

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """All objects below the folder `prefix`, at any depth, sorted by key."""
        return sorted(self.walk(prefix), key=lambda info: info.key)

    def walk(self, prefix: str = "", *, after: str = "") -> Generator[ObjectInfo, None, None]:
        """All objects below the folder `prefix`, as they are found: S3 gives them by key, a thousand a request.

        With `after`, those whose key is greater.
        """
        offset = self._path(after) if after else None
        pauses_s = _pauses_s(time.monotonic())
        while True:
            try:
                with self._translated(prefix):
                    for chunk in obstore.list(
                        self._place.reader, self._path(prefix) or None, offset=offset, chunk_size=1000
                    ):
                        for item in chunk:
                            offset = item["path"]  # S3 lists by key, so that it can go on from here
                            yield ObjectInfo(key=self._key(item["path"]), size_bytes=item["size"])
                        pauses_s = _pauses_s(time.monotonic())
                return
            except FileNotFoundError:
                return
            except Transient:
                pause_s = next(pauses_s, None)
                if pause_s is None:
                    raise
                time.sleep(pause_s)

    def stat(self, key: str) -> tuple[int, str]:
        """Length in bytes, and a tag that changes with the content. Raises `FileNotFoundError` where there is none."""
        found = self._patiently(key, lambda: obstore.head(self._place.reader, self._path(key)))
        return int(found["size"]), str(found["e_tag"] or found["last_modified"])

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; absent ones are no error."""
        paths = [self._path(key) for key in keys]
        if paths:
            self._patiently("", lambda: self._place.delete(paths))

    def delete_all(self) -> None:
        """Delete every object below this prefix, and what writers that were killed left unfinished there."""
        self.delete(info.key for info in self.list())
        self._place.clear_partial(self._prefix)

    def clear_partial(self) -> None:
        """Remove what writers that were killed left unfinished below this prefix. Objects stay."""
        self._place.clear_partial(self._prefix)

    def check(self, *, writable: bool = True) -> None:
        """Raise `Fatal` in one line, within about ten seconds, where this place cannot be used.

        An unreachable endpoint, an absent bucket, refused credentials and an unwritable folder are told apart.
        On S3 the right to write shows at the first write: asking for it here would leave an object.
        """
        try:
            self._place.check(self._prefix, writable=writable)
        except (BaseError, OSError) as error:
            raise Fatal(str(self.explain(error))) from error

    def explain(self, error: Exception) -> TomoRayError:
        """A foreign library's error on this store as `Transient` or `Fatal`, in one line."""
        return self._place.translate(self.url, error)

    def tensorstore_kvstore(self, prefix: str = "") -> dict[str, Any]:
        """The JSON spec of tensorstore's key-value store below `prefix`."""
        return self._place.kvstore(f"{self._path(prefix)}/".lstrip("/"))

    def arrow_filesystem(self) -> tuple[fs.FileSystem, str]:
        """An Arrow filesystem and this store's path in it, as Ray Train's `storage_filesystem` and `storage_path`."""
        return self._place.arrow(self._prefix)

    def _path(self, key: str) -> str:
        return "/".join(part for part in (self._prefix, key.strip("/")) if part)

    def _key(self, path: str) -> str:
        return path.removeprefix(f"{self._prefix}/") if self._prefix else path

    def _patiently(self, key: str, call: Callable[[], T]) -> T:
        """Call again where an answer was cut off: obstore repeats a request only until its answer begins."""
        pauses_s = _pauses_s(time.monotonic())
        while True:
            try:
                with self._translated(key):
                    return call()
            except Transient:
                pause_s = next(pauses_s, None)
                if pause_s is None:
                    raise
                time.sleep(pause_s)

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if "<Code>NoSuchBucket</Code>" in str(error):
                raise self.explain(error) from error
            raise FileNotFoundError(f"{self.url}: no object {key or '/'}") from error
        except (BaseError, OSError) as error:
            raise self.explain(error) from error


def open_store(url: str) -> Store:
    """The store at a path, a `file://` URL or `s3://[account@]bucket/prefix`. Touches neither disk nor network.

    The account is `anonymous` or a profile of the AWS config files (`credentials`).

    Raises:
        Usage: another scheme, `s3://` without a bucket, or a password in it.

    Example:
        >>> open_store("s3://ct/nlst").url
        's3://ct/nlst'
    """
    if url.startswith("s3://"):
        place, _, prefix = url.removeprefix("s3://").partition("/")
        account, _, bucket = place.rpartition("@")
        if ":" in account:
            raise Usage("an s3:// URL holds a password; wanted s3://PROFILE@bucket/prefix with the keys in a profile")
        if not bucket:
            raise Usage(f"{url!r} names no bucket; wanted s3://bucket/prefix")
        return Store(Bucket(bucket, account), prefix)
    if url.startswith("file://"):
        url = unquote(urlsplit(url).path)
    elif re.match(r"[a-z][a-z0-9+.-]*://", url, re.IGNORECASE):
        raise Usage(f"{url!r} is neither a path nor s3://bucket/prefix")
    if not url:
        raise Usage("the path is empty; wanted a path or s3://bucket/prefix")
    return Store(_Folder(Path(url).expanduser().resolve()))


def _pauses_s(started: float) -> Iterator[float]:
    """Ever longer pauses, until a minute is over, or all patience. What obstore has given up by itself took longer."""
    pause_s, patience_s = 0.1, settings.s3().patience_s
    while time.monotonic() + pause_s < started + min(60, patience_s):
        yield pause_s
        pause_s = min(2 * pause_s, 5.0)


class _Place(Protocol):
    """What a store rests on. Pickles without its clients."""

    @property
    def url(self) -> str: ...
    @property
    def reader(self) -> LocalStore | S3Store: ...
    @property
    def writer(self) -> LocalStore | S3Store: ...
    @property
    def gap_bytes(self) -> int: ...
    def read_range(self, path: str, start: int, length: int) -> bytes: ...
    def folders(self, path: str) -> Iterator[str]: ...
    def delete(self, paths: list[str]) -> None: ...
    def clear_partial(self, path: str) -> None: ...
    def check(self, path: str, *, writable: bool) -> None: ...
    def kvstore(self, path: str) -> dict[str, Any]: ...
    def arrow(self, path: str) -> tuple[fs.FileSystem, str]: ...
    def translate(self, url: str, error: Exception) -> TomoRayError: ...


class _Folder:
    """A folder; made at the first write."""

    gap_bytes = 64 * 2**10  # docs/patches.md

    def __init__(self, path: Path) -> None:
        self._root = path

    @property
    def url(self) -> str:
        return str(self._root)

    @property
    def reader(self) -> LocalStore:
        if not self._root.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such folder", self.url)
        return LocalStore(self._root, automatic_cleanup=True)

    @property
    def writer(self) -> LocalStore:
        self._root.mkdir(parents=True, exist_ok=True)
        return LocalStore(self._root, automatic_cleanup=True)

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """Read here and not by obstore, which goes through another thread and copies: that took as long again."""
        with (self._root / path).open("rb", buffering=0) as file:
            return os.pread(file.fileno(), length, start)

    def folders(self, path: str) -> Iterator[str]:
        with os.scandir(self._root / path) as entries:
            yield from (entry.name for entry in entries if entry.is_dir())

    def delete(self, paths: list[str]) -> None:
        for path in paths:
            with suppress(FileNotFoundError):
                obstore.delete(self.reader, path)

    def clear_partial(self, path: str) -> None:
        """Objects are written under a name that ends in `#` and a number, and renamed; then empty folders go."""
        folder = self._root / path
        for parent, _, names in os.walk(folder, topdown=False):
            for name in names:
                if re.search(r"#\d+$", name):
                    Path(parent, name).unlink(missing_ok=True)
            with suppress(OSError):  # not empty
                Path(parent).rmdir()

    def check(self, path: str, *, writable: bool) -> None:
        folder = self._root / path
        nearest = next(place for place in (folder, *folder.parents) if place.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{nearest} is not a folder")
        if writable:
            tempfile.TemporaryFile(dir=nearest).close()

    def kvstore(self, path: str) -> dict[str, Any]:
        return {"driver": "file", "path": f"{self._root}/{path}"}

    def arrow(self, path: str) -> tuple[fs.FileSystem, str]:
        return fs.LocalFileSystem(), str(self._root / path)

    def translate(self, url: str, error: Exception) -> TomoRayError:
        if isinstance(error, OSError) and error.strerror:
            return Fatal(f"{url}: {error.strerror}; choose a folder that can be used, or free space there")
        return other_trouble(url, error)
