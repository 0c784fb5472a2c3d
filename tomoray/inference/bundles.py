"""MONAI bundles made elsewhere, such as those of the MONAI Model Zoo: their networks, without running their code.

A network is one of `_NETWORKS`, built from plain arguments, and its weights are read as tensors and nothing else. A
bundle's scripts and its TorchScript (`models/model.ts`) are left alone.
"""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets.attentionunet import AttentionUnet
from monai.networks.nets.basic_unet import BasicUNet
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.highresnet import HighResNet
from monai.networks.nets.mednext import MedNeXt
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.segresnet_ds import SegResNetDS
from monai.networks.nets.swin_unetr import SwinUNETR
from monai.networks.nets.unet import UNet
from monai.networks.nets.unetr import UNETR
from monai.networks.nets.vnet import VNet
from torch import Tensor, nn

from tomoray.errors import Fatal, Usage
from tomoray.inference.bundle_configs import METADATA, BundleFacts, read_facts, turn
from tomoray.storage import Store
from tomoray.training.transfer import BUNDLE_MODEL, weights_in

_NETWORKS: dict[str, Any] = {
    network.__name__: network
    for network in (
        *(AttentionUnet, BasicUNet, DynUNet, HighResNet, MedNeXt, SegResNet),
        *(SegResNetDS, SwinUNETR, UNETR, UNet, VNet),
    )
}


def open_bundle(store: Store, weights: bytes) -> BundleFacts:
    """What the bundle in `store` says, tried out: with its weights, on a window of which the shape alone is worked out.

    Raises:
        Fatal: a config is absent or damaged, or the weights do not fit.
        Usage: it says what is not understood here, or its network does not do what it says.
    """
    facts = read_facts(store, BUNDLE_MODEL, _NETWORKS)
    network, patch_zyx = load_bundle(facts, weights), facts.values["patch_zyx"]
    classes = len(facts.values["labels"]) + 1
    wanted = f"{classes} scores (channel_def in {METADATA}) for each voxel of a window zyx {patch_zyx}"
    try:
        with torch.inference_mode():
            found = network.eval().to("meta")(torch.zeros(1, 1, *patch_zyx, device="meta"))
    except Exception as error:  # of whatever layer
        raise Usage(f"{store.url}: {facts.network} cannot make {wanted}: {_line(error)}") from error
    if found.shape != (1, classes, *patch_zyx):
        raise Usage(f"{store.url}: {facts.network} makes scores {list(found.shape[1:])}; wanted {wanted}")
    return facts


def load_bundle(facts: BundleFacts, weights: bytes) -> nn.Module:
    """The network with its weights, for canonical windows scaled to 0..1.

    Raises:
        Fatal: the weights are damaged or do not fit.
        Usage: the network cannot be built from its arguments.
    """
    where = f"{facts.url}/{BUNDLE_MODEL}"
    found, network = weights_in(weights, where), _build(facts)
    if len(found) != 1:
        raise Fatal(f"{where} holds the weights of {', '.join(found)}; wanted those of one network")
    try:
        network.load_state_dict(next(iter(found.values())))
    except RuntimeError as error:  # many lines: every weight that has no place, or the wrong shape
        raise Fatal(f"the weights {where} do not fit {facts.network} with the arguments of its network_def") from error
    return Turned(network, facts.axcodes, facts.value_range)


class Turned(nn.Module):
    """A network that is shown the axes and the scale that it was trained with.

    Args:
        network: from windows to scores.
        axcodes: where the axes of both grow to.
        value_range: of its windows.
    """

    def __init__(self, network: nn.Module, axcodes: str, value_range: tuple[float, float]) -> None:
        super().__init__()
        order, reversed_ = turn(axcodes)
        self.network = network
        self._there, self._reversed = (0, 1, *(2 + axis for axis in order)), [2 + place for place in reversed_]
        self._back = (0, 1, *(2 + order.index(axis) for axis in range(3)))
        self._low, self._range = value_range[0], value_range[1] - value_range[0]

    def forward(self, windows: Tensor) -> Tensor:
        """`(n, 1, z, y, x)`, canonical, 0..1, to scores `(n, classes, z, y, x)`."""
        image = windows.permute(self._there).flip(self._reversed) * self._range + self._low
        scores: Tensor = self.network(image)
        return scores.flip(self._reversed).permute(self._back)


def _build(facts: BundleFacts) -> nn.Module:
    arguments = dict(facts.arguments)
    if facts.network == "SwinUNETR":
        arguments.pop("img_size", None)  # gone since MONAI 1.5; it was only ever checked
    try:
        network: nn.Module = _NETWORKS[facts.network](**arguments)
    except Exception as error:  # whatever it finds wrong
        raise Usage(f"{facts.url}: network_def: {facts.network} cannot be built: {_line(error)}") from error
    return network


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
