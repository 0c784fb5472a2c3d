"""How much memory a training step takes, known without taking it."""

from __future__ import annotations

from functools import cache
from math import ceil, prod

import torch

from tomoray.geometry import Zyx
from tomoray.networks import build_network
from tomoray.training.losses import segmentation_loss
from tomoray.training.network_config import LossConfig, NetworkConfig

_KEPT_TO_PEAK = 2.0  # peak of a step by what autograd keeps: 1.5 to 1.95 measured on CPU
_PATCH = 16  # voxels along an axis at the deepest level
_BYTES_PER_WEIGHT = 16  # weight, gradient and Adam's two moments, float32


def step_bytes(patch_zyx: Zyx, network: NetworkConfig, classes: int) -> tuple[int, int]:
    """Peak memory of a training step: bytes for each patch of a batch, and bytes for the network alone.

    What autograd keeps for the backward pass is counted, and doubled for gradients and scratch space.
    """
    kept_per_voxel, n_weights = _kept_by_autograd(network.model_dump_json(), classes)
    return ceil(_KEPT_TO_PEAK * kept_per_voxel * prod(patch_zyx)), _BYTES_PER_WEIGHT * n_weights


@cache
def _kept_by_autograd(config_json: str, classes: int) -> tuple[float, int]:
    """Bytes kept for each voxel of a patch, and the number of weights.

    The network and the loss run once on `meta` tensors, which have shapes but no data; each piece of memory counts
    once. All feature maps grow with the patch, so that any patch tells.
    """
    config = NetworkConfig.model_validate_json(config_json)  # itself it has no hash
    sides = [_PATCH * multiple for multiple in config.patch_multiple_zyx]
    network = build_network(config, classes).to("meta")
    with torch.device("meta"):
        image = torch.empty(1, 1, *sides)
        truth = torch.empty(1, 1, *sides, dtype=torch.uint8)
    weights = {weight.untyped_storage()._cdata for weight in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    loss = segmentation_loss(LossConfig())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(network(image), truth)
    n_weights = sum(weight.numel() for weight in network.parameters())
    return sum(storage.nbytes() for storage in kept.values()) / prod(sides), n_weights
