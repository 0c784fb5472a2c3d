"""Chunks of a shard back to voxels: CRC-32C, then blosc, straight into memory that is there already.

TensorStore decodes the same bytes, for whoever reads whole scans. For the patch stream it is the price of every patch:
per chunk TensorStore copies the bytes thrice and goes from thread to thread, which took as long again as blosc itself.
Both calls here let go of the GIL or are over in microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import google_crc32c
import imagecodecs
import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]  # a view of what was read: bytes objects would be copied at every cut

_CRC_BYTES = 4
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


def check_codecs(codecs: Sequence[Mapping[str, Any]]) -> None:
    """Raise `ValueError` where chunks, by their array's `zarr.json`, are not little endian, blosc, CRC-32C."""
    names = [codec["name"] for codec in codecs]
    if names != ["bytes", "blosc", "crc32c"] or codecs[0] != _LITTLE:
        raise ValueError(f"chunks are stored as {', '.join(names)}")


def decode_chunk(encoded: Bytes, out: npt.NDArray[Any]) -> None:
    """Fill `out`, contiguous and of the array's dtype, with a chunk. Raises `ValueError` where it is damaged."""
    data = checked(encoded)
    if int.from_bytes(data[4:8].tobytes(), "little") != out.nbytes:  # blosc's header: its length when decoded
        raise ValueError("another length than a chunk's")
    decode: Any = imagecodecs.blosc_decode  # its types know no buffers but bytes
    decode(data, numthreads=1, out=out.reshape(-1).view(np.uint8).data)


def decode_index(codecs: Sequence[Mapping[str, Any]], encoded: bytes) -> npt.NDArray[np.uint64]:
    """Where a shard's chunks lie: (chunks, 2) offset and length.

    Raises:
        ValueError: it is damaged, or stored otherwise than `multiscale` does.
    """
    if [codec["name"] for codec in codecs] != ["bytes", "crc32c"] or codecs[0] != _LITTLE:
        raise ValueError("the index is stored otherwise")
    return checked(np.frombuffer(encoded, np.uint8)).view("<u8").reshape(-1, 2)


def checked(encoded: Bytes) -> Bytes:
    """The bytes before their CRC-32C (RFC 3720 12.1). Raises `ValueError` where it is another's."""
    data = encoded[:-_CRC_BYTES]
    if len(encoded) < _CRC_BYTES or google_crc32c.value(data) != int.from_bytes(
        encoded[-_CRC_BYTES:].tobytes(), "little"
    ):
        raise ValueError("CRC-32C differs")
    return data
