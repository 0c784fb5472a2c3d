"""What in an archive deserves a look: scans unlike the others, and groups of patients refused more often than others.

Works on catalog rows and a fingerprint alone; reads no voxel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log, sqrt
from typing import Any

import numpy as np

from tomoray.statistics.fingerprint import Fingerprint, ScanFingerprint

UNKNOWN = "unknown"
AGE_GROUPS = ("under 40", "40-49", "50-59", "60-69", "70-79", "80 and over", UNKNOWN)
FAR = 3.5
FEWEST_SCANS = 8
_LEAST = {"log": 0.02, "HU": 5.0, "": 0.01}  # 2 % of a length or volume, 5 HU, a hundredth of the scan
_MAD_TO_SD = 1.4826
_MEAN_DEVIATION_TO_SD = 1.2533


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlier:
    """One number of one scan that is far from the others'.

    Attributes:
        z: robust standard deviations from the median; infinite distances are cut at 99.
        why: the same in words.
    """

    scan_id: str
    quantity: str
    value: float
    unit: str
    median: float
    z: float
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Series of one vendor, sex or age group.

    Attributes:
        refused_share: of its series; `low` and `high`: Wilson's 95 % interval.
        differs: the interval does not hold the share of all series.
    """

    by: str
    name: str
    stored: int
    refused: int
    refused_share: float
    low: float
    high: float
    differs: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """Series of one vendor, sex and age group."""

    vendor: str
    sex: str
    age_group: str
    stored: int
    refused: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Assessment:
    """What was found. `reasons` and the groups have the largest first; `cells` that are empty are absent."""

    stored: int
    refused: int
    patients: int
    reasons: Mapping[str, int]
    groups: Sequence[Group]
    cells: Sequence[Cell]
    outliers: Sequence[Outlier]


def assess(rows: Sequence[Mapping[str, Any]], fingerprint: Fingerprint | None) -> Assessment:
    """Look at a whole archive.

    Args:
        rows: of its catalog, stored and refused.
        fingerprint: of its stored scans; None where there are none.
    """
    stored = [row for row in rows if row["status"] == "stored"]
    reasons = Counter(row["reason"] for row in rows if row["status"] == "refused")
    return Assessment(
        stored=len(stored),
        refused=sum(reasons.values()),
        patients=len({row["patient_id"] for row in stored}),
        reasons=dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        groups=_groups(rows),
        cells=_cells(rows),
        outliers=find_outliers(fingerprint) if fingerprint else (),
    )


def find_outliers(fingerprint: Fingerprint) -> list[Outlier]:
    """Scans beyond 3.5 robust standard deviations in any number, the farthest first.

    Distance is from the median in units of the median absolute deviation, or of the mean one where most scans are
    alike (Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993). Lengths and volumes are compared by their
    logarithms, as half and double are equally far. A deviation counts as 2 % of a length or volume, 5 HU or a
    hundredth of the scan at least. Fewer than eight scans have no outliers; an empty mask where others are filled is
    always one.
    """
    found = [
        outlier
        for quantity, unit, logarithmic, value_of in _quantities(fingerprint)
        for outlier in _far(fingerprint.scans, quantity, unit, logarithmic, value_of)
    ]
    found += _empty_masks(fingerprint)
    return sorted(found, key=lambda outlier: (-abs(outlier.z), outlier.scan_id, outlier.quantity))


def robust_z(values: Sequence[float], least_scale: float = 0.0) -> list[float]:
    """Robust distances from the median, cut at 99; 0 for all where all are alike.

    Args:
        values: one for each scan.
        least_scale: what counts as one standard deviation at least, so that a hair's breadth is never far.

    Example:
        >>> [round(z, 1) for z in robust_z([1, 2, 3, 4, 100])]
        [-1.3, -0.7, 0.0, 0.7, 65.4]
    """
    array = np.asarray(values, dtype=np.float64)
    from_median = array - np.median(array)
    scale = _MAD_TO_SD * float(np.median(np.abs(from_median)))
    if scale <= 1e-9:
        scale = _MEAN_DEVIATION_TO_SD * float(np.mean(np.abs(from_median)))
    scale = max(scale, least_scale)
    if scale <= 1e-9:
        return [0.0] * len(array)
    return [float(z) for z in np.clip(from_median / scale, -99, 99)]


def vendor(row: Mapping[str, Any]) -> str:
    """The manufacturer of a series as it stands in the catalog, or "unknown"."""
    return str(row["manufacturer"] or UNKNOWN)


def sex(row: Mapping[str, Any]) -> str:
    """The sex in the catalog, F or M as a rule, or "unknown"."""
    return str(row["sex"] or UNKNOWN)


def age_group(row: Mapping[str, Any]) -> str:
    """One of `AGE_GROUPS`."""
    years = row["age_years"]
    if years is None:
        return UNKNOWN
    return AGE_GROUPS[min(5, max(0, int(years) // 10 - 3))]


def _groups(rows: Sequence[Mapping[str, Any]]) -> list[Group]:
    refused = sum(row["status"] == "refused" for row in rows)
    overall = refused / len(rows) if rows else 0.0
    groups = []
    for by, name_of in (("vendor", vendor), ("sex", sex), ("age", age_group)):
        total = Counter(name_of(row) for row in rows)
        bad = Counter(name_of(row) for row in rows if row["status"] == "refused")
        names = [name for name, _ in sorted(total.items(), key=lambda item: (-item[1], item[0]))]
        for name in [each for each in AGE_GROUPS if each in total] if by == "age" else names:
            low, high = _wilson(bad[name], total[name])
            groups.append(
                Group(
                    by=by,
                    name=name,
                    stored=total[name] - bad[name],
                    refused=bad[name],
                    refused_share=bad[name] / total[name],
                    low=low,
                    high=high,
                    differs=not low <= overall <= high,
                )
            )
    return groups


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[Cell]:
    counts: dict[tuple[str, str, str], Counter[str]] = {}
    for row in rows:
        counts.setdefault((vendor(row), sex(row), age_group(row)), Counter())[row["status"]] += 1
    return [
        Cell(vendor=key[0], sex=key[1], age_group=key[2], stored=count["stored"], refused=count["refused"])
        for key, count in sorted(counts.items())
    ]


def _wilson(k: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of k out of n."""
    z = 1.959964
    centre = (k + z * z / 2) / (n + z * z)
    reach = z / (n + z * z) * sqrt(k * (n - k) / n + z * z / 4)
    return max(0.0, centre - reach), min(1.0, centre + reach)


_Quantity = tuple[str, str, bool, Callable[[ScanFingerprint], float | None]]


def _quantities(fingerprint: Fingerprint) -> list[_Quantity]:
    """Name, unit, whether to compare logarithms, and where it is; None for a scan that lacks it."""

    def hu(region: str, name: str) -> Callable[[ScanFingerprint], float | None]:
        return lambda scan: float(getattr(scan.hu[region], name)) if region in scan.hu else None

    def volume(label: str) -> Callable[[ScanFingerprint], float | None]:
        return lambda scan: scan.volume_ml.get(label) or None

    def label_mean(label: str) -> Callable[[ScanFingerprint], float | None]:
        return lambda scan: scan.label_hu[label].mean if label in scan.label_hu else None

    found: list[_Quantity] = [
        ("slices", "", True, lambda scan: scan.shape_zyx[0]),
        ("rows", "", True, lambda scan: scan.shape_zyx[1]),
        ("columns", "", True, lambda scan: scan.shape_zyx[2]),
        ("spacing z", "mm", True, lambda scan: scan.spacing_zyx_mm[0]),
        ("spacing y", "mm", True, lambda scan: scan.spacing_zyx_mm[1]),
        ("spacing x", "mm", True, lambda scan: scan.spacing_zyx_mm[2]),
        ("lowest HU", "HU", False, hu("scan", "min")),
        ("highest HU", "HU", False, hu("scan", "max")),
        ("HU in the body, 0.5 %", "HU", False, hu("body", "percentile_0_5")),
        ("HU in the body, median", "HU", False, hu("body", "median")),
        ("HU in the body, 99.5 %", "HU", False, hu("body", "percentile_99_5")),
        ("body's share of the scan", "", False, lambda scan: scan.body_share),
    ]
    for label in fingerprint.label_scans:
        found += [(f"volume of {label}", "ml", True, volume(label))]
        found += [(f"mean HU in {label}", "HU", False, label_mean(label))]
    return found


def _far(
    scans: Sequence[ScanFingerprint],
    quantity: str,
    unit: str,
    logarithmic: bool,
    value_of: Callable[[ScanFingerprint], float | None],
) -> list[Outlier]:
    pairs = [(scan.scan_id, float(value)) for scan in scans if (value := value_of(scan)) is not None]
    if len(pairs) < FEWEST_SCANS:
        return []
    least = _LEAST["log"] if logarithmic else _LEAST[unit]
    distances = robust_z([log(value) if logarithmic else value for _, value in pairs], least)
    median = float(np.median([value for _, value in pairs]))
    return [
        Outlier(
            scan_id=scan_id,
            quantity=quantity,
            value=value,
            unit=unit,
            median=median,
            z=z,
            why=f"{quantity}: {_text(value, unit)}, where the median of all scans is {_text(median, unit)}",
        )
        for (scan_id, value), z in zip(pairs, distances, strict=True)
        if abs(z) > FAR
    ]


def _empty_masks(fingerprint: Fingerprint) -> list[Outlier]:
    return [
        Outlier(
            scan_id=scan.scan_id,
            quantity=f"volume of {label}",
            value=0.0,
            unit="ml",
            median=fingerprint.volume_ml[label].median,
            z=-99.0,
            why=f"the mask of {label} is empty; {filled} of {fingerprint.label_scans[label]} scans have some",
        )
        for label, filled in fingerprint.label_filled.items()
        for scan in fingerprint.scans
        if filled and scan.volume_ml.get(label) == 0
    ]


def _text(value: float, unit: str) -> str:
    return f"{value:.4g} {unit}".rstrip() if abs(value) < 10_000 else f"{value:.0f} {unit}".rstrip()
