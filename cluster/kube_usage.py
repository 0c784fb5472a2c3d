"""Which machines a job or an endpoint on Kubernetes has had: its pods, and the labels of their nodes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from kubernetes.utils.quantity import parse_quantity

from cluster.kube import Kube, Object
from cluster.usage import NodeUse
from tomoray.errors import Forbidden

INSTANCE_TYPE = "node.kubernetes.io/instance-type"
SPOT_LABELS = {
    "karpenter.sh/capacity-type": "spot",
    "eks.amazonaws.com/capacityType": "SPOT",
    "cloud.google.com/gke-spot": "true",
    "kubernetes.azure.com/scalesetpriority": "spot",
}


def of_job(kube: Kube, ray_job: Object) -> list[NodeUse]:
    """By the pods that are there, ended ones too; without any, by the job's own times and what it asked for."""
    cluster = ray_job.get("status", {}).get("rayClusterName", "")
    found = of_cluster(kube, cluster, ray_job["metadata"].get("annotations", {}))
    return found or _of_times(ray_job)


def of_cluster(kube: Kube, cluster: str, annotations: Mapping[str, str]) -> list[NodeUse]:
    """Head and workers of a RayCluster."""
    if not cluster:
        return []
    try:
        nodes = {node["metadata"]["name"]: node["metadata"].get("labels", {}) for node in kube.list("Node")}
    except Forbidden:
        nodes = {}
    uses = [
        _use(pod, nodes.get(pod["spec"].get("nodeName", ""), {}), annotations)
        for pod in kube.list("Pod", labels=f"ray.io/cluster={cluster}")
    ]
    return [use for use in uses if use.seconds > 0]


def _use(pod: Object, node: Mapping[str, str], annotations: Mapping[str, str]) -> NodeUse:
    role = pod["metadata"].get("labels", {}).get("ray.io/node-type", "worker")
    asked = pod["spec"]["containers"][0].get("resources", {}).get("requests", {})
    spot = any(node.get(label) == value for label, value in SPOT_LABELS.items())
    if not node:
        spot = role == "worker" and annotations.get("tomoray.io/capacity") == "spot"
    status = pod.get("status", {})
    began = _seconds(status.get("startTime", ""))
    ends = [
        each.get("state", {}).get("terminated", {}).get("finishedAt", "")
        for each in status.get("containerStatuses", [])
    ]
    ended = max((_seconds(end) for end in ends if end), default=0.0) if ends and all(ends) else _now()
    return NodeUse(
        role=role,
        node_type=node.get(INSTANCE_TYPE) or annotations.get(f"tomoray.io/{role}-node-type", ""),
        spot=spot,
        seconds=max(0.0, ended - began) if began else 0.0,
        cpus=float(parse_quantity(asked.get("cpu", "0"))),
        memory_gb=float(parse_quantity(asked.get("memory", "0"))) / 1e9,
    )


def _of_times(ray_job: Object) -> list[NodeUse]:
    status, annotations = ray_job.get("status", {}), ray_job["metadata"].get("annotations", {})
    began = _seconds(status.get("startTime", ""))
    if not began:
        return []
    seconds = (_seconds(status.get("endTime", "")) or _now()) - began
    spec = ray_job["spec"]["rayClusterSpec"]
    groups = [("head", 1, spec["headGroupSpec"])]
    groups += [("worker", group.get("replicas", 0), group) for group in spec.get("workerGroupSpecs", [])]
    uses = []
    for role, count, group in groups:
        asked = group["template"]["spec"]["containers"][0]["resources"]["requests"]
        use = NodeUse(
            role=role,
            node_type=annotations.get(f"tomoray.io/{role}-node-type", ""),
            spot=role == "worker" and annotations.get("tomoray.io/capacity") == "spot",
            seconds=seconds,
            cpus=float(parse_quantity(asked.get("cpu", "0"))),
            memory_gb=float(parse_quantity(asked.get("memory", "0"))) / 1e9,
            known=False,
        )
        uses += [use] * count
    return uses


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp() if time else 0.0


def _now() -> float:
    return datetime.now(UTC).timestamp()
