"""Boxes of sharded Zarr arrays, read with few and large requests.

Of a shard, the index is read once and kept; then the chunks of a box, neighbours in one request, also across a gap
that costs less to read than another request. The caller's thread decodes them (`chunk_codec`). Nothing decoded is kept.

With a cache on local disk, objects are read in blocks, and each block is fetched once for all processes of the node.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from tomoray.block_cache import BlockCache
from tomoray.buffers import Buffers
from tomoray.chunk_codec import Bytes, check_codecs, decode_chunk, decode_index
from tomoray.errors import Fatal
from tomoray.storage import Store

Box = tuple[slice, slice, slice]
_Index = tuple[int, int, int]
_Place = tuple[int, int, _Index]  # a chunk's first byte in its shard, one past the last, and which it is

_PROBE = 256 * 2**10  # most shards of masks are smaller, so that one request gets them whole
_BLOCK = 2**20
_ABSENT = 2**64 - 1


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

    def read_end(self, key: str, length: int) -> bytes:
        """The last bytes of an object, fewer where it is shorter."""

        def fetch() -> bytes:
            data = self.store.read_end(key, length)
            self._reads.count(requests=1, fetched_bytes=len(data))
            return data

        return self._kept(f"{key} end {length}", fetch)

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
class Encoded:
    """One chunk of an array: the object it is in, which chunk it is, and its bytes."""

    key: str
    index: _Index
    data: Bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shard:
    """Where a shard's chunks lie: (chunks, 2) offset and length; all its bytes where they were small enough."""

    index: npt.NDArray[np.uint64]
    data: Bytes | None


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
            self._index_codecs = inner["index_codecs"]
            check_codecs(inner["codecs"])
            found = sharding["name"], inner["index_location"], metadata["chunk_key_encoding"]["name"]
            if found != ("sharding_indexed", "end", "default"):
                raise ValueError("not sharded, or the index or the keys stand otherwise")
        except (ValueError, KeyError, TypeError) as error:
            raise Fatal(f"{reader.store.url}/{path} is no sharded array as tomoray preprocess stores") from error
        self.dtype = np.dtype(metadata["data_type"])
        self._counts = tuple(shard // chunk for shard, chunk in zip(self._shard_zyx, self.chunk_zyx, strict=True))

    def read(self, box: Box) -> npt.NDArray[Any]:
        """The voxels of a box within the array.

        Raises:
            Fatal: bytes are missing or damaged, or the place cannot be used.
            Transient: the place is in trouble.
        """
        return self.decode(self.fetch(box), box, Buffers(0))

    def fetch(self, box: Box) -> list[Encoded]:
        """The chunks of a box, still encoded: all the waiting, and little of the work. Raises as `read`."""
        wanted: dict[_Index, list[_Index]] = {}
        for z, y, x in itertools.product(*self._chunks(box)):
            shard = z // self._counts[0], y // self._counts[1], x // self._counts[2]
            wanted.setdefault(shard, []).append((z, y, x))
        return [encoded for shard, chunks in wanted.items() for encoded in self._fetch(shard, chunks)]

    def decode(self, chunks: Iterable[Encoded], box: Box, buffers: Buffers) -> npt.NDArray[Any]:
        """The voxels of a box from its chunks, in memory of `buffers`. Raises `Fatal` where one is damaged."""
        voxels = buffers.empty([side.stop - side.start for side in box], self.dtype)
        decoded = buffers.empty(self.chunk_zyx, self.dtype)
        overlaps = [
            {at: _overlap(at, size, side) for at in along}
            for along, size, side in zip(self._chunks(box), self.chunk_zyx, box, strict=True)
        ]
        for chunk in chunks:
            try:
                decode_chunk(chunk.data, decoded)
            except ValueError as error:
                raise self._damaged(chunk.key, str(error)) from error
            z, y, x = (overlap[at] for overlap, at in zip(overlaps, chunk.index, strict=True))
            voxels[z[1], y[1], x[1]] = decoded[z[0], y[0], x[0]]
        return voxels

    def _chunks(self, box: Box) -> list[range]:
        """The chunks that a box touches, along each axis."""
        return [
            range(side.start // size, -(-side.stop // size)) for side, size in zip(box, self.chunk_zyx, strict=True)
        ]

    def _fetch(self, shard: _Index, chunks: Sequence[_Index]) -> Iterator[Encoded]:
        """Chunks of one shard."""
        key = f"{self._path}/c{self._separator}" + self._separator.join(str(at) for at in shard)
        try:
            found = self._index(key)
            places = []
            depth, height, width = self._counts
            for z, y, x in chunks:
                start, length = found.index[((z % depth) * height + y % height) * width + x % width].tolist()
                if start == _ABSENT:
                    raise self._damaged(key, "a chunk is not there")
                places.append((start, start + length, (z, y, x)))
            if found.data is not None:
                yield from (Encoded(key=key, index=chunk, data=found.data[start:stop]) for start, stop, chunk in places)
                return
            for run in _runs(sorted(places), self._reader.store.gap_bytes):
                begin = run[0][0]
                data = np.frombuffer(self._reader.read_range(key, begin, run[-1][1]), np.uint8)
                yield from (
                    Encoded(key=key, index=chunk, data=data[start - begin : stop - begin]) for start, stop, chunk in run
                )
        except FileNotFoundError as error:
            raise self._damaged(key, "no such object") from error

    def _index(self, key: str) -> _Shard:
        name = (self._reader.store.url, key)
        known = self._indices.get(name)
        if known is not None:
            return _Shard(index=known, data=None)
        length = prod(self._counts) * 16 + 4
        data = self._reader.read_range(key, 0, _PROBE) if self.dtype.itemsize == 1 else b""
        whole = 0 < len(data) < _PROBE
        encoded = data[-length:] if whole else self._reader.read_end(key, length)
        try:
            index = decode_index(self._index_codecs, encoded)
        except ValueError as error:
            raise self._damaged(key, str(error)) from error
        if whole:
            return _Shard(index=index, data=np.frombuffer(data, np.uint8))
        self._indices.put(name, index)
        return _Shard(index=index, data=None)

    def _damaged(self, key: str, found: str) -> Fatal:
        return Fatal(
            f"{self._reader.store.url}/{key}: stored bytes are missing or damaged ({found}); remove that scan and "
            f"preprocess it again"
        )


def _overlap(chunk: int, size: int, side: slice) -> tuple[slice, slice]:
    """What of a chunk lies in the side of a box, counted from the chunk's begin and from the side's."""
    start, stop = max(chunk * size, side.start), min((chunk + 1) * size, side.stop)
    return slice(start - chunk * size, stop - chunk * size), slice(start - side.start, stop - side.start)


def _runs(places: Iterable[_Place], gap_bytes: int) -> Iterator[list[_Place]]:
    """Sorted places in groups of one request each."""
    run: list[_Place] = []
    for place in places:
        if run and place[0] - run[-1][1] > gap_bytes:
            yield run
            run = []
        run.append(place)
    if run:
        yield run
