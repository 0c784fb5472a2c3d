"""A whole scan as the patches that a network sees in training: read one after another, so that memory stays small."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from tomoray.archive import Archive
from tomoray.geometry import Zyx
from tomoray.inference.scan_input import window_corners
from tomoray.patches import PatchStream, Sample
from tomoray.training.config import TrainConfig
from tomoray.transforms import target_grid

_AT_ONCE = 4
_READERS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Windows:
    """A few patches of one scan.

    Attributes:
        corners_zyx: the first voxel of each on the scan's target grid.
        image: float32 (windows, 1, z, y, x), HU scaled to 0..1; air outside the scan.
        classes: uint8 (windows, 1, z, y, x), as in a training batch.
    """

    corners_zyx: tuple[Zyx, ...]
    image: Tensor
    classes: Tensor


def scan_windows(
    archive: Archive, scan_id: str, config: TrainConfig, device: torch.device, *, at_most: int | None = None
) -> Iterator[Windows]:
    """Patches that cover a scan, `config.overlap` of each shared with the next, a few at a time, on `device`.

    Args:
        archive: where the scan is.
        scan_id: which one; it holds every label of the config.
        config: patch, spacing, HU window, labels, overlap.
        device: where the patches go.
        at_most: of more patches than that, so many are taken, evenly spread, with the first and the last.
    """
    corners = window_corners(grid_shape_zyx(archive, scan_id, config), config.patch_zyx, config.overlap)
    if at_most is not None and len(corners) > at_most:
        corners = [corners[round(n * (len(corners) - 1) / max(1, at_most - 1))] for n in range(at_most)]
    stream = PatchStream(archive, [scan_id], config)
    unturned = (False, False, False)
    with ThreadPoolExecutor(_READERS, "windows") as pool:
        for first in range(0, len(corners), _AT_ONCE):
            some = corners[first : first + _AT_ONCE]
            samples = [Sample(scan_id=scan_id, corner_zyx=corner, flips=unturned) for corner in some]
            images, classes = zip(*pool.map(stream.cut, samples), strict=True)
            yield Windows(
                corners_zyx=tuple(some),
                image=torch.stack(images)[:, None].to(device),
                classes=torch.stack(classes)[:, None].to(device),
            )


def grid_shape_zyx(archive: Archive, scan_id: str, config: TrainConfig) -> Zyx:
    """Voxels of the scan's target grid."""
    return target_grid(archive.scan(scan_id).geometry, config.spacing_zyx_mm).shape_zyx
