"""Archive -> run: Ray Train, one process a worker, patches straight from the archive.

Ray Train starts workers (`jobs.workers`), as many as there is room for, and starts them anew where one is lost.
Checkpoints are the run's own, on a path or S3: run again, the same command goes on where the last whole one was
written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs import report
from jobs.main import main
from jobs.workers import Watcher, every, train_by_ray
from tomoray.archive import Archive
from tomoray.catalog import Catalog, Split, split_by_patient
from tomoray.config import ReportConfig
from tomoray.errors import Fatal, TomoRayError, Usage
from tomoray.ingest.estimate import read_prices
from tomoray.lease import RUN_MARK, Lease, Progress
from tomoray.patches import require_labels
from tomoray.progress import console
from tomoray.runs import (
    CHECKPOINTS,
    Run,
    begin_run,
    catalog_sha256,
    cost_so_far,
    finish_run,
    open_run,
    started_on,
)
from tomoray.storage import Store, open_store
from tomoray.tasks.choice import make_task
from tomoray.tasks.task import Task
from tomoray.training.checkpoints import Checkpoints
from tomoray.training.config import TrainConfig
from tomoray.training.loop import Line, Outcome, loss_curve
from tomoray.training.terminal import Metrics, show
from tomoray.training.tracking import check_tracking

Fit = Callable[["Job"], Outcome]

_SHOW_EVERY_S = 0.5
_PICTURES = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is to be trained, and on what; nothing is written yet.

    Attributes:
        config: with the full URLs of archive and run, and `gpu` decided.
        rows: of the archive's catalog, of all stored scans.
        split: patients by part.
        scans: scan ids by part.
        task: made from the config.
    """

    config: TrainConfig
    archive: Archive
    rows: Sequence[Mapping[str, Any]]
    split: Split
    scans: Mapping[str, Sequence[str]]
    task: Task


def run(config: TrainConfig, *, fit: Fit | None = None, pictures: int = _PICTURES) -> dict[str, Any]:
    """Train, or go on training, or say that it is done.

    Args:
        config: what, on which archive, and where to.
        fit: what trains, where a tuning has the folder to itself; None: workers of Ray Train, with a table of metrics
            on stderr.
        pictures: scans in the report.

    Returns:
        `run`, `archive`, `steps`, `first_step` (where the last workers began), `already_done`,
        `metrics` (`loss`, `loss_curve`, `validation`: scores of the model; `step_seconds` and `waiting_seconds` for
        data of the steps since `first_step`; `damaged_checkpoints`), `cost`, `model_sha256`, `scans` and `patients`
        per part, `seconds` in all.

    Raises:
        Usage: no archive or run named, or the run's folder holds another config.
        Fatal: the archive has too few patients, lacks a label, has changed since the run began; another process trains
            there; or training failed.
    """
    began = time.monotonic()
    job = prepare(config)
    with (
        Lease(open_store(str(job.config.out)), Progress(), mark=RUN_MARK, waits=True) if fit is None else nullcontext()
    ):
        return _run(job, fit or _fit, pictures, began)


def prepare(config: TrainConfig) -> Job:
    """Look at all that a training wants, before anything is written. Raises as `run` does."""
    if config.archive is None or config.out is None:
        raise Usage("train wants an archive and a folder for the run: tomoray train … --archive ARCHIVE --out RUN")
    _check_node(config)
    check_tracking(config.tracking)
    archive, store = Archive.open(config.archive), open_store(config.out)
    store.check()
    config = config.model_copy(update={"archive": archive.url, "out": store.url, "gpu": _use_gpu(config)})
    rows = Catalog(archive.store).stored()
    if not rows:
        raise Fatal(f"archive {archive.url} holds no scan; fill it with: tomoray preprocess SOURCE {archive.url}")
    split = split_by_patient(sorted({row["patient_id"] for row in rows}), config.split)
    scans = _scans_by_part(rows, split, config.labels)
    _check_classes(archive, scans, config.labels)
    _check_capacity(config)
    return Job(config=config, archive=archive, rows=rows, split=split, scans=scans, task=make_task(config, rows))


def _run(job: Job, fit: Fit, pictures: int, began: float) -> dict[str, Any]:
    config, store = job.config, open_store(str(job.config.out))
    split, finished = begin_run(store, config, job.split, _archive_sha256(job.rows, job.split))
    job = replace(job, split=split, scans=_scans_by_part(job.rows, split, config.labels))
    if finished:
        return _result(open_run(store.url), job.scans, began, first_step=config.steps, already_done=True)
    _check_archive_is_the_same(store, job.archive, _archive_sha256(job.rows, split))
    outcome = fit(job)
    checkpoints = _checkpoints(store, config, job.task)
    best = checkpoints.best() if config.validate_every is not None else checkpoints.describe(outcome.steps)
    metrics = {
        "loss": loss_curve(outcome.history)[-1][1],
        "loss_curve": loss_curve(outcome.history),
        "step_seconds": outcome.step_seconds,
        "waiting_seconds": outcome.waiting_seconds,
        "validation": dict(best.scores) if best else {},
        "damaged_checkpoints": list(outcome.troubles),
    }
    model_step = best.step if best else outcome.steps
    run_now = finish_run(store, config, split, metrics, steps=outcome.steps, model_step=model_step)
    _report(run_now, pictures)
    return _result(run_now, job.scans, began, first_step=outcome.first_step, already_done=False)


def _fit(job: Job) -> Outcome:
    """Workers of Ray Train, and what they tell on stderr."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = _Board.options(scheduling_strategy=here).remote()  # so that no machine that goes takes it away
    metrics = Metrics(job.config.steps, monitor=job.task.monitor, higher_is_better=job.task.higher_is_better)
    with show(metrics.draw), _follow(board, metrics):
        return train_by_ray(job.config, job.scans, Watcher(post=lambda line: board.post.remote(line)))


@ray.remote(num_cpus=0)
class _Board:
    """Where rank 0 leaves word of how far it is, and the driver fetches it."""

    def __init__(self) -> None:
        self._lines: list[Line] = []

    def post(self, line: Line) -> None:
        self._lines.append(line)

    def fetch(self) -> list[Line]:
        lines, self._lines = self._lines, []
        return lines


@contextmanager
def _follow(board: Any, metrics: Metrics) -> Iterator[None]:
    """Take the lines as they come; where nobody sees the table, print one for each validation."""

    def look() -> None:
        for told in metrics.take(ray.get(board.fetch.remote())):
            if not console.is_terminal:
                console.print(told, markup=False, highlight=False, soft_wrap=True)

    with every(_SHOW_EVERY_S, look):
        yield


def _checkpoints(store: Store, config: TrainConfig, task: Task) -> Checkpoints:
    return Checkpoints(
        store.child(CHECKPOINTS), keep=config.keep, monitor=task.monitor, higher_is_better=task.higher_is_better
    )


def _scans_by_part(rows: Sequence[Mapping[str, Any]], split: Split, labels: Sequence[str]) -> dict[str, list[str]]:
    """Scan ids of each part.

    Raises `Fatal` where a scan that training reads lacks a label, or a patient is in two parts.
    """
    parts = {part: set(patients) for part, patients in asdict(split).items()}
    for one, other in combinations(parts, 2):
        if both := sorted(parts[one] & parts[other]):
            raise Fatal(
                f"patient {both[0]} is in the parts {one} and {other} of the split; a model would be tested on what it "
                f"has seen: put each patient into one part"
            )
    of_part = {part: [row for row in rows if row["patient_id"] in patients] for part, patients in parts.items()}
    require_labels({row["scan_id"]: row["labels"] for row in of_part["train"] + of_part["validation"]}, labels)
    return {part: sorted(row["scan_id"] for row in found) for part, found in of_part.items()}


def _check_classes(archive: Archive, scans: Mapping[str, Sequence[str]], labels: Sequence[str]) -> None:
    """Raise `Fatal` where no scan of a part that training reads has a voxel of a label."""
    for part in ("train", "validation"):
        missing = list(labels)
        for scan_id in scans[part]:
            if not missing:
                break
            scan = archive.scan(scan_id)
            missing = [name for name in missing if not len(scan.foreground_voxels_zyx(name))]
        if missing and scans[part]:
            raise Fatal(
                f"label {missing[0]!r} is empty in all {len(scans[part])} scans of part {part!r}; add patients that "
                f"have it, give the part a larger share in split, or choose another split.seed"
            )


def _archive_sha256(rows: Sequence[Mapping[str, Any]], split: Split) -> str:
    """Of the scans of the run's own patients: others may come and go."""
    patients = {patient for part in asdict(split).values() for patient in part}
    return catalog_sha256(row for row in rows if row["patient_id"] in patients)


def _check_archive_is_the_same(store: Store, archive: Archive, sha256: str) -> None:
    before = started_on(store)
    if before and before != sha256:
        raise Fatal(
            f"archive {archive.url} has changed since run {store.url} began: scans of its patients were added, removed "
            f"or made anew, so that it would go on with other samples; choose another --out"
        )


def _check_node(config: TrainConfig) -> None:
    known = read_prices().nodes
    if config.node is not None and config.node not in known:
        raise Usage(f"node {config.node!r} is not in the price table; known: {', '.join(known)}")


def _report(run: Run, pictures: int) -> None:
    """Write `RUN/report.html`; a run is finished without it too."""
    wanted = ReportConfig(run=run.store.url, pictures=pictures)
    try:
        if pictures:
            ray.get(ray.remote(num_cpus=1)(report.run).remote(wanted))
        else:
            report.run(wanted)
    except (TomoRayError, ray.exceptions.RayError) as error:
        line = " ".join(str(error).split())[:300]
        console.print(f"no report ({line}); try: tomoray report {run.store.url}", markup=False)


def _use_gpu(config: TrainConfig) -> bool:
    if config.gpu is not None:
        return config.gpu
    return bool(ray.cluster_resources().get("GPU", 0) >= config.fewest_workers)


def _check_capacity(config: TrainConfig) -> None:
    """Refuse what this machine can never place. A cluster of several nodes, or a bare head, may still grow."""
    kind, each = ("GPU", 1) if config.gpu else ("CPU", config.cpus)
    there, wanted = ray.cluster_resources().get(kind, 0), config.fewest_workers * each
    if len(ray.nodes()) == 1 and ray.cluster_resources().get("CPU", 0) and there < wanted:
        many = f"{each} {kind}s" if each > 1 else f"a {kind}"
        raise Usage(
            f"{config.fewest_workers} workers want {many} each and this machine's Ray has {there:g}; lower workers"
        )


def _result(run: Run, scans: Mapping[str, Sequence[str]], began: float, **facts: Any) -> dict[str, Any]:
    return {
        "run": run.store.url,
        "archive": run.config.archive,
        "steps": run.steps,
        **facts,
        "metrics": dict(run.metrics),
        "cost": cost_so_far(run.store, run.config),
        "model_sha256": run.model_sha256,
        "scans": {part: len(ids) for part, ids in scans.items()},
        "seconds": round(time.monotonic() - began, 3),
        "patients": {part: len(patients) for part, patients in asdict(run.split).items()},
    }


if __name__ == "__main__":
    main(run, TrainConfig)
