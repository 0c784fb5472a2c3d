"""Boxes of sharded Zarr arrays, read with few and large requests.

Of a shard, the index is read once and kept; then the chunks of a box, neighbours in one request, also across a gap
that costs less to read than another request. TensorStore decodes them, in its own threads, and checks their CRC-32C.
Any Zarr v3 array with one level of sharding will do. Nothing decoded is kept.

With a cache on local disk, objects are read in blocks, and each block is fetched once for all processes of the node.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorstore as ts

from tomoray.block_cache import BlockCache
from tomoray.errors import Fatal
from tomoray.storage import Store

Box = tuple[slice, slice, slice]

_GAP = 512 * 2**10  # bytes between chunks that are read along: about what a request costs (docs/patches.md)
_PROBE = 256 * 2**10  # most shards of masks are smaller, so that one request gets them whole
_BLOCK = 2**20
_ABSENT = 2**64 - 1
_NOWHERE: Any = {"driver": "memory"}


class Reads:
    """How much was asked of the store, counted by all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests = 0
        self.fetched_bytes = 0
        self.cached_bytes = 0

    def count(self, *, requests: int = 0, fetched_bytes: int = 0, cached_bytes: int = 0) -> None:
        """Add to it."""
        with self._lock:
            self.requests += requests
            self.fetched_bytes += fetched_bytes
            self.cached_bytes += cached_bytes


class Reader:
    """Byte ranges of a store's objects, from the cache where there is one.

    Args:
        store: where objects are.
        reads: counts what the store is asked.
        cache: blocks on local disk.
        edition: changes whenever objects may; blocks of another edition are not used.
    """

    def __init__(self, store: Store, reads: Reads, cache: BlockCache | None = None, edition: str = "") -> None:
        self.store = store
        self._reads, self._cache, self._edition = reads, cache, edition

    def read(self, key: str) -> bytes:
        """A small object, whole."""

        def fetch() -> bytes:
            data = self.store.read(key)
            self._reads.count(requests=1, fetched_bytes=len(data))
            return data

        return self._kept(f"{key} whole", fetch)

    def size(self, key: str) -> int:
        """An object's length in bytes."""

        def ask() -> bytes:
            self._reads.count(requests=1)
            return self.store.stat(key)[0].to_bytes(8, "little")

        return int.from_bytes(self._kept(f"{key} size", ask), "little")

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Bytes of an object, fewer where it ends before."""
        if self._cache is None:
            return self._fetch_range(key, start, stop)
        first, last = start // _BLOCK, -(-stop // _BLOCK)
        blocks = [self._cache.get(self._name(f"{key} {block}")) for block in range(first, last)]
        self._reads.count(cached_bytes=sum(len(block) for block in blocks if block is not None))
        at = 0
        for missing, run in itertools.groupby(blocks.copy(), lambda block: block is None):
            count = len(list(run))
            if missing:
                data = self._fetch_range(key, (first + at) * _BLOCK, (first + at + count) * _BLOCK)
                for n in range(count):
                    block = blocks[at + n] = data[n * _BLOCK : (n + 1) * _BLOCK]
                    self._cache.put(self._name(f"{key} {first + at + n}"), block)
            at += count
        return b"".join(block for block in blocks if block)[start - first * _BLOCK : stop - first * _BLOCK]

    def _fetch_range(self, key: str, start: int, stop: int) -> bytes:
        data = self.store.read_range(key, start, stop - start)
        self._reads.count(requests=1, fetched_bytes=len(data))
        return data

    def _kept(self, name: str, fetch: Callable[[], bytes]) -> bytes:
        if self._cache is None:
            return fetch()
        found = self._cache.get(self._name(name))
        if found is not None:
            self._reads.count(cached_bytes=len(found))
            return found
        data = fetch()
        self._cache.put(self._name(name), data)
        return data

    def _name(self, what: str) -> str:
        return f"{self.store.url} {self._edition} {what}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shard:
    """Where a shard's chunks lie: (chunks, 2) offset and length; all its bytes where they were small enough."""

    index: npt.NDArray[np.uint64]
    data: bytes | None


class Indices:
    """Indices of the shards read last, bounded in bytes; shared by all arrays of a process."""

    def __init__(self, limit_bytes: int = 32 * 2**20) -> None:
        self._limit, self._size = limit_bytes, 0
        self._lock = threading.Lock()
        self._held: OrderedDict[Hashable, npt.NDArray[np.uint64]] = OrderedDict()

    def get(self, key: Hashable) -> npt.NDArray[np.uint64] | None:
        """The index, or None."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def put(self, key: Hashable, index: npt.NDArray[np.uint64]) -> None:
        """Keep an index."""
        with self._lock:
            if key not in self._held:
                self._held[key] = index
                self._size += index.nbytes
            while self._size > self._limit:
                self._size -= self._held.popitem(last=False)[1].nbytes


class ShardedArray:
    """One array, opened: [z, y, x]. Holds no bytes of it.

    Args:
        reader: reads the archive's objects.
        path: the array's folder in the store.
        indices: where shard indices are kept.

    Raises:
        Fatal: it is not sharded, or damaged.
    """

    def __init__(self, reader: Reader, path: str, indices: Indices) -> None:
        self._reader, self._path, self._indices = reader, path, indices
        metadata = json.loads(reader.read(f"{path}/zarr.json"))
        try:
            (sharding,) = metadata["codecs"]
            inner = sharding["configuration"]
            self.shape_zyx: tuple[int, ...] = tuple(metadata["shape"])
            self.chunk_zyx: tuple[int, ...] = tuple(inner["chunk_shape"])
            self._shard_zyx = tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])
            self._separator = metadata["chunk_key_encoding"]["configuration"]["separator"]
            self._index_codecs, self._index_at_end = inner["index_codecs"], inner["index_location"] == "end"
            if sharding["name"] != "sharding_indexed" or metadata["chunk_key_encoding"]["name"] != "default":
                raise ValueError("not sharded")
        except (ValueError, KeyError, TypeError) as error:
            raise Fatal(f"{reader.store.url}/{path} is no sharded array as tomoray preprocess stores") from error
        self.dtype = np.dtype(metadata["data_type"])
        self._counts = tuple(shard // chunk for shard, chunk in zip(self._shard_zyx, self.chunk_zyx, strict=True))
        self._chunks = {
            "data_type": metadata["data_type"],
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": self.chunk_zyx}},
            "codecs": inner["codecs"],
        }

    def read(self, box: Box) -> npt.NDArray[Any]:
        """The voxels of a box within the array.

        Raises:
            Fatal: bytes are missing or damaged, or the place cannot be used.
            Transient: the place is in trouble.
        """
        wanted: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        ranges = [
            range(side.start // chunk, -(-side.stop // chunk)) for side, chunk in zip(box, self.chunk_zyx, strict=True)
        ]
        for chunk in itertools.product(*ranges):
            shard = tuple(at // count for at, count in zip(chunk, self._counts, strict=True))
            wanted.setdefault(shard, []).append(chunk)
        low = [side.start for side in ranges]
        chunks: dict[str, bytes] = {}
        for shard, members in wanted.items():
            for chunk, data in zip(members, self._encoded(shard, members), strict=True):
                chunks["c/" + "/".join(str(at - first) for at, first in zip(chunk, low, strict=True))] = data
        shape = [
            min(side.stop * chunk, size) - side.start * chunk
            for side, chunk, size in zip(ranges, self.chunk_zyx, self.shape_zyx, strict=True)
        ]
        inside = tuple(
            slice(side.start - first * chunk, side.stop - first * chunk)
            for side, first, chunk in zip(box, low, self.chunk_zyx, strict=True)
        )
        return self._decode({**self._chunks, "shape": shape}, chunks, inside)

    def _encoded(self, shard: tuple[int, ...], chunks: Sequence[tuple[int, ...]]) -> list[bytes]:
        """The bytes of chunks of one shard."""
        key = f"{self._path}/c{self._separator}" + self._separator.join(str(at) for at in shard)
        try:
            found = self._index(key)
            numbers = [
                int(
                    np.ravel_multi_index(tuple(at % n for at, n in zip(chunk, self._counts, strict=True)), self._counts)
                )
                for chunk in chunks
            ]
            places = [(int(found.index[n, 0]), int(found.index[n, 0] + found.index[n, 1])) for n in numbers]
            if any(found.index[n, 0] == _ABSENT for n in numbers):
                raise self._damaged(key, "a chunk is not there")
            if found.data is not None:
                return [found.data[start:stop] for start, stop in places]
            parts: dict[tuple[int, int], bytes] = {}
            for run in _runs(sorted(set(places))):
                begin = run[0][0]
                data = self._reader.read_range(key, begin, max(stop for _, stop in run))
                parts.update({(start, stop): data[start - begin : stop - begin] for start, stop in run})
        except FileNotFoundError as error:
            raise self._damaged(key, "no such object") from error
        return [parts[place] for place in places]

    def _index(self, key: str) -> _Shard:
        name = (self._reader.store.url, key)
        known = self._indices.get(name)
        if known is not None:
            return _Shard(index=known, data=None)
        length = prod(self._counts) * 16 + 4 * any(codec["name"] == "crc32c" for codec in self._index_codecs)
        data, size = b"", _PROBE
        if self.dtype.itemsize == 1:
            data = self._reader.read_range(key, 0, _PROBE)
            size = len(data)
        if size == _PROBE:
            data = b""
            start = self._reader.size(key) - length if self._index_at_end else 0
            encoded = self._reader.read_range(key, start, start + length)
        else:
            encoded = data[-length:] if self._index_at_end else data[:length]
        metadata = {
            "data_type": "uint64",
            "shape": (prod(self._counts), 2),
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": (prod(self._counts), 2)}},
            "codecs": self._index_codecs,
        }
        index = self._decode(metadata, {"c/0/0": encoded}, (slice(None), slice(None)))
        if not data:
            self._indices.put(name, index)
        return _Shard(index=index, data=data or None)

    def _decode(self, metadata: dict[str, Any], chunks: dict[str, bytes], box: tuple[slice, ...]) -> npt.NDArray[Any]:
        """Part of an unsharded array whose chunks are at hand."""
        array = {
            "zarr_format": 3,
            "node_type": "array",
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0,
            **metadata,
        }
        spec = {"driver": "zarr3", "kvstore": _NOWHERE, "metadata": array, "fill_missing_data_reads": False}
        try:
            opened = ts.open(spec, create=True, context=ts.Context(_LIMITS)).result()
            objects = opened.kvstore
            assert objects is not None
            for key, data in chunks.items():
                objects[key] = data
            decoded: npt.NDArray[Any] = opened[box].read().result()
        except ValueError as error:
            raise self._damaged(self._path, str(error).split(" [")[0][:200]) from error
        return decoded

    def _damaged(self, key: str, found: str) -> Fatal:
        return Fatal(
            f"{self._reader.store.url}/{key}: stored bytes are missing or damaged ({found}); remove that scan and "
            f"preprocess it again"
        )


_LIMITS = {"cache_pool": {"total_bytes_limit": 0}}


def _runs(places: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Sorted ranges in groups of one request each."""
    run: list[tuple[int, int]] = []
    for place in places:
        if run and place[0] - run[-1][1] > _GAP:
            yield run
            run = []
        run.append(place)
    if run:
        yield run
