"""Tumours of 34 patients in five folds, beside an ellipsoid that knows nothing but the crop.

    .venv/bin/python benchmarks/sts.py [--source DIR] [--out DIR] [--seed 0] [--fold N ...] [--recipe sts] [--json]

The public crops of soft-tissue sarcomas (Vallières et al., TCIA 2015) keep exactly 5 cm around the tumour: an ellipsoid
that uses this scores Dice 0.77 without looking at a voxel. So each of the six margins is first trimmed to a width drawn
evenly from 0 to 5 cm, per patient, from the seed. Then the very commands of a user run: `tomoray preprocess`, `tomoray
cross-validate` (each patient tested by the fold that was not trained on them).

The baseline is an ellipsoid in the middle of the same trimmed crop, its semi-axes one fraction of the crop's sides: the
fraction that is best on the patients a fold was trained on, scored on those it was not. Beside it stands the ellipsoid
of the trap, semi-axes the crop's less one margin, likewise fitted: trimming must have made it worthless.

Run again, it goes on where it was. Seconds are the training's own, from its first step to its last.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import nibabel
import numpy as np

from tomoray.archive import Archive
from tomoray.catalog import Catalog
from tomoray.metrics import dice, estimate
from tomoray.runs import open_run

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT.parent / "shared" / "ct" / "sts-3mm"
KEPT_MM = (0.0, 50.0)
LABEL = "gtv"
FRACTIONS = np.arange(0.3, 1.31, 0.05)
MARGINS_MM = np.arange(0.0, 50.1, 2.5)

Box = tuple[slice, slice, slice]


def main() -> None:
    """Make the crops, train the folds that are wanted, and print Dice per patient beside the baselines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=SOURCE, help="CASE_ct.nii.gz and CASE_gtv.nii.gz")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "sts")
    parser.add_argument("--seed", type=int, default=0, help="of the margins")
    parser.add_argument("--fold", type=int, action="append", help="only this one; repeatable")
    parser.add_argument("--recipe", default="sts")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    out: Path = options.out
    write_trimmed(options.source, out / "trimmed", options.seed)
    (out / "key").write_text("sts benchmark key, no secret: public data")
    archive, folds = out / "archive", [f"--only={fold}" for fold in options.fold or []]
    tomoray(out, "preprocess", str(out / "trimmed"), str(archive))
    found = tomoray(out, "cross-validate", options.recipe, f"--archive={archive}", f"--out={out / 'folds'}", *folds)
    result = compare_with_baselines(archive, found)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{'patient':20} fold   Dice  ellipsoid  ellipsoid of the trap")
    for patient, row in result["patients"].items():
        print(f"{patient:20} {row['fold']:4} {row['dice']:6.3f} {row['ellipsoid']:10.3f} {row['trap']:22.3f}")
    for name, about in result["means"].items():
        print(f"{name:10} {about['mean']:.3f}  (95 %: {about['low']:.3f} to {about['high']:.3f})")
    print(f"training: {', '.join(f'fold {fold} {seconds:.0f} s' for fold, seconds in result['train_seconds'].items())}")


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
        image, mask = (nibabel.load(source / f"{case}_{what}.nii.gz") for what in ("ct", LABEL))
        rng = np.random.default_rng(list(hashlib.sha256(f"{seed}/{case}".encode()).digest()))
        box = trim_margins(np.asarray(mask.dataobj), np.array(mask.header.get_zooms()), rng)
        for what, volume in (("ct", image), (LABEL, mask)):
            nibabel.save(volume.slicer[box], out / f"{case}_{what}.nii.gz")
    return cases


def ellipsoid(shape: Sequence[int], semi_axes: np.ndarray) -> np.ndarray:
    """A uint8 mask of an ellipsoid in the middle of a box, its semi-axes in voxels."""
    axes = [((np.arange(n) + 0.5 - n / 2) / max(radius, 0.5)) ** 2 for n, radius in zip(shape, semi_axes, strict=True)]
    return (axes[0][:, None, None] + axes[1][:, None] + axes[2] <= 1).astype(np.uint8)


def baseline_dice(
    masks: Mapping[str, tuple[np.ndarray, np.ndarray]], train: Sequence[str], test: Sequence[str], kind: str
) -> dict[str, float]:
    """Dice of an ellipsoid by test patient, its one parameter the best on the training patients.

    Args:
        masks: by patient, the true mask and its spacing in mm.
        train: patients to fit the parameter on.
        test: patients to score.
        kind: `fraction` of the crop's half sides, or `margin` in mm taken off them.
    """

    def score(patient: str, parameter: float) -> float:
        mask, spacing_mm = masks[patient]
        half = np.array(mask.shape) / 2
        semi_axes = half * parameter if kind == "fraction" else half - parameter / spacing_mm
        return dice(ellipsoid(mask.shape, semi_axes), mask)

    choices = FRACTIONS if kind == "fraction" else MARGINS_MM
    best = max(choices, key=lambda parameter: fmean(score(patient, float(parameter)) for patient in train))
    return {patient: score(patient, float(best)) for patient in test}


def compare_with_baselines(archive_url: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """The folds' Dice and that of both ellipsoids, by patient, and their means with 95 % intervals."""
    archive = Archive.open(str(archive_url))
    masks = {}
    for row in Catalog(archive.store).rows():
        scan = archive.scan(row["scan_id"])
        masks[row["patient_id"]] = (scan.label(LABEL).read().result(), np.array(scan.geometry.spacing_zyx_mm))
    rows: dict[str, dict[str, Any]] = {}
    train_seconds = {}
    for fold, url in found["runs"].items():
        run = open_run(url)
        train, test = [*run.split.train, *run.split.validation], run.split.test
        by_fraction = baseline_dice(masks, train, test, "fraction")
        by_margin = baseline_dice(masks, train, test, "margin")
        train_seconds[fold] = run.metrics["step_seconds"]
        for patient in test:
            rows[patient] = {
                "fold": int(fold),
                "dice": found["dice"][LABEL][patient],
                "ellipsoid": by_fraction[patient],
                "trap": by_margin[patient],
            }
    names = {"dice": "recipe", "ellipsoid": "ellipsoid", "trap": "trap"}
    means = {name: estimate([row[key] for row in rows.values()]) for key, name in names.items()}
    return {
        "patients": rows,
        "means": {n: {"mean": e.mean, "low": e.low, "high": e.high} for n, e in means.items()},
        "train_seconds": train_seconds,
        "summary": found["summary"],
    }


def tomoray(out: Path, *arguments: str) -> dict[str, Any]:
    """One command with a key of its own, so that patients have the same pseudonyms, hence folds, everywhere."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOMORAY_KEY_FILE": str(out / "key")}
    command = [sys.executable, "-m", "cluster.cli", *arguments, "--json"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    result: dict[str, Any] = json.loads(done.stdout)
    if done.returncode:
        sys.exit(f"tomoray {arguments[0]}: {result['error']['message']}")
    return result


if __name__ == "__main__":
    main()
