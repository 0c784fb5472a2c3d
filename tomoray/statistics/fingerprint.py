"""The fingerprint of an archive: what its scans are like, scan by scan and together.

HU are counted exactly, a bin a value: over whole scans and inside every label on level 0, inside the body on a
coarser level. So every number is independent of the order of work, and the same archive gives the same JSON, byte by
byte. "Foreground" is every voxel of any label, on which nnU-Net bases its intensities (Isensee et al., Nature
Methods 2021).

Legend: axes z, y, x are canonical here, whatever the stored order: they grow to Superior, Posterior, Left.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import Any

import dask
import numpy as np
from pydantic import ValidationError

from tomoray import multiscale
from tomoray.archive import Archive, Scan
from tomoray.config import Config
from tomoray.errors import Fatal
from tomoray.progress import Advance
from tomoray.statistics.body import DEFINITION
from tomoray.statistics.histograms import Histogram
from tomoray.statistics.voxel_counts import VoxelCounts, count_body, count_voxels
from tomoray.storage import Store

FORMAT = 1
KEY = "fingerprint.json"
Scheduler = str | Callable[..., Any]


class HuStatistics(Config):
    """HU of some voxels; percentiles as `numpy.percentile`, std of the population."""

    n_voxels: int
    min: int
    max: int
    mean: float
    std: float
    percentile_0_5: float
    median: float
    percentile_99_5: float


class Spread(Config):
    """One number over all scans that have it; percentiles as `numpy.percentile`."""

    n: int
    min: float
    percentile_10: float
    median: float
    percentile_90: float
    max: float


class HuCounts(Config):
    """An exact histogram: `counts[i]` voxels have `first_hu + i`."""

    first_hu: int
    counts: list[int]


class ScanFingerprint(Config):
    """One scan.

    Attributes:
        hu: of `scan` and `foreground` on level 0, of `body` on the fingerprint's body level; what is empty is absent.
        label_hu: inside each label that has a voxel, on level 0.
        volume_ml: of each label, 0 where it is empty.
        body_share: of the scan's volume.
        size_bytes: of level 0 in memory, masks included.
    """

    scan_id: str
    patient_id: str
    shape_zyx: tuple[int, int, int]
    spacing_zyx_mm: tuple[float, float, float]
    hu: dict[str, HuStatistics]
    label_hu: dict[str, HuStatistics]
    volume_ml: dict[str, float]
    body_ml: float
    body_share: float
    size_bytes: int


class Fingerprint(Config):
    """A whole archive.

    Attributes:
        body_level: the level on which the body was found and its HU counted.
        body: how it was found, in words.
        label_scans: scans that have a mask of each label; `label_filled`: of which it has a voxel.
        shape: voxels along z, y, x; `spacing_mm`; `volume_ml` of labels, over the scans that have them.
        hu, label_hu: of all scans' voxels together; `histogram`, `label_histogram`: what they were made from.
        inside: share of the inner label's voxels that lie in the outer one, `inside[outer][inner]`.
        scans: sorted by `scan_id`.
    """

    format: int = FORMAT
    body_level: int
    body: str = DEFINITION
    n_scans: int
    n_patients: int
    label_scans: dict[str, int]
    label_filled: dict[str, int]
    shape: dict[str, Spread]
    spacing_mm: dict[str, Spread]
    body_ml: Spread
    volume_ml: dict[str, Spread]
    hu: dict[str, HuStatistics]
    label_hu: dict[str, HuStatistics]
    histogram: dict[str, HuCounts]
    label_histogram: dict[str, HuCounts]
    inside: dict[str, dict[str, float]]
    size_bytes: int
    scans: list[ScanFingerprint]


def take_fingerprint(
    archive: Archive,
    scan_ids: Sequence[str],
    *,
    body_level: int = 2,
    scheduler: Scheduler = "threads",
    in_flight: int = 4,
    advance: Advance | None = None,
) -> Fingerprint:
    """Read every scan once and measure it.

    Args:
        archive: where scans are.
        scan_ids: which; each once.
        body_level: the archive's coarsest level where it has fewer.
        scheduler: dask's: "threads", "synchronous", or a function such as Ray's `ray_dask_get`.
        in_flight: scans at work at once.
        advance: told the number of scans just done.

    Raises:
        Fatal: no scan, or one cannot be read.
        Transient: the store is in trouble; safe to repeat.
    """
    if not scan_ids:
        raise Fatal(f"archive {archive.url} holds no scan; fill it with: tomoray preprocess SOURCE {archive.url}")
    level = min(body_level, archive.layout.levels - 1)
    waiting = iter(sorted(set(scan_ids)))
    found: list[_Measured] = []
    while batch := list(islice(waiting, in_flight)):
        with ThreadPoolExecutor(16) as pool:
            scans = list(pool.map(archive.scan, batch))
        expressions = [(count_voxels(scan), count_body(scan, level)) for scan in scans]
        results = dask.compute(*expressions, scheduler=scheduler)
        found += [_measured(scan, level, *counts) for scan, counts in zip(scans, results, strict=True)]
        if advance is not None:
            advance(len(batch))
    return _together(found, level)


def save_fingerprint(store: Store, fingerprint: Fingerprint) -> None:
    """Write `fingerprint.json` to an archive's store. Safe to repeat: the same one gives the same bytes."""
    store.write(KEY, multiscale.to_json(fingerprint.model_dump(mode="json")))


def read_fingerprint(store: Store, key: str = KEY) -> Fingerprint:
    """A saved fingerprint.

    Raises:
        FileNotFoundError: there is no object `key`.
        Fatal: it is no fingerprint, or a later release made it.
    """
    try:
        document = json.loads(store.read(key))
        made_by = document["format"]
        if made_by > FORMAT:
            raise Fatal(f"{store.url}/{key} has format {made_by}; this release reads up to {FORMAT}: upgrade tomoray")
        return Fingerprint.model_validate(document)
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise Fatal(
            f"{store.url}/{key} is not a fingerprint; make one with: tomoray fingerprint ARCHIVE --save"
        ) from error


def current_fingerprint(archive: Archive, scan_ids: Iterable[str]) -> Fingerprint | None:
    """The saved fingerprint of an archive where it is of these very scans; None where it must be taken anew."""
    try:
        saved = read_fingerprint(archive.store)
    except FileNotFoundError:
        return None
    return saved if [scan.scan_id for scan in saved.scans] == sorted(set(scan_ids)) else None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Measured:
    """One scan with the histograms that the archive's are summed from."""

    scan: ScanFingerprint
    labels: tuple[str, ...]
    counts: VoxelCounts
    body: Histogram


def _measured(scan: Scan, level: int, counts: VoxelCounts, body: Histogram) -> _Measured:
    order, _ = scan.geometry.canonical_axes()
    shape, spacing = scan.geometry.shape_zyx, scan.geometry.spacing_zyx_mm
    voxel_ml = scan.geometry.voxel_volume_ml
    body_share = body.n / prod(scan.image(level).shape)
    labels = dict(zip(scan.label_names, counts.labels, strict=True))
    return _Measured(
        scan=ScanFingerprint(
            scan_id=scan.scan_id,
            patient_id=scan.info.patient_id,
            shape_zyx=(shape[order[0]], shape[order[1]], shape[order[2]]),
            spacing_zyx_mm=(spacing[order[0]], spacing[order[1]], spacing[order[2]]),
            hu=_statistics({"scan": counts.scan, "body": body, "foreground": counts.foreground}),
            label_hu=_statistics(labels),
            volume_ml={name: counted.n * voxel_ml for name, counted in labels.items()},
            body_ml=body_share * counts.scan.n * voxel_ml,
            body_share=body_share,
            size_bytes=counts.scan.n * (2 + len(labels)),
        ),
        labels=scan.label_names,
        counts=counts,
        body=body,
    )


def _together(found: Sequence[_Measured], level: int) -> Fingerprint:
    scans = [each.scan for each in found]
    regions = {
        "scan": Histogram.total(each.counts.scan for each in found),
        "body": Histogram.total(each.body for each in found),
        "foreground": Histogram.total(each.counts.foreground for each in found),
    }
    names = sorted({name for each in found for name in each.labels})
    labels = {
        name: Histogram.total(
            counted
            for each in found
            for label, counted in zip(each.labels, each.counts.labels, strict=True)
            if label == name
        )
        for name in names
    }
    volumes = {name: [scan.volume_ml[name] for scan in scans if name in scan.volume_ml] for name in names}
    return Fingerprint(
        body_level=level,
        n_scans=len(scans),
        n_patients=len({scan.patient_id for scan in scans}),
        label_scans={name: len(values) for name, values in volumes.items()},
        label_filled={name: sum(value > 0 for value in values) for name, values in volumes.items()},
        shape={axis: _spread([scan.shape_zyx[i] for scan in scans]) for i, axis in enumerate("zyx")},
        spacing_mm={axis: _spread([scan.spacing_zyx_mm[i] for scan in scans]) for i, axis in enumerate("zyx")},
        body_ml=_spread([scan.body_ml for scan in scans]),
        volume_ml={name: _spread(values) for name, values in volumes.items()},
        hu=_statistics(regions),
        label_hu=_statistics(labels),
        histogram=_counts(regions),
        label_histogram=_counts(labels),
        inside=_inside(found, names),
        size_bytes=sum(scan.size_bytes for scan in scans),
        scans=scans,
    )


def _inside(found: Sequence[_Measured], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Of pairs that overlap at all, and the inner one is the smaller: the share of it that lies in the outer one."""
    total: Counter[tuple[str, str]] = Counter()
    for each in found:
        for (i, j), n in np.ndenumerate(each.counts.overlap):
            total[each.labels[i], each.labels[j]] += int(n)
    return {
        outer: shares
        for outer in names
        if (
            shares := {
                inner: total[outer, inner] / total[inner, inner]
                for inner in names
                if inner != outer and total[outer, inner] and total[inner, inner] < total[outer, outer]
            }
        )
    }


def _statistics(histograms: Mapping[str, Histogram]) -> dict[str, HuStatistics]:
    return {
        name: HuStatistics(
            n_voxels=counted.n,
            min=counted.min,
            max=counted.max,
            mean=counted.mean,
            std=counted.std,
            percentile_0_5=counted.percentile(0.5),
            median=counted.percentile(50),
            percentile_99_5=counted.percentile(99.5),
        )
        for name, counted in histograms.items()
        if counted.n
    }


def _counts(histograms: Mapping[str, Histogram]) -> dict[str, HuCounts]:
    return {
        name: HuCounts(first_hu=counted.first_hu, counts=counted.counts.tolist())
        for name, counted in histograms.items()
        if counted.n
    }


def _spread(values: Sequence[float]) -> Spread:
    low, p10, median, p90, high = (float(value) for value in np.percentile(values, (0, 10, 50, 90, 100)))
    return Spread(n=len(values), min=low, percentile_10=p10, median=median, percentile_90=p90, max=high)
