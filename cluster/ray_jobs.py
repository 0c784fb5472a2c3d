"""Jobs on a Ray cluster that runs already, through Ray's Jobs API."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import ray
import yaml
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

from cluster.jobs_api import DASHBOARD_PORT, JobState, State
from cluster.submission import Submission
from cluster.targets import RayTarget
from cluster.usage import NodeUse, mean_gpu_use
from tomoray.errors import Fatal

EVERY_S = 1.0
MOST_NODES = 10_000

_STATES: dict[JobStatus, State] = {
    JobStatus.PENDING: "starting",
    JobStatus.RUNNING: "running",
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.STOPPED: "stopped",
}


class RayJobs:
    """The jobs of a Ray cluster that TomoRay submitted; see `cluster.jobs_api.Jobs`.

    Ray never runs an id twice, so a job that starts anew is another attempt under the same name: `train-3f9c2a1b7d`,
    then `train-3f9c2a1b7d.2`.
    """

    def __init__(self, target: RayTarget) -> None:
        self._target, self._client = target, connect(target)

    def submit(self, submission: Submission, *, again: bool = False, force: bool = False) -> tuple[JobState, bool]:
        """See `Jobs`. The config goes along in the job's working directory."""
        attempts = self._attempts(submission.name)
        if attempts:
            state = self._state(attempts[-1], len(attempts))
            if not state.has_ended or (state.state == "succeeded" and not again):
                return state, False
        number = len(attempts) + 1
        attempt = submission.name if number == 1 else f"{submission.name}.{number}"
        with tempfile.TemporaryDirectory(prefix="tomoray-") as folder:
            Path(folder, f"{submission.job}.yaml").write_text(submission.document, encoding="utf-8")
            try:
                self._client.submit_job(
                    entrypoint=f"python -m {submission.module} {submission.job}.yaml",
                    submission_id=attempt,
                    runtime_env={"working_dir": folder},
                    metadata={"tomoray_job": submission.job, "tomoray_config": submission.document},
                )
            except RuntimeError as error:
                if not self._attempts(submission.name)[number - 1 :]:  # somebody else was first
                    raise Fatal(f"Ray does not take {attempt}: {_line(error)}") from error
        return self.state(submission.name), True

    def all(self) -> list[JobState]:
        """See `Jobs`."""
        found: dict[str, list[JobDetails]] = {}
        for each in sorted(self._client.list_jobs(), key=lambda each: each.start_time or 0):
            if each.submission_id and "tomoray_job" in (each.metadata or {}):
                found.setdefault(each.submission_id.partition(".")[0], []).append(each)
        states = [self._state(attempts[-1], len(attempts)) for attempts in found.values()]
        return sorted(states, key=lambda state: state.submitted, reverse=True)

    def state(self, name: str) -> JobState:
        """See `Jobs`."""
        attempts = self._get(name)
        return self._state(attempts[-1], len(attempts))

    def follow(self, name: str) -> Iterator[JobState]:
        """See `Jobs`; Ray's Jobs API is asked again and again, as it has no watches."""
        last = None
        while last is None or not last.has_ended:
            state = self.state(name)
            if state != last:
                yield state
            last = state
            if not state.has_ended:
                time.sleep(EVERY_S)

    def logs(self, name: str, *, follow: bool) -> Iterator[str]:
        """See `Jobs`; of the last attempt."""
        attempt = str(self._get(name)[-1].submission_id)
        if not follow:
            yield from self._client.get_job_logs(attempt).splitlines()
            return
        n_lines = 0
        while True:
            try:
                for line in self._tail(attempt, n_lines):
                    n_lines += 1
                    yield line
            except (aiohttp.ClientError, RuntimeError, ConnectionError):
                time.sleep(EVERY_S)  # the connection broke
            if self.state(name).has_ended:
                yield from self._client.get_job_logs(attempt).splitlines()[n_lines:]
                return

    def cancel(self, name: str) -> bool:
        """See `Jobs`."""
        return bool(self._client.stop_job(str(self._get(name)[-1].submission_id)))

    def describe(self, name: str) -> dict[str, Any]:
        """See `Jobs`."""
        attempts = self._get(name)
        state = self._state(attempts[-1], len(attempts))
        nodes = list_nodes(address=dashboard(self._target), detail=True, limit=MOST_NODES)
        problems = []
        if state.state == "failed":
            fix = f"read its last lines: tomoray logs {name}"
            problems.append({"what": "job", "why": state.message, "fix": fix})
        for node in nodes:
            if node.state != "ALIVE":
                why = node.state_message or "no reason is given"
                problems.append({"what": f"node {node.node_ip}", "why": why, "fix": "it is lost; start another"})
        return {
            **asdict(state),
            "nodes": [{"name": node.node_name, "state": node.state, "is_head": node.is_head_node} for node in nodes],
            "problems": problems,
        }

    def usage(self, name: str) -> list[NodeUse]:
        """Every node of the cluster for as long as the job ran and it was there: a Ray cluster is rented as a whole."""
        uses = []
        nodes = list_nodes(address=dashboard(self._target), detail=True, limit=MOST_NODES)
        for attempt in self._get(name):
            began, ended = attempt.start_time or 0, attempt.end_time or time.time() * 1000
            for node in nodes:
                until = min(ended, node.end_time_ms or ended)
                seconds = max(0.0, until - max(began, node.start_time_ms or 0)) / 1000
                role = "head" if node.is_head_node else "worker"
                node_type = self._target.node_type or ""
                uses.append(NodeUse(role=role, node_type=node_type, spot=False, seconds=seconds))
        return uses

    def gpu_use(self, name: str) -> float | None:
        """As the dashboard says."""
        answer = self._client._do_request("GET", "/nodes?view=summary")
        return mean_gpu_use(answer.json()) if answer.status_code == 200 else None

    def _get(self, name: str) -> list[JobDetails]:
        attempts = self._attempts(name)
        if not attempts:
            raise Fatal(f"no job {name} at {dashboard(self._target)}; there are: tomoray list")
        return attempts

    def _attempts(self, name: str) -> list[JobDetails]:
        """Oldest first."""
        mine = [each for each in self._client.list_jobs() if (each.submission_id or "").partition(".")[0] == name]
        return sorted(mine, key=lambda each: each.start_time or 0)

    def _state(self, details: JobDetails, attempts: int) -> JobState:
        config = yaml.safe_load((details.metadata or {}).get("tomoray_config", "{}"))
        state = _STATES[details.status]
        return JobState(
            name=str(details.submission_id).partition(".")[0],
            job=(details.metadata or {}).get("tomoray_job", ""),
            state=state,
            message=_line(details.message) if state in {"failed", "stopped"} else "",
            retries=attempts - 1,
            submitted=_time(details.start_time),
            started=_time(details.start_time),
            ended=_time(details.end_time),
            config=config,
        )

    def _tail(self, attempt: str, skip: int) -> Iterator[str]:
        """Lines from number `skip` on, as they come."""
        loop = asyncio.new_event_loop()
        pieces: Any = self._client.tail_job_logs(attempt)
        try:
            buffer, n_lines = "", 0
            while True:
                try:
                    buffer += loop.run_until_complete(anext(pieces))
                except StopAsyncIteration:
                    return
                *lines, buffer = buffer.split("\n")
                for line in lines:
                    n_lines += 1
                    if n_lines > skip:
                        yield line
        finally:
            loop.run_until_complete(pieces.aclose())
            loop.close()


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
        nodes = [
            node
            for node in list_nodes(address=dashboard(target), detail=True, limit=MOST_NODES)
            if node.state == "ALIVE"
        ]
    except RayStateApiException as error:
        raise Fatal(f"Ray at {dashboard(target)} does not list its nodes: {' '.join(str(error).split())}") from error
    total = [node.resources_total for node in nodes if node.state == "ALIVE"]
    return {
        "ray_version": client._server_ray_version,  # `get_version` is that of the API
        "ray_version_here": ray.__version__,
        "nodes": len(total),
        "cpus": sum(each.get("CPU", 0) for each in total),
        "gpus": sum(each.get("GPU", 0) for each in total),
    }


def connect(target: RayTarget) -> JobSubmissionClient:
    """Its Jobs API. Raises `Fatal` where none answers."""
    try:
        return JobSubmissionClient(dashboard(target))
    except (ConnectionError, RuntimeError) as error:
        raise Fatal(f"no Ray answers at {dashboard(target)}") from error


def _time(milliseconds: int | None) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if milliseconds else ""


def _line(text: object) -> str:
    return " ".join(str(text or "").split())
