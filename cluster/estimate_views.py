"""Estimates and simulated runs as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Result = Mapping[str, Any]


def estimate(result: Result) -> RenderableType:
    """A line for each component, the totals, and what one of each costs."""
    table = _table("a month", "", "on demand", "spot")
    for each in result["components"]:
        table.add_row(
            each["name"], Text(each["what"], style="dim"), _dollars(each["on_demand"]), _dollars(each["spot"])
        )
    table.add_section()
    dollars = result["dollars"]
    table.add_row("all", "", _dollars(dollars["on_demand"]), _dollars(dollars["spot"]), style="bold")
    if dollars["standing"]:
        table.add_row("of it while nobody works", "", _dollars(dollars["standing"]), _dollars(dollars["standing"]))
    for unit, price in result["per_unit"].items():
        table.add_row(f"one {unit}", "", _small(price["on_demand"]), _small(price["spot"]))
    machines = result["machines"]
    fleet = f"{machines['nodes']} x {machines['preprocessing']}"
    time = (
        f"Preprocessing takes {result['preprocessing_hours']:,.2f} h on {fleet}."
        if result["preprocessing_hours"]
        else ""
    )
    return Group(table, Text(time), _assumed(result["assumes"]))


def simulation(result: Result) -> RenderableType:
    """A row for each stage."""
    table = _table("stage", "hours", "node-hours", "on demand", "spot", "lost", "done twice")
    for name, stage in result["stages"].items():
        if not stage["done"]:
            continue
        dollars = stage["dollars"]
        twice = f"{stage['repeated']:,} of {stage['done']:,}"
        hours, machine_hours = f"{stage['hours']:,.2f}", f"{stage['machine_hours']:,.1f}"
        lost = str(stage["interruptions"])
        table.add_row(
            name, hours, machine_hours, _dollars(dollars["on_demand"]), _dollars(dollars["spot"]), lost, twice
        )
    lines: list[RenderableType] = [table, _assumed(result["assumes"])]
    if "plot" in result:
        lines.append(Text(f"drawn in {result['plot']}"))
    return Group(*lines)


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for n, column in enumerate(columns):
        table.add_column(column, justify="left" if n == 0 or not column else "right")
    return table


def _assumed(assumes: Mapping[str, Any]) -> Text:
    spot = f"; spot prices {assumes['spot_prices']}" if assumes["spot_prices"] else ""
    guessed = ", ".join(f"{name} {assumes['rates'][name]:g}" for name in assumes["rates_not_measured"])
    return Text(f"Prices of {assumes['prices']}{spot}. Assumed, not measured: {guessed}.", style="dim")


def _dollars(amount: float) -> str:
    return f"${amount:,.2f}"


def _small(amount: float) -> str:
    return f"${amount:,.2f}" if amount >= 1 else f"${amount:.6f}".rstrip("0")
