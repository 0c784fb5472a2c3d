"""What `fingerprint`, `plan-training` and `qc` found, as people read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Result = Mapping[str, Any]


def fingerprint(result: Result, archive: str) -> RenderableType:
    """Spreads over scans, and HU of all voxels together."""
    spreads = _table(
        f"{result['n_scans']} scans of {result['n_patients']} patients", "min", "10 %", "median", "90 %", "max"
    )
    for axis in "zyx":
        _spread(spreads, f"voxels {axis}", result["shape"][axis])
    for axis in "zyx":
        _spread(spreads, f"spacing {axis}, mm", result["spacing_mm"][axis])
    _spread(spreads, "body, ml", result["body_ml"])
    for label, volume in result["volume_ml"].items():
        _spread(spreads, f"{label}, ml", volume)
    hu = _table("HU", "0.5 %", "median", "99.5 %", "mean", "SD", "voxels")
    for name, found in result["hu"].items():
        _hu(hu, f"{name} (level {result['body_level']})" if name == "body" else name, found)
    for label, found in result["label_hu"].items():
        _hu(hu, f"label {label}", found)
    memory = f"{result['size_bytes'] / 1e9:.2f} GB of voxels and masks in memory"
    return Group(spreads, hu, Text(memory), Text(f"Next: tomoray plan-training {archive}", style="dim"))


def plan_training(result: Result) -> RenderableType:
    """Each choice with its reason."""
    table = Table("what", "value", "why", title="Plan", title_justify="left")
    for name, choice in result["choices"].items():
        table.add_row(Text(name), Text(_value(choice["value"])), Text(choice["reason"]))
    table.add_row("memory", f"{result['step_bytes'] / 1e9:.2f} GB", "estimated peak of a training step")
    if result["written"]:
        archive = "" if result["train"]["archive"] else " --archive ARCHIVE"
        following = f"Next: tomoray train {result['written']}{archive} --out RUN"
    else:
        following = "Next: the same with --write train.yaml"
    return Group(table, Text(following, style="dim"))


def qc(result: Result) -> RenderableType:
    """Counts, and where the report is."""
    scans = len({outlier["scan_id"] for outlier in result["outliers"]})
    return Group(
        Text(f"{result['stored']} stored, {result['refused']} refused, {scans} with an outlier"),
        Text(f"Report: {result['report']}"),
    )


def _table(title: str, *columns: str) -> Table:
    table = Table("", *columns, title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _spread(table: Table, name: str, spread: Mapping[str, float]) -> None:
    numbers = (spread[key] for key in ("min", "percentile_10", "median", "percentile_90", "max"))
    table.add_row(Text(name), *(f"{number:.4g}" if abs(number) < 10_000 else f"{number:.0f}" for number in numbers))


def _hu(table: Table, name: str, hu: Mapping[str, float]) -> None:
    numbers = (hu[key] for key in ("percentile_0_5", "median", "percentile_99_5", "mean", "std"))
    table.add_row(Text(name), *(f"{number:.0f}" for number in numbers), str(hu["n_voxels"]))


def _value(value: Any) -> str:
    if isinstance(value, list):
        return " x ".join(str(each) for each in value) if len(value) == 3 else ", ".join(str(each) for each in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return str(value)
