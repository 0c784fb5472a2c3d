"""`tomoray cost`: what jobs and endpoints cost."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cluster import cost_views
from cluster.answers import Answer
from cluster.flags import Debug, Json, On, remote_target


class _ShowByDefault(TyperGroup):
    """`tomoray cost JOB` is `tomoray cost show JOB`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["show", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer()
cost = typer.Typer(cls=_ShowByDefault, help="What jobs and endpoints cost. Without a command: `show`.")
app.add_typer(cost, name="cost")


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
