"""Networks, one function each: a CT patch in, a score per class out."""

from __future__ import annotations

from typing import Any, cast

import torch
from monai.networks.nets.unet import UNet
from torch import nn

from tomoray.training.config import NetworkConfig


def build_network(config: NetworkConfig, out_channels: int) -> nn.Module:
    """The network that `config` names, with random weights.

    Args:
        config: name and size.
        out_channels: classes, background included.

    Returns:
        A module from float32 `(batch, 1, z, y, x)`, HU scaled to 0..1, to scores `(batch, out_channels, z, y, x)`.
        Each patch side is a multiple of 2 ** (levels - 1); `TrainConfig` sees to it. Weights lie channels last, which
        is faster on CPUs and tensor cores and changes no value.
    """
    network: Any = {"unet": _unet}[config.name](config, out_channels)  # Module.to lacks memory_format in its types
    return cast("nn.Module", network.to(memory_format=torch.channels_last_3d))


def _unet(config: NetworkConfig, out_channels: int) -> nn.Module:
    """A U-Net with residual units (Kerfoot et al., STACOM 2018), each level halving the one before."""
    return UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=out_channels,
        channels=config.channels,
        strides=[2] * (len(config.channels) - 1),
        num_res_units=config.residual_units,
        norm=config.norm,
    )
