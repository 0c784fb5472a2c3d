"""Jobs on Kubernetes: RayJobs, followed by watches."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import urllib3
import yaml

from cluster import kube_usage, reasons
from cluster.jobs_api import DASHBOARD_PORT, JobState, State
from cluster.kube import Kube, Object, connect
from cluster.manifests import job_manifests, owned
from cluster.submission import Submission
from cluster.targets import KubernetesTarget
from cluster.usage import NodeUse, mean_gpu_use
from tomoray.errors import Fatal, Forbidden, Transient

MINE = "app.kubernetes.io/managed-by=tomoray"
GONE_S = 60.0  # that a deleted job may take to go

_STATES: dict[str, State] = {
    "": "starting",
    "Initializing": "starting",
    "Scheduling": "starting",
    "Waiting": "starting",
    "Running": "running",
    "Complete": "succeeded",
    "Failed": "failed",
    "ValidationFailed": "failed",
    "Suspending": "queued",
    "Suspended": "queued",
    "Retrying": "retrying",
}


class KubeJobs:
    """The RayJobs of a namespace that TomoRay made; see `cluster.jobs_api.Jobs`."""

    def __init__(self, target: KubernetesTarget, kube: Kube | None = None) -> None:
        self._target, self._kube = target, kube or connect(target)

    def submit(self, submission: Submission, *, again: bool = False, force: bool = False) -> tuple[JobState, bool]:
        """Apply the ConfigMap, then the RayJob, then make it the owner of the ConfigMap."""
        config_map, ray_job = job_manifests(submission, self._target)
        found = self._kube.get("RayJob", submission.name)
        if found is not None:
            state = self._state(found)
            if not state.has_ended or (state.state == "succeeded" and not again):
                self._kube.apply(owned(config_map, found))  # in case whoever began was killed in between
                return state, False
            self._delete(submission.name)
        self._kube.apply(config_map, force=force)
        made = self._kube.apply(ray_job, force=force)
        self._kube.apply(owned(config_map, made))
        return self._state(made), True

    def all(self) -> list[JobState]:
        """See `Jobs`."""
        states = [self._state(each, with_config=False) for each in self._kube.list("RayJob", labels=MINE)]
        return sorted(states, key=lambda state: state.submitted, reverse=True)

    def state(self, name: str) -> JobState:
        """See `Jobs`."""
        return self._state(self._get(name))

    def follow(self, name: str) -> Iterator[JobState]:
        """See `Jobs`."""
        last = None
        config = self.state(name).config
        for event in self._kube.watch("RayJob", fields=f"metadata.name={name}"):
            if event.type == "DELETED":
                yield JobState(name=name, job=(last or self._state(event.object)).job, state="stopped", config=config)
                return
            state = self._state(event.object, config=config)
            if state != last:
                yield state
            if state.has_ended:
                return
            last = state

    def logs(self, name: str, *, follow: bool) -> Iterator[str]:
        """What the submitter's pods printed, one after the other: each retry of the job has a new one."""
        self._get(name)
        done: set[str] = set()
        while True:
            pods = [each for each in self._submitters(name) if each["metadata"]["uid"] not in done]
            for pod in pods:
                if pod["status"].get("phase", "Pending") != "Pending":
                    yield from self._pod_logs(pod, follow=follow)
                    done.add(pod["metadata"]["uid"])
            if not follow:
                if not done:
                    raise Fatal(f"{name} has printed nothing yet; why: tomoray describe {name}")
                return
            found = self._kube.get("RayJob", name)
            if found is None or (self._state(found, with_config=False).has_ended and not self._left(name, done)):
                return
            self._wait_for_pod(name, done)

    def cancel(self, name: str) -> bool:
        """Delete the RayJob, and with it its cluster and its ConfigMap."""
        found = self._get(name)
        self._kube.delete("RayJob", name)
        return not self._state(found, with_config=False).has_ended

    def describe(self, name: str) -> dict[str, Any]:
        """See `Jobs`."""
        found = self._get(name)
        state = self._state(found)
        cluster = found.get("status", {}).get("rayClusterName", "")
        pods = self._pods(name, cluster)
        names = {name, cluster, *(pod["metadata"]["name"] for pod in pods)} - {""}
        events = [each for each in self._kube.list("Event") if each["involvedObject"]["name"] in names]
        events.sort(key=reasons.time_of)
        workloads = [
            each
            for each in self._kube.list("Workload")
            if any(owner["name"] == name for owner in each["metadata"].get("ownerReferences", []))
        ]
        return {
            **asdict(state),
            "cluster": cluster,
            "pods": [reasons.summary(pod) for pod in pods],
            "events": [reasons.line(each) for each in events[-20:]],
            "problems": reasons.problems(found, pods, events, workloads),
        }

    def usage(self, name: str) -> list[NodeUse]:
        """By its pods and their nodes; where those are gone, by its own times and the machines that it asked for."""
        return kube_usage.of_job(self._kube, self._get(name))

    def gpu_use(self, name: str) -> float | None:
        """As Ray's dashboard says, asked through the API server."""
        status = self._get(name).get("status", {})
        service = status.get("rayClusterStatus", {}).get("head", {}).get("serviceName")
        if not service:
            return None
        try:
            secret = self._kube.get("Secret", status["rayClusterName"]) or {}
        except Forbidden:
            return None
        token = base64.b64decode(secret.get("data", {}).get("auth_token", "")).decode()
        answer = self._kube.proxy(service, DASHBOARD_PORT, "nodes?view=summary", token=token)
        return mean_gpu_use(answer or {})

    def _get(self, name: str) -> Object:
        found = self._kube.get("RayJob", name)
        if found is None:
            raise Fatal(f"no job {name} in namespace {self._target.namespace}; there are: tomoray list")
        return found

    def _delete(self, name: str) -> None:
        self._kube.delete("RayJob", name)
        give_up = time.monotonic() + GONE_S
        while self._kube.get("RayJob", name) is not None:
            if time.monotonic() > give_up:
                raise Transient(f"the last attempt, {name}, does not go; see: tomoray describe {name}")
            time.sleep(0.2)

    def _state(self, ray_job: Object, *, config: dict[str, Any] | None = None, with_config: bool = True) -> JobState:
        metadata, status = ray_job["metadata"], ray_job.get("status", {})
        job = metadata.get("annotations", {}).get("tomoray.io/job", "")
        if config is None:
            config = self._config(metadata["name"], job) if with_config else {}
        deployment = status.get("jobDeploymentStatus", "")
        state: State = _STATES.get(deployment, "starting")
        if deployment == "Complete" and status.get("jobStatus") in {"FAILED", "STOPPED"}:
            state = "failed" if status["jobStatus"] == "FAILED" else "stopped"
        if not deployment and ray_job["spec"].get("suspend"):
            state = "queued"
        cluster = status.get("rayClusterStatus", {})
        groups = ray_job["spec"].get("rayClusterSpec", {}).get("workerGroupSpecs", [])
        wanted = cluster.get("desiredWorkerReplicas", sum(group.get("replicas", 0) for group in groups))
        return JobState(
            name=metadata["name"],
            job=job,
            state=state,
            message=status.get("message", ""),
            retries=status.get("failed", 0) if state != "failed" else max(0, status.get("failed", 0) - 1),
            workers=(cluster.get("readyWorkerReplicas", 0), wanted),
            submitted=metadata.get("creationTimestamp", ""),
            started=status.get("startTime", ""),
            ended=status.get("endTime", "") if state in {"succeeded", "failed", "stopped"} else "",
            config=config,
        )

    def _config(self, name: str, job: str) -> dict[str, Any]:
        config_map = self._kube.get("ConfigMap", name)
        found = yaml.safe_load((config_map or {}).get("data", {}).get(f"{job}.yaml", "{}"))
        return found if isinstance(found, dict) else {}

    def _submitters(self, name: str) -> list[Object]:
        pods = self._kube.list("Pod", labels=f"job-name={name}")
        return sorted(pods, key=lambda pod: pod["metadata"]["creationTimestamp"])

    def _left(self, name: str, done: set[str]) -> bool:
        """Whether a pod is there that has printed something and was not read."""
        return any(
            pod["metadata"]["uid"] not in done and pod["status"].get("phase", "Pending") != "Pending"
            for pod in self._submitters(name)
        )

    def _pods(self, name: str, cluster: str) -> list[Object]:
        pods = self._kube.list("Pod", labels=f"ray.io/cluster={cluster}") if cluster else []
        return [*pods, *self._submitters(name)]

    def _wait_for_pod(self, name: str, done: set[str]) -> None:
        """Until a pod of the submitter may have printed something, or two seconds have passed."""
        for event in self._kube.watch("Pod", labels=f"job-name={name}", until_s=time.monotonic() + 2):
            phase = event.object["status"].get("phase", "Pending")
            if event.object["metadata"]["uid"] not in done and phase != "Pending":
                return

    def _pod_logs(self, pod: Object, *, follow: bool) -> Iterator[str]:
        """Each line once, through broken connections."""
        name, last = pod["metadata"]["name"], ""
        while True:
            try:
                for stamped in self._kube.logs(name, follow=follow, since=last):
                    last, _, line = stamped.partition(" ")
                    yield line
            except urllib3.exceptions.HTTPError:
                pass  # broken: go on behind the last line
            else:
                if not follow:
                    return
            now = self._kube.get("Pod", name)
            if now is None or now["status"].get("phase") in {"Succeeded", "Failed"}:
                if now is not None and follow:
                    follow = False  # once more, for what was printed since
                    continue
                return
            time.sleep(0.2)
