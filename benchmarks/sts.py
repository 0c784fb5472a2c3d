"""Trimmed crops of soft-tissue sarcomas. The public crops keep exactly 5 cm around the tumour, which gives it away."""

from __future__ import annotations

import hashlib
from pathlib import Path

import nibabel
import numpy as np

Box = tuple[slice, slice, slice]

KEPT_MM = (0.0, 50.0)


def trim_margins(mask: np.ndarray, spacing_mm: np.ndarray, rng: np.random.Generator) -> Box:
    """A box around the tumour whose six margins are drawn evenly from `KEPT_MM`, each on its own.

    Args:
        mask: not zero inside the tumour; axes in any order.
        spacing_mm: of the same axes.
        rng: what the margins depend on.

    Returns:
        Slices of `mask`; where it has less margin than was drawn, all of it is kept.
    """
    inside = np.argwhere(mask)
    first, last = inside.min(axis=0), inside.max(axis=0) + 1
    margins = np.rint(rng.uniform(*KEPT_MM, (2, 3)) / spacing_mm).astype(int)
    start, stop = np.maximum(first - margins[0], 0), np.minimum(last + margins[1], mask.shape)
    x, y, z = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    return x, y, z


def write_trimmed(source: Path, out: Path, seed: int) -> list[str]:
    """Every pair `CASE_ct.nii.gz`, `CASE_gtv.nii.gz` of `source`, trimmed, in `out`; the cases. Safe to repeat."""
    out.mkdir(parents=True, exist_ok=True)
    cases = sorted(path.name.removesuffix("_ct.nii.gz") for path in source.glob("*_ct.nii.gz"))
    for case in cases:
        image, mask = (nibabel.load(source / f"{case}_{what}.nii.gz") for what in ("ct", "gtv"))
        rng = np.random.default_rng(list(hashlib.sha256(f"{seed}/{case}".encode()).digest()))
        box = trim_margins(np.asarray(mask.dataobj), np.array(mask.header.get_zooms()), rng)
        for what, volume in (("ct", image), ("gtv", mask)):
            nibabel.save(volume.slicer[box], out / f"{case}_{what}.nii.gz")
    return cases
