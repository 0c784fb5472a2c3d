"""Costs as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

SINGULAR = {"series": "series", "epochs": "epoch", "scans": "scan", "studies": "study", "hour": "hour"}


def bill(found: Mapping[str, Any]) -> RenderableType:
    """Node-hours and dollars on demand and spot, dollars of each unit, and what is not known."""
    table = Table("", "node-hours", "dollars", box=None, pad_edge=False, header_style="dim")
    for column in table.columns[1:]:
        column.justify = "right"
    for kind, name in (("on_demand", "on demand"), ("spot", "spot")):
        table.add_row(name, f"{found['node_seconds'][kind] / 3600:.3f}", f"{found['dollars_by'][kind]:.4f}")
    table.add_section()
    hours = sum(found["node_seconds"].values()) / 3600
    table.add_row("together", f"{hours:.3f}", f"{found['dollars']:.4f}", style="bold")
    notes = [f"{dollars:.6f} dollars a {SINGULAR[unit]}" for unit, dollars in found["dollars_per"].items()]
    notes += [f"{seconds / 3600:.3f} node-hours on {name} have no price" for name, seconds in found["unpriced"].items()]
    if found["estimated"]:
        notes.append("pods are gone: reckoned from the job's own times and the machines that it asked for")
    notes.append(f"prices: {found['prices']}")
    return Group(table, *(Text(note, style="dim") for note in notes))
