"""Answers about catalogs and plans as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

Result = Mapping[str, Any]


def plan(result: Result, archive: str) -> RenderableType:
    """Work and cost, one fact a line."""
    dollars, memory, assumes = result["dollars"], result["memory_per_task_gb"], result["assumes"]
    table = Table.grid(padding=(0, 2))
    table.add_row("to do", f"{result['series']:,} series, {result['instances']:,} instances")
    table.add_row("done before", f"{result['done_before']:,} series")
    table.add_row("read", f"{result['source_gb']:,.1f} GB")
    table.add_row("voxels", f"{result['voxel_gb']:,.1f} GB")
    table.add_row("archive", f"about {result['archive_gb']:,.1f} GB, ${dollars['storage_per_month']:,.2f} a month")
    table.add_row("memory a task", f"{memory['median']:.2f} GB, at most {memory['largest']:.2f}")
    table.add_row("machines", f"{result['nodes']} x {result['node']}, {result['tasks_per_node']} tasks each")
    table.add_row("time", f"{result['hours']:,.2f} h ({result['node_hours']:,.1f} node-hours)")
    table.add_row("compute", f"${dollars['on_demand']:,.2f} on demand, ${dollars['spot']:,.2f} on spot machines")
    table.add_row("requests", f"${dollars['requests']:,.2f}")
    spot = f"; spot prices {assumes['spot_prices']}" if assumes["spot_prices"] else ""
    note = (
        f"Prices of {assumes['prices']}{spot}. Rates of one vCPU: {assumes['native_mb_per_s']:.0f} MB/s of voxels from "
        f"native DICOM, {assumes['compressed_mb_per_s']:.0f} from compressed. Nothing was changed."
    )
    return Group(table, Text(note, style="dim"), Text(f"Next: tomoray preprocess SOURCE {archive}", style="dim"))


def watched(result: Result) -> RenderableType:
    """How the run stood when it ended."""
    return Text(
        f"ended: {result.get('done', 0)} of {result.get('total', 0)} series, {result.get('refused', 0)} refused"
    )


def rows(result: Result) -> RenderableType:
    """A table of catalog rows."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in result["columns"]:  # an identifier that is cut short cannot be handed to `tomoray explain`
        width = max((len(_cell(row[name])) for row in result["rows"]), default=0) if name.endswith("_id") else None
        table.add_column(escape(name), min_width=width)
    for row in result["rows"]:
        table.add_row(*(Text(_cell(row[name])) for name in result["columns"]))
    more = result["found"] - len(result["rows"])
    tail = f"{result['found']} rows" + (f", {more} not shown (--limit 0 shows all)" if more else "")
    if "written" in result:
        tail += f"; written to {result['written']}"
    return Group(table, Text(tail, style="dim")) if result["rows"] else Text(tail)


def story(result: Result) -> RenderableType:
    """What became of a series, part by part."""
    lines: list[RenderableType] = [Text(f"Series {result['series_id']}", style="bold")]
    for part in result["parts"]:
        table = Table.grid(padding=(0, 2))
        name = part.get("part") or "the whole series"
        if part["status"] == "refused":
            table.add_row("refused", Text(f"{name}: {part['reason']}", style="bold"))
            table.add_row("found", Text(part["evidence"]))
            table.add_row("it means", Text(part["meaning"]))
            table.add_row("what to do", Text(part["advice"]))
        else:
            table.add_row("stored", Text(f"{name}: {part['scan']}", style="bold"))
            shape, spacing = part["shape_zyx"], part["spacing_zyx_mm"]
            table.add_row("grid", f"{_times(shape)} voxels of {_times(round(mm, 4) for mm in spacing)} mm (z, y, x)")
            table.add_row("HU", f"{part['hu_min']} to {part['hu_max']}, half below {part['hu_p50']}")
            for label in part.get("labels", []):
                table.add_row("label", Text(label))
            for note in part.get("notes", []):
                table.add_row("noted", Text(note))
        for column in ("manufacturer", "model", "kernel", "body_part", "source_uri", "n_instances", "code_version"):
            if column in part:
                table.add_row(column.replace("_", " "), Text(str(part[column])))
        lines.append(table)
    return Group(*lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return _times(value) if isinstance(value, list) else str(value)


def _times(values: Any) -> str:
    return " x ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)
