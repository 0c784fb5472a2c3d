"""How weights follow the gradient: optimizers, the learning rate of each step, running means of weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tomoray.training.config import OptimizerConfig


def build_optimizer(
    config: OptimizerConfig, weights: Iterable[nn.Parameter], learning_rate: float
) -> torch.optim.Optimizer:
    """The optimizer that `config` names, for these weights."""
    if config.name == "sgd":
        return torch.optim.SGD(
            weights, lr=learning_rate, momentum=0.99, nesterov=True, weight_decay=config.weight_decay
        )
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(weights, lr=learning_rate, weight_decay=config.weight_decay)


def learning_rate_at(config: OptimizerConfig, learning_rate: float, step: int, steps: int) -> float:
    """The learning rate of a step, a pure function of its number: nothing about it needs saving.

    Args:
        config: schedule and warmup.
        learning_rate: the highest.
        step: 0 to `steps` - 1.
        steps: of the whole run.

    Example:
        >>> learning_rate_at(OptimizerConfig(schedule="cosine"), 0.1, step=50, steps=100)
        0.05
    """
    warmup = config.warmup_steps
    if step < warmup:
        return learning_rate * (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / (steps - warmup))
    if config.schedule == "poly":
        return float(learning_rate * (1 - progress) ** 0.9)
    if config.schedule == "cosine":
        return learning_rate * (1 + math.cos(math.pi * progress)) / 2
    return learning_rate


class MeanWeights:
    """A copy of a network that follows it slowly: mean = d mean + (1 - d) weights after each step.

    d rises from 0.1 to `decay` over the first steps, as (1 + step) / (10 + step), so that random weights are soon
    forgotten. Buffers, such as the statistics of batch norm, are taken over as they are.

    Args:
        mean: the copy, of the same weights at the start.
        decay: below 1.
    """

    def __init__(self, mean: nn.Module, decay: float) -> None:
        self.network = mean.eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def follow(self, network: nn.Module, step: int) -> None:
        """Take in the weights of `network` after step number `step`."""
        decay = min(self._decay, (1 + step) / (10 + step))
        mean, weights = _floats(self.network.parameters()), _floats(network.parameters())
        torch._foreach_lerp_(mean, weights, 1 - decay)
        for kept, new in zip(self.network.buffers(), network.buffers(), strict=True):
            kept.copy_(new)


def _floats(weights: Iterable[nn.Parameter]) -> list[Tensor]:
    """Of a sharded network, this worker's shares."""
    found = (weight.detach() for weight in weights)
    return [weight.to_local() if isinstance(weight, DTensor) else weight for weight in found]
