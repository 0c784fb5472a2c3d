from __future__ import annotations

from typing import Any

import pytest

from cluster.reasons import problems

SCHEDULER = "0/12 nodes are available: "


def pod(status: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"name": "c-worker"}, "spec": {}, "status": status}


def unscheduled(message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return pod({"phase": "Pending", "conditions": [condition]})


def container(**states: Any) -> dict[str, Any]:
    return pod({"phase": "Running", "containerStatuses": [{"name": "ray-worker", "image": "r/t:1", **states}]})


def event(reason: str, message: str, kind: str = "RayCluster") -> dict[str, Any]:
    return {"metadata": {}, "involvedObject": {"kind": kind, "name": "c"}, "reason": reason, "message": message}


PODS = {
    "image pull": (container(state={"waiting": {"reason": "ErrImagePull", "message": "no such tag"}}), "check r/t:1"),
    "secret": (container(state={"waiting": {"reason": "CreateContainerConfigError"}}), "Secret or ConfigMap"),
    "memory": (container(state={}, lastState={"terminated": {"reason": "OOMKilled"}}), "more memory_gb"),
    "exit code": (container(state={"terminated": {"exitCode": 3, "reason": "Error"}}), "kubectl logs c-worker"),
    "GPUs": (unscheduled(f"{SCHEDULER}12 Insufficient nvidia.com/gpu."), "that much nvidia.com/gpu free"),
    "taint": (unscheduled(f"{SCHEDULER}3 node(s) had untolerated taint {{gpu: }}."), "the pool's tolerations"),
    "labels": (unscheduled(f"{SCHEDULER}12 node(s) didn't match Pod's node affinity/selector."), "node_selector"),
    "volume": (unscheduled("pod has unbound immediate PersistentVolumeClaims."), "check storage_class"),
    "evicted": (pod({"phase": "Failed", "reason": "Evicted", "message": "low on ephemeral-storage"}), "cache.size"),
    "spot": (
        pod({"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]}),
        "the job goes on elsewhere",
    ),
}
EVENTS = {
    "quota": (event("FailedCreate", 'pods "c-head" is forbidden: exceeded quota: team'), "a larger quota"),
    "pod security": (event("FailedCreate", 'violates PodSecurity "restricted:latest"'), "wants more than restricted"),
    "mount": (event("FailedMount", 'secret "key" not found', "Pod"), "Secret, ConfigMap or claim"),
    "account": (event("FailedCreate", "error looking up service account: serviceaccount not found"), "the chart makes"),
}


@pytest.mark.parametrize(("found", "fix"), PODS.values(), ids=PODS.keys())
def test_a_pod_that_is_stuck_says_what_to_do(found: dict[str, Any], fix: str) -> None:
    (problem,) = problems({}, [found], [], [])
    assert fix in problem["fix"]
    assert problem["why"]


@pytest.mark.parametrize(("found", "fix"), EVENTS.values(), ids=EVENTS.keys())
def test_an_event_that_stops_a_job_says_what_to_do(found: dict[str, Any], fix: str) -> None:
    (problem,) = problems({}, [], [found], [])
    assert fix in problem["fix"]


def test_a_queue_without_room_is_told_of_in_its_own_words() -> None:
    condition = {"type": "QuotaReserved", "status": "False", "message": "insufficient unused quota for nvidia.com/gpu"}
    (problem,) = problems({}, [], [], [{"status": {"conditions": [condition]}}])
    assert (problem["what"], problem["why"]) == ("Kueue", condition["message"])


def test_twenty_pods_with_one_trouble_are_one_problem() -> None:
    assert len(problems({}, [unscheduled(f"{SCHEDULER}12 Insufficient cpu.")] * 20, [], [])) == 1


def test_a_job_that_runs_has_no_problem() -> None:
    running = container(state={"running": {"startedAt": "2026-01-01T00:00:00Z"}})
    assert problems({"status": {"jobDeploymentStatus": "Running"}}, [running], [], []) == []
