"""An endpoint as it is deployed: its serving config, how much of a cluster it gets, how it is upgraded."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from cluster.submission import check_paths
from cluster.targets import KubernetesTarget, RayTarget
from cluster.usage import NodeUse
from tomoray.config import make_config
from tomoray.errors import Usage
from tomoray.serving_config import ServeConfig

APPLICATION, IMPORT_PATH, PORT = "tomoray", "serving.app:app", 8000
ANYWHERE = "0.0.0.0"  # noqa: S104

Upgrade = Literal["new-cluster", "incremental", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointShape:
    """How much of a cluster an endpoint gets.

    Attributes:
        workers: the fewest and the most pods that hold replicas; the same number twice: no autoscaling of pods.
        gpus: of each.
        spot: on nodes that may be reclaimed at any time. The head never is.
        upgrade: what a change of the cluster does (a change of the config alone is always made in place):
            `new-cluster` moves all traffic at once when the new one is ready, `incremental` step by step through a
            Gateway, `none` waits to be deleted.
        step_percent, every_s: of an incremental upgrade: so much of the traffic at a time, so many seconds apart.
        surge_percent: how much larger than one cluster both may be together, meanwhile.
        keep_old_s: how long the old cluster stays behind the new one.
    """

    workers: tuple[int, int] = (1, 2)
    gpus: int = 0
    spot: bool = False
    upgrade: Upgrade = "new-cluster"
    step_percent: int = 20
    every_s: int = 30
    surge_percent: int = 100
    keep_old_s: int = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """An endpoint that is to be there.

    Attributes:
        name: of the endpoint; the same name again changes it.
        config: what is served.
    """

    name: str
    config: ServeConfig
    shape: EndpointShape


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointState:
    """How an endpoint stands.

    Attributes:
        state: `ready` answers; `changing` answers too, while what was deployed last comes up; `starting` and
            `unhealthy` do not.
        message: of the application that is not well; empty where all are.
        revision: how often it was changed.
        traffic: percent that goes to the cluster which comes up, of an incremental upgrade; None otherwise.
        deployments: of the application, each with how it stands.
        url: within the cluster, or of the proxies.
    """

    name: str
    state: Literal["starting", "ready", "changing", "unhealthy", "gone"]
    message: str = ""
    revision: int = 0
    traffic: int | None = None
    deployments: dict[str, str] = field(default_factory=dict)
    url: str = ""


class Endpoints(Protocol):
    """The endpoints of a target. Every method raises `Fatal` where there is no such endpoint."""

    def deploy(self, deployment: Deployment, *, force: bool = False) -> tuple[EndpointState, bool]:
        """The endpoint, and whether anything changed."""

    def state(self, name: str) -> EndpointState:
        """How it stands."""

    def follow(self, name: str) -> Iterator[EndpointState]:
        """How it stands, now and whenever that changes, until what was deployed last answers or cannot."""

    def scale(
        self, name: str, changes: dict[str, Any], model: str | None, workers: tuple[int, int] | None
    ) -> EndpointState:
        """Change `min_replicas`, `max_replicas` and `target_ongoing_requests` of a model, in place."""

    def undo(self, name: str, revision: int | None = None) -> EndpointState:
        """Deploy an earlier revision anew: the one before the last, or that of a number."""

    def remove(self, name: str) -> bool:
        """Take it down; whether it was there."""

    def usage(self, name: str) -> list[NodeUse]:
        """The machines that it has, by the cluster's own records."""


def endpoints_of(target: KubernetesTarget | RayTarget) -> Endpoints:
    """The endpoints of a target. What talks to it is imported now, as that takes a second."""
    if isinstance(target, KubernetesTarget):
        made: Endpoints = importlib.import_module("cluster.kube_endpoints").KubeEndpoints(target)
    else:
        made = importlib.import_module("cluster.ray_endpoints").RayEndpoints(target)
    return made


def serve_config(config: ServeConfig, name: str = APPLICATION) -> dict[str, Any]:
    """What Ray Serve deploys: one application, at port 8000 of every pod."""
    args = config.model_dump(mode="json", exclude_unset=True, exclude={"host", "port"})
    application = {"name": name, "route_prefix": "/", "import_path": IMPORT_PATH, "args": args}
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": ANYWHERE, "port": PORT},  # of a pod; network policies say who may come
        "applications": [application],
    }


def config_of(served: dict[str, Any], name: str = APPLICATION) -> ServeConfig:
    """The config in what Ray Serve deploys. Raises `Usage` where the application is another's."""
    for application in served.get("applications", []):
        if application["name"] == name and application["import_path"] == IMPORT_PATH:
            return make_config(ServeConfig, application.get("args", {}), name)
    raise Usage(f"what runs there is not an application of {IMPORT_PATH}")


def scaled(config: ServeConfig, changes: dict[str, Any], model: str | None) -> ServeConfig:
    """A config with other numbers of replicas of one model. Raises `Usage`: no such model, or which of several."""
    models = config.served
    names = [each.name or re.split(r"[/]", each.source.rstrip("/"))[-1] for each in models]
    if model is None and len(models) > 1:
        raise Usage(f"say of which model: --model, one of {', '.join(names)}")
    if model is not None and model not in names:
        raise Usage(f"no model {model!r}; there are {', '.join(names)}")
    chosen = 0 if model is None else names.index(model)
    values = [each.model_dump(mode="json", exclude_unset=True) for each in models]
    values[chosen] |= changes
    kept = config.model_dump(mode="json", exclude_unset=True, exclude={"run", "replicas", "cpus", "models"})
    return make_config(ServeConfig, {**kept, "models": values}, "command line")


def check(config: ServeConfig, shape: EndpointShape, target: KubernetesTarget | RayTarget) -> None:
    """Raises `Usage` where the target does not have what an endpoint wants."""
    check_paths(config, target)
    if isinstance(target, RayTarget):
        return
    if shape.upgrade == "incremental" and not target.gateway_class:
        raise Usage("an incremental upgrade wants a Gateway: gateway_class in the target")
    if shape.upgrade == "incremental" and shape.workers[0] == shape.workers[1]:
        raise Usage("an incremental upgrade wants pods that scale: --workers MIN:MAX")
    if shape.spot and not target.spot.node_selector:
        raise Usage("the target does not say which nodes are spot nodes: spot.node_selector")
