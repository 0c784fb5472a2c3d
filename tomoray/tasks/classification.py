"""Classification: a class for a scan or a patch, from its voxels and what the catalog knows of the patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tomoray.archive import Archive
from tomoray.catalog import split_by_patient
from tomoray.classifiers import Classifier, densenet121, small_densenet
from tomoray.errors import Fatal
from tomoray.patches import Batch
from tomoray.tasks.config import Clinical
from tomoray.tasks.scores import auroc, balanced_accuracy, temperature
from tomoray.tasks.task import Networks
from tomoray.tasks.whole_scans import scan_windows
from tomoray.training.config import TrainConfig

NETWORK = "network"
CALIBRATED_FROM = 20  # cases; of fewer, one wrong one makes the temperature

_UNKNOWN = -100  # what `cross_entropy` passes over
SEXES = {"F": 0.0, "M": 1.0}


class Classification:
    """A column of the catalog or the presence of a label, learned from patches, scored on whole scans.

    Args:
        config: with a section `classification`.
        rows: of the catalog; those of stored scans count. Clinical numbers are standardised with the mean and the
            standard deviation over the scans that train by `config.split`; the network keeps both with its weights.

    Raises:
        Fatal: of the scans, none or only those of one class have a known target.
    """

    monitor = "balanced_accuracy"
    higher_is_better = True

    def __init__(self, config: TrainConfig, rows: Sequence[Mapping[str, Any]]) -> None:
        assert config.classification is not None  # TrainConfig sees to it
        self._config = config
        self._settings = config.classification
        stored = [row for row in rows if row["status"] == "stored"]
        self._targets = {row["scan_id"]: self._target(row) for row in stored}
        self._clinical = {row["scan_id"]: _numbers(row, self._settings.clinical) for row in stored}
        training = set(split_by_patient([row["patient_id"] for row in stored], config.split).train)
        told = [self._clinical[row["scan_id"]] for row in stored if row["patient_id"] in training]
        self._mean, self._std = _statistics(told, len(self._settings.clinical))
        self._require_classes()

    def build_networks(self) -> dict[str, nn.Module]:
        """One network, DenseNet features of the patch beside the clinical numbers."""
        return {NETWORK: build_classifier(self._config, self._mean, self._std)}

    def loss(self, networks: Networks, batch: Batch, training: str) -> Tensor:
        """Cross-entropy, averaged over the patches whose class is known; 0 where none is."""
        scores = networks[training](batch.image, self._told(batch.scan_ids, batch.image.device))
        if self._settings.label is not None:
            target = self._present(batch.classes)
        else:
            target = torch.tensor([self._targets[scan_id] for scan_id in batch.scan_ids], device=scores.device)
        total = functional.cross_entropy(scores, target, ignore_index=_UNKNOWN, reduction="sum")
        return total / (target != _UNKNOWN).sum().clamp(min=1)

    @torch.inference_mode()
    def examine(self, networks: Networks, archive: Archive, scan_id: str) -> dict[str, Any]:
        """`probabilities` (cases, classes) and `truth`: the scan as one case, or each of its patches."""
        network = networks[NETWORK]
        device = next(network.parameters()).device
        found, present = [], []
        for windows in scan_windows(archive, scan_id, self._config, device, at_most=self._settings.windows):
            told = self._told([scan_id] * len(windows.image), device)
            found.append(network(windows.image, told).softmax(dim=1).float().cpu())
            present.append(self._present(windows.classes).cpu())
        probabilities, patches = torch.cat(found), torch.cat(present)
        if self._settings.per == "patch":
            return {"probabilities": probabilities.tolist(), "truth": patches.tolist()}
        by_label = self._settings.label is not None
        truth = int(patches.max()) if by_label else self._targets.get(scan_id, _UNKNOWN)
        return {"probabilities": [pooled(probabilities, self._settings.pool).tolist()], "truth": [truth]}

    def score(self, found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """`balanced_accuracy`, `accuracy` and `auroc`, beside them what naming the commonest class would give.

        `auroc` is absent where the cases are all of one class, `temperature`, which serving calibrates with, where they
        are fewer than 20. Cases of unknown class are passed over.
        """
        cases = [case for scan in found for case in zip(scan["probabilities"], scan["truth"], strict=True)]
        known = [(probabilities, truth) for probabilities, truth in cases if truth != _UNKNOWN]
        if not known:
            return {self.monitor: 0.0} if found else {}
        probabilities, truth = np.array([p for p, _ in known]), [t for _, t in known]
        guessed = probabilities.argmax(axis=1).tolist()
        commonest = int(np.bincount(truth).argmax())
        scores = {
            "balanced_accuracy": balanced_accuracy(guessed, truth),
            "balanced_accuracy/majority": balanced_accuracy([commonest] * len(truth), truth),
            "accuracy": float(np.mean(np.array(guessed) == truth)),
            "accuracy/majority": float(np.mean(np.array(truth) == commonest)),
        }
        if len(truth) >= CALIBRATED_FROM:
            scores["temperature"] = temperature(probabilities, truth)
        area = auroc(probabilities, truth)
        return scores if area is None else {**scores, "auroc": area}

    def _target(self, row: Mapping[str, Any]) -> int:
        """The class of a scan by its column; `_UNKNOWN` where it has none of them."""
        value = row[self._settings.column] if self._settings.column is not None else None
        return self._settings.classes.index(value) if value in self._settings.classes else _UNKNOWN

    def _require_classes(self) -> None:
        column = self._settings.column
        if column is None:
            return
        there = {self._settings.classes[target] for target in self._targets.values() if target != _UNKNOWN}
        if len(there) < 2:
            found = ", ".join(sorted(there)) or "none"
            raise Fatal(
                f"of the classes {self._settings.classes} of column {column!r} the archive has {found} in "
                f"{len(self._targets)} scans; wanted two or more: name others in classification.classes, or add scans"
            )

    def _present(self, classes: Tensor) -> Tensor:
        """Whether each patch `(n, 1, z, y, x)` holds the label: int64 (n,), 0 or 1; zeros without a label."""
        if self._settings.label is None:
            return torch.zeros(len(classes), dtype=torch.int64, device=classes.device)
        number = self._config.labels.index(self._settings.label) + 1
        return (classes == number).flatten(1).any(dim=1).long()

    def _told(self, scan_ids: Sequence[str], device: torch.device) -> Tensor:
        """Clinical numbers of each patch's scan, float32 (n, numbers), NaN where missing."""
        unknown = [nan] * len(self._settings.clinical)
        told = [self._clinical.get(scan_id, unknown) for scan_id in scan_ids]
        return torch.tensor(told, dtype=torch.float32, device=device).reshape(len(scan_ids), -1)


def build_classifier(config: TrainConfig, mean: Sequence[float], std: Sequence[float]) -> Classifier:
    """The network of a config, with random weights.

    Args:
        config: with a section `classification`.
        mean: of each clinical number, over the scans that train.
        std: its standard deviation.
    """
    settings = config.classification
    assert settings is not None  # TrainConfig sees to it
    flat = config.patch_zyx[0] == 1
    build = {"densenet121": densenet121, "small": small_densenet}[settings.network]
    image, features = build(flat=flat, norm=settings.norm)
    classes = 2 if settings.label is not None else len(settings.classes)
    return Classifier(
        image, features, classes, clinical_mean=mean, clinical_std=std, flat=flat, dropout=settings.dropout
    )


def pooled(probabilities: Tensor, pool: Literal["mean", "max"]) -> Tensor:
    """One row of probabilities for all patches of a scan, `(patches, classes)`."""
    if pool == "mean":
        return probabilities.mean(dim=0)
    highest = probabilities.amax(dim=0)
    if len(highest) == 2:  # the patch surest of class 1 speaks for the scan
        return torch.stack([1 - highest[1], highest[1]])
    return highest / highest.sum()


def _numbers(row: Mapping[str, Any], columns: Sequence[Clinical]) -> list[float]:
    """Clinical columns as numbers, NaN where missing; of sex, F is 0 and M is 1."""
    values = [SEXES.get(row["sex"]) if column == "sex" else row[column] for column in columns]
    return [nan if value is None else float(value) for value in values]


def _statistics(rows: Sequence[Sequence[float]], columns: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each column over its known values; 0 and 1 where they say nothing."""
    known = [[row[n] for row in rows if row[n] == row[n]] for n in range(columns)]  # NaN is unlike itself
    mean = [float(np.mean(values)) if values else 0.0 for values in known]
    std = [float(np.std(values)) if values else 0.0 for values in known]
    return mean, [value if value > 1e-6 else 1.0 for value in std]
