"""Endpoints on a Ray cluster that runs already: applications of Ray Serve, through its REST API."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import requests
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
from ray.util.state import list_nodes

from cluster.deployment import ANYWHERE, Deployment, EndpointState, config_of, scaled, serve_config
from cluster.ray_jobs import MOST_NODES, dashboard
from cluster.targets import RayTarget
from cluster.usage import NodeUse
from tomoray.errors import Fatal, Usage

EVERY_S = 1.0


class RayEndpoints:
    """The applications of a cluster; see `cluster.deployment.Endpoints`. Those of others are left as they are."""

    def __init__(self, target: RayTarget) -> None:
        self._target = target
        try:
            self._client = ServeSubmissionClient(dashboard(target))
        except (ConnectionError, RuntimeError) as error:
            raise Fatal(f"no Ray answers at {dashboard(target)}") from error

    def deploy(self, deployment: Deployment, *, force: bool = False) -> tuple[EndpointState, bool]:
        """See `Endpoints`."""
        config = deployment.config
        host = config.host if "host" in config.model_fields_set else ANYWHERE
        wanted = serve_config(config, deployment.name) | {"http_options": {"host": host, "port": config.port}}
        (mine,) = wanted["applications"]
        there = self._deployed()
        if there.get(deployment.name) == mine:
            return self.state(deployment.name), False
        others = [each for name, each in there.items() if name != deployment.name]
        if any(each.get("route_prefix") == mine["route_prefix"] for each in others):
            names = ", ".join(each["name"] for each in others)
            raise Usage(f"Ray Serve has the application {names} at / already; remove it, or choose another cluster")
        self._put(others, wanted)
        return self.state(deployment.name), True

    def state(self, name: str) -> EndpointState:
        """See `Endpoints`."""
        details = self._details()
        found = details["applications"].get(name)
        if found is None:
            raise Fatal(f"no endpoint {name} at {dashboard(self._target)}; make it with: tomoray deploy")
        status = found["status"]
        deployments = {each: one["status"] for each, one in found["deployments"].items()}
        settled = all(each == "HEALTHY" for each in deployments.values())
        states: dict[str, Any] = {"RUNNING": "ready" if settled else "changing", "DEPLOYING": "starting"}
        return EndpointState(
            name=name,
            state=states.get(status, "unhealthy"),
            message=" ".join(found.get("message", "").split()),
            deployments={each: f"{deployments[each]}, {_running(found, each)}" for each in deployments},
            url=f"http://{urlsplit(dashboard(self._target)).hostname}:{details['http_options']['port']}",
        )

    def follow(self, name: str) -> Iterator[EndpointState]:
        """See `Endpoints`; Serve is asked again and again."""
        last = None
        while True:
            state = self.state(name)
            if state != last:
                yield state
            if state.state in {"ready", "unhealthy"}:
                return
            last = state
            time.sleep(EVERY_S)

    def scale(
        self, name: str, changes: dict[str, Any], model: str | None, workers: tuple[int, int] | None
    ) -> EndpointState:
        """See `Endpoints`."""
        if workers is not None:
            raise Usage("the nodes of a running Ray cluster are not ours to scale: leave out --workers")
        there = self._deployed()
        if name not in there:
            raise Fatal(f"no endpoint {name} at {dashboard(self._target)}; make it with: tomoray deploy")
        config = scaled(config_of({"applications": [there[name]]}, name), changes, model)
        others = [each for other, each in there.items() if other != name]
        self._put(others, {"applications": serve_config(config, name)["applications"]})
        return self.state(name)

    def undo(self, name: str, revision: int | None = None) -> EndpointState:
        """Raises `Usage`: Ray Serve keeps no earlier revisions."""
        raise Usage("Ray Serve keeps no earlier revisions; deploy the earlier config again")

    def remove(self, name: str) -> bool:
        """See `Endpoints`."""
        there = self._deployed()
        if name not in there:
            return False
        self._put([each for other, each in there.items() if other != name], {"applications": []})
        return True

    def usage(self, name: str) -> list[NodeUse]:
        """Every node of the cluster since the endpoint was deployed: a Ray cluster is rented as a whole."""
        since = self._details()["applications"].get(name, {}).get("last_deployed_time_s", time.time())
        uses = []
        for node in list_nodes(address=dashboard(self._target), detail=True, limit=MOST_NODES):
            until = node.end_time_ms / 1000 if node.end_time_ms else time.time()
            seconds = max(0.0, until - max(since, (node.start_time_ms or 0) / 1000))
            role = "head" if node.is_head_node else "worker"
            uses.append(NodeUse(role=role, node_type=self._target.node_type or "", spot=False, seconds=seconds))
        return uses

    def _details(self) -> dict[str, Any]:
        try:
            return dict(self._client.get_serve_details())
        except (RuntimeError, requests.RequestException) as error:
            raise Fatal(f"Ray Serve at {dashboard(self._target)} does not answer: {_line(error)}") from error

    def _deployed(self) -> dict[str, dict[str, Any]]:
        """Configs of all applications, in the form that we write."""
        found = self._details()["applications"]
        configs = {name: each["deployed_app_config"] for name, each in found.items() if each.get("deployed_app_config")}
        return {name: {key: value for key, value in each.items() if value} for name, each in configs.items()}

    def _put(self, others: list[dict[str, Any]], wanted: dict[str, Any]) -> None:
        try:
            self._client.deploy_applications(wanted | {"applications": [*others, *wanted["applications"]]})
        except RuntimeError as error:
            raise Fatal(f"Ray Serve does not take it: {_line(error)}") from error


def _running(application: dict[str, Any], deployment: str) -> str:
    replicas = application["deployments"][deployment].get("replicas", [])
    return f"{sum(each['state'] == 'RUNNING' for each in replicas)} replicas"


def _line(error: object) -> str:
    return " ".join(str(error).split())[:300]
