"""How well a mask agrees with the truth, and how far a mean over patients can be trusted.

Legend: surfaces run halfway between voxels; each of their elements has an area in mm², so that neither spacing nor
slice thickness biases what is measured on them (Nikolov et al., J Med Internet Res 2021, by MONAI's tables).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics.utils import get_mask_edges, get_surface_distance
from scipy.stats import bootstrap

from tomoray.geometry import ZyxMm

Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """A mask against the truth.

    Attributes:
        dice: 0 to 1.
        hd95_mm: 95th percentile of the surface distance; None where one of the masks is empty and the other is not.
        surface_dice: share of both surfaces that lies within the tolerance of the other, 0 to 1.
        volume_difference_ml: volume found less true volume.
    """

    dice: float
    hd95_mm: float | None
    surface_dice: float
    volume_difference_ml: float


def compare(found: Mask, truth: Mask, spacing_zyx_mm: ZyxMm, tolerance_mm: float = 2.0) -> Agreement:
    """Everything that is measured of one mask.

    Args:
        found: (z, y, x); any non-zero voxel counts as inside.
        truth: the same shape.
        spacing_zyx_mm: of the voxels.
        tolerance_mm: how far apart surfaces may be to count as one, for `surface_dice`.

    Raises:
        ValueError: the shapes differ.
    """
    overlap = dice(found, truth)
    voxel_ml = float(np.prod(spacing_zyx_mm)) / 1000
    difference = int(np.count_nonzero(found)) - int(np.count_nonzero(truth))
    surfaces = _surface_distances(found, truth, spacing_zyx_mm)
    if surfaces is None:
        both_empty = not found.any() and not truth.any()
        hd95_mm, within = (0.0, 1.0) if both_empty else (None, 0.0)
    else:
        hd95_mm = max(_weighted_percentile(distances, areas, 0.95) for distances, areas in surfaces)
        close = sum(float(areas[distances <= tolerance_mm].sum()) for distances, areas in surfaces)
        within = close / sum(float(areas.sum()) for _, areas in surfaces)
    return Agreement(dice=overlap, hd95_mm=hd95_mm, surface_dice=within, volume_difference_ml=difference * voxel_ml)


def dice(found: Mask, truth: Mask) -> float:
    """Dice's coefficient, 2 |A ∩ B| / (|A| + |B|), of two masks of one shape (Dice, Ecology 1945).

    Two empty masks agree: 1.0. One empty mask: 0.0. Any non-zero voxel counts as inside.

    Raises:
        ValueError: the shapes differ.
    """
    if found.shape != truth.shape:
        raise ValueError(f"masks of shapes {found.shape} and {truth.shape} cannot be compared")
    sizes = int(np.count_nonzero(found)) + int(np.count_nonzero(truth))
    both = int(np.count_nonzero(np.logical_and(found, truth)))
    return 2.0 * both / sizes if sizes else 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over patients and its interval of 95 %.

    Attributes:
        mean: of the values that are defined; None where none is.
        low, high: None for fewer than two values.
        values: how many are defined.
    """

    mean: float | None
    low: float | None
    high: float | None
    values: int


def estimate(values: Iterable[float | None], seed: int = 0) -> Estimate:
    """The mean of the defined values, with `bootstrap_interval`. The same values and seed give the same estimate."""
    defined = [value for value in values if value is not None and isfinite(value)]
    if not defined:
        return Estimate(mean=None, low=None, high=None, values=0)
    interval = bootstrap_interval(defined, seed)
    low, high = interval or (None, None)
    return Estimate(mean=float(np.mean(defined)), low=low, high=high, values=len(defined))


def bootstrap_interval(
    values: Sequence[float], seed: int = 0, share: float = 0.95, resamples: int = 10_000
) -> tuple[float, float] | None:
    """Where the mean of `values` lies with `share` confidence, by the percentile bootstrap (Efron, Ann Stat 1979).

    Values are those of patients, not of scans, which are not independent. None for fewer than two values.
    """
    if len(values) < 2:
        return None
    found = bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        n_resamples=resamples,
        confidence_level=share,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


_Surface = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]  # distance to the other surface in mm, area in mm²


def _surface_distances(found: Mask, truth: Mask, spacing_zyx_mm: ZyxMm) -> tuple[_Surface, _Surface] | None:
    """Elements of the surface found and of the true one; None where a mask is empty."""
    if not found.any() or not truth.any():
        return None
    masks = torch.from_numpy(found > 0), torch.from_numpy(truth > 0)
    spacing = list(spacing_zyx_mm)
    edge_found, edge_truth, area_found, area_truth = get_mask_edges(*masks, spacing=spacing)
    of_found, of_truth = (
        (
            np.asarray(get_surface_distance(edge, other, spacing=spacing), dtype=np.float64),
            np.asarray(area[edge], dtype=np.float64),
        )
        for edge, other, area in ((edge_found, edge_truth, area_found), (edge_truth, edge_found, area_truth))
    )
    return of_found, of_truth


def _weighted_percentile(distances: npt.NDArray[np.float64], areas: npt.NDArray[np.float64], share: float) -> float:
    """The smallest distance within which `share` of the area lies."""
    order = np.argsort(distances)
    upto = np.cumsum(areas[order])
    return float(distances[order][np.searchsorted(upto, share * upto[-1])])
