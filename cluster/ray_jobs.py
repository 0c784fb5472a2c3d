"""Jobs on a Ray cluster that runs already, through Ray's Jobs API."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import ray
from ray.job_submission import JobSubmissionClient
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

from cluster.targets import RayTarget
from tomoray.errors import Fatal

DASHBOARD_PORT = 8265


def dashboard(target: RayTarget) -> str:
    """The URL at which Ray's Jobs API answers."""
    parts = urlsplit(target.address)
    if parts.scheme == "ray":
        return f"http://{parts.hostname}:{DASHBOARD_PORT}"
    return target.address.rstrip("/")


def describe_cluster(target: RayTarget) -> dict[str, Any]:
    """`ray_version`, `ray_version_here`, `nodes`, `cpus`, `gpus` of a running cluster. Raises `Fatal`: none answers."""
    client = connect(target)
    try:
        nodes = [node for node in list_nodes(address=dashboard(target), detail=True) if node.state == "ALIVE"]
    except RayStateApiException as error:
        raise Fatal(f"Ray at {dashboard(target)} does not list its nodes: {' '.join(str(error).split())}") from error
    total = [node.resources_total for node in nodes]
    return {
        "ray_version": client._server_ray_version,  # `get_version` is that of the API
        "ray_version_here": ray.__version__,
        "nodes": len(nodes),
        "cpus": sum(each.get("CPU", 0) for each in total),
        "gpus": sum(each.get("GPU", 0) for each in total),
    }


def connect(target: RayTarget) -> JobSubmissionClient:
    """Its Jobs API. Raises `Fatal` where none answers."""
    try:
        return JobSubmissionClient(dashboard(target))
    except (ConnectionError, RuntimeError) as error:
        raise Fatal(f"no Ray answers at {dashboard(target)}") from error
