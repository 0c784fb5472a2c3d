"""Parts of U-Nets that MONAI lacks: attention residual learning, channel attention, and the U-Net around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from monai.networks.blocks.convolutions import ResidualUnit
from monai.networks.layers.utils import get_norm_layer
from torch import Tensor, nn
from torch.nn.functional import interpolate

Step = tuple[int, int, int]
Norm = str | tuple[str, dict[str, int | bool]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Units:
    """How the residual units of a network are made.

    Attributes:
        convolutions: in each unit.
        kernel_zyx: of each convolution.
        step_zyx: by which a level is coarser than the one before.
    """

    convolutions: int
    norm: Norm
    dropout: float
    kernel_zyx: Step = (3, 3, 3)
    step_zyx: Step = (2, 2, 2)

    def make(self, n_in: int, n_out: int, *, coarser: bool = False) -> nn.Module:
        """A residual unit (He et al., CVPR 2016) from `n_in` to `n_out` channels."""
        return ResidualUnit(
            spatial_dims=3,
            in_channels=n_in,
            out_channels=n_out,
            strides=self.step_zyx if coarser else 1,
            kernel_size=self.kernel_zyx,
            subunits=self.convolutions,
            norm=self.norm,
            dropout=self.dropout,
        )


class ResidualUNet(nn.Module):
    """A U-Net of residual units whose skip connections meet the decoder in a module of one's own.

    Args:
        out_channels: scores of each voxel.
        channels: of each level, finest first.
        units: what it is made of.
        make_join: (channels, levels below) -> module from (skip, decoded), both with `channels`, to as many.
        n_scores: resolutions that are scored in training, the finest alone or also coarser ones (deep supervision).
    """

    def __init__(
        self,
        *,
        out_channels: int,
        channels: Sequence[int],
        units: Units,
        make_join: Callable[[int, int], nn.Module],
        n_scores: int = 1,
    ) -> None:
        super().__init__()
        n_levels = len(channels)
        self.encoders = nn.ModuleList(
            units.make(n_in, n_out, coarser=level > 0)
            for level, (n_in, n_out) in enumerate(zip((1, *channels), channels, strict=False))
        )
        self.ups = nn.ModuleList(
            nn.ConvTranspose3d(coarse, fine, kernel_size=units.step_zyx, stride=units.step_zyx)
            for fine, coarse in pairwise(channels)
        )
        self.joins = nn.ModuleList(make_join(channels[level], n_levels - 1 - level) for level in range(n_levels - 1))
        self.heads = nn.ModuleList(nn.Conv3d(channels[level], out_channels, 1) for level in range(n_scores))

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Scores `(batch, out_channels, z, y, x)`; in training with deep supervision a list, finest first."""
        skips: list[Tensor] = []
        features = image
        for encoder in self.encoders:
            features = encoder(features)
            skips.append(features)
        decoded = [features]
        for level in range(len(self.joins) - 1, -1, -1):
            decoded.append(self.joins[level](skips[level], self.ups[level](decoded[-1])))
        if self.training and len(self.heads) > 1:
            return [head(decoded[-1 - level]) for level, head in enumerate(self.heads)]
        return cast("Tensor", self.heads[0](decoded[-1]))


class AttentionResidualJoin(nn.Module):
    """The skip through an attention residual module, beside what is decoded (RA-UNet; Jin et al., arXiv 1811.01328)."""

    def __init__(self, channels: int, depth: int, units: Units) -> None:
        super().__init__()
        self.attention = AttentionResidual(channels, depth, units)
        self.unit = units.make(2 * channels, channels)

    def forward(self, skip: Tensor, decoded: Tensor) -> Tensor:
        """`channels` of both, at the resolution of both."""
        return cast("Tensor", self.unit(torch.cat([self.attention(skip), decoded], 1)))


class AttentionResidual(nn.Module):
    """(1 + mask) * trunk: attention residual learning (Wang et al., CVPR 2017), in 3-D as in RA-UNet.

    The trunk is a residual unit. The mask, 0..1 for each voxel and channel, comes from a small U-Net of its own that
    sees `depth` coarser levels, so that what is far decides too. A mask of 0 leaves the trunk as it is: depth costs no
    signal.
    """

    def __init__(self, channels: int, depth: int, units: Units) -> None:
        super().__init__()
        self.first = units.make(channels, channels)
        self.trunk = units.make(channels, channels)
        self.mask = SoftMask(channels, depth, units)
        self.last = units.make(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        """As many channels, at the same resolution."""
        features = self.first(features)
        return cast("Tensor", self.last((1 + self.mask(features)) * self.trunk(features)))


class SoftMask(nn.Module):
    """Down by max pooling, up by linear interpolation, then two 1 x 1 x 1 convolutions and a sigmoid."""

    def __init__(self, channels: int, depth: int, units: Units) -> None:
        super().__init__()
        self.pool = nn.MaxPool3d(units.step_zyx, units.step_zyx)
        self.downs = nn.ModuleList(units.make(channels, channels) for _ in range(depth))
        self.skips = nn.ModuleList(units.make(channels, channels) for _ in range(depth - 1))
        self.ups = nn.ModuleList(units.make(channels, channels) for _ in range(depth - 1))
        self.squash = nn.Sequential(
            nn.Conv3d(channels, channels, 1, bias=False),
            get_norm_layer(units.norm, spatial_dims=3, channels=channels),
            nn.ReLU(inplace=True),
            nn.Conv3d(channels, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, features: Tensor) -> Tensor:
        """0..1 for each channel and voxel of `features`."""
        levels = [features]
        for down in self.downs:
            levels.append(down(self.pool(levels[-1])))
        coarse = levels[-1]
        for level in range(len(self.ups) - 1, -1, -1):
            fine = levels[level + 1]
            coarse = self.ups[level](_enlarge(coarse, fine) + self.skips[level](fine))
        return cast("Tensor", self.squash(_enlarge(coarse, features)))


class ChannelAttentionJoin(nn.Module):
    """A channel attention block: coarse features choose among the channels of fine ones.

    Skip and decoded features, averaged over the patch, give each channel of the skip a weight 0..1 by two layers
    (squeeze and excitation; Hu et al., CVPR 2018); the weighted skip is added to what is decoded (the channel attention
    block of Yu et al., CVPR 2018, "Learning a discriminative feature network"). Then a residual unit.
    """

    def __init__(self, channels: int, units: Units, reduction: int = 4) -> None:
        super().__init__()
        hidden = max(1, 2 * channels // reduction)
        self.weigh = nn.Sequential(
            nn.Conv3d(2 * channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv3d(hidden, channels, 1), nn.Sigmoid()
        )
        self.unit = units.make(channels, channels)

    def forward(self, skip: Tensor, decoded: Tensor) -> Tensor:
        """`channels` of both, at the resolution of both."""
        means = torch.cat([skip, decoded], 1).mean((2, 3, 4), keepdim=True)
        return cast("Tensor", self.unit(skip * self.weigh(means) + decoded))


def _enlarge(coarse: Tensor, like: Tensor) -> Tensor:
    return interpolate(coarse, size=like.shape[2:], mode="trilinear", align_corners=False)
