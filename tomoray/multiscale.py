"""Arrays as OME-NGFF 0.5 multiscales on sharded Zarr v3: what is written, byte by byte.

The same array and layout give the same bytes on every place and at every try: shards are encoded whole in memory and
put once, every chunk is stored (also air) with its checksum, JSON has sorted keys. A chunk that is lost or damaged is
then an error, and is never read as air or as other voxels.

Legend: levels halve the one before; level 0 is the scan itself. Arrays are [z, y, x].
"""

from __future__ import annotations

import itertools
import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from math import prod
from typing import Any

import google_crc32c
import imagecodecs
import numpy as np
import numpy.typing as npt
import tensorstore as ts

from tomoray.config import Layout
from tomoray.geometry import Geometry
from tomoray.storage import Store
from tomoray.volume import AIR_HU, Image, Mask


def write_levels(store: Store, array_zyx: Image | Mask, layout: Layout) -> None:
    """Write `array_zyx` and its halvings as the arrays `0`, `1`, … of a group. Safe to repeat.

    While a shard is encoded, up to four others are under way to the store. Memory beyond the array's own: an eighth
    of it, one shard, and four encoded ones.
    """
    under_way: deque[Future[None]] = deque()
    with ThreadPoolExecutor(_PUTS) as pool:
        for key, data in _objects(array_zyx, layout):
            if len(under_way) == _PUTS:
                under_way.popleft().result()
            under_way.append(pool.submit(store.write, key, data))
        for put in under_way:
            put.result()


def open_array(store: Store) -> ts.TensorStore:
    """The array that stands in `store`, for reading; slices are read as futures: `array[z0:z1].read()`.

    Raises `Fatal` or `Transient` where it cannot be opened.
    """
    spec = {
        "driver": "zarr3",
        "kvstore": store.tensorstore_kvstore(),
        "fill_missing_data_reads": False,
        "recheck_cached_metadata": "open",
        "recheck_cached_data": "open",
    }
    try:
        return ts.open(spec, open=True, read=True, context=_reading()).result()
    except ValueError as error:
        raise store.explain(error) from error


def halve(array_zyx: Image | Mask) -> Image | Mask:
    """The next level: means of 2 x 2 x 2 voxels, rounded half up; of a mask, 1 where at least half of them are 1.

    An odd edge counts its last plane, row or column twice. Shape: each axis halved and rounded up; same dtype.
    """
    last = array_zyx.shape[0] - 1
    half = np.empty([-(-n // 2) for n in array_zyx.shape], dtype=array_zyx.dtype)
    _, height, width = array_zyx.shape
    pair = np.empty((2 * half.shape[1], 2 * half.shape[2]), dtype=np.int32)
    for z in range(half.shape[0]):
        np.add(array_zyx[2 * z], array_zyx[min(2 * z + 1, last)], out=pair[:height, :width], dtype=np.int32)
        pair[height:] = pair[height - 1]
        pair[:, width:] = pair[:, width - 1 : width]
        rows = pair[0::2] + pair[1::2]  # whole rows first: adding every other column is the slow half
        half[z] = (rows[:, 0::2] + rows[:, 1::2] + 4) >> 3
    return half


def multiscales(geometry: Geometry, layout: Layout, name: str, *, mask: bool = False) -> list[dict[str, Any]]:
    """OME-NGFF 0.5 `multiscales` metadata: axes in mm, and each level's scale and half-voxel shift.

    The place and orientation in the patient do not fit into it; `attributes.tomoray.geometry` holds the LPS affine.
    """
    datasets = []
    for level in range(layout.levels):
        scale = [2**level * mm for mm in geometry.spacing_zyx_mm]
        shift = [(2**level - 1) / 2 * mm for mm in geometry.spacing_zyx_mm]
        transforms = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    axes = [{"name": axis, "type": "space", "unit": "millimeter"} for axis in "zyx"]
    return [{"name": name, "axes": axes, "datasets": datasets, "type": "majority" if mask else "mean"}]


def array_metadata(array_zyx: Image | Mask, layout: Layout) -> dict[str, Any]:
    """The `zarr.json` of an array. A shard is never larger than the array rounded up to whole chunks."""
    chunks = layout.chunk_zyx
    rounded = [-(-n // chunk) * chunk for n, chunk in zip(array_zyx.shape, chunks, strict=True)]
    blosc = {
        "cname": layout.codec,
        "clevel": layout.zstd_level if layout.codec == "zstd" else _LZ4_LEVEL,
        "shuffle": "shuffle",
        "typesize": array_zyx.dtype.itemsize,
        "blocksize": prod(chunks) * array_zyx.dtype.itemsize,  # a chunk is read whole: faster both ways, and smaller
    }
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "chunk_shape": list(chunks),
        "codecs": [little, {"name": "blosc", "configuration": blosc}, {"name": "crc32c"}],
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    shards = [min(shard, most) for shard, most in zip(layout.shard_zyx, rounded, strict=True)]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(array_zyx.shape),
        "data_type": array_zyx.dtype.name,
        "dimension_names": ["z", "y", "x"],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shards}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "fill_value": AIR_HU if array_zyx.dtype == np.int16 else 0,
        "attributes": {},
    }


def group_json(attributes: dict[str, Any]) -> bytes:
    """The `zarr.json` of a group."""
    return to_json({"zarr_format": 3, "node_type": "group", "attributes": attributes})


def to_json(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces; the same value gives the same bytes. Raises `ValueError` for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def random_voxels(mask_zyx: Mask, seed: bytes, at_most: int = 512) -> npt.NDArray[np.int64]:
    """Up to `at_most` voxels of a mask, drawn evenly with `seed`: (n, 3) indices z, y, x, in order, none twice."""
    per_plane = np.count_nonzero(mask_zyx, axis=(1, 2))
    total = int(per_plane.sum())
    if total <= at_most:
        ranks = np.arange(total, dtype=np.uint64)
    else:  # raw draws: of NumPy's streams, only these are promised never to change
        draws = np.random.PCG64(int.from_bytes(seed)).random_raw(at_most)
        ranks = np.unique(draws % np.uint64(total))
    ends = np.cumsum(per_plane)
    planes = np.searchsorted(ends, ranks, side="right")
    voxels = np.empty((len(ranks), 3), dtype=np.int64)
    for z in np.unique(planes):
        chosen = planes == z
        within = ranks[chosen].astype(np.int64) - int(ends[z] - per_plane[z])
        y, x = np.unravel_index(np.flatnonzero(mask_zyx[z])[within], mask_zyx.shape[1:])
        voxels[chosen] = np.stack([np.full(len(within), z), y, x], axis=1)
    return voxels


def _objects(array_zyx: Image | Mask, layout: Layout) -> Iterator[tuple[str, bytes]]:
    """Keys and bytes of all objects of all levels, in an order that never changes."""
    level_zyx = array_zyx
    for level in range(layout.levels):
        if level:
            level_zyx = halve(level_zyx)
        metadata = array_metadata(level_zyx, layout)
        yield f"{level}/zarr.json", to_json(metadata)
        for key, data in _encoded_shards(level_zyx, metadata):
            yield f"{level}/{key}", data


def _encoded_shards(array_zyx: Image | Mask, metadata: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Keys and bytes of an array's shards: their chunks, and at the end where each chunk lies (docs/adr/0010)."""
    shard_zyx = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    sharding = metadata["codecs"][0]["configuration"]
    chunk_zyx, blosc = sharding["chunk_shape"], sharding["codecs"][1]["configuration"]
    chunk = np.empty(chunk_zyx, array_zyx.dtype)
    room = bytearray(chunk.nbytes + _BLOSC_HEADER)
    for place in _grid(array_zyx.shape, shard_zyx):
        shard = array_zyx[_region(place, shard_zyx)]
        index = np.full([-(-most // n) for most, n in zip(shard_zyx, chunk_zyx, strict=True)] + [2], _ABSENT, "<u8")
        parts: list[bytes] = []
        end = 0
        for inner in _grid(shard.shape, chunk_zyx):
            part = shard[_region(inner, chunk_zyx)]
            if part.shape != chunk.shape:
                chunk.fill(metadata["fill_value"])
            chunk[tuple(slice(n) for n in part.shape)] = part
            encoded = imagecodecs.blosc_encode(
                chunk,  # type: ignore[arg-type]  # any buffer
                level=blosc["clevel"],
                compressor=blosc["cname"],
                shuffle=blosc["shuffle"],
                typesize=blosc["typesize"],
                blocksize=blosc["blocksize"],
                numthreads=1,  # tasks fill the cores, one each
                out=room,
            )
            parts += _with_checksum(bytes(encoded))
            index[inner] = end, len(encoded) + _CRC_BYTES
            end += len(encoded) + _CRC_BYTES
        yield "c/" + "/".join(str(i) for i in place), b"".join([*parts, *_with_checksum(index.tobytes())])


def _with_checksum(data: bytes) -> tuple[bytes, bytes]:
    """`data`, and its CRC-32C (RFC 3720 12.1)."""
    return data, google_crc32c.value(data).to_bytes(_CRC_BYTES, "little")


def _grid(shape: Sequence[int], box: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Places of the boxes that cover an array, the last axis first."""
    return itertools.product(*(range(-(-n // side)) for n, side in zip(shape, box, strict=True)))


def _region(place: tuple[int, ...], box: Sequence[int]) -> tuple[slice, ...]:
    """The box at a place of the grid; it may reach beyond the array."""
    return tuple(slice(i * side, (i + 1) * side) for i, side in zip(place, box, strict=True))


_PUTS = 4
_LZ4_LEVEL = 5  # blosc's own default
_BLOSC_HEADER = 16  # bytes; it never adds more to what it cannot compress
_CRC_BYTES = 4
_ABSENT = 2**64 - 1  # offset and length of a chunk that lies beyond the array


@cache
def _reading() -> ts.Context:
    """One context for all arrays of a process: connections are shared, and nothing is cached."""
    return ts.Context(
        {
            "cache_pool": {"total_bytes_limit": 0},
            "data_copy_concurrency": {"limit": min(8, os.cpu_count() or 1)},
            "file_io_concurrency": {"limit": 32},
            "s3_request_concurrency": {"limit": 64},
            "s3_request_retries": {"max_retries": 8, "initial_delay": "100ms", "max_delay": "5s"},
        }
    )
