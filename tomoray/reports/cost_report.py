"""How a simulated run on spot machines goes, as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from tomoray.reports.charts import curves
from tomoray.reports.pages import render_page, section


def render(result: Mapping[str, Any]) -> str:
    """The page of what `tomoray.costs.simulation.simulate` found."""
    dollars = result["dollars"]
    lead = (
        f"{result['machines']} machines, each interrupted {result['interruptions_per_hour']:g} times an hour: "
        f"{result['hours']:,.2f} h, ${dollars['spot']:,.2f} on spot machines, ${dollars['on_demand']:,.2f} if each had "
        "the price of on demand."
    )
    stages = {name: stage for name, stage in result["stages"].items() if stage["done"]}
    return render_page(
        "A run on spot machines",
        [
            f'<h1>A run on spot machines</h1><p class="lead">{escape(lead)}</p>',
            *(section(name, _charts(stage), _said(stage)) for name, stage in stages.items()),
        ],
    )


def _charts(stage: Mapping[str, Any]) -> str:
    minutes = [(at / 60, machines, share) for at, machines, share in stage["timeline"]]
    machines = curves("machines, minutes", {"machines": [(at, float(n)) for at, n, _ in minutes]})
    done = curves("share done, minutes", {"done": [(at, share) for at, _, share in minutes]}, top=1.0)
    return f'<div class="card">{machines}</div><div class="card">{done}</div>'


def _said(stage: Mapping[str, Any]) -> str:
    twice = f"{stage['repeated']:,} of {stage['done']:,} were done twice, {stage['repeated_share']:.2%} of the work."
    return (
        "Machines that are there, and the share of the work that is done, over minutes. "
        f"{stage['interruptions']} machines went; {twice}"
    )
