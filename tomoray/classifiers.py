"""Networks that name a class, one function each: a CT patch and clinical numbers in, a score per class out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from monai.networks.nets.densenet import DenseNet
from torch import Tensor, nn

_GROUPS = 4
_CLINICAL_FEATURES = 16


class Classifier(nn.Module):
    """Image features and clinical numbers side by side, and a linear layer on both (late fusion).

    Args:
        image: gives `(n, image_features)` for `(n, 1, z, y, x)`, or for `(n, 1, y, x)` where `flat`.
        image_features: how many.
        out_channels: classes.
        clinical_mean: what is subtracted from each clinical number; empty for none at all.
        clinical_std: what each is divided by then. Both are kept with the weights.
        flat: patches are one slice thick and the network is 2-D.
        dropout: share of the features left out in training.
    """

    def __init__(
        self,
        image: nn.Module,
        image_features: int,
        out_channels: int,
        *,
        clinical_mean: Sequence[float] = (),
        clinical_std: Sequence[float] = (),
        flat: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.image = image
        self.flat = flat
        self.clinical: nn.Module | None = None
        self.clinical_mean: Tensor
        self.clinical_std: Tensor
        self.register_buffer("clinical_mean", torch.tensor(clinical_mean, dtype=torch.float32))
        self.register_buffer("clinical_std", torch.tensor(clinical_std, dtype=torch.float32))
        features = image_features
        if clinical_mean:
            self.clinical = nn.Sequential(nn.Linear(2 * len(clinical_mean), _CLINICAL_FEATURES), nn.ReLU())
            features += _CLINICAL_FEATURES
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(features, out_channels)

    def forward(self, image: Tensor, clinical: Tensor) -> Tensor:
        """Scores per class.

        Args:
            image: float32 (n, 1, z, y, x), 0..1.
            clinical: float32 (n, numbers) in their own units, NaN where missing; (n, 0) for none.

        Returns:
            (n, classes); `softmax` makes probabilities of them. A missing number counts as the mean, and a second
            number says that it was missing.
        """
        features = self.image(image[:, :, 0] if self.flat else image)
        if self.clinical is not None:
            missing = clinical.isnan()
            standard = ((clinical - self.clinical_mean) / self.clinical_std).masked_fill(missing, 0)
            numbers = torch.cat([standard, missing.to(standard.dtype)], dim=1)
            features = torch.cat([features, self.clinical(numbers)], dim=1)
        scores: Tensor = self.head(self.dropout(features))
        return scores


def densenet121(*, flat: bool, norm: Literal["batch", "group"]) -> tuple[nn.Module, int]:
    """Image features by DenseNet-121 (Huang et al., CVPR 2017), and how many; 2-D where `flat`."""
    return _densenet(flat=flat, norm=norm, init_features=64, growth_rate=32, block_config=(6, 12, 24, 16))


def small_densenet(*, flat: bool, norm: Literal["batch", "group"]) -> tuple[nn.Module, int]:
    """The same in small, for CPUs and small data: two dense blocks of four layers, an eighth of the resolution."""
    return _densenet(flat=flat, norm=norm, init_features=16, growth_rate=8, block_config=(4, 4))


def _densenet(*, flat: bool, norm: Literal["batch", "group"], **size: Any) -> tuple[nn.Module, int]:
    kind: Any = "batch" if norm == "batch" else ("group", {"num_groups": _GROUPS})
    network: Any = DenseNet(spatial_dims=2 if flat else 3, in_channels=1, out_channels=1, norm=kind, **size)
    features = int(network.class_layers.out.in_features)
    network.class_layers.out = nn.Identity()
    return network, features
