"""What a segmentation is trained to lessen: losses of scores against classes, MONAI's where they do the job."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from monai.losses.dice import DiceCELoss, DiceLoss
from monai.losses.focal_loss import FocalLoss
from monai.losses.tversky import TverskyLoss
from torch import Tensor
from torch.nn.functional import interpolate

from tomoray.training.network_config import LossConfig

Scores = Tensor | Sequence[Tensor]
SegmentationLoss = Callable[[Scores, Tensor], Tensor]
_Loss = Callable[[Tensor, Tensor], Tensor]


def segmentation_loss(config: LossConfig) -> SegmentationLoss:
    """The loss that `config` names.

    Returns:
        A function of scores, float `(batch, classes, z, y, x)` before softmax, and classes, uint8
        `(batch, 1, z, y, x)`, to a scalar. Scores at several resolutions, finest first, are scored each against the
        classes at its own resolution (nearest voxel), weighted 1, 1/2, 1/4, … over their sum (deep supervision as in
        nnU-Net, Isensee et al., Nature Methods 2021). Dice and Tversky leave the background out and see the batch as
        one volume, so that a patch without a label does not count as a miss.
    """
    loss = _LOSSES[config.name](config)

    def deep(scores: Scores, classes: Tensor) -> Tensor:
        if isinstance(scores, Tensor):
            return loss(scores, classes)
        weights = [0.5**level for level in range(len(scores))]
        total = scores[0].new_zeros(())
        for weight, coarse in zip(weights, scores, strict=True):
            total = total + weight / sum(weights) * loss(coarse, _at_resolution(classes, coarse.shape[2:]))
        return total

    return deep


def _at_resolution(classes: Tensor, shape_zyx: Sequence[int]) -> Tensor:
    if classes.shape[2:] == torch.Size(shape_zyx):
        return classes
    return interpolate(classes, size=tuple(shape_zyx), mode="nearest-exact")


def _dice_ce(config: LossConfig) -> _Loss:
    del config
    return DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)


def _dice_focal(config: LossConfig) -> _Loss:
    """Dice, and the focal loss over all classes."""
    dice, focal = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True), _focal(config)
    return lambda scores, classes: dice(scores, classes) + focal(scores, classes)


def _focal(config: LossConfig) -> _Loss:
    """Over all classes: softmax cross-entropy with (1 - p)^gamma (Lin et al., ICCV 2017)."""
    focal = FocalLoss(include_background=True, to_onehot_y=True, use_softmax=True, gamma=config.focal_gamma)
    # Its default mean is over classes too, which alone would make it weaker the more classes there are.
    return lambda scores, classes: focal(scores, classes) * scores.shape[1]


def _tversky(config: LossConfig, reduction: str = "mean") -> _Loss:
    return TverskyLoss(
        include_background=False,
        to_onehot_y=True,
        softmax=True,
        batch=True,
        alpha=config.tversky_alpha,
        beta=config.tversky_beta,
        reduction=reduction,
    )


def _focal_tversky(config: LossConfig) -> _Loss:
    """The Tversky loss of each class to the power of gamma (Abraham and Khan, ISBI 2019, whose gamma is 1 / ours)."""
    each = _tversky(config, reduction="none")
    # Near 0 the power of a number below 1 has no finite slope.
    return lambda scores, classes: each(scores, classes).clamp_min(1e-6).pow(config.tversky_gamma).mean()


_LOSSES: dict[str, Callable[[LossConfig], _Loss]] = {
    "dice_ce": _dice_ce,
    "dice_focal": _dice_focal,
    "focal": _focal,
    "tversky": _tversky,
    "focal_tversky": _focal_tversky,
}
