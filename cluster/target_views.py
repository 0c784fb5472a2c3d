"""Targets, and what they lack, as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

MARKS = {"ok": ("ok", "green"), "warning": ("look", "yellow"), "missing": ("MISSING", "bold red")}


def targets(found: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """Names, kinds, and where they are."""
    table = Table.grid(padding=(0, 2))
    for name, target in found.items():
        where = {
            "here": "this machine",
            "ray": target.get("address", ""),
            "kubernetes": f"{target.get('context', 'current context')}, namespace {target.get('namespace', 'tomoray')}",
        }[target["kind"]]
        table.add_row(Text(name, style="bold"), target["kind"], Text(where))
    return table


def imported(name: str, path: Path, values: Path | None, kubeconfig: str) -> RenderableType:
    """Where target and values are, and how kubectl comes to know the cluster."""
    lines = [Text(f"target {name} written to {path}")]
    if values:
        lines.append(Text(f"values for the chart written to {values}"))
    return Group(
        *lines, Text(f"Next: {kubeconfig}", style="dim"), Text(f"then: tomoray cluster check {name}", style="dim")
    )


def findings(found: Sequence[Mapping[str, Any]]) -> RenderableType:
    """One line for each thing that was looked at, and below it what to do."""
    table = Table.grid(padding=(0, 2))
    for each in found:
        table.add_row(Text(*MARKS[each["state"]]), Text(each["what"]), Text(each["found"]))
        if each["fix"]:
            table.add_row("", "", Text(f"-> {each['fix']}", style="dim"))
    missing = sum(each["state"] == "missing" for each in found)
    last = f"{missing} missing: jobs will not run" if missing else "ready for jobs"
    return Group(table, Text(last, style="bold"))


def saved(name: str, path: Path) -> RenderableType:
    """Where it was written, and what to do next."""
    return Group(Text(f"{name} is in {path}"), Text(f"Next: tomoray cluster check {name}", style="dim"))


def yaml_text(document: Mapping[str, Any]) -> RenderableType:
    """A document as YAML."""
    return Text(yaml.safe_dump(dict(document), sort_keys=False).rstrip("\n"))


def text(line: str) -> RenderableType:
    """A line as it is."""
    return Text(line)
