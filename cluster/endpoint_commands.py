"""Endpoints on a cluster: `deploy`, `undeploy`, `scale`, `rollout`."""

from __future__ import annotations

import importlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cluster import endpoint_views, job_views, views
from cluster.answers import DONE, FAILED, Answer
from cluster.flags import Debug, Json, On, make_config_from_flags, remote_target
from tomoray.errors import Usage

if TYPE_CHECKING:
    from cluster.deployment import Endpoints

app = typer.Typer()
rollout = typer.Typer(help="How a change of an endpoint goes, and back again.")
app.add_typer(rollout, name="rollout")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the endpoint, as `tomoray deploy` says it.")]


@app.command()
def deploy(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="ServeConfig as YAML.")],
    on: On = None,
    name: Annotated[str | None, typer.Option(help="Of the endpoint. [dim]Otherwise the file's name[/dim]")] = None,
    workers: Annotated[
        str, typer.Option(metavar="N|MIN:MAX", help="Pods that hold replicas; MIN:MAX autoscales.")
    ] = "1:2",
    gpus: Annotated[int, typer.Option(min=0, help="Of each pod.")] = 0,
    spot: Annotated[bool, typer.Option("--spot", help="Pods, not the head, on nodes that may be reclaimed.")] = False,
    upgrade: Annotated[
        Literal["new-cluster", "incremental", "none"] | None,
        typer.Option(help="When the cluster changes. [dim]Otherwise incremental where the target has a Gateway[/dim]"),
    ] = None,
    step: Annotated[int, typer.Option(metavar="PERCENT", min=1, max=100, help="Of the traffic, at a time.")] = 20,
    interval: Annotated[int, typer.Option(metavar="SECONDS", min=1, help="Between two steps.")] = 30,
    wait: Annotated[bool, typer.Option("--wait", help="Until it answers.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be applied; deploy nothing.")] = False,
    output: Annotated[Literal["yaml", "json"] | None, typer.Option("--output", "-o", help="Of --dry-run.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Take over fields that others have set.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Serve models on a cluster. The same name again changes the endpoint; requests go on being answered.

    [bold]Examples[/bold]

    tomoray deploy lungs.yaml --on eks --workers 1:8 --gpus 1
    tomoray deploy lungs.yaml --on eks --dry-run -o yaml
    """
    deployment = importlib.import_module("cluster.deployment")
    where, target = remote_target(on)
    counts = importlib.import_module("cluster.submission").parse_workers(workers)
    incremental = getattr(target, "gateway_class", None) and counts[0] != counts[1]
    shape = deployment.EndpointShape(
        workers=counts,
        gpus=gpus,
        spot=spot,
        upgrade=upgrade or ("incremental" if incremental else "new-cluster"),
        step_percent=step,
        every_s=interval,
    )
    served = make_config_from_flags(deployment.ServeConfig, config)
    deployment.check(served, shape, target)
    wanted = deployment.Deployment(name=name or Path(config).stem, config=served, shape=shape)
    if dry_run:
        if target.kind != "kubernetes":
            raise Usage("only Kubernetes takes manifests; elsewhere the config is handed to Ray Serve as it is")
        manifests = [importlib.import_module("cluster.kube_endpoints").service_manifest(wanted, target)]
        return Answer(document={"manifests": manifests}, view=job_views.documents(manifests, output or "yaml"))
    endpoints = deployment.endpoints_of(target)
    state, changed = endpoints.deploy(wanted, force=force)
    if wait:
        return _followed(endpoints, wanted.name)
    document = {"target": where, "changed": changed, **asdict(state)}
    return Answer(document=document, view=endpoint_views.deployed(state, where, changed=changed))


@app.command()
def undeploy(name: Name, on: On = None, json: Json = False, debug: Debug = False) -> Answer:
    """Take an endpoint down.

    [bold]Examples[/bold]

    tomoray undeploy lungs --on eks
    """
    removed = _endpoints(on).remove(name)
    text = f"{name} is taken down" if removed else f"there is no endpoint {name}"
    return Answer(document={"name": name, "removed": removed}, view=views.plain(text))


@app.command()
def scale(
    name: Name,
    on: On = None,
    min_: Annotated[int | None, typer.Option("--min", min=0, help="Replicas at least; 0 lets the model go.")] = None,
    max_: Annotated[int | None, typer.Option("--max", min=1, help="Replicas at most.")] = None,
    target: Annotated[
        float | None, typer.Option("--target", help="Requests at once that a replica is to have, on average.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Which, of several.")] = None,
    workers: Annotated[str | None, typer.Option(metavar="N|MIN:MAX", help="Pods that hold replicas.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Change between how many replicas a model of an endpoint scales, and when. Nothing restarts.

    [bold]Examples[/bold]

    tomoray scale lungs --on eks --min 2 --max 16 --target 2
    """
    given = {"min_replicas": min_, "max_replicas": max_, "target_ongoing_requests": target}
    changes = {key: value for key, value in given.items() if value is not None}
    if not changes and workers is None:
        raise Usage("say what to change: --min, --max, --target or --workers")
    counts = None if workers is None else importlib.import_module("cluster.submission").parse_workers(workers)
    state = _endpoints(on).scale(name, changes, model, counts)
    return Answer(document=asdict(state), view=endpoint_views.standing(state))


@rollout.command("status")
def rollout_status(
    name: Name,
    on: On = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until what was deployed last answers.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """How an endpoint stands, and how far a change of it is. Exit code 1 where it is not well.

    [bold]Examples[/bold]

    tomoray rollout status lungs --on eks -f
    """
    endpoints = _endpoints(on)
    if follow:
        return _followed(endpoints, name)
    return _answer(endpoints.state(name))


@rollout.command("undo")
def rollout_undo(
    name: Name,
    on: On = None,
    to: Annotated[
        int | None, typer.Option("--to", metavar="REVISION", help="[dim]Otherwise the one before[/dim]")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Deploy an earlier revision of an endpoint again.

    [bold]Examples[/bold]

    tomoray rollout undo lungs --on eks
    tomoray rollout undo lungs --on eks --to 3
    """
    return _answer(_endpoints(on).undo(name, to))


def _endpoints(on: str | None) -> Endpoints:
    _, target = remote_target(on)
    found: Endpoints = importlib.import_module("cluster.deployment").endpoints_of(target)
    return found


def _followed(endpoints: Endpoints, name: str) -> Answer:
    states = list(endpoint_views.told(endpoints.follow(name)))
    return _answer(states[-1])


def _answer(state: Any) -> Answer:
    code = FAILED if state.state in {"unhealthy", "gone"} else DONE
    return Answer(document=asdict(state), view=endpoint_views.standing(state), exit_code=code)
