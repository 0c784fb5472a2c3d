import threading

import pytest
import torch

from tomoray.inference.batcher import Batcher


class Recorder:
    """Twice its input, as soon as it may; remembers every batch."""

    def __init__(self, *, held=False):
        self.batches = []
        self.may_go = threading.Event()
        self.begun = threading.Event()
        if not held:
            self.may_go.set()

    def __call__(self, inputs):
        self.begun.set()
        assert self.may_go.wait(10)
        self.batches.append(inputs[0].flatten().tolist())
        return (inputs[0] * 2, -inputs[0])


def numbers(*values):
    return (torch.tensor(values, dtype=torch.float32),)


@pytest.fixture
def batcher():
    made = []

    def make(forward, at_once=4):
        made.append(Batcher(forward, at_once))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_each_request_gets_its_own_windows_in_their_order(batcher):
    shared = batcher(Recorder(), at_once=3)
    lanes = [shared.lane() for _ in range(3)]
    answers = [lane(numbers(*(10.0 * n + k for k in range(5)))) for n, lane in enumerate(lanes)]
    for n, answer in enumerate(answers):
        doubled, negative = answer.result(timeout=10)
        assert doubled.tolist() == [2 * (10 * n + k) for k in range(5)]
        assert negative.tolist() == [-(10.0 * n + k) for k in range(5)]


def test_windows_of_different_requests_share_a_batch_in_turn(batcher):
    network = Recorder(held=True)
    shared = batcher(network, at_once=4)
    first = shared.lane()(numbers(0))  # holds the thread until the others wait
    assert network.begun.wait(10)
    large, small = shared.lane(), shared.lane()
    answers = [first, large(numbers(*range(1, 9))), small(numbers(101, 102))]
    network.may_go.set()
    for answer in answers:
        answer.result(timeout=10)
    assert network.batches == [[0], [1, 101, 2, 102], [3, 4, 5, 6], [7, 8]]


def test_a_closed_lane_is_forgotten_and_the_others_go_on(batcher):
    network = Recorder(held=True)
    shared = batcher(network, at_once=1)
    first = shared.lane()(numbers(0))
    assert network.begun.wait(10)
    leaving, staying = shared.lane(), shared.lane()
    gone, answer = leaving(numbers(1, 2, 3)), staying(numbers(7))
    leaving.close()
    network.may_go.set()
    assert answer.result(timeout=10)[0].tolist() == [14]
    assert gone.cancelled()
    assert first.result(timeout=10)[0].tolist() == [0]
    assert network.batches == [[0], [7]]


def test_an_error_reaches_those_who_asked_and_no_one_else(batcher):
    def network(inputs):
        if (inputs[0] < 0).any():
            raise ValueError("no negative numbers")
        return inputs

    shared = batcher(network, at_once=1)
    bad, good = shared.lane()(numbers(1, -1, 2)), shared.lane()(numbers(5))
    with pytest.raises(ValueError, match="no negative numbers"):
        bad.result(timeout=10)
    assert good.result(timeout=10)[0].tolist() == [5]


def test_what_waits_is_cancelled_when_the_batcher_closes(batcher):
    network = Recorder(held=True)
    shared = batcher(network, at_once=1)
    shared.lane()(numbers(0))
    assert network.begun.wait(10)
    waiting = shared.lane()(numbers(1))
    assert shared.waiting() == 1
    shared.close()
    network.may_go.set()
    assert waiting.cancelled()
    with pytest.raises(RuntimeError, match="closed"):
        shared.lane()(numbers(2))
