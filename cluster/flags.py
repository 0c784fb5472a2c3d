"""What all commands share: their common flags, and how flags become a config and a config a result."""

from __future__ import annotations

import importlib
import sys
from contextlib import redirect_stdout
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tomoray.config import Config, ConfigT, load_config, make_config, recipe_names
from tomoray.errors import Usage

if TYPE_CHECKING:
    from cluster.targets import KubernetesTarget, RayTarget, Target

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; logs and bars stay on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and what the workers print.")]
TrainingSource = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG|RECIPE",
        help="TrainConfig as YAML, or a name from `tomoray recipes`.",
        autocompletion=lambda incomplete: [name for name in recipe_names() if name.startswith(incomplete)],
    ),
]
On = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="TARGET",
        help="Where; see `tomoray cluster list`. [dim]Without it: the only one there is[/dim]",
        autocompletion=lambda incomplete: [name for name in _targets().read_targets() if name.startswith(incomplete)],
    ),
]
ArchiveUrl = Annotated[str, typer.Argument(metavar="ARCHIVE", help="A path, or s3://bucket/prefix.")]


def make_config_from_flags(model: type[ConfigT], source: str | None, /, **flags: Any) -> ConfigT:
    """A config from the flags that were given, over a file or recipe where one is named. Raises `Usage`."""
    given = {name: value for name, value in flags.items() if value is not None}
    return load_config(source, model, given) if source else make_config(model, given, "command line")


def run_job(job: str, config: Config, *, debug: bool) -> dict[str, Any]:
    """The result of `jobs.<job>` on a Ray cluster. What libraries print to stdout goes to stderr."""
    importlib.import_module("cluster.preflight").check(config)
    local = importlib.import_module("cluster.local")
    module = importlib.import_module(f"jobs.{job}")
    with redirect_stdout(sys.stderr), local.local_ray(verbose=debug):
        result: dict[str, Any] = module.run(config)
    return result


def chosen_target(on: str | None) -> tuple[str, Target]:
    """The target of `--on`, or the only one that is written down. Raises `Usage`."""
    targets = _targets()
    if on is not None:
        return on, targets.read_target(on)
    known = targets.read_targets()
    names = [name for name in known if name != targets.HERE]
    if len(names) != 1:
        there = f"one of {', '.join(names)}" if names else "none is written down yet: tomoray cluster add"
        raise Usage(f"say where: --on TARGET, {there}")
    return names[0], known[names[0]]


def remote_target(on: str | None) -> tuple[str, KubernetesTarget | RayTarget]:
    """A target other than this machine. Raises `Usage`."""
    name, target = chosen_target(on)
    if target.kind == "here":
        raise Usage("on this machine a command ends when its job does; there is nothing to follow")
    return name, target


def _targets() -> ModuleType:
    return importlib.import_module("cluster.targets")
