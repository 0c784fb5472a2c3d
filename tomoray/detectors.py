"""Networks that draw boxes, one function each: a CT patch in, a score and a box for every anchor out.

Of MONAI's detection application this takes the parts that do without torchvision; its ready-made detector and ResNet
extractor do not.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import Any

from monai.apps.detection.networks.retinanet_network import RetinaNet
from monai.networks.blocks.convolutions import Convolution, ResidualUnit
from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork
from torch import Tensor, nn

from tomoray.tasks.config import DetectionConfig

FINEST_STRIDE = 4  # voxels between anchors on the finest level
_GROUPS = 8


def retinanet(config: DetectionConfig, classes: int) -> nn.Module:
    """RetinaNet (Lin et al., ICCV 2017) on a small residual backbone with a feature pyramid (Lin et al., CVPR 2017).

    Args:
        config: anchors per place, levels, channels.
        classes: kinds of boxes, background not counted.

    Returns:
        A module from float32 `(n, 1, z, y, x)`, 0..1, sides multiples of `4 * 2 ** levels`, to two lists with a tensor
        per level: `classification` `(n, anchors * classes, …)` logits and `box_regression` `(n, anchors * 6, …)`.
        Groups are normalised, not batches, which are small here.
    """
    return RetinaNet(
        spatial_dims=3,
        num_classes=classes,
        num_anchors=len(config.anchors_zyx),
        feature_extractor=_Pyramid(config.channels, config.levels),
        size_divisible=FINEST_STRIDE * 2**config.levels,
    )


class _Pyramid(nn.Module):
    """Feature maps of a patch at 1/4, 1/8, … of its resolution, each with as many channels.

    One level more than is returned is computed, so that the coarsest that is returned sees its surroundings too.
    """

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.out_channels = channels  # RetinaNet asks for it
        self._levels = levels
        kind: dict[str, Any] = {"spatial_dims": 3, "norm": ("group", {"num_groups": _GROUPS}), "act": "relu"}
        widths = [channels * 2 ** min(level, 2) for level in range(levels + 1)]
        self.stem = Convolution(in_channels=1, out_channels=channels // 2, strides=2, **_narrow(kind, channels // 2))
        stages = [ResidualUnit(in_channels=channels // 2, out_channels=widths[0], strides=2, subunits=2, **kind)]
        for before, width in pairwise(widths):
            stages.append(ResidualUnit(in_channels=before, out_channels=width, strides=2, subunits=2, **kind))
        self.stages = nn.ModuleList(stages)
        self.pyramid = FeaturePyramidNetwork(3, in_channels_list=widths, out_channels=channels)
        self.pyramid.layer_blocks[-1] = nn.Identity()  # of the level that is not returned

    def forward(self, image: Tensor) -> list[Tensor]:
        features = self.stem(image)
        found: OrderedDict[str, Tensor] = OrderedDict()
        for level, stage in enumerate(self.stages):
            features = found[str(level)] = stage(features)
        return list(self.pyramid(found).values())[: self._levels]


def _narrow(kind: dict[str, Any], channels: int) -> dict[str, Any]:
    """The same, for a layer that may have fewer channels than groups."""
    return {**kind, "norm": ("group", {"num_groups": min(_GROUPS, channels)})}
