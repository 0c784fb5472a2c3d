"""The processes that train: of Ray Train, anew where one is lost, or this one alone.

What a worker does is `tomoray.training.loop`; here is where it runs, and whom it tells.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from ray import train
from ray.exceptions import OutOfMemoryError
from ray.train import torch as train_torch

from tomoray.archive import Archive
from tomoray.catalog import Catalog
from tomoray.errors import Fatal, TomoRayError
from tomoray.progress import console
from tomoray.runs import CHECKPOINTS
from tomoray.storage import open_store
from tomoray.tasks.choice import make_task
from tomoray.training.augment import augment
from tomoray.training.config import TrainConfig
from tomoray.training.loop import Line, Loop, Outcome, Worker
from tomoray.training.memory import advice
from tomoray.training.tracking import track_run

MAX_FAILURES = 3  # lost workers, not counting preempted ones, before the run gives up
_TRACK_EVERY_S = 30.0

Scans = Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Watcher:
    """Whom rank 0 tells how far it is, and asks whether to go on (`tomoray.training.loop.Worker`). Goes to workers."""

    post: Callable[[Line], None]
    goes_on: Callable[[Line], bool] = lambda line: True


def train_by_ray(config: TrainConfig, scans: Scans, watcher: Watcher) -> Outcome:
    """Train in workers of Ray Train to the end, anew wherever machines are about to go.

    Args:
        config: with archive, run and `gpu` decided.
        scans: scan ids by part.
        watcher: of rank 0.

    Raises:
        Fatal: training failed, in a way that trying again does not mend or too often.
    """
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    with _tracked(config):
        while True:
            outcome = _run_workers(config, scans, watcher)
            if outcome.status == "fatal":
                raise Fatal(outcome.message)
            if outcome.status == "done":
                return outcome


def train_here(config: TrainConfig, scans: Scans, watcher: Watcher) -> Outcome:
    """The same in this process, as its only worker. Raises `Fatal` likewise."""
    with _tracked(config):
        outcome = _loop(config, scans, Worker(device="cuda" if config.gpu else "cpu", **_told(watcher))).run()
    if outcome.status == "fatal":
        raise Fatal(outcome.message)
    return outcome


@contextmanager
def every(seconds: float, call: Callable[[], None]) -> Iterator[None]:
    """Call again and again, and once more at the end, in a thread: training holds this one."""
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


def _run_workers(config: TrainConfig, scans: Scans, watcher: Watcher) -> Outcome:
    """Workers until they end together; those that are lost are replaced."""
    filesystem, path = open_store(str(config.out)).arrow_filesystem()
    elastic = config.fewest_workers < config.most_workers
    trainer = train_torch.TorchTrainer(
        _work,
        train_loop_config={"config": config.model_dump(mode="json"), "scans": dict(scans), "watcher": watcher},
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
            callbacks=[_StopsAtFatal()],
            logging_config=train.LoggingConfig(log_level="ERROR"),
            worker_runtime_env={"env_vars": {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}} if config.deterministic else None,
        ),
    )
    try:
        found = trainer.fit().return_value
    except train.TrainingFailedError as error:
        raise _cause(error, config) from error
    assert isinstance(found, Outcome)
    return found


def _work(job: Mapping[str, Any]) -> Outcome:
    """What each worker does."""
    context = train.get_context()
    worker = Worker(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        neighbours=context.get_local_world_size(),
        device=str(train_torch.get_device()),
        noticed=lambda: train.get_preemption_info() is not None,
        **_told(job["watcher"]),
    )
    return _loop(TrainConfig.model_validate(job["config"]), job["scans"], worker).run()


def _told(watcher: Watcher) -> dict[str, Any]:
    return {"post": watcher.post, "goes_on": watcher.goes_on}


def _loop(config: TrainConfig, scans: Scans, worker: Worker) -> Loop:
    torch.set_num_threads(config.cpus)
    archive = Archive.open(str(config.archive))
    rows = Catalog(archive.store).stored()
    task = make_task(config, rows)
    parts = (scans["train"], scans["validation"])
    return Loop(config, task, archive, parts, open_store(str(config.out)), worker, augment=augment)


class _StopsAtFatal(train.UserCallback):
    """What trying again would not mend ends the run, though only one of its workers met it."""

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Raise the `Fatal` of a worker: an error of a callback is not tried again."""
        for _, error in sorted(worker_exceptions.items()):
            cause = _root(error)
            if isinstance(cause, Fatal):
                raise cause


def _cause(error: train.TrainingFailedError, config: TrainConfig) -> Exception:
    """The first worker's own error if we raised it on purpose, else one line about it."""
    failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", error)}
    causes = [_root(failure) for _, failure in sorted(failures.items())]
    for cause in causes:
        if isinstance(cause, TomoRayError):
            return cause
    line = " ".join(str(causes[0]).split())[:300]
    if any(isinstance(cause, OutOfMemoryError) for cause in causes):
        return Fatal(f"training was ended {MAX_FAILURES + 1} times as its machine had no memory left; {advice(config)}")
    return Fatal(f"training failed after {MAX_FAILURES} restarts: {type(causes[0]).__name__}: {line}")


def _root(error: Exception) -> Exception:
    return getattr(error, "_base_exc", None) or error


@contextmanager
def _tracked(config: TrainConfig) -> Iterator[None]:
    """Keep TensorBoard and MLflow up to the history. That they fail is no reason to stop training."""

    def track_once() -> None:
        try:
            track_run(open_store(str(config.out)), config)
        except TomoRayError as error:
            console.print(f"not tracked: {error}", markup=False)

    with every(_TRACK_EVERY_S, track_once):
        yield
