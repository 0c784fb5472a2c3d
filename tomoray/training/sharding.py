"""Networks whose weights, gradients and optimizer states are shared out among workers (FSDP2).

Checkpoints hold whole tensors, so that any number of workers reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

_GROUP_WEIGHTS = 1_000_000  # gathered at once: few large messages rather than many small ones
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def shard(network: nn.Module, device: torch.device, world_size: int) -> nn.Module:
    """The network, sharded in place: module by module of a million weights or so, then what is left."""
    mesh = init_device_mesh(device.type, (world_size,))
    groups, taken = [network], set[nn.Parameter]()
    for module in reversed(list(network.modules())[1:]):  # the innermost first
        left = [weight for weight in module.parameters() if weight not in taken]
        if sum(weight.numel() for weight in left) >= _GROUP_WEIGHTS:
            groups.insert(len(groups) - 1, module)
            taken.update(left)
    for module in groups:
        fully_shard(module, mesh=mesh)
    return network


def weights(network: nn.Module) -> dict[str, Tensor]:
    """Whole weights on the CPU, on rank 0; every worker takes part."""
    found: dict[str, Any] = get_model_state_dict(network, options=_WHOLE)
    return found


def optimizer_state(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The whole state of an optimizer on the CPU, on rank 0; every worker takes part."""
    return dict(get_optimizer_state_dict(network, optimizer, options=_WHOLE))


def load(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer | None = None,
    optimizer_state: Mapping[str, Any] | None = None,
) -> None:
    """Give each worker its share of what `weights` and `optimizer_state` gave; every worker has the whole."""
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(network, dict(weights), options=options)
    if optimizer is not None and optimizer_state is not None:
        set_optimizer_state_dict(network, optimizer, dict(optimizer_state), options=options)


def whole_network(network: nn.Module, like: nn.Module, device: torch.device) -> nn.Module:
    """A copy that is not sharded, in `eval` mode, on every worker: each may then go its own way."""
    whole = get_model_state_dict(network, options=StateDictOptions(full_state_dict=True))
    like.load_state_dict(whole)
    return like.to(device).eval()
