"""Steps: batches in, better networks out. Pure PyTorch; what runs where is said by `jobs.train`.

    batch -> device -> augment -> task.loss -> gradient -> clipped -> optimizer -> running mean

Workers hold uneven shares of a batch where they must; each loss counts by its samples, so that the gradient is the
mean over the batch, however many workers there are. Whatever is drawn in a step depends on (seed, step, rank) alone:
no random state needs saving.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tomoray.errors import Fatal, Usage
from tomoray.patches import Batch
from tomoray.tasks.task import Task
from tomoray.training import sharding
from tomoray.training.config import TrainConfig
from tomoray.training.memory import bounded, explained_shortage, free_memory
from tomoray.training.optimizers import MeanWeights, build_optimizer, learning_rate_at
from tomoray.training.sample_config import AugmentConfig
from tomoray.training.transfer import start_from

Augment = Callable[[Batch, AugmentConfig, int], Batch]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """The networks of a task while they learn, on one worker of several.

    A process group must be there where `world_size` is more than 1. Every worker makes every call.

    Args:
        task: what is learned.
        config: how.
        device: where this worker computes.
        rank: this worker.
        world_size: workers.
        neighbours: workers on this machine, which share its memory.
        augment: `(batch, config.augment, seed) -> batch`, on the device.

    Attributes:
        steps_done: how many steps the weights have seen.
        losses: of the last step, by network, over the whole batch.
        asked: whether any worker asked for something in the last step.

    Raises:
        Usage: on making one, where the device cannot do what the config asks.
    """

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        device: str | torch.device = "cpu",
        *,
        rank: int = 0,
        world_size: int = 1,
        neighbours: int = 1,
        augment: Augment | None = None,
    ) -> None:
        self.steps_done = 0
        self.losses: dict[str, float] = {}
        self.asked = self._asks = False
        self._task, self._config, self._augment = task, config, augment
        self._device, self._rank, self._world_size = torch.device(device), rank, world_size
        self._neighbours, self._fits = neighbours, False
        if config.precision == "fp16" and self._device.type == "cpu":
            raise Usage("precision fp16 wants a GPU; on CPUs choose bf16 or fp32")
        _be_deterministic(config.deterministic)
        torch.manual_seed(config.seed)
        self._networks = {name: network.to(self._device) for name, network in task.build_networks().items()}
        if config.start_from is not None:
            start_from(self._networks, config.start_from)
        decay, copies = config.optimizer.ema_decay, deepcopy(self._networks)
        self._wrapped = {name: self._wrap(network) for name, network in self._networks.items()}
        self._learning = {
            name: [weight for weight in network.parameters() if weight.requires_grad]
            for name, network in self._networks.items()
        }
        self._means: dict[str, MeanWeights] = {}
        if decay is not None:
            for name, copy in copies.items():
                shared_out = self._shards and bool(self._learning[name])
                mean = sharding.shard(copy, self._device, world_size) if shared_out else copy
                self._means[name] = MeanWeights(mean, decay)
        self._optimizers = {
            name: build_optimizer(config.optimizer, weights, config.learning_rate)
            for name, weights in self._learning.items()
            if weights
        }
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=config.precision == "fp16")

    @property
    def learning_rate(self) -> float:
        """Of the step to come."""
        return self.learning_rate_of(self.steps_done)

    def learning_rate_of(self, step: int) -> float:
        """Of any step."""
        config = self._config
        return learning_rate_at(config.optimizer, config.learning_rate, step, config.steps)

    def step(self, batch: Batch, *, asks: bool = False) -> float:
        """Train each network in turn on this worker's share of a batch.

        Args:
            batch: samples `steps_done * batch_size + rank` and every `world_size`-th from there, on any device.
            asks: whether this worker asks the others for something; `asked` is then True on every worker. It travels
                with the loss, at no cost.

        Returns:
            The mean loss over the whole batch, of all networks together.

        Raises:
            Fatal: the loss or the gradient is no number, on every worker alike and before any weight changes; or the
                step wants more memory than there is.
        """
        self._asks = asks
        with explained_shortage("a step", self._config):
            torch.manual_seed(seed_of(self._config.seed, self.steps_done, self._rank))
            batch = _to_device(batch, self._device)
            if self._augment is not None:
                batch = self._augment(batch, self._config.augment, self._config.seed)
            smallest = self._config.batch_size // self._world_size
            parts = list(_parts(batch, min(self._config.optimizer.accumulate, smallest)))  # FSDP: as many on each
            rate = self.learning_rate
            for name, optimizer in self._optimizers.items():
                for group in optimizer.param_groups:
                    group["lr"] = rate
                self._train(name, optimizer, batch, parts)
        self.steps_done += 1
        self._fits = True
        return math.fsum(self.losses.values())

    def networks_for_use(self) -> dict[str, nn.Module]:
        """The networks in `eval` mode, alike on every worker: the running means of the weights where they are kept.

        The next step puts them back to learning.
        """
        found = {}
        for name, network in self._networks.items():
            best = self._means[name].network if name in self._means else network
            if self._world_size > 1:  # running statistics are each worker's own; those of rank 0 count
                for buffer in [*network.buffers(), *(best.buffers() if best is not network else ())]:
                    distributed.broadcast(buffer, 0)
            if self._shards and name in self._optimizers:
                found[name] = sharding.whole_network(best, self._task.build_networks()[name], self._device)
            else:
                found[name] = best.eval()
        return found

    def state(self) -> dict[str, Any]:
        """All that a later engine needs to go on: the same whatever the number of workers.

        Returns:
            `step`, and by network `networks`, `optimizers`, `means`; `scaler`. Tensors may be those in use.

        Raises:
            Fatal: a weight is no number.
        """
        self._require_numbers()
        return {
            "step": self.steps_done,
            "networks": {name: self._weights(name, network) for name, network in self._networks.items()},
            "optimizers": {
                name: sharding.optimizer_state(self._networks[name], optimizer)
                if self._shards
                else optimizer.state_dict()
                for name, optimizer in self._optimizers.items()
            },
            "means": {name: self._weights(name, mean.network) for name, mean in self._means.items()},
            "scaler": self._scaler.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave. Raises `Fatal` where it is of other networks."""
        for name, network in self._networks.items():
            weights, optimizer = state["networks"].get(name), self._optimizers.get(name)
            if weights is None:
                raise Fatal(f"the checkpoint holds no network {name!r}; it has: {', '.join(state['networks'])}")
            require_fit(network, weights, name)
            if optimizer is not None and self._shards:
                sharding.load(network, weights, optimizer, state["optimizers"][name])
                if name in self._means:
                    sharding.load(self._means[name].network, state["means"][name])
                continue
            network.load_state_dict(weights)
            if optimizer is not None:
                optimizer.load_state_dict(state["optimizers"][name])
            if name in self._means:
                self._means[name].network.load_state_dict(state["means"][name])
        self._scaler.load_state_dict(state["scaler"])
        self.steps_done = int(state["step"])

    @property
    def _shards(self) -> bool:
        return self._config.distribute == "fsdp" and self._world_size > 1

    def _wrap(self, network: nn.Module) -> nn.Module:
        if self._config.compile:
            network.compile()
        if self._world_size == 1 or not any(weight.requires_grad for weight in network.parameters()):
            return network
        if self._shards:
            return sharding.shard(network, self._device, self._world_size)
        wrapped = DistributedDataParallel(
            network,
            device_ids=[self._device] if self._device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,  # one wait for rank 0 less in each step; see networks_for_use
        )
        if self._config.deterministic:
            wrapped.register_comm_hook(None, lambda _, bucket: _mean_in_rank_order(bucket))
        return wrapped

    def _train(self, name: str, optimizer: torch.optim.Optimizer, batch: Batch, parts: Sequence[Batch]) -> None:
        """One network's part of a step."""
        for other, weights in self._learning.items():
            if not self._networks[other].training:
                self._networks[other].train()
            if len(self._learning) > 1:
                for weight in weights:
                    weight.requires_grad_(other == name)
        network = self._wrapped[name]
        free_bytes = self._memory_to_watch()
        seen = {**self._networks, name: network}
        optimizer.zero_grad()
        total = 0.0
        for number, part in enumerate(parts, start=1):
            with _synchronized(network, number == len(parts)):
                with (
                    torch.autocast(
                        self._device.type, _DTYPES[self._config.precision], enabled=self._config.precision != "fp32"
                    ),
                    nullcontext() if free_bytes is None else bounded(free_bytes, self._there(part), self._config),
                ):
                    loss = self._task.loss(seen, part, name)
                share = len(part.samples) / self._config.batch_size
                self._scaler.scale(loss * (share * self._world_size)).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach()) * share
        self._scaler.unscale_(optimizer)
        length = nn.utils.clip_grad_norm_(self._learning[name], self._config.optimizer.clip_norm)
        norm = float(length.full_tensor() if isinstance(length, DTensor) else length)
        self.losses[name] = self._sum_over_workers(total, batch)
        if not (math.isfinite(self.losses[name]) and math.isfinite(norm)):
            self._refuse_unless_scaled(total, batch)
        self._scaler.step(optimizer)
        self._scaler.update()
        if name in self._means:
            self._means[name].follow(self._networks[name], self.steps_done)

    def _memory_to_watch(self) -> int | None:
        """Bytes that the first step may take; None later on, and where PyTorch itself says that there are no more."""
        if self._fits or self._device.type != "cpu" or self._config.compile:
            return None
        free_bytes = free_memory()
        return None if free_bytes is None else free_bytes // self._neighbours

    def _there(self, part: Batch) -> list[Tensor]:
        """What takes memory before a forward pass begins."""
        weights = [weight for network in self._networks.values() for weight in network.parameters()]
        return [*weights, *(value for field in fields(part) if isinstance(value := getattr(part, field.name), Tensor))]

    def _weights(self, name: str, network: nn.Module) -> dict[str, Tensor]:
        return sharding.weights(network) if self._shards and name in self._optimizers else network.state_dict()

    def _require_numbers(self) -> None:
        """Raise `Fatal`, on every worker alike, rather than keep weights that nothing can be done with."""
        weights = [weight.detach() for network in self._networks.values() for weight in network.parameters()]
        local = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights)
        wrong = torch.stack([~weight.isfinite().all() for weight in local]).any().to(torch.uint8)
        if self._world_size > 1:
            distributed.all_reduce(wrong, distributed.ReduceOp.MAX)
        if wrong:
            raise Fatal(
                f"weights are no numbers after step {self.steps_done}; lower learning_rate "
                f"({self._config.learning_rate})"
            )

    def _sum_over_workers(self, loss: float, batch: Batch) -> float:
        """The loss of the whole batch; makes sure that its samples were those of this step, each once."""
        mine = [loss, len(batch.samples), sum(batch.samples), self._asks]
        sums = torch.tensor(mine, dtype=torch.float64, device=self._device)
        if self._world_size > 1:
            distributed.all_reduce(sums)
        total, count, numbers, asking = sums.tolist()
        self.asked = asking > 0
        size = self._config.batch_size
        first = self.steps_done * size
        assert (count, numbers) == (size, size * first + size * (size - 1) // 2), "not the samples of this step"
        return float(total)

    def _refuse_unless_scaled(self, loss: float, batch: Batch) -> None:
        """Raise `Fatal` on every worker alike; where gradients are scaled, too large a scale is the cause at first."""
        if self._scaler.is_enabled() and self._scaler.get_scale() > 1:
            return
        mine = (math.isfinite(loss), list(zip(batch.samples, batch.scan_ids, strict=True)))
        shares: list[Any] = [mine]
        if self._world_size > 1:
            shares = [None] * self._world_size
            distributed.all_gather_object(shares, mine)
        bad = [share for finite, share in shares if not finite] or [share for _, share in shares]
        named = sorted(pair for share in bad for pair in share)
        samples = ", ".join(str(sample) for sample, _ in named[:8])
        scans = ", ".join(sorted({scan_id for _, scan_id in named[:8]}))
        raise Fatal(
            f"the loss is no number at step {self.steps_done} (samples {samples} of scans {scans}); look at these "
            f"scans, or lower learning_rate ({self._config.learning_rate})"
        )


def seed_of(seed: int, step: int, rank: int) -> int:
    """A seed for what is drawn in one step of one worker."""
    return int(np.random.SeedSequence([seed % 2**64, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def require_fit(network: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    """Raise `Fatal` where these weights are not those of this network."""
    there = {key: tuple(value.shape) for key, value in weights.items()}
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    if there == wanted:
        return
    differ = sorted(key for key in there.keys() | wanted.keys() if there.get(key) != wanted.get(key))
    first = differ[0]
    raise Fatal(
        f"the checkpoint is of another network: {len(differ)} of {len(wanted)} weights of {name!r} differ, such as "
        f"{first} ({there.get(first, 'absent')} there, {wanted.get(first, 'absent')} wanted); use the release that "
        f"wrote it, or choose another --out"
    )


def _be_deterministic(wanted: bool) -> None:
    torch.use_deterministic_algorithms(wanted)
    settings: Any = torch.utils.deterministic
    settings.fill_uninitialized_memory = False  # costs time, and shows bugs that are not ours
    torch.backends.cudnn.benchmark = not wanted


def _to_device(batch: Batch, device: torch.device) -> Batch:
    changed: dict[str, Any] = {
        field.name: value.to(device, non_blocking=True)
        for field in fields(batch)
        if isinstance(value := getattr(batch, field.name), Tensor)
    }
    return replace(batch, **changed)


def _parts(batch: Batch, count: int) -> Iterator[Batch]:
    """A batch in `count` parts of nearly even size."""
    size = len(batch.samples)
    edges = [round(n * size / count) for n in range(count + 1)]
    if count == 1:
        yield batch
        return
    for start, stop in pairwise(edges):
        cut: dict[str, Any] = {
            field.name: value[start:stop]
            for field in fields(batch)
            if isinstance(value := getattr(batch, field.name), Tensor | tuple)
        }
        yield replace(batch, **cut)


def _synchronized(network: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Gradients go over the network with the last part only."""
    if isinstance(network, DistributedDataParallel):
        return nullcontext() if last else network.no_sync()
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(last)
    return nullcontext()


def _mean_in_rank_order(bucket: Any) -> torch.futures.Future[Tensor]:
    """The mean of a bucket of gradients, summed in the order of ranks, wherever in a bucket a gradient lies.

    Buckets are laid out anew after the first step, so that a ring would sum in another order after a restart.
    """
    mine = bucket.buffer()
    shares = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    work: Any = distributed.all_gather(shares, mine, async_op=True)

    def mean(_: object) -> Tensor:
        total = shares[0]
        for share in shares[1:]:
            total += share
        return total.div_(len(shares))

    averaged: torch.futures.Future[Tensor] = work.get_future().then(mean)
    return averaged
