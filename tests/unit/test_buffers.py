import gc
import threading

import numpy as np
import pytest
import torch

from tomoray.buffers import Buffers

MEGABYTE = 10**6


def place(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_once_nothing_rests_on_it():
    buffers = Buffers(10 * MEGABYTE)
    first = buffers.empty((100, 100), np.float32)
    where = place(first)
    del first
    again = buffers.empty((50, 150), np.int16)
    assert again.shape == (50, 150)
    assert again.dtype == np.int16
    assert place(again) == where


@pytest.mark.parametrize("keep", [lambda a: a[3:], lambda a: torch.from_numpy(a)[1:], lambda a: a.T.view(np.int32)])
def test_memory_is_not_used_again_while_a_view_or_a_tensor_rests_on_it(keep):
    buffers = Buffers(10 * MEGABYTE)
    first = buffers.empty((100, 100), np.float32)
    first[...] = 1
    kept = keep(first)
    before = kept[2, 2].item()
    del first
    gc.collect()
    buffers.empty((100, 100), np.float32)[...] = 2
    assert kept[2, 2].item() == before
    del kept
    assert buffers.free_bytes > 2 * 100 * 100 * 4


def test_what_is_free_is_bounded_and_small_arrays_take_no_large_blocks():
    buffers = Buffers(2 * MEGABYTE)
    arrays = [buffers.empty((MEGABYTE,), np.uint8) for _ in range(5)]
    del arrays
    assert 0 < buffers.free_bytes <= 2 * MEGABYTE
    before = buffers.free_bytes
    small = buffers.empty((MEGABYTE // 4,), np.uint8)
    assert buffers.free_bytes == before
    assert small.nbytes == MEGABYTE // 4


def test_threads_never_share_a_block():
    buffers, wrong = Buffers(10 * MEGABYTE), []

    def work(number):
        for _ in range(300):
            array = buffers.empty((1000,), np.int64)
            array[...] = number
            if not (array == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert buffers.free_bytes <= 2 * 4 * 64 * 2**10  # a thread asks for the next before it lets go of the last
