"""A scan in memory or in an archive, and the boxes that a network draws in it: `Detection` without an archive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tomoray.geometry import Geometry
from tomoray.inference.backends import eager
from tomoray.inference.batcher import Infer, Tensors
from tomoray.inference.scan_input import ScanInput, Voxels, window_corners
from tomoray.tasks.detection import NETWORK, Detection, realms
from tomoray.training.config import TrainConfig
from tomoray.transforms import Grid

_WINDOWS_AT_ONCE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundBox:
    """A lesion.

    Attributes:
        center_lps_mm: patient coordinates (x, y, z).
        size_mm: edges along the scan's own axes (x, y, z).
        score: 0 to 1.
    """

    label: str
    center_lps_mm: tuple[float, float, float]
    size_mm: tuple[float, float, float]
    score: float


class ScanDetector:
    """A trained network of task `detection`.

    Args:
        config: how it was trained.
        weights: of the network.
        device: where it runs.
    """

    def __init__(self, config: TrainConfig, weights: dict[str, Tensor], device: str | torch.device = "cpu") -> None:
        self.config, self._task = config, Detection(config)
        network = self._task.build_networks()[NETWORK]
        network.load_state_dict(weights)
        self.forward = eager(_Answers(self._task, network), device)

    def working_bytes(self, geometry: Geometry) -> int:
        """Memory that a scan takes while it is worked on, without its voxels."""
        return 16 * int(np.prod(self.config.patch_zyx)) * _WINDOWS_AT_ONCE

    @torch.inference_mode()
    def find(
        self, image: Voxels, geometry: Geometry, infer: Infer, advance: Callable[[int, int], None] | None = None
    ) -> list[FoundBox]:
        """Every box, the surest first.

        Args:
            image: HU.
            geometry: where it is.
            infer: windows to scores and offsets of every anchor.
            advance: is told how many windows are done, and of how many.
        """
        scan, task = ScanInput(image, geometry, self.config), self._task
        corners = window_corners(scan.grid.shape_zyx, self.config.patch_zyx, self.config.overlap)
        low, high = realms(scan.grid.shape_zyx, self.config)
        boxes, scores, kinds = [torch.empty(0, 6)], [torch.empty(0)], [torch.empty(0, dtype=torch.int64)]
        for n in range(0, len(corners), _WINDOWS_AT_ONCE):
            some = corners[n : n + _WINDOWS_AT_ONCE]
            windows = [scan.box(*zip(corner, self.config.patch_zyx, strict=True)) for corner in some]
            logits, offsets, anchors = infer((torch.stack(windows)[:, None],)).result()
            for k, corner in enumerate(some):
                found, sure, kind = task.window_boxes(logits[k], offsets[k], anchors[k])
                found = found + torch.tensor(corner * 2)
                centres = (found[:, :3] + found[:, 3:]) / 2
                mine = ((centres >= low[corner]) & (centres < high[corner])).all(dim=1)
                boxes.append(found[mine])
                scores.append(sure[mine])
                kinds.append(kind[mine])
            if advance is not None:
                advance(n + len(some), len(corners))
        merged = task.merged(torch.cat(boxes), torch.cat(scores), torch.cat(kinds))
        return [
            _on_scan(box, score, self.config.labels[kind], scan.grid, geometry)
            for box, score, kind in zip(*(part.tolist() for part in merged), strict=True)
        ]


class _Answers(nn.Module):
    """Logits, offsets and anchors of each window, a row each."""

    def __init__(self, task: Detection, network: nn.Module) -> None:
        super().__init__()
        self.network, self._task = network, task

    def forward(self, image: Tensor) -> Tensors:
        logits, offsets, anchors, _ = self._task.answers(self.network, image)
        return logits, offsets, anchors.expand(len(image), -1, -1)


def _on_scan(box: list[float], score: float, label: str, grid: Grid, geometry: Geometry) -> FoundBox:
    """A box of the target grid, whose voxel k reaches from k to k + 1, in patient coordinates."""
    order, flips = geometry.canonical_axes()
    centre, size = [0.0] * 3, [0.0] * 3
    for n, (axis, flip, step) in enumerate(zip(order, flips, grid.step_zyx, strict=True)):
        at = (box[n] + box[n + 3]) / 2 * step - 0.5
        centre[axis] = geometry.shape_zyx[axis] - 1 - at if flip else at
        size[axis] = (box[n + 3] - box[n]) * step * geometry.spacing_zyx_mm[axis]
    x, y, z = (geometry.matrix @ np.array([*centre[::-1], 1.0]))[:3]
    return FoundBox(
        label=label,
        center_lps_mm=(float(x), float(y), float(z)),
        size_mm=(size[2], size[1], size[0]),
        score=score,
    )
