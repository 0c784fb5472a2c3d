"""Memory that is used again and again: new pages from the system cost more than what is written into them.

An array rests on a block, and the block comes back by itself when the array and all that was made of it are gone: its
views, tensors over it, whatever autograd keeps. So nobody has to say that he is done, and nobody can say it too soon.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

_Block = npt.NDArray[np.uint8]

_STEP_BYTES = 64 * 2**10  # blocks are multiples of it, so that arrays of about one size can use each other's
_MOST_SPARE = 2  # an array takes a block of up to so many times its size


class Buffers:
    """Blocks of memory, shared by all threads.

    Args:
        limit_bytes: of the blocks that nobody uses just now. Those used last are kept.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit, self.free_bytes = limit_bytes, 0
        self._free: list[_Block] = []  # those given back last stand last
        self._lock = threading.RLock()  # a block may come back wherever the same thread collects garbage

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array like `np.empty`."""
        size_bytes = prod(shape) * np.dtype(dtype).itemsize
        block = self._take(size_bytes)
        whole = np.frombuffer(block.data, np.uint8)  # what all views of it keep alive, and nobody else
        weakref.finalize(whole, self._give, block).atexit = False
        array: npt.NDArray[Any] = whole[:size_bytes].view(dtype).reshape(shape)
        return array

    def _take(self, size_bytes: int) -> _Block:
        with self._lock:
            for place in range(len(self._free) - 1, -1, -1):
                if size_bytes <= self._free[place].nbytes <= max(_MOST_SPARE * size_bytes, _STEP_BYTES):
                    block = self._free.pop(place)
                    self.free_bytes -= block.nbytes
                    return block
        return np.empty(-(-size_bytes // _STEP_BYTES) * _STEP_BYTES, np.uint8)

    def _give(self, block: _Block) -> None:
        with self._lock:
            self._free.append(block)
            self.free_bytes += block.nbytes
            while self.free_bytes > self._limit:
                self.free_bytes -= self._free.pop(0).nbytes
