"""A run on spot machines, event by event: machines vanish and come back, tasks are done again, training goes on.

Time is in seconds. The same seed gives the same run. What a machine does is fitted to the benchmarks: `Rates` of
tomoray.costs.workload says where each number is from.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from tomoray.config import Config
from tomoray.costs.workload import Rates, assumptions
from tomoray.ingest.estimate import NodePrice

POINTS = 200  # of a timeline


class SimulateConfig(Config):
    """A fleet, how often it loses machines, and what it is to do.

    Attributes:
        machines: how many are wanted at all times.
        interruptions_per_hour: of one machine, on average; times between are drawn from an exponential distribution.
        notice_s: a machine knows so long before it goes; AWS says two minutes.
        series, source_tb: to preprocess, before training.
        spread: how unlike one another series are (sigma of a log-normal); 0: all are alike.
        steps: of training, after preprocessing; 0: none.
        batch_size: patches of a step.
        checkpoint_every: steps between checkpoints.
        seed: of everything that is drawn.
    """

    machines: Annotated[int, Field(ge=1)] = 20
    interruptions_per_hour: Annotated[float, Field(ge=0)] = 0.05
    notice_s: Annotated[float, Field(ge=0)] = 120.0
    series: Annotated[int, Field(ge=0)] = 0
    source_tb: Annotated[float, Field(ge=0)] = 0
    spread: Annotated[float, Field(ge=0)] = 0.5
    steps: Annotated[int, Field(ge=0)] = 0
    batch_size: Annotated[int, Field(ge=1)] = 8
    checkpoint_every: Annotated[int, Field(ge=1)] = 500
    seed: int = 0
    rates: Rates = Rates()


@dataclass(kw_only=True, slots=True)
class Stage:
    """How one stage went.

    Attributes:
        seconds: from its start to its end.
        machine_s: that machines were there, and so were paid.
        useful_s: of slots (preprocessing) or machines (training) doing what lasts.
        repeated_s: the same, doing what was lost and done again.
        done: series or steps.
        repeated: series or steps that were done again.
        interruptions: machines that went.
        timeline: (second, machines there, share done).
    """

    seconds: float = 0.0
    machine_s: float = 0.0
    useful_s: float = 0.0
    repeated_s: float = 0.0
    done: int = 0
    repeated: int = 0
    interruptions: int = 0
    timeline: list[tuple[float, int, float]] = field(default_factory=list)


def simulate(config: SimulateConfig, cpu: NodePrice, gpu: NodePrice) -> dict[str, Any]:
    """Preprocessing on machines like `cpu`, then training on machines like `gpu`.

    Returns:
        JSON-able: for each stage hours, machine hours, dollars on demand and spot, work useful and repeated,
        interruptions and a timeline; `hours` and `dollars` of both.
    """
    ingest = preprocess(series_seconds(config), config, slots=cpu.vcpus)
    trained = train(config, gpu)
    stages = {"preprocessing": _told(ingest, cpu), "training": _told(trained, gpu)}
    return {
        "stages": stages,
        "hours": round((ingest.seconds + trained.seconds) / 3600, 4),
        "dollars": {
            kind: round(sum(stage["dollars"][kind] for stage in stages.values()), 2) for kind in ("on_demand", "spot")
        },
        "machines": config.machines,
        "interruptions_per_hour": config.interruptions_per_hour,
        "seed": config.seed,
        "assumes": assumptions(config.rates),
    }


def series_seconds(config: SimulateConfig) -> np.ndarray[Any, np.dtype[np.float64]]:
    """How long a slot works on each series; together exactly what the rates say of all their bytes."""
    if not config.series:
        return np.zeros(0)
    total_s = config.source_tb * 1e6 / (config.rates.mb_per_vcpu_s * config.rates.s3_share)
    sizes = np.random.default_rng((config.seed, 1)).lognormal(0.0, config.spread, config.series)
    return np.asarray(sizes * (total_s / sizes.sum()), dtype=np.float64)


def preprocess(durations_s: np.ndarray[Any, np.dtype[np.float64]], config: SimulateConfig, *, slots: int) -> Stage:
    """A task a series, `slots` at a time on each machine, handed out no faster than the driver can.

    A machine with notice takes no more tasks; what it cannot end in time is lost and done again elsewhere.
    """
    stage, fleet, events = Stage(timeline=[(0.0, config.machines, 0.0)]), _Fleet(config), _Events()
    waiting = deque(range(len(durations_s)))
    taking = set(range(config.machines))  # there, and without notice
    free = deque(machine for _ in range(slots) for machine in range(config.machines))
    running: dict[int, dict[int, float]] = {machine: {} for machine in range(config.machines)}  # task: when it began
    for machine in range(config.machines):
        events.add(fleet.next_notice(0.0), "notice", machine)
    now, handed_at, gap = 0.0, 0.0, 1.0 / config.rates.driver_series_per_s
    every = max(len(durations_s) // POINTS, 1)
    while stage.done < len(durations_s):
        while waiting and free:
            machine = free.popleft()
            if machine in taking:
                task, begins = waiting.popleft(), max(now, handed_at)
                running[machine][task] = begins
                handed_at = begins + gap
                events.add(begins + durations_s[task], "end", machine, task)
        at, kind, machine, task = events.next()
        stage.machine_s += len(fleet.paid) * (at - now)
        now = at
        if kind == "end":
            began = running[machine].get(task)
            if began is None or began + durations_s[task] != now:
                continue  # it was lost on the way
            del running[machine][task]
            free.append(machine)
            stage.useful_s += float(durations_s[task])
            stage.done += 1
            if stage.done % every == 0:
                stage.timeline.append((now, len(fleet.paid), stage.done / len(durations_s)))
        elif kind == "notice":
            taking.discard(machine)
            events.add(now + config.notice_s, "gone", machine)
        elif kind == "gone":
            fleet.paid.discard(machine)
            stage.interruptions += 1
            stage.repeated += len(running[machine])
            stage.repeated_s += sum(max(now - began, 0.0) for began in running[machine].values())
            waiting.extendleft(running[machine])
            running[machine] = {}
            free = deque(each for each in free if each != machine)
            events.add(now + config.rates.node_start_s, "back", machine)
        else:
            fleet.paid.add(machine)
            taking.add(machine)
            free.extend([machine] * slots)
            events.add(fleet.next_notice(now), "notice", machine)
    stage.seconds = now
    return stage


def train(config: SimulateConfig, gpu: NodePrice) -> Stage:
    """Steps on as many machines as are there, a machine's share of the batch each.

    With notice enough to save a step, none is lost; else those since the last checkpoint. Each change of the group
    stands still for `restart_s`.
    """
    stage, fleet, events = Stage(timeline=[(0.0, config.machines, 0.0)]), _Fleet(config), _Events()
    saves = config.notice_s >= config.rates.restart_s
    step_s = config.batch_size / _patches_per_s(gpu, config.rates)  # of one machine
    for machine in range(config.machines):
        events.add(fleet.next_notice(0.0) + config.notice_s, "gone", machine)
    now, steps, stands_until = 0.0, 0.0, 0.0
    while steps < config.steps:
        n, begins = len(fleet.paid), max(now, stands_until)
        ends = begins + (config.steps - steps) * step_s / n if n else float("inf")
        at = min(ends, events.soonest())
        worked = max(at - begins, 0.0)
        stage.machine_s += n * (at - now)
        stage.useful_s += n * worked
        steps = float(config.steps) if at == ends else steps + worked * n / step_s
        now = at
        stage.timeline.append((now, n, steps / config.steps))
        if at == ends:
            break
        _, kind, machine, _ = events.next()
        stage.timeline.append((now, n + (1 if kind == "back" else -1), steps / config.steps))
        stands_until = now + config.rates.restart_s
        if kind == "back":
            fleet.paid.add(machine)
            events.add(fleet.next_notice(now) + config.notice_s, "gone", machine)
            continue
        fleet.paid.discard(machine)
        stage.interruptions += 1
        events.add(now + config.rates.node_start_s, "back", machine)
        lost = 0.0 if saves else steps % config.checkpoint_every
        steps -= lost
        stage.repeated += round(lost)
        stage.repeated_s += lost * step_s
        stage.useful_s -= lost * step_s
    stage.seconds, stage.done = now, config.steps
    return stage


def _patches_per_s(gpu: NodePrice, rates: Rates) -> float:
    """What a machine trains on in a second: its GPUs' speed, or that at which its cores cut patches."""
    return min(gpu.gpus * rates.gpu_patches_per_s, gpu.vcpus * rates.stream_patches_per_vcpu_s)


class _Events:
    """What happens next: (second, kind, machine, task), those of one moment in the order they were added."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str, int, int]] = []
        self._added = 0

    def add(self, at: float, kind: str, machine: int, task: int = -1) -> None:
        self._added += 1
        heapq.heappush(self._heap, (float(at), self._added, kind, machine, task))

    def next(self) -> tuple[float, str, int, int]:
        at, _, kind, machine, task = heapq.heappop(self._heap)
        return at, kind, machine, task

    def soonest(self) -> float:
        return self._heap[0][0]


class _Fleet:
    """Which machines are there and paid for, and when the next notice of one comes."""

    def __init__(self, config: SimulateConfig) -> None:
        self.paid = set(range(config.machines))
        self._mean_s = 3600 / config.interruptions_per_hour if config.interruptions_per_hour else float("inf")
        self._random = np.random.default_rng((config.seed, 2))

    def next_notice(self, now: float) -> float:
        return now + float(self._random.exponential()) * self._mean_s


def _told(stage: Stage, price: NodePrice) -> dict[str, Any]:
    hours = stage.machine_s / 3600
    lost = stage.repeated_s / (stage.useful_s + stage.repeated_s) if stage.useful_s else 0.0
    thin = max(len(stage.timeline) // (2 * POINTS), 1)
    return {
        "hours": round(stage.seconds / 3600, 4),
        "machine_hours": round(hours, 3),
        "dollars": {"on_demand": round(hours * price.on_demand, 2), "spot": round(hours * price.spot, 2)},
        "done": stage.done,
        "repeated": stage.repeated,
        "useful_hours": round(stage.useful_s / 3600, 4),
        "repeated_hours": round(stage.repeated_s / 3600, 4),
        "repeated_share": round(lost, 6),
        "interruptions": stage.interruptions,
        "timeline": [
            [round(at, 1), n, round(share, 4)] for at, n, share in [*stage.timeline[:-1:thin], *stage.timeline[-1:]]
        ],
    }
