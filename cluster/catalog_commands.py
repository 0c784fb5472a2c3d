"""Commands that ask an archive: what would be done, what is being done, what was done and why."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster import catalog_views
from cluster.answers import Answer
from cluster.flags import ArchiveUrl, Debug, Json, make_config_from_flags
from tomoray.config import PlanConfig
from tomoray.errors import Usage

app = typer.Typer()


@app.command()
def plan(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help="As for `tomoray preprocess`.")],
    archive: ArchiveUrl,
    config: Annotated[str | None, typer.Option(metavar="FILE", help="PlanConfig as YAML.")] = None,
    node: Annotated[str | None, typer.Option(help="Kind of machine. [dim]Default: m7i.4xlarge[/dim]")] = None,
    nodes: Annotated[int | None, typer.Option(help="How many. [dim]Default: 10[/dim]")] = None,
    prices: Annotated[str | None, typer.Option(metavar="FILE", help="A price table of your own, as YAML.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """What preprocessing would do: series, bytes, memory per task, node-hours and dollars. Changes nothing.

    [bold]Examples[/bold]

    tomoray plan idc://nlst s3://research/nlst --nodes 20
    tomoray plan hospital archive --prices prices.yaml --json
    """
    flags = {"sources": sources, "archive": archive, "node": node, "nodes": nodes, "prices": prices}
    result = importlib.import_module("jobs.plan").run(make_config_from_flags(PlanConfig, config, **flags))
    return Answer(document=result, view=catalog_views.plan(result, archive))


@app.command()
def watch(archive: ArchiveUrl, json: Json = False, debug: Debug = False) -> Answer:
    """Follow the preprocessing that writes an archive now, from any machine, until it ends.

    [bold]Examples[/bold]

    tomoray watch s3://research/nlst
    """
    result = importlib.import_module("cluster.watch").follow(archive)
    return Answer(document=result, view=catalog_views.watched(result))


@app.command()
def catalog(
    archive: ArchiveUrl,
    where: Annotated[str | None, typer.Option(help="Rows to show, as in SQL.")] = None,
    columns: Annotated[str | None, typer.Option(help="Columns to show, with commas between them.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Rows to show at most; 0: all.")] = 50,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the rows here: .parquet or .csv.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Look into an archive's catalog. Its files are plain Parquet, for pandas, DuckDB or polars too.

    [bold]Examples[/bold]

    tomoray catalog archive --where "manufacturer='GE' and spacing_z<=2.5"
    tomoray catalog archive --where "status='refused'" --columns series_id,reason,evidence --limit 0
    tomoray catalog archive --where "sex='F' and age_years>=60" --out women.parquet
    """
    module = importlib.import_module("cluster.query")
    result = module.query(archive, where, columns.split(",") if columns else None, limit, out)
    return Answer(document=result, view=catalog_views.rows(result))


@app.command()
def explain(
    archive: ArchiveUrl,
    series: Annotated[str, typer.Argument(help="A series_id or scan_id of the catalog, or a Series Instance UID.")],
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """The story of one series: what was read, what was decided and why, what is stored.

    A Series Instance UID is turned into its pseudonym with your key, here, and is not stored.

    [bold]Examples[/bold]

    tomoray explain archive 3f0c9a1b2c3d4e5f6071
    """
    if not series:
        raise Usage("the series is empty; name a series_id, scan_id or Series Instance UID")
    result: dict[str, Any] = importlib.import_module("cluster.query").explain(archive, series)
    return Answer(document=result, view=catalog_views.story(result))
