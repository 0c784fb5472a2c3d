"""From a fingerprint to a training config by nnU-Net's rules, each number with its reason.

The rules are those of Isensee et al., Nature Methods 2021 (Supplementary Note 2: rule-based parameters).

Two things differ. Our U-Net halves all three axes at every level, so the axis that allows the fewest halvings sets
the depth. And memory is not looked up: the network and its loss run once on tensors without data, and the bytes that
autograd keeps are counted.

Legend: axes are canonical z, y, x; "target" is the grid after resampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log2, prod
from typing import Any

import numpy as np
import yaml

from tomoray.config import Config, Layout
from tomoray.errors import Fatal, Usage
from tomoray.geometry import Zyx, ZyxMm
from tomoray.statistics.fingerprint import Fingerprint, HuCounts
from tomoray.statistics.histograms import Histogram
from tomoray.statistics.step_memory import step_bytes
from tomoray.training.config import TrainConfig
from tomoray.training.network_config import NetworkConfig
from tomoray.training.sample_config import SplitConfig

ANISOTROPY = 3.0  # from here on, nnU-Net treats the coarsest axis on its own
MIN_FEATURE_MAP = 4
MIN_BATCH = 2
BATCH_SHARE = 0.05
BASE_CHANNELS, MAX_CHANNELS = 32, 320
CONTAINED = 0.99
_INITIAL_VOXELS = 256**3


class Choice(Config):
    """One number of a plan, and why it is what it is."""

    value: Any
    reason: str


class TrainingPlan(Config):
    """What to train, and why.

    Attributes:
        choices: by name, in the order in which one follows from another.
        step_bytes: estimated peak memory of a training step, weights and optimizer included.
        layout: chunks and shards that suit the patch, for an archive that is made anew.
        train: the config that follows.
    """

    choices: dict[str, Choice]
    step_bytes: int
    layout: Layout
    train: TrainConfig


def plan_training(
    fingerprint: Fingerprint, *, memory_gb: float, labels: Sequence[str] | None = None, archive: str | None = None
) -> TrainingPlan:
    """Plan a training for the scans of a fingerprint.

    Args:
        fingerprint: of the archive to train on.
        memory_gb: what one worker may use for a training step, in 10^9 bytes.
        labels: what to segment; None takes every label that all scans have and some are filled.
        archive: written into the config.

    Raises:
        Fatal: there is no label to train on.
        Usage: a label that not all scans have, or a budget in which not even the smallest patch fits.
    """
    names, names_choice = _labels(fingerprint, labels)
    spacing, spacing_choice = _spacing(fingerprint)
    median_shape = _median_shape(fingerprint, spacing)
    fit, patch_choice, channels_choice = _patch(median_shape, spacing, len(names) + 1, memory_gb)
    batch, batch_choice = _batch(fit, median_shape, fingerprint.n_scans, memory_gb)
    window, window_choice = _hu_window(fingerprint, names if labels else None)
    layout, layout_choices = _layout(fingerprint, fit.patch_zyx, spacing)
    contains = {
        outer: [name for name in names if name in inner and inner[name] >= CONTAINED]
        for outer, inner in fingerprint.inside.items()
        if outer in names
    }
    split, split_choice = _split(fingerprint.n_patients)
    return TrainingPlan(
        choices={
            "labels": names_choice,
            "spacing_zyx_mm": spacing_choice,
            "patch_zyx": patch_choice,
            "channels": channels_choice,
            "batch_size": batch_choice,
            "hu_window": window_choice,
            "split": split_choice,
            **layout_choices,
        },
        step_bytes=fit.step_bytes(batch),
        layout=layout,
        train=TrainConfig(
            archive=archive,
            labels=names,
            contains={outer: inner for outer, inner in contains.items() if inner},
            spacing_zyx_mm=spacing,
            patch_zyx=fit.patch_zyx,
            hu_window=window,
            network=NetworkConfig(channels=fit.channels),
            split=split,
            batch_size=batch,
        ),
    )


def to_yaml(plan: TrainingPlan) -> str:
    """The plan's `TrainConfig` as YAML; every planned field has its reason above it."""
    values = plan.train.model_dump(mode="json")
    defaults = plan.train.model_dump(mode="json", exclude_defaults=True)
    planned = {name: value for name, value in values.items() if name in defaults or name in plan.choices}
    planned["network"] = {"name": "unet", "channels": plan.train.network.channels}
    lines = ["# Planned by `tomoray plan-training`. What is left out has its default: docs/schemas/train.json"]
    for name, value in planned.items():
        choice = plan.choices.get({"network": "channels"}.get(name, name))
        lines += [f"# {choice.reason}"] if choice else []
        flow = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000)
        lines.append(f"{name}: {flow.removesuffix('...' + chr(10)).rstrip()}")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fit:
    """A patch with the network that suits it."""

    patch_zyx: Zyx
    channels: list[int]
    patch_bytes: int
    network_bytes: int

    def step_bytes(self, batch: int) -> int:
        return batch * self.patch_bytes + self.network_bytes


def _labels(fingerprint: Fingerprint, wanted: Sequence[str] | None) -> tuple[list[str], Choice]:
    everywhere = [
        name
        for name, n in fingerprint.label_scans.items()
        if n == fingerprint.n_scans and fingerprint.label_filled[name]
    ]
    if not everywhere:
        raise Fatal("the archive has no label that every scan has; preprocess masks with the scans, then plan again")
    missing = [name for name in wanted or [] if name not in everywhere]
    if missing:
        raise Usage(f"label {missing[0]!r} is not on every scan, or empty; these are: {', '.join(everywhere)}")
    names = sorted(wanted or everywhere, key=lambda name: (-fingerprint.volume_ml[name].median, name))
    return names, Choice(
        value=names,
        reason="largest median volume first, as the later label wins where masks overlap"
        + ("" if wanted else "; every label that all scans have"),
    )


def _spacing(fingerprint: Fingerprint) -> tuple[ZyxMm, Choice]:
    """The median per axis; the 10th percentile of a far coarser one, so that its thin slices are not thrown away."""
    spacings = np.array([scan.spacing_zyx_mm for scan in fingerprint.scans])
    shapes = np.array([scan.shape_zyx for scan in fingerprint.scans])
    target = np.median(spacings, axis=0)
    shape = np.median(shapes * spacings, axis=0) / target
    worst = int(target.argmax())
    others = [axis for axis in range(3) if axis != worst]
    ratio = float(target[worst] / target[others].max())
    reason = f"median of each axis over {_scans(fingerprint.n_scans)}"
    if ratio >= ANISOTROPY and shape[worst] * ANISOTROPY < shape[others].min():
        thin = float(np.percentile(spacings[:, worst], 10))
        target[worst] = max(thin, float(target[others].max()))
        reason += f"; {'zyx'[worst]} is {ratio:.1f} times coarser than the others (3 or more), so its 10th percentile"
    z, y, x = (round(float(mm), 4) for mm in target)
    return (z, y, x), Choice(value=[z, y, x], reason=reason)


def _median_shape(fingerprint: Fingerprint, spacing_mm: ZyxMm) -> Zyx:
    shapes = [np.array(scan.shape_zyx) * scan.spacing_zyx_mm / spacing_mm for scan in fingerprint.scans]
    z, y, x = (max(1, round(float(n))) for n in np.median(shapes, axis=0))
    return z, y, x


def _patch(median_shape: Zyx, spacing_mm: ZyxMm, classes: int, memory_gb: float) -> tuple[_Fit, Choice, Choice]:
    """Begin with a cube in mm of 256^3 voxels or the median scan, then shrink the axis that covers most of it."""
    per_mm = 1 / np.array(spacing_mm)
    cube = per_mm * (_INITIAL_VOXELS / per_mm.prod()) ** (1 / 3)
    sides = [min(round(side), shape) for side, shape in zip(cube, median_shape, strict=True)]
    while True:
        fit = _fitted(sides, classes)
        if fit.step_bytes(MIN_BATCH) <= memory_gb * 1e9:
            break
        covered = [side / shape for side, shape in zip(fit.patch_zyx, median_shape, strict=True)]
        multiple = 2 ** (len(fit.channels) - 1)
        shrinkable = [axis for axis in range(3) if fit.patch_zyx[axis] > 2 * MIN_FEATURE_MAP]
        if not shrinkable:
            raise Usage(
                f"{memory_gb:g} GB hold no training step: a patch of {_x(fit.patch_zyx)} at batch {MIN_BATCH} wants "
                f"{fit.step_bytes(MIN_BATCH) / 1e9:.2f} GB; raise memory_gb"
            )
        axis = max(shrinkable, key=lambda axis: covered[axis])
        sides = list(fit.patch_zyx)
        sides[axis] = max(2 * MIN_FEATURE_MAP, sides[axis] - multiple)
    covered = [min(1.0, side / shape) for side, shape in zip(fit.patch_zyx, median_shape, strict=True)]
    pools = [_halvings(side) for side in fit.patch_zyx]
    depth = len(fit.channels) - 1
    shares = " x ".join(f"{share:.0%}" for share in covered)
    size = f"{fit.step_bytes(MIN_BATCH) / 1e9:.2f} GB at batch {MIN_BATCH}"
    if min(covered) == 1:
        reason = f"the whole median scan of {_x(median_shape)} voxels in multiples of {2**depth}; {size}"
    else:
        reason = (
            f"the largest that {memory_gb:g} GB hold ({size}), in multiples of {2**depth}; "
            f"{shares} of the median scan of {_x(median_shape)} voxels"
        )
    patch = Choice(value=list(fit.patch_zyx), reason=reason)
    network = Choice(
        value=fit.channels,
        reason=f"halved until {MIN_FEATURE_MAP} voxels are left: "
        + ", ".join(f"{axis} allows {n}" for axis, n in zip("zyx", pools, strict=True))
        + f"; our U-Net halves all axes alike, so {depth}; {BASE_CHANNELS} channels, doubled up to {MAX_CHANNELS}",
    )
    return fit, patch, network


def _fitted(sides: Sequence[int], classes: int) -> _Fit:
    """The network for a patch of these sides, and the sides rounded up to what it can halve."""
    depth = max(1, min(_halvings(side) for side in sides))
    multiple = 2**depth
    z, y, x = (max(2 * MIN_FEATURE_MAP, ceil(side / multiple) * multiple) for side in sides)
    channels = [min(MAX_CHANNELS, BASE_CHANNELS * 2**level) for level in range(depth + 1)]
    patch_bytes, network_bytes = step_bytes((z, y, x), NetworkConfig(channels=channels), classes)
    return _Fit(patch_zyx=(z, y, x), channels=channels, patch_bytes=patch_bytes, network_bytes=network_bytes)


def _halvings(side: int) -> int:
    """How often a side can be halved and still have four voxels."""
    return max(0, floor(log2(max(1, side) / MIN_FEATURE_MAP)))


def _batch(fit: _Fit, median_shape: Zyx, n_scans: int, memory_gb: float) -> tuple[int, Choice]:
    fits = floor((memory_gb * 1e9 - fit.network_bytes) / fit.patch_bytes)
    bound = round(BATCH_SHARE * n_scans * prod(median_shape) / prod(fit.patch_zyx))
    batch = max(MIN_BATCH, min(fits, bound))
    if batch == MIN_BATCH and bound < MIN_BATCH:
        why = f"{MIN_BATCH} at least, though {BATCH_SHARE:.0%} of the voxels are fewer"
    elif fits <= bound:
        why = f"as many as fit into {memory_gb:g} GB; {BATCH_SHARE:.0%} of all voxels would be {bound}"
    else:
        why = f"patches that hold {BATCH_SHARE:.0%} of all voxels; {fits} would fit into {memory_gb:g} GB"
    return batch, Choice(value=batch, reason=f"{why} ({fit.step_bytes(batch) / 1e9:.2f} GB)")


def _hu_window(fingerprint: Fingerprint, labels: Sequence[str] | None) -> tuple[tuple[float, float], Choice]:
    if labels:
        counted = Histogram.total(_histogram(fingerprint.label_histogram[name]) for name in labels)
        where = f"in {', '.join(labels)}"
    else:
        counted, where = _histogram(fingerprint.histogram["foreground"]), "in the foreground (any label)"
    low, high = floor(counted.percentile(0.5)), ceil(counted.percentile(99.5))
    window = (float(low), float(max(high, low + 1)))
    reason = f"0.5 and 99.5 percentile of the {counted.n} voxels {where}; their mean is {counted.mean:.0f} HU"
    return window, Choice(value=list(window), reason=reason)


def _layout(fingerprint: Fingerprint, patch_zyx: Zyx, spacing_mm: ZyxMm) -> tuple[Layout, dict[str, Choice]]:
    """Chunks of half a patch, though 32 to 64 voxels a side; shards of many chunks, for few and large objects."""
    stored_mm = [fingerprint.spacing_mm[axis].median for axis in "zyx"]
    shape = [fingerprint.shape[axis].median for axis in "zyx"]
    reach = [side * to / by for side, to, by in zip(patch_zyx, spacing_mm, stored_mm, strict=True)]
    chunk = [64 if side >= 128 else 32 for side in reach]
    shard = [min(256, ceil(n / side) * side) for n, side in zip(shape, chunk, strict=True)]
    factor = prod(1 + (side - 1) / extent for side, extent in zip(chunk, reach, strict=True))
    layout = Layout(chunk_zyx=(chunk[0], chunk[1], chunk[2]), shard_zyx=(shard[0], shard[1], shard[2]))
    return layout, {
        "chunk_zyx": Choice(
            value=chunk,
            reason=f"half a patch, though 32 to 64 voxels: a patch of {_x([round(n) for n in reach])} stored voxels "
            f"then decodes {factor:.1f} times its size",
        ),
        "shard_zyx": Choice(
            value=shard,
            reason=f"up to 256 voxels, or the median scan in whole chunks; {2 * prod(shard) / 2**20:.0f} MiB in "
            "memory, one object in the store",
        ),
    }


def _split(n_patients: int) -> tuple[SplitConfig, Choice]:
    split = SplitConfig() if n_patients >= 3 else SplitConfig(validation=0.0, test=0.0)
    reason = f"{n_patients} patients; none is in two parts"
    if n_patients < 3:
        reason = f"{n_patients} patients cannot fill three parts, so all are trained on"
    return split, Choice(value=split.model_dump(mode="json"), reason=reason)


def _histogram(stored: HuCounts) -> Histogram:
    return Histogram(first_hu=stored.first_hu, counts=np.array(stored.counts, dtype=np.int64))


def _scans(n: int) -> str:
    return f"{n} scan" + "s" * (n != 1)


def _x(sides: Sequence[int]) -> str:
    return " x ".join(str(side) for side in sides)
