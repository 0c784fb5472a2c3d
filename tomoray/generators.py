"""Networks that make images and networks that judge them, one function each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any, cast

import torch
from monai.networks.blocks.convolutions import Convolution
from monai.networks.nets.dynunet import DynUNet
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from tomoray.geometry import Zyx

COARSENING = 8  # a generator starts from a grid so many times coarser than its patch

_FIRST_SHARE = 0.1


def patch_generator(noise: int, channels: int, patch_zyx: Zyx) -> nn.Module:
    """Noise to a CT patch by upsampling and convolution, after DCGAN (Radford et al., ICLR 2016) in 3-D.

    Upsampling stands apart from convolution, as transposed convolutions leave checkerboards (Odena et al., 2016).

    Args:
        noise: numbers in.
        channels: at full resolution; twice as many at each of the three coarser ones.
        patch_zyx: sides, multiples of `COARSENING`.

    Returns:
        A module from float32 `(n, noise)`, standard normal, to `(n, 1, z, y, x)`, 0..1.
    """
    coarse_zyx = [side // COARSENING for side in patch_zyx]
    widths = [channels * 8, channels * 4, channels * 2, channels]
    layers: list[nn.Module] = [
        nn.Linear(noise, widths[0] * prod(coarse_zyx)),
        nn.Unflatten(1, (widths[0], *coarse_zyx)),
    ]
    for before, width in pairwise(widths):
        layers += [nn.Upsample(scale_factor=2), Convolution(3, before, width, norm="batch", act="relu")]
    layers += [nn.Conv3d(channels, 1, 3, padding=1), nn.Sigmoid()]
    return _channels_last(nn.Sequential(*layers))


def denoiser(channels: Sequence[int]) -> nn.Module:
    """A noisy patch to a clean one: a U-Net (DynUNet, Isensee et al., Nature Methods 2021) says what to take away.

    Unlike the segmentation networks it works at full resolution too, where the noise is.

    Args:
        channels: of each level, from full resolution down; each level halves the one before.

    Returns:
        A module from and to float32 `(n, 1, z, y, x)`, 0..1, sides multiples of `2 ** (levels - 1)`. It begins close
        to leaving the patch as it is.
    """
    down = len(channels) - 1
    network = DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        kernel_size=[3] * len(channels),
        strides=[1] + [2] * down,
        upsample_kernel_size=[2] * down,
        filters=list(channels),
        norm_name="",  # none: what norms take away is how much noise there is
    )
    return _channels_last(_Residual(network))


def patch_critic(channels: int, in_channels: int) -> nn.Module:
    """How real each part of a patch looks: PatchGAN (Isola et al., CVPR 2017) with spectral norm (Miyato et al. 2018).

    Returns:
        A module from float32 `(n, in_channels, z, y, x)` to scores `(n, 1, z/8, y/8, x/8)`, higher where realer.
    """
    widths = [in_channels, channels, channels * 2, channels * 4]
    layers: list[nn.Module] = []
    for before, width in pairwise(widths):
        layers += [spectral_norm(nn.Conv3d(before, width, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
    layers.append(spectral_norm(nn.Conv3d(widths[-1], 1, 3, padding=1)))
    return _channels_last(nn.Sequential(*layers))


def _channels_last(network: Any) -> nn.Module:  # Module.to lacks memory_format in its types
    """The same weights in another order: up to twice as fast on CPUs with these few channels."""
    return cast("nn.Module", network.to(memory_format=torch.channels_last_3d))


class _Residual(nn.Module):
    """`image + share * network(image)`, with a share that is learned from near 0 on (Bachlechner et al., UAI 2021)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.share = nn.Parameter(torch.full((1,), _FIRST_SHARE))

    def forward(self, image: Tensor) -> Tensor:
        clean: Tensor = image + self.share * self.network(image)
        return clean
