import copy

import pytest
import torch
from torch import nn

from tomoray.training.config import OptimizerConfig
from tomoray.training.optimizers import MeanWeights, build_optimizer, learning_rate_at


def rates(steps=100, **config):
    return [learning_rate_at(OptimizerConfig(**config), 0.1, step, steps) for step in range(steps)]


def test_poly_is_the_power_of_what_is_left():
    assert rates() == [0.1 * (1 - step / 100) ** 0.9 for step in range(100)]


def test_cosine_is_half_way_down_half_way_through():
    found = rates(schedule="cosine")
    assert (found[0], found[50]) == (0.1, pytest.approx(0.05))
    assert found[99] < 1e-4


def test_warmup_rises_to_where_the_schedule_begins():
    found = rates(schedule="constant", warmup_steps=4)
    assert found[:4] == pytest.approx([0.02, 0.04, 0.06, 0.08])
    assert set(found[4:]) == {0.1}
    assert rates(warmup_steps=10)[10] == 0.1


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_each_optimizer_walks_downhill(name):
    weight = nn.Parameter(torch.tensor([3.0]))
    optimizer = build_optimizer(OptimizerConfig(name=name), [weight], 0.01)
    for _ in range(20):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()
    assert abs(float(weight.detach())) < 2.9


def test_mean_forgets_random_weights_soon_and_then_slowly():
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 1.0)
    mean = MeanWeights(copy.deepcopy(network), decay=0.5)
    nn.init.constant_(network.weight, 2.0)
    mean.follow(network, step=0)
    assert float(mean.network.weight) == pytest.approx(0.1 * 1 + 0.9 * 2)
    before = float(mean.network.weight)
    mean.follow(network, step=10_000)
    assert float(mean.network.weight) == pytest.approx(0.5 * before + 0.5 * 2)


def test_mean_takes_over_statistics_as_they_are():
    network = nn.BatchNorm1d(2)
    mean = MeanWeights(copy.deepcopy(network), decay=0.9)
    network(torch.randn(8, 2))
    mean.follow(network, step=3)
    assert torch.equal(mean.network.running_mean, network.running_mean)
    assert int(mean.network.num_batches_tracked) == 1
