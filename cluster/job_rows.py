"""How a job stands, with all that is known of it: progress, GPU use, cost so far."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.live import Live

from cluster import job_views
from cluster.job_progress import Progress
from cluster.jobs_api import Jobs, JobState
from cluster.targets import KubernetesTarget, RayTarget
from cluster.usage import cost_of
from tomoray.errors import TomoRayError
from tomoray.ingest.estimate import read_prices
from tomoray.progress import console

EVERY_S = 5.0

Row = dict[str, Any]


def row_of(jobs: Jobs, target: KubernetesTarget | RayTarget, state: JobState, progress: Progress | None = None) -> Row:
    """A state, its `progress`, `gpu_use` (None where nothing tells), and `cost`."""
    progress = progress or Progress(state.job, state.config)
    runs = state.state == "running"
    return {
        **asdict(state),
        "progress": progress.now(),
        "gpu_use": jobs.gpu_use(state.name) if runs else None,
        "cost": cost_of(jobs.usage(state.name), read_prices(target.prices)) if state.state != "stopped" else {},
    }


def watch(jobs: Jobs, target: KubernetesTarget | RayTarget, name: str) -> Row:
    """Show the row of a job on stderr until it ends, and return the last one.

    It is drawn anew whenever the job's state changes, and every few seconds for its progress.
    """
    state = jobs.state(name)
    progress = Progress(state.job, state.config)
    states: queue.SimpleQueue[JobState | Exception] = queue.SimpleQueue()
    threading.Thread(target=_pump, args=(jobs, name, states.put), daemon=True).start()
    row = row_of(jobs, target, state, progress)
    with Live(job_views.table([row]), console=console, auto_refresh=False) as live:
        drawn = time.monotonic()
        while not state.has_ended:
            try:
                told = states.get(timeout=max(0.0, EVERY_S - (time.monotonic() - drawn)))
            except queue.Empty:
                told = state
            if isinstance(told, Exception):
                raise told
            state = told
            row = row_of(jobs, target, state, progress)
            live.update(job_views.table([row]), refresh=True)
            drawn = time.monotonic()
    return row


def _pump(jobs: Jobs, name: str, put: Callable[[JobState | Exception], None]) -> None:
    """What is told of a job, from a thread: waiting for it must not stop the drawing."""
    try:
        for state in jobs.follow(name):
            put(state)
    except TomoRayError as error:
        put(error)
