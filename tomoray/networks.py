"""Networks for segmentation, one function each: a CT patch in, a score per class out (docs/networks.md)."""

from __future__ import annotations

from collections.abc import Callable
from math import gcd
from typing import Any, cast

import torch
from monai.networks.nets.attentionunet import AttentionUnet
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.swin_unetr import SwinUNETR
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

from tomoray.blocks import AttentionResidualJoin, ChannelAttentionJoin, Norm, ResidualUNet, Step, Units
from tomoray.training.network_config import NetworkConfig

_GROUPS = 8


def build_network(config: NetworkConfig, out_channels: int) -> nn.Module:
    """The network that `config` names, with random weights.

    Args:
        config: name and size.
        out_channels: classes, background included.

    Returns:
        A module from float32 `(batch, 1, z, y, x)`, HU scaled to 0..1, to scores `(batch, out_channels, z, y, x)`. With
        `config.deep_supervision`, while it is being trained, a list of scores instead, from the finest resolution on,
        each half the one before. Each patch side is a multiple of `config.patch_multiple_zyx`; `TrainConfig` sees to
        it. Weights lie channels last, which is faster on CPUs and tensor cores and changes no value.
    """
    network: Any = _NETWORKS[config.name](config, out_channels)  # Module.to lacks memory_format in its types
    return cast("nn.Module", network.to(memory_format=torch.channels_last_3d))


def _unet(config: NetworkConfig, out_channels: int) -> nn.Module:
    """A U-Net with residual units (Kerfoot et al., STACOM 2018), each level halving the one before."""
    step: Any = _step(config) if config.slicewise else 2  # steps by axis work, though UNet's types say otherwise
    return UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=out_channels,
        channels=config.channels,
        strides=[step] * (len(config.channels) - 1),
        kernel_size=_kernel(config),
        up_kernel_size=_kernel(config),
        num_res_units=config.residual_units,
        norm=_norm(config),
        dropout=config.dropout,
    )


def _attention_unet(config: NetworkConfig, out_channels: int) -> nn.Module:
    """A U-Net whose skips pass gates that coarser features open (Oktay et al., MIDL 2018)."""
    network = AttentionUnet(
        spatial_dims=3,
        in_channels=1,
        out_channels=out_channels,
        channels=config.channels,
        strides=[2] * (len(config.channels) - 1),
        dropout=config.dropout,
    )
    _replace_norms(network, config)  # MONAI's has batch norm in gates and levels, and instance norm between
    return network


def _ra_unet(config: NetworkConfig, out_channels: int) -> nn.Module:
    """A residual U-Net with attention residual modules in its skips (RA-UNet; Jin et al., arXiv 1811.01328)."""
    units = _units(config)
    return ResidualUNet(
        out_channels=out_channels,
        channels=config.channels,
        units=units,
        make_join=lambda channels, depth: AttentionResidualJoin(channels, depth, units),
        n_scores=_n_scores(config),
    )


def _cab_unet(config: NetworkConfig, out_channels: int) -> nn.Module:
    """A residual U-Net with channel attention where skips meet the decoder (Yu et al.; Hu et al., both CVPR 2018)."""
    units = _units(config)
    return ResidualUNet(
        out_channels=out_channels,
        channels=config.channels,
        units=units,
        make_join=lambda channels, _: ChannelAttentionJoin(channels, units),
        n_scores=_n_scores(config),
    )


def _segresnet(config: NetworkConfig, out_channels: int) -> nn.Module:
    """A large residual encoder and a small decoder (Myronenko, BrainLes 2018), without its autoencoder branch."""
    between, blocks = len(config.channels) - 2, config.residual_units
    return SegResNet(
        init_filters=config.channels[0],
        out_channels=out_channels,
        dropout_prob=config.dropout or None,
        norm=_norm(config),
        blocks_down=(1, *[blocks] * between, 2 * blocks),
        blocks_up=(1,) * (between + 1),
    )


def _dynunet(config: NetworkConfig, out_channels: int) -> nn.Module:
    """nnU-Net's U-Net (Isensee et al., Nature Methods 2021); residual when `residual_units` is not 0."""
    n_levels = len(config.channels)
    network = _DeepDynUNet if config.deep_supervision else DynUNet
    return network(
        spatial_dims=3,
        in_channels=1,
        out_channels=out_channels,
        kernel_size=[_kernel(config)] * n_levels,
        strides=[(1, 1, 1)] + [_step(config)] * (n_levels - 1),
        upsample_kernel_size=[_step(config)] * (n_levels - 1),
        filters=config.channels,
        dropout=config.dropout or None,
        norm_name=_norm(config, affine=True),
        res_block=config.residual_units > 0,
        deep_supervision=config.deep_supervision,
        deep_supr_num=max(1, _n_scores(config) - 1),
    )


class _DeepDynUNet(DynUNet):
    """Scores each level at its own resolution, where MONAI's enlarges them all to the finest."""

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        scores = self.output_block(self.skip_layers(image))
        return [scores, *self.heads] if self.training else scores


def _swin_unetr(config: NetworkConfig, out_channels: int) -> nn.Module:
    """A Swin transformer as encoder of a U-Net (Hatamizadeh et al., BrainLes 2021)."""
    return SwinUNETR(
        in_channels=1,
        out_channels=out_channels,
        feature_size=config.channels[0],
        depths=(config.residual_units,) * 4,
        norm_name=_norm(config),
        drop_rate=config.dropout,
        spatial_dims=3,
    )


def _units(config: NetworkConfig) -> Units:
    return Units(
        convolutions=config.residual_units,
        norm=_norm(config),
        dropout=config.dropout,
        kernel_zyx=_kernel(config),
        step_zyx=_step(config),
    )


def _kernel(config: NetworkConfig) -> Step:
    return (1, 3, 3) if config.slicewise else (3, 3, 3)


def _step(config: NetworkConfig) -> Step:
    return (1, 2, 2) if config.slicewise else (2, 2, 2)


def _norm(config: NetworkConfig, **options: bool) -> Norm:
    if config.norm == "group":
        return ("group", {"num_groups": _GROUPS, **options})
    return (config.norm, dict(options)) if options else config.norm


def _n_scores(config: NetworkConfig) -> int:
    """Every resolution of the decoder but the coarsest, as in nnU-Net; two at least."""
    return max(2, len(config.channels) - 2) if config.deep_supervision else 1


def _replace_norms(network: nn.Module, config: NetworkConfig) -> None:
    makes: dict[str, Callable[[int], nn.Module]] = {
        "instance": nn.InstanceNorm3d,
        "batch": nn.BatchNorm3d,
        "group": lambda channels: nn.GroupNorm(gcd(_GROUPS, channels), channels),  # a gate has one channel
    }
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm3d | nn.InstanceNorm3d):
                setattr(parent, name, makes[config.norm](child.num_features))


_NETWORKS: dict[str, Callable[[NetworkConfig, int], nn.Module]] = {
    "unet": _unet,
    "attention_unet": _attention_unet,
    "ra_unet": _ra_unet,
    "cab_unet": _cab_unet,
    "segresnet": _segresnet,
    "dynunet": _dynunet,
    "swin_unetr": _swin_unetr,
}
