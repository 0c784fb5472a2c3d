"""`tomoray cluster`: where jobs and endpoints can run."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
import yaml

from cluster import target_views
from cluster.answers import DONE, FAILED, Answer
from cluster.flags import Debug, Json
from tomoray.errors import Usage

app = typer.Typer()
cluster = typer.Typer(
    help="Targets: this machine, Ray clusters, namespaces of Kubernetes clusters.", no_args_is_help=True
)
app.add_typer(cluster, name="cluster")

TargetName = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="A name from `tomoray cluster list`.",
        autocompletion=lambda incomplete: [name for name in _targets().read_targets() if name.startswith(incomplete)],
    ),
]


@cluster.command("list")
def list_targets(json: Json = False, debug: Debug = False) -> Answer:
    """Every target by name.

    [bold]Examples[/bold]

    tomoray cluster list
    """
    found = {name: _targets().dump_target(target) for name, target in _targets().read_targets().items()}
    return Answer(document={"targets": found}, view=target_views.targets(found))


@cluster.command()
def show(name: TargetName, json: Json = False, debug: Debug = False) -> Answer:
    """What is written down of a target, as YAML.

    [bold]Examples[/bold]

    tomoray cluster show eks
    """
    found = {name: _targets().dump_target(_targets().read_target(name))}
    return Answer(document=found, view=target_views.yaml_text(found))


@cluster.command()
def check(name: TargetName, json: Json = False, debug: Debug = False) -> Answer:
    """What a target lacks for jobs, and how to mend it: operator, rights, quota, nodes, storage, image, buckets.

    Exit code 1 where something is missing without which no job runs. Nothing is changed.

    [bold]Examples[/bold]

    tomoray cluster check eks
    tomoray cluster check eks --json
    """
    findings = importlib.import_module("cluster.checks").check(_targets().read_target(name))
    missing = [each for each in findings if each["state"] == "missing"]
    document = {"target": name, "ready": not missing, "findings": findings}
    return Answer(document=document, view=target_views.findings(findings), exit_code=FAILED if missing else DONE)


@cluster.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="How you call it.")],
    ray: Annotated[
        str | None, typer.Option(metavar="URL", help="A running Ray cluster: http://HOST:8265, ray://HOST:10001.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="Kubernetes: the image with TomoRay, by tag or digest.")] = None,
    context: Annotated[str | None, typer.Option(help="Of the kubeconfig. [dim]Default: the current one[/dim]")] = None,
    namespace: Annotated[str | None, typer.Option(help="[dim]Default: tomoray[/dim]")] = None,
    queue: Annotated[str | None, typer.Option(help="A LocalQueue of Kueue.")] = None,
    storage_class: Annotated[str | None, typer.Option(help="That volumes are made from.")] = None,
    bucket: Annotated[list[str] | None, typer.Option(metavar="URL", help="That jobs use; repeatable.")] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="All of it, as YAML (`tomoray schema targets`).")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the one of this name.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Write a target down, in `~/.config/tomoray/targets.yaml`. The flags win over the file's fields.

    [bold]Examples[/bold]

    tomoray cluster add lab --ray http://10.0.0.5:8265
    tomoray cluster add eks --context research --image registry.example/tomoray:0.1.0 --queue tomoray
    """
    values: dict[str, Any] = _read(file) if file else {}
    flags = {"address": ray, "image": image, "context": context, "namespace": namespace, "queue": queue}
    flags |= {"storage_class": storage_class, "buckets": bucket or None}
    values |= {key: value for key, value in flags.items() if value is not None}
    if "address" not in values and "image" not in values:
        raise Usage("a target is a running Ray cluster or a Kubernetes cluster: --ray URL, or --image IMAGE")
    values.setdefault("kind", "ray" if "address" in values else "kubernetes")
    target = _targets().make_targets({name: values}, str(file or "command line"))[name]
    path = _targets().save_target(name, target, replace=replace)
    return Answer(
        document={"target": name, "file": str(path), **_targets().dump_target(target)},
        view=target_views.saved(name, path),
    )


@cluster.command("import-terraform")
def import_terraform(
    outputs: Annotated[
        Path, typer.Argument(metavar="OUTPUTS.json|DIR", help="What `terraform output -json` prints, or where to ask.")
    ],
    name: Annotated[str | None, typer.Option(help="Of the target. [dim]Default: the cluster's[/dim]")] = None,
    values: Annotated[Path | None, typer.Option(metavar="FILE", help="Write values for the chart, too.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the target of this name.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Write down what Terraform made as a target, with machines, image and buckets. Asks no cloud.

    [bold]Examples[/bold]

    tomoray cluster import-terraform terraform/examples/training
    tomoray cluster import-terraform outputs.json --name eks --values values.yaml
    """
    module = importlib.import_module("cluster.terraform_outputs")
    found = module.read_outputs(outputs)
    called = name or found["cluster"]["name"]
    target = _targets().make_targets({called: module.target_values(found)}, str(outputs))[called]
    path = _targets().save_target(called, target, replace=replace)
    document = {"target": called, "file": str(path), **_targets().dump_target(target)}
    if values is not None:
        values.write_text(yaml.safe_dump(module.chart_values(found), sort_keys=False), encoding="utf-8")
        document["values"] = str(values)
    kubeconfig = found["cluster"]["kubeconfig"]
    return Answer(document=document, view=target_views.imported(called, path, values, kubeconfig))


@cluster.command()
def remove(name: TargetName, json: Json = False, debug: Debug = False) -> Answer:
    """Forget a target. Nothing changes on the cluster.

    [bold]Examples[/bold]

    tomoray cluster remove lab
    """
    path = _targets().remove_target(name)
    return Answer(document={"removed": name, "file": str(path)}, view=target_views.text(f"removed {name} from {path}"))


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise Usage(f"no file {file}")
    try:
        values = yaml.safe_load(file.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise Usage(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise Usage(f"{file} holds {type(values).__name__}; wanted the fields of one target")
    return values


def _targets() -> ModuleType:
    """Imported when a command runs, so that help stays quick."""
    return importlib.import_module("cluster.targets")
