"""Boxes: around the parts of a mask, matched with one another, and what found boxes are worth.

Legend: a box is six numbers, `(z0, y0, x0, z1, y1, x1)`, in voxels of a grid; its upper ends are exclusive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data.box_utils import box_iou
from scipy import ndimage
from torch import Tensor

FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false positives per scan of LUNA16
_TOUCHING = np.ones((3, 3, 3), np.uint8)


def component_boxes(classes_zyx: npt.NDArray[np.uint8], classes: int) -> tuple[Tensor, Tensor]:
    """A box around every connected part (26 neighbours) of each class.

    Args:
        classes_zyx: 0 background, n for class n.
        classes: how many; each is looked for.

    Returns:
        float32 (boxes, 6), and int64 (boxes,): the class of each, from 0.
    """
    boxes: list[list[float]] = []
    kinds: list[int] = []
    for number in range(classes):
        parts, _ = ndimage.label(classes_zyx == number + 1, _TOUCHING)
        for where in ndimage.find_objects(parts):
            boxes.append([float(axis.start) for axis in where] + [float(axis.stop) for axis in where])
            kinds.append(number)
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 6), torch.tensor(kinds, dtype=torch.int64)


def match(found: Tensor, truth: Tensor, least_iou: float) -> list[int]:
    """Which true box each found one hits, or -1; earlier ones choose first and a box is hit by one only.

    Args:
        found: (n, 6), the surest first.
        truth: (m, 6).
        least_iou: shared volume over joint volume, at least, of a hit.
    """
    if not len(found) or not len(truth):
        return [-1] * len(found)
    shared = torch.as_tensor(box_iou(found, truth))
    hits = []
    for row in shared:
        best = int(row.argmax())
        hits.append(best if float(row[best]) >= least_iou else -1)
        if hits[-1] >= 0:
            shared[:, best] = -1
    return hits


def froc(scans: Sequence[Mapping[str, Any]]) -> tuple[npt.NDArray[np.float64], ...]:
    """The free-response ROC curve (Bunch et al. 1977), over all scans at once.

    Args:
        scans: of each, `scores` of its boxes, `hits` (the true box that each hits, or -1) and `lesions`, how many
            there are.

    Returns:
        Score thresholds from high to low, and at each the false positives per scan and the sensitivity.
    """
    scores = np.array([score for scan in scans for score in scan["scores"]], dtype=np.float64)
    hits = np.array([hit >= 0 for scan in scans for hit in scan["hits"]], dtype=bool)
    lesions = sum(scan["lesions"] for scan in scans)
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], hits[order]
    last = np.flatnonzero(np.append(scores[1:] < scores[:-1], True)) if len(scores) else np.array([], dtype=int)
    false_positives = np.cumsum(~hits)[last] / max(1, len(scans))
    sensitivity = np.cumsum(hits)[last] / max(1, lesions)
    return scores[last], false_positives, sensitivity


def sensitivity_at(scans: Sequence[Mapping[str, Any]], false_positives: float) -> tuple[float, float]:
    """The highest sensitivity with at most so many false positives per scan, and its score threshold (else 0, 1)."""
    thresholds, rates, sensitivity = froc(scans)
    allowed = np.flatnonzero(rates <= false_positives)
    if not len(allowed):
        return 0.0, 1.0
    return float(sensitivity[allowed[-1]]), float(thresholds[allowed[-1]])
