"""The planes of a scan in their order, in place."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tomoray.ingest.planes import _read_ahead, _reorder
from tomoray.ingest.series import DicomFile


@pytest.mark.parametrize("seed", range(200))
def test_planes_are_reordered_in_place_as_by_indexing(seed):
    rng = np.random.default_rng(seed)
    n_planes = int(rng.integers(1, 12))
    order = rng.permutation(n_planes)[: rng.integers(1, n_planes + 1)].tolist()  # the rest is of no use
    planes = rng.integers(-1000, 1000, (n_planes, 2, 3), dtype=np.int16)
    wanted, where = planes[order], planes.ctypes.data
    _reorder(planes, order)
    np.testing.assert_array_equal(planes[: len(order)], wanted)
    assert planes.ctypes.data == where


def test_files_of_a_remote_source_come_in_order_though_they_are_read_at_once():
    later = threading.Event()

    def read(_root: str, key: str) -> bytes:
        if key == "0":
            assert later.wait(20)  # others are under way before the first is there
        else:
            later.set()
        return key.encode()

    files = [DicomFile("s3://bucket/ct", str(n), 1, str(n)) for n in range(30)]
    assert [data for _, data in _read_ahead(files, read)] == [str(n).encode() for n in range(30)]
