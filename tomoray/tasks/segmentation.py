"""Segmentation: a class for every voxel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from torch import Tensor, nn

from tomoray.archive import Archive
from tomoray.metrics import dice
from tomoray.networks import build_network
from tomoray.patches import Batch
from tomoray.predict import Segmenter
from tomoray.tasks.task import Networks
from tomoray.training.config import TrainConfig
from tomoray.training.losses import segmentation_loss

NETWORK = "network"


class Segmentation:
    """Labels of the archive, learned from patches and scored by Dice on whole scans."""

    monitor = "dice"
    higher_is_better = True

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._loss = segmentation_loss(config.loss)

    def build_networks(self) -> dict[str, nn.Module]:
        """One network, with a class more than there are labels."""
        return {NETWORK: build_network(self._config.network, out_channels=len(self._config.labels) + 1)}

    def loss(self, networks: Networks, batch: Batch, training: str) -> Tensor:
        """What `config.loss` names."""
        return self._loss(networks[training](batch.image), batch.classes)

    def examine(self, networks: Networks, archive: Archive, scan_id: str) -> dict[str, Any]:
        """Dice per label."""
        scan = archive.scan(scan_id)
        network = networks[NETWORK]
        segmenter = Segmenter(network, self._config, next(network.parameters()).device)
        masks = segmenter.segment(scan.image().read().result(), scan.geometry)
        return {name: dice(masks[name], scan.label(name).read().result()) for name in self._config.labels}

    def score(self, found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Mean Dice of each label as `dice/LABEL`, and their mean as `dice`."""
        if not found:
            return {}
        labels = {f"dice/{name}": fmean(scan[name] for scan in found) for name in self._config.labels}
        return {"dice": fmean(labels.values()), **labels}
