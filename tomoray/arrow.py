"""An S3 bucket as an Arrow filesystem, on obstore's client: what Ray Train writes checkpoints through."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import obstore
import pyarrow as pa
from obstore.exceptions import BaseError
from pyarrow import fs

if TYPE_CHECKING:
    from tomoray.bucket import Bucket

_PART = 8 * 2**20


class ArrowFiles(fs.FileSystemHandler):  # type: ignore[misc]  # pyarrow has no types
    """Objects as files: paths are `bucket/key`, and a folder exists by what is in it. Pickles."""

    def __init__(self, bucket: Bucket) -> None:
        super().__init__()
        self.bucket = bucket

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ArrowFiles) and self.bucket.name == other.bucket.name

    def __hash__(self) -> int:
        return hash(self.bucket.name)

    def get_type_name(self) -> str:
        """The filesystem's name."""
        return "tomoray"

    def normalize_path(self, path: str) -> str:
        """The path without a slash at its end."""
        return path.rstrip("/")

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        """What each path is: a file, a folder or nothing."""
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        """Files and folders below a folder. Raises `FileNotFoundError` where that is not allowed to be absent."""
        base = selector.base_dir.rstrip("/")
        files = {f"{self.bucket.name}/{key}": size for key, size in self._below(base)}
        if not files and not selector.allow_not_found:
            raise FileNotFoundError(f"nothing below {base}")
        folders = {str(above) for file in files for above in PurePosixPath(file).parents if len(str(above)) > len(base)}
        infos = [fs.FileInfo(path, fs.FileType.Directory) for path in sorted(folders)]
        infos += [fs.FileInfo(path, fs.FileType.File, size=size) for path, size in sorted(files.items())]
        return [info for info in infos if selector.recursive or str(PurePosixPath(info.path).parent) == base]

    def create_dir(self, path: str, recursive: bool) -> None:
        """Nothing to do."""
        del path, recursive

    def delete_dir(self, path: str) -> None:
        """Delete every object below `path`."""
        keys = [key for key, _ in self._below(path)]
        if keys:
            with _translated(self.bucket, path):
                obstore.delete(self.bucket.writer, keys)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        """The same: folders are not objects."""
        del missing_dir_ok
        self.delete_dir(path)

    def delete_root_dir_contents(self) -> None:
        """Refused."""
        raise NotImplementedError("a bucket is not emptied through Arrow")

    def delete_file(self, path: str) -> None:
        """Delete one object."""
        with _translated(self.bucket, path):
            obstore.delete(self.bucket.writer, self._key(path))

    def move(self, src: str, dest: str) -> None:
        """Copy, then delete."""
        self.copy_file(src, dest)
        self.delete_file(src)

    def copy_file(self, src: str, dest: str) -> None:
        """Copy within the bucket, on the server."""
        with _translated(self.bucket, src):
            obstore.copy(self.bucket.writer, self._key(src), self._key(dest))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """The object from its beginning."""
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        """The object, seekable."""
        return pa.PythonFile(_Input(self.bucket, self._key(path)), mode="r")

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        """A new object, visible once closed; sent in parts where it is large."""
        del metadata
        return pa.PythonFile(_Output(self.bucket, self._key(path)), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        """Refused."""
        raise NotImplementedError("S3 objects cannot be appended to")

    def _info(self, path: str) -> fs.FileInfo:
        key = self._key(path)
        try:
            with _translated(self.bucket, path):
                return fs.FileInfo(path, fs.FileType.File, size=obstore.head(self.bucket.reader, key)["size"])
        except FileNotFoundError:
            with _translated(self.bucket, path):
                below = next(iter(obstore.list(self.bucket.reader, key or None, chunk_size=1)), None)
            return fs.FileInfo(path, fs.FileType.Directory if below else fs.FileType.NotFound)

    def _below(self, path: str) -> list[tuple[str, int]]:
        with _translated(self.bucket, path):
            found = obstore.list(self.bucket.reader, self._key(path) or None, chunk_size=1000).collect()
        return [(entry["path"], entry["size"]) for entry in found]

    def _key(self, path: str) -> str:
        return path.removeprefix(self.bucket.name).strip("/")


class _Input(io.RawIOBase):
    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket, self._name = bucket, key
        with _translated(bucket, key):
            self._reader = obstore.open_reader(bucket.reader, key, buffer_size=_PART)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        with _translated(self._bucket, self._name):
            return bytes(self._reader.read(size if size >= 0 else None))

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._reader.seek(offset, whence)

    def tell(self) -> int:
        return self._reader.tell()


class _Output(io.RawIOBase):
    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket, self._name = bucket, key
        self._writer = obstore.open_writer(bucket.writer, key, buffer_size=_PART)

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        with _translated(self._bucket, self._name):
            return self._writer.write(bytes(data))

    def close(self) -> None:
        if not self.closed:
            super().close()
            with _translated(self._bucket, self._name):
                self._writer.close()


@contextmanager
def _translated(bucket: Bucket, path: str) -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        if isinstance(error, FileNotFoundError) and "<Code>NoSuchBucket</Code>" not in str(error):
            raise FileNotFoundError(f"{bucket.url}: no object {path}") from error
        raise bucket.translate(bucket.url, error) from error
