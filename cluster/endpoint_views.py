"""Endpoints on a cluster as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tomoray.progress import console

if TYPE_CHECKING:
    from cluster.deployment import EndpointState

COLOURS = {"ready": "green", "changing": "yellow", "starting": "yellow", "unhealthy": "bold red", "gone": "bold red"}


def deployed(state: EndpointState, target: str, *, changed: bool) -> RenderableType:
    """What was deployed, and how to follow it."""
    what = (
        f"revision {state.revision} of {state.name} goes to {target}" if state.revision else f"{state.name}: {target}"
    )
    text = what if changed else f"{state.name} is on {target} already, as it is to be"
    return Group(Text(text), Text(f"Next: tomoray rollout status {state.name} --on {target} -f", style="dim"))


def standing(state: EndpointState) -> RenderableType:
    """State, revision, traffic, deployments."""
    table = Table.grid(padding=(0, 2))
    table.add_row("endpoint", Text(state.name))
    table.add_row("state", Text(state.state, style=COLOURS[state.state]))
    if state.revision:
        table.add_row("revision", str(state.revision))
    if state.traffic is not None:
        table.add_row("traffic", f"{state.traffic} % to the new cluster")
    for name, status in state.deployments.items():
        table.add_row("deployment", Text(f"{name}: {status}"))
    if state.url:
        table.add_row("url", Text(state.url))
    if state.message:
        table.add_row("message", Text(state.message))
    return table


def told(states: Iterable[EndpointState]) -> Iterator[EndpointState]:
    """The same states, each as a line on stderr when it comes."""
    for state in states:
        traffic = "" if state.traffic is None else f", {state.traffic} % of the traffic on the new cluster"
        console.print(Text(f"{state.name}: {state.state}{traffic}"), soft_wrap=True)
        yield state
