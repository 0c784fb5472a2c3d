"""Windows of many requests through one network: one thread around it, and each request has its turn.

A request holds a lane. Every batch takes one window of each lane in turn until it is full, so that a small scan that
comes late is not behind a large one. What a window gets does not depend on the windows beside it (`Forward`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Forward = Callable[[Tensors], Tensors]
"""Inputs, `(n, …)` each, to outputs, `(n, …)` each, on the CPU. Row k depends on row k of the inputs alone."""
Infer = Callable[[Tensors], "Future[Tensors]"]
"""A `Forward` that answers later."""


@dataclass(kw_only=True, slots=True)
class _Asked:
    """Windows that were handed in together."""

    inputs: Tensors
    answer: Future[Tensors]
    begun: int = 0
    outputs: list[Tensors] = field(default_factory=list)


class Batcher:
    """A network, shared.

    Args:
        forward: the network.
        at_once: windows of a batch, at most.
    """

    def __init__(self, forward: Forward, at_once: int) -> None:
        self._forward, self._at_once = forward, at_once
        self._lanes: deque[Lane] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.windows, self.batches = 0, 0  # so far; of many batches, how full they were
        threading.Thread(target=self._work, name="batcher", daemon=True).start()

    def lane(self) -> Lane:
        """A place in the round for one request; to be closed at its end, however it ends."""
        return Lane(self)

    def waiting(self) -> int:
        """Windows that are handed in and not yet in a batch."""
        with self._changed:
            return sum(len(asked.inputs[0]) - asked.begun for lane in self._lanes for asked in lane.asked)

    def close(self) -> None:
        """End the thread; what waits is cancelled."""
        with self._changed:
            self._closed = True
            lanes = list(self._lanes)
            self._changed.notify_all()
        for lane in lanes:
            lane.close()

    def add(self, lane: Lane, asked: _Asked) -> None:
        """Let a lane's windows wait for their turn."""
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            if lane.closed:
                asked.answer.cancel()
                return
            lane.asked.append(asked)
            if lane not in self._lanes:
                self._lanes.append(lane)
            self._changed.notify()

    def drop(self, lane: Lane) -> None:
        """Forget what a lane has waiting."""
        with self._changed:
            lane.closed = True
            dropped = [asked.answer for asked in lane.asked]
            lane.asked.clear()
            if lane in self._lanes:
                self._lanes.remove(lane)
        for answer in dropped:
            answer.cancel()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lanes or self._closed)
                if self._closed:
                    return
                batch = self._next_batch()
            if batch:
                self._answer(batch)

    def _next_batch(self) -> list[tuple[_Asked, int]]:
        """One window of each lane in turn, until the batch is full or nothing waits."""
        batch: list[tuple[_Asked, int]] = []
        while self._lanes and len(batch) < self._at_once:
            lane = self._lanes.popleft()
            asked = lane.asked[0]
            if not asked.answer.done():  # an error or the lane's end may have come first
                batch.append((asked, asked.begun))
                asked.begun += 1
            if asked.answer.done() or asked.begun == len(asked.inputs[0]):
                lane.asked.popleft()
            if lane.asked:
                self._lanes.append(lane)
        return batch

    def _answer(self, batch: Sequence[tuple[_Asked, int]]) -> None:
        rows = [[part[n] for part in asked.inputs] for asked, n in batch]
        try:
            with torch.inference_mode():
                found = self._forward(tuple(torch.stack(column) for column in zip(*rows, strict=True)))
        except Exception as error:  # belongs to those who asked, not to the thread
            for asked, _ in batch:
                with suppress(InvalidStateError):  # dropped meanwhile, or told already
                    asked.answer.set_exception(error)
            return
        self.windows, self.batches = self.windows + len(batch), self.batches + 1
        for n, (asked, _) in enumerate(batch):
            asked.outputs.append(tuple(part[n] for part in found))
            if len(asked.outputs) == len(asked.inputs[0]):
                columns = zip(*asked.outputs, strict=True)
                with suppress(InvalidStateError):
                    asked.answer.set_result(tuple(torch.stack(column) for column in columns))


class Lane:
    """One request's place in the round: an `Infer`. Counts its windows."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self.asked: deque[_Asked] = deque()
        self.closed, self.windows = False, 0

    def __call__(self, inputs: Tensors) -> Future[Tensors]:
        """Hand in windows, a row each; one window in a batch beside those of others."""
        self.windows += len(inputs[0])
        asked = _Asked(inputs=inputs, answer=Future())
        self._batcher.add(self, asked)
        return asked.answer

    def close(self) -> None:
        """Drop what waits and what may come; its futures are cancelled."""
        self._batcher.drop(self)


def at_once(forward: Forward) -> Infer:
    """An `Infer` that answers before it returns: for a single request, without a thread."""

    def infer(inputs: Tensors) -> Future[Tensors]:
        answer: Future[Tensors] = Future()
        with torch.inference_mode():
            answer.set_result(forward(inputs))
        return answer

    return infer
