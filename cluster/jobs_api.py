"""Jobs that run elsewhere, whatever runs them: how they stand, and what can be asked of them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:  # every command's help would wait for them
    from cluster.submission import Submission
    from cluster.targets import KubernetesTarget, RayTarget
    from cluster.usage import NodeUse

State = Literal["queued", "starting", "running", "retrying", "succeeded", "failed", "stopped"]
DASHBOARD_PORT = 8265  # of Ray
ENDED = frozenset({"succeeded", "failed", "stopped"})


@dataclass(frozen=True, kw_only=True, slots=True)
class JobState:
    """How a job stands.

    Attributes:
        job: what it is, `train`.
        state: `queued` waits for room, `retrying` begins anew on a new cluster.
        message: why, in the cluster's own words; empty where there is nothing to say.
        retries: how often it began anew.
        workers: that are ready, and that are wanted.
        config: as the job reads it.
        submitted, started, ended: RFC 3339; empty where not yet.
    """

    name: str
    job: str
    state: State
    message: str = ""
    retries: int = 0
    workers: tuple[int, int] = (0, 0)
    submitted: str = ""
    started: str = ""
    ended: str = ""
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ENDED


class Jobs(Protocol):
    """The jobs of a target. Every method raises `Fatal` where there is no such job."""

    def submit(self, submission: Submission, *, again: bool = False, force: bool = False) -> tuple[JobState, bool]:
        """The job of a submission, and whether it was started now.

        One that runs is found, one that succeeded too unless `again`; one that failed or was stopped starts anew. Safe
        to repeat at any moment.
        """

    def all(self) -> list[JobState]:
        """All of them, the newest first."""

    def state(self, name: str) -> JobState:
        """How one stands now."""

    def follow(self, name: str) -> Iterator[JobState]:
        """How it stands, now and whenever that changes, until it ends."""

    def logs(self, name: str, *, follow: bool) -> Iterator[str]:
        """Lines that it printed; with `follow`, until it ends, through every retry."""

    def cancel(self, name: str) -> bool:
        """End it; whether there was anything to end. What it has stored stays."""

    def describe(self, name: str) -> dict[str, Any]:
        """How it stands, its pods or nodes, its last events, and `problems`: what is wrong, why, and what to do."""

    def usage(self, name: str) -> list[NodeUse]:
        """The machines that it has had, by the cluster's own records."""

    def gpu_use(self, name: str) -> float | None:
        """Share of its GPUs' time that is used now, 0 to 1; None where nothing tells."""


def jobs_of(target: KubernetesTarget | RayTarget) -> Jobs:
    """The jobs of a target. What talks to it is imported now, as that takes a second."""
    if target.kind == "kubernetes":
        made: Jobs = importlib.import_module("cluster.kube_jobs").KubeJobs(target)
    else:
        made = importlib.import_module("cluster.ray_jobs").RayJobs(target)
    return made
