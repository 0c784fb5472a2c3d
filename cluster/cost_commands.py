"""`tomoray cost`: what jobs and endpoints cost, what a month will, and how a run on spot machines would go."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cluster import cost_views, estimate_views
from cluster.answers import Answer
from cluster.flags import Debug, Json, On, make_config_from_flags, remote_target


class _ShowByDefault(TyperGroup):
    """`tomoray cost JOB` is `tomoray cost show JOB`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["show", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer()
cost = typer.Typer(cls=_ShowByDefault, help="What jobs and endpoints cost, and will cost. Without a command: `show`.")
app.add_typer(cost, name="cost")

Prices = Annotated[str | None, typer.Option(metavar="FILE", help="A price table of your own, as YAML.")]
Series = Annotated[int | None, typer.Option(help="CT series to preprocess.")]
Terabytes = Annotated[float | None, typer.Option("--tb", help="Their DICOM, terabytes, uncompressed.")]


@cost.command()
def show(
    name: Annotated[str, typer.Argument(metavar="JOB|ENDPOINT", help="As `tomoray list` and `tomoray deploy` say it.")],
    on: On = None,
    studies: Annotated[int | None, typer.Option(min=1, help="That an endpoint has answered.")] = None,
    prices: Annotated[str | None, typer.Option(metavar="FILE", help="Another price table, as YAML.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """What a job or an endpoint cost so far: node-seconds times prices, spot and on demand apart.

    Of a job that has ended, dollars of each series, epoch or scan too.

    [bold]Examples[/bold]

    tomoray cost show train-3f9c2a1b7d --on eks
    tomoray cost show lungs --on eks --studies 1200
    """
    where, target = remote_target(on)
    found = importlib.import_module("cluster.bill").bill(target, name, studies=studies, prices=prices)
    return Answer(document={"target": where, **found}, view=cost_views.bill(found))


@cost.command()
def estimate(
    plan: Annotated[
        str | None, typer.Argument(metavar="[PLAN.json]", help="What `terraform show -json PLAN` prints.")
    ] = None,
    workload: Annotated[str | None, typer.Option(metavar="FILE", help="Workload as YAML.")] = None,
    series: Series = None,
    tb: Terabytes = None,
    epochs: Annotated[int | None, typer.Option(help="Visits of training to each series.")] = None,
    studies_per_day: Annotated[float | None, typer.Option(help="That a served model segments.")] = None,
    node: Annotated[str, typer.Option(help="Preprocessing's machine, without a plan.")] = "m7i.4xlarge",
    nodes: Annotated[int, typer.Option(min=1, help="How many of them.")] = 10,
    prices: Prices = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Dollars a month, by component and by unit, on demand and on spot machines. Asks no cloud.

    [bold]Examples[/bold]

    tomoray cost estimate plan.json --series 20000 --tb 1.1 --epochs 50 --studies-per-day 200
    tomoray cost estimate --series 203111 --tb 11.14 --nodes 20
    """
    work = importlib.import_module("tomoray.costs.workload")
    flags = {"series": series, "source_tb": tb, "epochs": epochs, "studies_per_day": studies_per_day}
    config = make_config_from_flags(work.Workload, workload, **flags)
    table = importlib.import_module("tomoray.ingest.estimate").read_prices(prices)
    there = importlib.import_module("tomoray.costs.provisioned").read_plan(plan) if plan else None
    monthly = importlib.import_module("tomoray.costs.monthly")
    result = monthly.estimate_month(there, config, table, node=node, n_nodes=nodes)
    return Answer(document=result, view=estimate_views.estimate(result))


@cost.command()
def simulate(
    config: Annotated[str | None, typer.Option(metavar="FILE", help="SimulateConfig as YAML.")] = None,
    series: Series = None,
    tb: Terabytes = None,
    steps: Annotated[int | None, typer.Option(help="Of training, after preprocessing.")] = None,
    machines: Annotated[int | None, typer.Option(help="Spot machines. [dim]Default: 20[/dim]")] = None,
    interruptions: Annotated[
        float | None, typer.Option(help="Of one machine, an hour. [dim]Default: 0.05[/dim]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same run. [dim]Default: 0[/dim]")] = None,
    node: Annotated[str, typer.Option(help="Preprocessing's machine.")] = "m7i.4xlarge",
    gpu_node: Annotated[str, typer.Option(help="Training's machine.")] = "g6e.4xlarge",
    prices: Prices = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the run: .html.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """A run on spot machines that vanish and come back: time, dollars, work done twice.

    [bold]Examples[/bold]

    tomoray cost simulate --series 203111 --tb 11.14 --machines 20 --interruptions 0.5
    tomoray cost simulate --steps 50000 --machines 8 --gpu-node g6e.12xlarge --plot run.html
    """
    simulation = importlib.import_module("tomoray.costs.simulation")
    monthly = importlib.import_module("tomoray.costs.monthly")
    flags = {"series": series, "source_tb": tb, "steps": steps, "machines": machines, "seed": seed}
    made = make_config_from_flags(simulation.SimulateConfig, config, **flags, interruptions_per_hour=interruptions)
    table = importlib.import_module("tomoray.ingest.estimate").read_prices(prices)
    result = simulation.simulate(made, monthly.price_of(node, table), monthly.price_of(gpu_node, table))
    result["assumes"] |= {"prices": f"{table.region}, {table.date}", "spot_prices": table.spot_is}
    result["nodes"] = {"preprocessing": node, "training": gpu_node}
    if plot is not None:
        plot.write_text(importlib.import_module("tomoray.reports.cost_report").render(result), encoding="utf-8")
        result["plot"] = str(plot)
    return Answer(document=result, view=estimate_views.simulation(result))
