"""Segmentation: a class for every voxel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from torch import Tensor, nn

from tomoray.archive import Archive
from tomoray.metrics import dice
from tomoray.networks import build_network
from tomoray.patches import Batch
from tomoray.predict import Segmenter
from tomoray.tasks.task import Networks
from tomoray.training.config import TrainConfig
from tomoray.training.losses import segmentation_loss
from tomoray.volume import Image, Mask

NETWORK = "network"
_STEPS = 100  # of the HU window, that the baseline tries


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
        """Dice per label as `dice`, and what the baseline wants to know.

        Returns:
            Beside `dice`: `voxels`, how many there are in each of 100 equal steps of the HU window, the outermost with
            what lies beyond; `inside`, the same of each label.
        """
        scan = archive.scan(scan_id)
        network = networks[NETWORK]
        segmenter = Segmenter(network, self._config, next(network.parameters()).device)
        image_zyx = scan.image().read().result()
        masks = segmenter.segment(image_zyx, scan.geometry)
        found: dict[str, Any] = {"dice": {}, "voxels": self._histogram(image_zyx), "inside": {}}
        for name in self._config.labels:  # one true mask in memory at a time
            truth = scan.label(name).read().result()
            found["dice"][name] = dice(masks[name], truth)
            found["inside"][name] = self._histogram(image_zyx, truth)
        return found

    def score(self, found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Mean Dice of each label as `dice/LABEL`, and their mean as `dice`.

        `dice/threshold` is the baseline, without any learning: of each label, all voxels above or all below one HU,
        the best one for these very scans.
        """
        if not found:
            return {}
        names = self._config.labels
        labels = {f"dice/{name}": fmean(scan["dice"][name] for scan in found) for name in names}
        baseline = fmean(_threshold_dice([(scan["inside"][name], scan["voxels"]) for scan in found]) for name in names)
        return {"dice": fmean(labels.values()), "dice/threshold": baseline, **labels}

    def _histogram(self, image_zyx: Image, mask_zyx: Mask | None = None) -> list[int]:
        """Voxels, or those of a mask, in each step of the HU window; a slice at a time, for memory's sake."""
        low, high = self._config.hu_window
        counts = np.zeros(_STEPS, np.int64)
        for z, plane in enumerate(image_zyx):
            hu = plane.ravel() if mask_zyx is None else plane[mask_zyx[z] > 0]
            steps = ((hu - np.float32(low)) * np.float32(_STEPS / (high - low))).clip(0, _STEPS - 1)
            counts += np.bincount(steps.astype(np.uint8), minlength=_STEPS)
        return [int(count) for count in counts]


def _threshold_dice(scans: Sequence[tuple[Sequence[int], Sequence[int]]]) -> float:
    """Mean Dice of the best threshold over all scans; of each, a label's histogram and that of all voxels."""
    scores = []
    for inside, voxels in scans:
        tried = []
        for side in (1, -1):  # everything below, everything above
            shared, taken = np.cumsum(inside[::side]), np.cumsum(voxels[::side])
            both = taken + shared[-1]
            tried.append(np.where(both > 0, 2 * shared / np.maximum(both, 1), 1.0))
        scores.append(np.concatenate(tried))
    return float(np.mean(scores, axis=0).max())
