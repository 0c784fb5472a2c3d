"""Detection: a box around every lesion, with a score.

Windows overlap; each window answers for the boxes whose centre lies nearer to its middle than to its neighbour's, so
that a lesion cut by a window's face is taken from the window that sees it whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
from monai.apps.detection.utils.ATSS_matcher import ATSSMatcher
from monai.apps.detection.utils.box_coder import BoxCoder
from monai.data.box_utils import box_iou, clip_boxes_to_image, non_max_suppression
from torch import Tensor, nn
from torch.nn import functional

from tomoray.archive import Archive
from tomoray.detectors import retinanet
from tomoray.geometry import Zyx
from tomoray.inference.scan_input import window_corners
from tomoray.patches import Batch
from tomoray.tasks.boxes import FROC_RATES, component_boxes, match, sensitivity_at
from tomoray.tasks.config import DetectionConfig
from tomoray.tasks.randomness import seeded
from tomoray.tasks.task import Networks
from tomoray.tasks.whole_scans import grid_shape_zyx, scan_windows
from tomoray.training.config import TrainConfig

NETWORK = "network"

_ALPHA, _GAMMA = 0.25, 2.0  # of the focal loss, as in its paper
_CANDIDATES = 4  # anchors per level and size that may belong to a lesion (Zhang et al., CVPR 2020: ATSS)
_PER_WINDOW = 100
_GUESSES = 100  # boxes per scan of the baseline


class Detection:
    """Every connected part of each label is a lesion; scored by sensitivity at so many false positives per scan.

    Args:
        config: with a section `detection`, or with its defaults.
    """

    monitor = "sensitivity"
    higher_is_better = True

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._settings = config.detection or DetectionConfig()
        self._classes = len(config.labels)
        self._anchors = AnchorGeneratorWithAnchorShape(
            feature_map_scales=tuple(2**level for level in range(self._settings.levels)),
            base_anchor_shapes=tuple(self._settings.anchors_zyx),
        )
        self._matcher = ATSSMatcher(_CANDIDATES, center_in_gt=False)
        self._coder = BoxCoder(weights=(1.0,) * 6)

    def build_networks(self) -> dict[str, nn.Module]:
        """RetinaNet with a class for each label."""
        return {NETWORK: retinanet(self._settings, self._classes)}

    def loss(self, networks: Networks, batch: Batch, training: str) -> Tensor:
        """Focal loss of every anchor and smooth L1 of the lesions' boxes, each per anchor that has a lesion."""
        image, patches = self._cropped(batch)
        logits, offsets, anchors, places = self.answers(networks[training], image)
        wanted_class = torch.zeros_like(logits)
        wanted_offsets, found_offsets = [], []
        for n, patch in enumerate(patches[:, 0].cpu().numpy()):
            boxes, kinds = (part.to(logits.device) for part in component_boxes(patch, self._classes))
            _, owner = self._matcher(boxes, anchors, places, len(self._settings.anchors_zyx))
            owned = torch.nonzero(owner >= 0)[:, 0]
            of = owner[owned].to(logits.device)
            wanted_class[n, owned, kinds[of]] = 1
            wanted_offsets.append(self._coder.encode_single(boxes[of], anchors[owned]))
            found_offsets.append(offsets[n, owned])
        lesion_anchors = sum(len(part) for part in wanted_offsets)
        classification = _focal_loss(logits, wanted_class).sum()
        regression = functional.smooth_l1_loss(
            torch.cat(found_offsets), torch.cat(wanted_offsets), beta=1 / 9, reduction="sum"
        )
        return (classification + regression / 6) / max(1, lesion_anchors)

    @torch.inference_mode()
    def examine(self, networks: Networks, archive: Archive, scan_id: str) -> dict[str, Any]:
        """Boxes found and lesions there, for each label by name.

        Returns:
            Of each label: `boxes` on the scan's target grid and their `scores`, the surest first; `hits`, the lesion
            that each hits, or -1; `iou` of the hits; `lesions`, how many there are; `guess`: `scores` and `hits` of
            boxes of the lesions' own mean size at random places, the baseline.
        """
        boxes, scores, kinds, classes_zyx = self._detect(networks[NETWORK], archive, scan_id)
        truth, true_kinds = component_boxes(classes_zyx, self._classes)
        told = {}
        for number, name in enumerate(self._config.labels):
            mine, lesions = kinds == number, truth[true_kinds == number]
            found = boxes[mine]
            hits = match(found, lesions, self._settings.hit_iou)
            hit_boxes = [(found[n : n + 1], lesions[hit : hit + 1]) for n, hit in enumerate(hits) if hit >= 0]
            told[name] = {
                "boxes": [[round(v, 2) for v in box] for box in found.tolist()],
                "scores": [round(score, 6) for score in scores[mine].tolist()],
                "hits": hits,
                "iou": [float(torch.as_tensor(box_iou(box, lesion))) for box, lesion in hit_boxes],
                "lesions": len(lesions),
                "guess": self._guess(lesions, classes_zyx.shape, scan_id),
            }
        return told

    def score(self, found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Over all scans, averaged over labels that there are lesions of.

        Returns:
            `sensitivity` at `false_positives` per scan, and `sensitivity/LABEL`; `sensitivity/random` of the baseline;
            `threshold`, the score from which on boxes count there; `froc`, the mean sensitivity at 1/8, 1/4, … 8 false
            positives (LUNA16); `iou`, of hits; `boxes`, per scan, and `lesions`, per scan.
        """
        if not found:
            return {}
        rate = self._settings.false_positives
        labels = [name for name in self._config.labels if any(scan[name]["lesions"] for scan in found)]
        if not labels:
            return {self.monitor: 0.0}
        per_label = {}
        for name in labels:
            scans = [scan[name] for scan in found]
            sensitivity, threshold = sensitivity_at(scans, rate)
            guesses = [{**scan["guess"], "lesions": scan["lesions"]} for scan in scans]
            ious = [iou for scan in scans for iou in scan["iou"]]
            per_label[name] = {
                "sensitivity": sensitivity,
                "sensitivity/random": sensitivity_at(guesses, rate)[0],
                "threshold": threshold,
                "froc": fmean(sensitivity_at(scans, at)[0] for at in FROC_RATES),
                "iou": fmean(ious) if ious else 0.0,
                "boxes": fmean(sum(score >= threshold for score in scan["scores"]) for scan in scans),
                "lesions": fmean(scan["lesions"] for scan in scans),
            }
        means = {key: fmean(scores[key] for scores in per_label.values()) for key in per_label[labels[0]]}
        return {**means, **{f"sensitivity/{name}": scores["sensitivity"] for name, scores in per_label.items()}}

    def _cropped(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Image and classes of a part of each patch, whose place depends on the seed and the sample's number alone."""
        if self._settings.crop_zyx is None:
            return batch.image, batch.classes
        images, classes = [], []
        for n, number in enumerate(batch.samples):
            generator = seeded(self._config.seed, "crop", number)
            image, patch = batch.image[n], batch.classes[n]
            for axis, part in enumerate(self._settings.crop_zyx, start=1):
                start = int(torch.randint(image.shape[axis] - part + 1, (), generator=generator))
                image, patch = image.narrow(axis, start, part), patch.narrow(axis, start, part)
            images.append(image)
            classes.append(patch)
        return torch.stack(images), torch.stack(classes)

    def answers(self, network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        """Of a batch: logits (n, anchors, classes), offsets (n, anchors, 6), anchors (anchors, 6), places per level."""
        maps = network(image)
        anchors = self._anchors(image, maps["classification"])[0]
        places = [level.shape[2:].numel() for level in maps["classification"]]
        logits, offsets = (
            torch.cat([_by_anchor(level, width) for level in maps[key]], dim=1)
            for key, width in (("classification", self._classes), ("box_regression", 6))
        )
        return logits.float(), offsets.float(), anchors.to(logits.device), places

    def _detect(
        self, network: nn.Module, archive: Archive, scan_id: str
    ) -> tuple[Tensor, Tensor, Tensor, np.ndarray[Any, np.dtype[np.uint8]]]:
        """Boxes of a whole scan on its target grid with scores and kinds, the surest first; and its true classes."""
        device = next(network.parameters()).device
        shape_zyx = grid_shape_zyx(archive, scan_id, self._config)
        classes_zyx = np.zeros(shape_zyx, np.uint8)
        low, high = realms(shape_zyx, self._config)
        boxes, scores, kinds = [torch.empty(0, 6)], [torch.empty(0)], [torch.empty(0, dtype=torch.int64)]
        for windows in scan_windows(archive, scan_id, self._config, device):
            logits, offsets, anchors, _ = self.answers(network, windows.image)
            for n, corner in enumerate(windows.corners_zyx):
                at = tuple(slice(c, c + side) for c, side in zip(corner, self._config.patch_zyx, strict=True))
                inside = classes_zyx[at]
                inside[...] = windows.classes[n, 0, : inside.shape[0], : inside.shape[1], : inside.shape[2]].cpu()
                found, sure, kind = self.window_boxes(logits[n], offsets[n], anchors)
                found = found + torch.tensor(corner * 2)
                centres = (found[:, :3] + found[:, 3:]) / 2
                mine = ((centres >= low[corner]) & (centres < high[corner])).all(dim=1)
                boxes.append(found[mine])
                scores.append(sure[mine])
                kinds.append(kind[mine])
        return *self.merged(torch.cat(boxes), torch.cat(scores), torch.cat(kinds)), classes_zyx

    def window_boxes(self, logits: Tensor, offsets: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The surest boxes of one window, with scores and classes, on the CPU."""
        scores = logits.sigmoid().flatten()
        sure, at = scores.topk(min(_PER_WINDOW, len(scores)))
        at = at[sure >= self._settings.min_score]
        which = torch.div(at, self._classes, rounding_mode="floor")
        boxes = self._coder.decode_single(offsets[which], anchors[which])
        clipped, kept = clip_boxes_to_image(boxes, self._config.patch_zyx, remove_empty=True)
        at = at[torch.as_tensor(kept)]
        return torch.as_tensor(clipped).cpu(), scores[at].cpu(), (at % self._classes).cpu()

    def merged(self, boxes: Tensor, scores: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of boxes of one class that overlap, the surest; sorted by score."""
        kept = []
        for number in range(self._classes):
            mine = torch.nonzero(kinds == number)[:, 0]
            if len(mine):
                kept.append(mine[non_max_suppression(boxes[mine], scores[mine], self._settings.merge_iou)])
        chosen = torch.cat(kept) if kept else torch.empty(0, dtype=torch.int64)
        chosen = chosen[scores[chosen].argsort(descending=True, stable=True)]
        return boxes[chosen], scores[chosen], kinds[chosen]

    def _guess(self, lesions: Tensor, shape_zyx: Sequence[int], scan_id: str) -> dict[str, list[Any]]:
        """Boxes of the lesions' mean size anywhere in the scan, in random order: what chance would find."""
        if not len(lesions):
            return {"scores": [], "hits": []}
        rng = np.random.default_rng(list(hashlib.sha256(f"{self._config.seed}/{scan_id}".encode()).digest()))
        size = (lesions[:, 3:] - lesions[:, :3]).mean(dim=0)
        centres = torch.from_numpy(rng.uniform(0, shape_zyx, (_GUESSES, 3))).float()
        boxes = torch.cat([centres - size / 2, centres + size / 2], dim=1)
        scores = np.sort(rng.random(_GUESSES))[::-1]
        return {"scores": scores.tolist(), "hits": match(boxes, lesions, self._settings.hit_iou)}


def _by_anchor(level: Tensor, width: int) -> Tensor:
    """`(n, anchors * width, z, y, x)` to `(n, z * y * x * anchors, width)`, the order of the anchors."""
    split = level.view(len(level), -1, width, *level.shape[2:])
    return split.permute(0, 3, 4, 5, 1, 2).flatten(1, 4)


def _focal_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Of each anchor and class (Lin et al., ICCV 2017)."""
    entropy = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    right = torch.exp(-entropy)
    weight = _ALPHA * wanted + (1 - _ALPHA) * (1 - wanted)
    return weight * (1 - right) ** _GAMMA * entropy


def realms(shape_zyx: Zyx, config: TrainConfig) -> tuple[dict[Zyx, Tensor], dict[Zyx, Tensor]]:
    """For each window's corner, where the centres of its own boxes lie: from, and up to, in voxels of the grid."""
    corners = window_corners(shape_zyx, config.patch_zyx, config.overlap)
    starts = [sorted({corner[axis] for corner in corners}) for axis in range(3)]
    low, high = {}, {}
    for corner in corners:
        lows, highs = [], []
        for axis, start in enumerate(corner):
            n = starts[axis].index(start)
            borders = [
                (before + config.patch_zyx[axis] + after) / 2
                for before, after in zip(starts[axis], starts[axis][1:], strict=False)
            ]
            lows.append(borders[n - 1] if n > 0 else -torch.inf)
            highs.append(borders[n] if n < len(borders) else torch.inf)
        low[corner], high[corner] = torch.tensor(lows), torch.tensor(highs)
    return low, high
