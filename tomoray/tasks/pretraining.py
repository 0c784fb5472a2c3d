"""Pretraining: a volume with holes -> what was in the holes, without any label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tomoray.archive import Archive
from tomoray.networks import build_network
from tomoray.patches import Batch
from tomoray.tasks.config import PretrainingConfig
from tomoray.tasks.randomness import seeded
from tomoray.tasks.task import Networks
from tomoray.tasks.whole_scans import scan_windows
from tomoray.training.config import TrainConfig

NETWORK = "network"


class Pretraining:
    """Masked volumes: a network of `tomoray.networks` fills blocks that are hidden (Xie et al., CVPR 2022: SimMIM).

    It is the network that segmentation trains, with one number per voxel for its last layer: all but that layer
    carries over (`start_from`).

    Args:
        config: with a section `pretraining`, or with its defaults.
    """

    monitor = "masked_mse"
    higher_is_better = False

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._settings = config.pretraining or PretrainingConfig()

    def build_networks(self) -> dict[str, nn.Module]:
        """One network, as segmentation's but for the last layer."""
        return {NETWORK: build_network(self._config.network, out_channels=1)}

    def loss(self, networks: Networks, batch: Batch, training: str) -> Tensor:
        """Mean squared error of the hidden voxels, on the scale 0..1."""
        hidden = self._hidden(batch.image, [("train", number) for number in batch.samples])
        filled = networks[training](_with_holes(batch.image, hidden))
        error: Tensor = ((filled - batch.image) ** 2)[hidden].mean()
        return error

    @torch.inference_mode()
    def examine(self, networks: Networks, archive: Archive, scan_id: str) -> dict[str, Any]:
        """`squared_error` summed over the `voxels` hidden, and `squared_error_mean` of the visible voxels' mean."""
        network = networks[NETWORK]
        device = next(network.parameters()).device
        error, error_of_mean, voxels = 0.0, 0.0, 0
        for windows in scan_windows(archive, scan_id, self._config, device, at_most=self._settings.windows):
            hidden = self._hidden(windows.image, [(scan_id, corner) for corner in windows.corners_zyx])
            holed = _with_holes(windows.image, hidden)
            error += float(((network(holed) - windows.image) ** 2)[hidden].sum())
            error_of_mean += float(((holed - windows.image) ** 2).sum())
            voxels += int(hidden.sum())
        return {"squared_error": error, "squared_error_mean": error_of_mean, "voxels": voxels}

    def score(self, found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """`masked_mse` over all hidden voxels; `masked_mse/mean` of each patch's visible mean, the baseline."""
        if not found:
            return {}
        voxels = sum(scan["voxels"] for scan in found)
        return {
            "masked_mse": sum(scan["squared_error"] for scan in found) / voxels,
            "masked_mse/mean": sum(scan["squared_error_mean"] for scan in found) / voxels,
        }

    def _hidden(self, image: Tensor, seeds: Sequence[Any]) -> Tensor:
        """Which voxels of `(n, 1, z, y, x)` are hidden: whole blocks, the same share of each patch."""
        block_zyx = self._settings.block_zyx
        blocks = [side // block for side, block in zip(image.shape[2:], block_zyx, strict=True)]
        count = blocks[0] * blocks[1] * blocks[2]
        n_hidden = min(count - 1, max(1, round(self._settings.hidden * count)))
        hidden = torch.zeros(len(seeds), count, dtype=torch.bool)
        for n, seed in enumerate(seeds):
            hidden[n, torch.randperm(count, generator=seeded(self._config.seed, *seed))[:n_hidden]] = True
        hidden = hidden.view(len(seeds), 1, *blocks)
        for axis, block in enumerate(block_zyx, start=2):
            hidden = hidden.repeat_interleave(block, dim=axis)
        return hidden.to(image.device)


def _with_holes(image: Tensor, hidden: Tensor) -> Tensor:
    """The patches with each hidden voxel at the mean of its patch's visible ones."""
    visible = (~hidden).to(image.dtype)
    axes = (1, 2, 3, 4)
    mean = (image * visible).sum(dim=axes, keepdim=True) / visible.sum(dim=axes, keepdim=True)
    return torch.where(hidden, mean, image)
