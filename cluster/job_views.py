"""Jobs on a cluster as people read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import yaml
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.jobs_api import JobState

COLOURS = {"succeeded": "green", "failed": "bold red", "running": "bold", "retrying": "yellow", "queued": "yellow"}
EMPTY = "-"


def documents(found: Sequence[Mapping[str, Any]], kind: Literal["yaml", "json"]) -> RenderableType:
    """Manifests for `kubectl apply -f -`."""
    if kind == "json":
        return Text(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(found)}, indent=2))
    return Text(yaml.dump_all(found, Dumper=_Dumper, sort_keys=False, allow_unicode=True).rstrip("\n"))


def submitted(state: JobState, target: str, *, started: bool) -> RenderableType:
    """What was submitted or found, and how to follow it."""
    if started:
        what = f"{state.name} is submitted to {target}"
    elif state.state == "succeeded":
        what = f"{state.name} has succeeded on {target} already; to run it anew: --again"
    else:
        what = f"{state.name} is on {target} already: {state.state}"
    return Group(Text(what), Text(f"Next: tomoray logs {state.name} --on {target} -f", style="dim"))


def table(rows: Sequence[Mapping[str, Any]], *, brief: bool = False) -> RenderableType:
    """A line for each job: state, workers, and unless `brief` progress, MB/s, GPU use, dollars."""
    heads = ["job", "state", "workers", "age", *([] if brief else ["done", "epoch", "MB/s", "GPU", "dollars"])]
    drawn = Table(*heads, box=None, pad_edge=False, header_style="dim")
    for row in rows:
        ready, wanted = row["workers"]
        retries = f" ({row['retries']} retries)" if row["retries"] else ""
        cells = [
            Text(row["name"]),
            Text(row["state"] + retries, style=COLOURS.get(row["state"], "")),
            Text(f"{ready}/{wanted}" if wanted else EMPTY),
            Text(_age(row["submitted"], row["ended"])),
        ]
        drawn.add_row(*cells, *([] if brief else _details(row)))
    messages = [Text(f"{row['name']}: {row['message']}", style="dim") for row in rows if row["message"]]
    return Group(drawn, *messages) if rows else Text("no jobs")


def description(found: Mapping[str, Any]) -> RenderableType:
    """State, pods or nodes, events; what is wrong comes last, as it is read first."""
    parts: list[RenderableType] = [table([found], brief=True)]
    if pods := found.get("pods"):
        drawn = Table(
            "pod", "role", "phase", "node", "restarts", "reason", box=None, pad_edge=False, header_style="dim"
        )
        for pod in pods:
            drawn.add_row(
                *(Text(str(pod[column])) for column in ("name", "role", "phase", "node", "restarts", "reason"))
            )
        parts += ["", drawn]
    if nodes := found.get("nodes"):
        drawn = Table("node", "state", box=None, pad_edge=False, header_style="dim")
        for node in nodes:
            drawn.add_row(Text(node["name"]), Text(node["state"]))
        parts += ["", drawn]
    if events := found.get("events"):
        parts += ["", *(Text(event, style="dim") for event in events)]
    parts += [""]
    for problem in found["problems"]:
        parts.append(Text.assemble((f"{problem['what']}: ", "bold red"), problem["why"]))
        parts.append(Text(f"-> {problem['fix']}"))
    return Group(*parts, *([] if found["problems"] else [Text("nothing is wrong that the cluster would tell of")]))


def _details(row: Mapping[str, Any]) -> list[Text]:
    progress, use, cost = row["progress"], row["gpu_use"], row["cost"]
    done = f"{progress['done']}/{progress['total']} {progress['unit']}" if progress.get("total") else EMPTY
    return [
        Text(done),
        Text(f"{progress['epoch']:.2f}" if "epoch" in progress else EMPTY),
        Text(f"{progress['mb_per_s']:.0f}" if "mb_per_s" in progress else EMPTY),
        Text(EMPTY if use is None else f"{use:.0%}"),
        Text(f"{cost['dollars']:.2f}" if cost.get("by_node_type") else EMPTY),
    ]


def _age(since: str, until: str) -> str:
    if not since:
        return EMPTY
    end = datetime.fromisoformat(until) if until else datetime.now(UTC)
    seconds = max(0, int((end - datetime.fromisoformat(since)).total_seconds()))
    days, rest = divmod(seconds, 86400)
    hours, rest = divmod(rest, 3600)
    if days:
        return f"{days}d {hours}h"
    return f"{hours}h {rest // 60}m" if hours else f"{rest // 60}m {rest % 60}s"


class _Dumper(yaml.CSafeDumper):
    """Text of many lines stands as it is, and a list that stands twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.CSafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
