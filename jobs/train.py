"""Archive -> run: Ray Train, one process a worker, patches straight from the archive.

What a worker does is `tomoray.training.loop`; Ray Train starts workers, as many as there is room for, and starts them
anew where one is lost. Checkpoints are the run's own, on a path or S3: run again, the same command goes on where the
last whole one was written.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import combinations
from typing import Any

import ray
import torch
from ray import train
from ray.train import torch as train_torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs import report
from jobs.main import main
from tomoray.archive import Archive
from tomoray.catalog import Catalog, Split, split_by_patient
from tomoray.config import ReportConfig
from tomoray.errors import Fatal, TomoRayError, Usage
from tomoray.ingest.estimate import read_prices
from tomoray.patches import require_labels
from tomoray.progress import Advance, console, track
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
from tomoray.training.augment import augment
from tomoray.training.checkpoints import Checkpoints
from tomoray.training.config import TrainConfig
from tomoray.training.loop import Loop, Outcome, Worker, loss_curve
from tomoray.training.tracking import check_tracking, track_run

MAX_FAILURES = 3  # lost workers, not counting preempted ones, before the run gives up
_SHOW_EVERY_S = 0.5
_TRACK_EVERY_S = 30.0
_PICTURES = 2


def run(config: TrainConfig) -> dict[str, Any]:
    """Train, or go on training, or say that it is done.

    Returns:
        `run`, `archive`, `steps`, `first_step` (where the last workers began), `already_done`,
        `metrics` (`loss`, `loss_curve`, `validation`: scores of the model; `step_seconds` and `waiting_seconds` for
        data of the steps since `first_step`; `damaged_checkpoints`), `cost`, `model_sha256`, `scans` and `patients`
        per part, `seconds` in all.

    Raises:
        Usage: no archive or run named, or the run's folder holds another config.
        Fatal: the archive has too few patients, lacks a label, has changed since the run began, or training failed.
    """
    began = time.monotonic()
    if config.archive is None or config.out is None:
        raise Usage("train wants an archive and a folder for the run: tomoray train … --archive ARCHIVE --out RUN")
    _check_node(config)
    check_tracking(config.tracking)
    archive, store = Archive.open(config.archive), open_store(config.out)
    store.check()
    config = config.model_copy(update={"archive": archive.url, "out": store.url, "gpu": _use_gpu(config)})
    rows = [row for row in Catalog(archive.store).rows() if row["status"] == "stored"]
    if not rows:
        raise Fatal(f"archive {archive.url} holds no scan; fill it with: tomoray preprocess SOURCE {archive.url}")
    split = split_by_patient(sorted({row["patient_id"] for row in rows}), config.split)
    _check_classes(archive, _scans_by_part(rows, split, config.labels), config.labels)  # before anything is written
    _check_capacity(config)
    split, finished = begin_run(store, config, split, _archive_sha256(rows, split))
    scans = _scans_by_part(rows, split, config.labels)
    if finished:
        return _result(open_run(store.url), scans, began, first_step=config.steps, already_done=True)
    _check_archive_is_the_same(store, archive, _archive_sha256(rows, split))
    outcome = _fit(config, scans)
    checkpoints = _checkpoints(store, config, rows)
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
    _report(run_now)
    return _result(run_now, scans, began, first_step=outcome.first_step, already_done=False)


def _fit(config: TrainConfig, scans: Mapping[str, Sequence[str]]) -> Outcome:
    """Run workers to the end, anew wherever machines are about to go."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = _Board.options(scheduling_strategy=here).remote()  # so that no machine that goes takes it away
    with track("train", config.steps) as advance, _follow(board, advance), _tracked(config):
        while True:
            outcome = _run_workers(config, scans, board)
            if outcome.status == "fatal":
                raise Fatal(outcome.message)
            if outcome.status == "done":
                return outcome


def _run_workers(config: TrainConfig, scans: Mapping[str, Sequence[str]], board: Any) -> Outcome:
    """Workers until they end together; those that are lost are replaced."""
    filesystem, path = open_store(str(config.out)).arrow_filesystem()
    elastic = config.fewest_workers < config.most_workers
    trainer = train_torch.TorchTrainer(
        _work,
        train_loop_config={"config": config.model_dump(mode="json"), "scans": dict(scans), "board": board},
        torch_config=train_torch.TorchConfig(backend="nccl" if config.gpu else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=(config.fewest_workers, config.most_workers) if elastic else config.most_workers,
            use_gpu=bool(config.gpu),
            resources_per_worker={"CPU": config.cpus, **({"GPU": 1} if config.gpu else {})},
        ),
        run_config=train.RunConfig(
            name=CHECKPOINTS,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=train.FailureConfig(max_failures=MAX_FAILURES, max_preemption_failures=-1),
            logging_config=train.LoggingConfig(log_level="ERROR"),
            worker_runtime_env={"env_vars": {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}} if config.deterministic else None,
        ),
    )
    try:
        found = trainer.fit().return_value
    except train.TrainingFailedError as error:
        raise _cause(error) from error
    assert isinstance(found, Outcome)
    return found


def _work(job: Mapping[str, Any]) -> Outcome:
    """What each worker does."""
    config = TrainConfig.model_validate(job["config"])
    torch.set_num_threads(config.cpus)
    context, board = train.get_context(), job["board"]
    archive = Archive.open(str(config.archive))
    worker = Worker(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=str(train_torch.get_device()),
        noticed=lambda: train.get_preemption_info() is not None,
        post=board.post.remote,
    )
    task = make_task(config, _stored(archive))
    scans = job["scans"]
    return Loop(
        config,
        task,
        archive,
        (scans["train"], scans["validation"]),
        open_store(str(config.out)),
        worker,
        augment=augment,
    ).run()


def _stored(archive: Archive) -> list[dict[str, Any]]:
    return [row for row in Catalog(archive.store).rows() if row["status"] == "stored"]


def _checkpoints(store: Store, config: TrainConfig, rows: Sequence[Mapping[str, Any]]) -> Checkpoints:
    task = make_task(config, rows)
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


@ray.remote(num_cpus=0)
class _Board:
    """Where rank 0 leaves word of how far it is, and the driver reads it."""

    def __init__(self) -> None:
        self._line: dict[str, Any] = {}

    def post(self, line: dict[str, Any]) -> None:
        self._line = {**({"scores": self._line["scores"]} if "scores" in self._line else {}), **line}

    def read(self) -> dict[str, Any]:
        return self._line


@contextmanager
def _follow(board: Any, advance: Advance) -> Iterator[None]:
    """Move the progress bar as word comes."""
    shown = 0

    def look() -> None:
        nonlocal shown
        line = ray.get(board.read.remote())
        if line:
            scores = "".join(f" {name} {score:.3f}" for name, score in list(line.get("scores", {}).items())[:1])
            advance(line["step"] - shown, f"loss {line['loss']:.3f}{scores}")
            shown = line["step"]

    with _every(_SHOW_EVERY_S, look):
        yield


def _report(run: Run) -> None:
    """Write `RUN/report.html`; a run is finished without it too."""
    try:
        ray.get(ray.remote(num_cpus=1)(report.run).remote(ReportConfig(run=run.store.url, pictures=_PICTURES)))
    except (TomoRayError, ray.exceptions.RayError) as error:
        line = " ".join(str(error).split())[:300]
        console.print(f"no report ({line}); try: tomoray report {run.store.url}", markup=False)


@contextmanager
def _tracked(config: TrainConfig) -> Iterator[None]:
    """Keep TensorBoard and MLflow up to the history. That they fail is no reason to stop training."""

    def track_once() -> None:
        try:
            track_run(open_store(str(config.out)), config)
        except TomoRayError as error:
            console.print(f"not tracked: {error}", markup=False)

    with _every(_TRACK_EVERY_S, track_once):
        yield


@contextmanager
def _every(seconds: float, call: Callable[[], None]) -> Iterator[None]:
    """Call again and again, and once more at the end, in a thread: `fit` holds the main one."""
    ended = threading.Event()

    def repeat() -> None:
        while True:
            last = ended.wait(seconds)
            call()
            if last:
                return

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


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


def _cause(error: train.TrainingFailedError) -> Exception:
    """The first worker's own error if we raised it on purpose, else one line about it."""
    failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", error)}
    causes = [getattr(failure, "_base_exc", failure) for _, failure in sorted(failures.items())]
    for cause in causes:
        if isinstance(cause, TomoRayError):
            return cause
    line = " ".join(str(causes[0]).split())[:300]
    return Fatal(f"training failed after {MAX_FAILURES} restarts: {type(causes[0]).__name__}: {line}")


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
