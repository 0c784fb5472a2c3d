"""Why a job on Kubernetes is stuck or has failed, in plain words, from its pods, its events and its queue."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from cluster.kube import Object

_PULL = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
_CONFIG = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}


def problems(
    ray_job: Object, pods: Sequence[Object], events: Sequence[Object], workloads: Sequence[Object]
) -> list[dict[str, str]]:
    """What is wrong, each as `what` (where), `why` (as the cluster says it) and `fix`. The same thing comes once."""
    found = [*_of_job(ray_job), *_of_queue(workloads), *_of_events(events)]
    for pod in pods:
        found += _of_pod(pod)
    return list({(each["why"], each["fix"]): each for each in found}.values())


def summary(pod: Object) -> dict[str, Any]:
    """A pod in one line: `name`, `role`, `phase`, `node`, `restarts`, `reason`."""
    status = pod.get("status", {})
    containers = status.get("containerStatuses", [])
    states = [state for each in containers for state in each.get("state", {}).values()]
    reasons = [status.get("reason", ""), *(state.get("reason", "") for state in states)]
    return {
        "name": pod["metadata"]["name"],
        "role": pod["metadata"].get("labels", {}).get("ray.io/node-type", "submitter"),
        "phase": status.get("phase", "Pending"),
        "node": pod["spec"].get("nodeName", ""),
        "restarts": sum(each.get("restartCount", 0) for each in containers),
        "reason": next(filter(None, reasons), ""),
    }


def line(event: Object) -> str:
    """An event in one line."""
    who = event["involvedObject"]
    return f"{time_of(event)} {event.get('type', '')} {who['kind']}/{who['name']} {event['reason']}: {_line(event)}"


def time_of(event: Object) -> str:
    """When it happened last."""
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return str(next(filter(None, times), event["metadata"].get("creationTimestamp", "")))


def _of_job(ray_job: Object) -> Iterator[dict[str, str]]:
    status = ray_job.get("status", {})
    if status.get("jobDeploymentStatus") == "ValidationFailed":
        yield _problem("RayJob", status.get("message", ""), "the operator refuses it: tell us, as submit should have")
    elif status.get("reason") == "AppFailed":
        yield _problem(
            "job", status.get("message", ""), f"read its last lines: tomoray logs {ray_job['metadata']['name']}"
        )
    elif status.get("reason") == "DeadlineExceeded":
        yield _problem(
            "job", status.get("message", ""), "submit again with a longer --deadline; it goes on where it was"
        )


def _of_queue(workloads: Sequence[Object]) -> Iterator[dict[str, str]]:
    for workload in workloads:
        for condition in workload.get("status", {}).get("conditions", []):
            if condition["type"] == "QuotaReserved" and condition["status"] == "False":
                fix = "wait, ask for fewer --workers, or choose another --queue"
                yield _problem("Kueue", condition.get("message", ""), fix)


def _of_events(events: Sequence[Object]) -> Iterator[dict[str, str]]:
    for event in events:
        text, what = _line(event), f"{event['involvedObject']['kind']} {event['involvedObject']['name']}"
        if "exceeded quota" in text:
            yield _problem(what, text, "cancel another job, ask for less, or for a larger quota")
        elif "violates PodSecurity" in text:
            yield _problem(what, text, "the namespace wants more than restricted pods give; see its labels")
        elif event["reason"] in {"FailedMount", "FailedAttachVolume"}:
            yield _problem(what, text, "is the Secret, ConfigMap or claim there? tomoray cluster check")
        elif event["reason"] == "FailedCreate" and "serviceaccount" in text.lower():
            yield _problem(what, text, "the chart makes the service accounts: helm install tomoray helm/tomoray")


def _of_pod(pod: Object) -> Iterator[dict[str, str]]:
    what, status = f"pod {pod['metadata']['name']}", pod.get("status", {})
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
            text = condition.get("message", "")
            yield _problem(what, text, _unschedulable(text))
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            fix = "its node was taken away; the job goes on elsewhere by itself"
            yield _problem(what, condition.get("message", condition.get("reason", "")), fix)
    if status.get("reason") == "Evicted":
        yield _problem(
            what, status.get("message", "Evicted"), "the node ran short; ask for what is used: pools, cache.size"
        )
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        yield from _of_container(what, container)


def _of_container(what: str, container: Object) -> Iterator[dict[str, str]]:
    waiting = container.get("state", {}).get("waiting") or {}
    reason = waiting.get("reason", "")
    if reason in _PULL:
        fix = f"check {container['image']}, and image_pull_secrets for a registry that asks who pulls"
        yield _problem(what, waiting.get("message", reason), fix)
    elif reason in _CONFIG:
        yield _problem(what, waiting.get("message", reason), "is the Secret or ConfigMap there? tomoray cluster check")
    for state in (container.get("state", {}), container.get("lastState", {})):
        ended = state.get("terminated") or {}
        if ended.get("reason") == "OOMKilled":
            fix = "more memory_gb for its pool in the target, or smaller batches"
            yield _problem(what, f"{container['name']} used more memory than it asked for (OOMKilled)", fix)
        elif ended.get("exitCode"):
            text = ended.get("message") or f"{container['name']} ended with exit code {ended['exitCode']}"
            yield _problem(what, text, f"kubectl logs {what.removeprefix('pod ')}")


def _unschedulable(text: str) -> str:
    """What to do where no node takes a pod, by the scheduler's own words."""
    scarce = re.findall(r"Insufficient ([\w./-]*\w)", text)
    if "unbound immediate PersistentVolumeClaims" in text or "persistentvolumeclaim" in text:
        return "no volume: check storage_class (tomoray cluster check)"
    if scarce:
        return (
            f"no node has that much {' and '.join(dict.fromkeys(scarce))} free: wait for an autoscaler, or ask for less"
        )
    if "untolerated taint" in text:
        return "nodes repel it: add their taint to the pool's tolerations"
    if "node affinity/selector" in text:
        return "no node has the labels that the pool's node_selector names: kubectl get nodes --show-labels"
    return "wait for an autoscaler, or change the target's pools"


def _problem(what: str, why: object, fix: str) -> dict[str, str]:
    return {"what": what, "why": " ".join(str(why).split()), "fix": fix}


def _line(event: Object) -> str:
    return " ".join(event.get("message", "").split())
