"""Archive -> run: Ray Train, one process a worker, patches straight from the archive.

Each worker sees other patches; gradients are averaged (NCCL on GPUs, gloo on CPUs). Checkpoints go through Ray Train
to the run's folder, on a path or S3. Run again, the same command goes on where the last checkpoint was written.
"""

from __future__ import annotations

import logging
import math
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import ray
import torch
from ray import train
from ray.train import torch as train_torch
from torch import distributed, nn

from jobs.main import main
from tomoray.archive import Archive
from tomoray.catalog import Catalog, Split, split_by_patient
from tomoray.errors import Fatal, TomoRayError, Usage
from tomoray.patches import PatchStream, require_labels
from tomoray.progress import Advance, track
from tomoray.runs import CHECKPOINTS, MODEL, STATE, Run, begin_run, checkpoint_name, finish_run, open_run
from tomoray.storage import open_store
from tomoray.tasks.segmentation import NETWORK, Segmentation
from tomoray.training.augment import augment
from tomoray.training.config import TrainConfig

MAX_FAILURES = 3  # lost workers, not counting preempted ones, before the run gives up
_SHOW_EVERY_S = 0.5


def run(config: TrainConfig) -> dict[str, Any]:
    """Train, or go on training, or say that it is done.

    Returns:
        `run`, `archive`, `steps`, `first_step` (where it began, after a checkpoint if there was one), `already_done`,
        `metrics` (`loss`, `loss_curve`, `validation_dice` per label; `step_seconds` and `waiting_seconds` for data of
        the steps since `first_step`), `model_sha256`, `scans` and `patients` per part, `seconds` in all.

    Raises:
        Usage: no archive or run named, or the run's folder holds another config.
        Fatal: the archive has too few patients, lacks a label, or training failed.
    """
    began = time.monotonic()
    if config.archive is None or config.out is None:
        raise Usage("train wants an archive and a folder for the run: tomoray train … --archive ARCHIVE --out RUN")
    archive, store = Archive.open(config.archive), open_store(config.out)
    store.check()
    config = config.model_copy(update={"archive": archive.url, "out": store.url, "gpu": _use_gpu(config)})
    rows = [row for row in Catalog(archive.store).rows() if row["status"] == "stored"]
    if not rows:
        raise Fatal(f"archive {archive.url} holds no scan; fill it with: tomoray preprocess SOURCE {archive.url}")
    split = split_by_patient(sorted({row["patient_id"] for row in rows}), config.split)
    _scans_by_part(rows, split, config.labels)  # before anything is written
    _check_capacity(config)
    split, finished = begin_run(store, config, split)
    scans = _scans_by_part(rows, split, config.labels)
    if finished:
        return _result(open_run(store.url), scans, began, first_step=config.steps, already_done=True)
    metrics = _fit(config, scans["train"], scans["validation"])
    first_step = metrics.pop("first_step")
    run_now = finish_run(store, config, split, metrics)
    return _result(run_now, scans, began, first_step=first_step, already_done=False)


def _scans_by_part(rows: Sequence[Mapping[str, Any]], split: Split, labels: Sequence[str]) -> dict[str, list[str]]:
    """Scan ids of each part. Raises `Fatal` where one that training reads lacks a label."""
    of_part = {part: [row for row in rows if row["patient_id"] in patients] for part, patients in asdict(split).items()}
    require_labels({row["scan_id"]: row["labels"] for row in of_part["train"] + of_part["validation"]}, labels)
    return {part: sorted(row["scan_id"] for row in found) for part, found in of_part.items()}


def _fit(config: TrainConfig, train_scans: Sequence[str], validation_scans: Sequence[str]) -> dict[str, Any]:
    """Run the workers to the end; the metrics that rank 0 returned."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    filesystem, path = open_store(str(config.out)).arrow_filesystem()
    board = _Board.remote()
    trainer = train_torch.TorchTrainer(
        _work,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "train": list(train_scans),
            "validation": list(validation_scans),
            "board": board,
        },
        torch_config=train_torch.TorchConfig(backend="nccl" if config.gpu else "gloo"),
        scaling_config=train.ScalingConfig(num_workers=config.workers, use_gpu=bool(config.gpu)),
        run_config=train.RunConfig(
            name=CHECKPOINTS,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=train.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=train.CheckpointConfig(num_to_keep=2),
            logging_config=train.LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        with track("train", config.steps) as advance, _follow(board, advance):
            found = trainer.fit().return_value
    except train.TrainingFailedError as error:
        raise _cause(error) from error
    if "fatal" in found:
        raise Fatal(found["fatal"])
    return dict(found)


def _work(job: Mapping[str, Any]) -> dict[str, Any]:
    """What each worker does: train from the last checkpoint to `config.steps`, then validate its share of scans."""
    config = TrainConfig.model_validate(job["config"])
    context = train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    task = Segmentation(config)
    network = task.build_networks()[NETWORK]
    model = train_torch.prepare_model(network)
    device = next(network.parameters()).device
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.optimizer.weight_decay
    )
    losses = _load_checkpoint(network, optimizer, device)
    first_step = len(losses)
    archive = Archive.open(str(config.archive))
    stream = PatchStream(archive, job["train"], config, rank=rank, world_size=world_size, start_step=first_step)
    started, shown, waited_s = time.perf_counter(), 0.0, 0.0
    for step, batch in zip(range(first_step, config.steps), stream, strict=False):
        waited_s += batch.waited_s
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 - step / config.steps) ** 0.9
        batch = replace(batch, image=batch.image.to(device), classes=batch.classes.to(device))
        batch = augment(batch, config.augment, config.seed)
        loss = task.loss({NETWORK: model}, batch, NETWORK)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), config.optimizer.clip_norm)
        if not torch.isfinite(norm):  # the gradient is averaged, so that every worker sees this at the same step
            return {"fatal": f"the loss is no number at step {step}; lower learning_rate ({config.learning_rate})"}
        optimizer.step()
        losses.append(float(loss.detach()))
        done = step + 1
        if rank == 0 and (time.perf_counter() - shown > _SHOW_EVERY_S or done == config.steps):
            job["board"].post.remote(done, losses[-1])
            shown = time.perf_counter()
        if done % config.checkpoint_every == 0 or done == config.steps:
            _save_checkpoint(network, optimizer, losses, rank)
    step_s = time.perf_counter() - started
    curve = _curve(losses)
    return {
        "first_step": first_step,
        "loss": curve[-1][1],
        "loss_curve": curve,
        "step_seconds": round(step_s, 3),
        "waiting_seconds": round(waited_s, 3),
        "validation_dice": _validate(task, network, archive, job["validation"], rank, world_size),
    }


def _load_checkpoint(network: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> list[float]:
    """Restore the last checkpoint, if any; the loss of each step done so far, as rank 0 saw it."""
    checkpoint = train.get_checkpoint()
    if checkpoint is None:
        return []
    with checkpoint.as_directory() as folder:
        network.load_state_dict(torch.load(Path(folder, MODEL), map_location=device, weights_only=True))
        state = torch.load(Path(folder, STATE), map_location=device, weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    return [float(loss) for loss in state["losses"]]


def _save_checkpoint(network: nn.Module, optimizer: torch.optim.Optimizer, losses: Sequence[float], rank: int) -> None:
    """Hand a checkpoint to Ray Train; every rank takes part, rank 0 writes."""
    step = len(losses)
    with tempfile.TemporaryDirectory(prefix="tomoray-") as folder:
        if rank == 0:
            torch.save(network.state_dict(), Path(folder, MODEL))
            torch.save({"optimizer": optimizer.state_dict(), "losses": list(losses)}, Path(folder, STATE))
        checkpoint = train.Checkpoint.from_directory(folder) if rank == 0 else None
        train.report(
            {"step": step, "loss": losses[-1]}, checkpoint=checkpoint, checkpoint_dir_name=checkpoint_name(step)
        )


def _validate(
    task: Segmentation, network: nn.Module, archive: Archive, scan_ids: Sequence[str], rank: int, world_size: int
) -> dict[str, float]:
    """Mean Dice per label over the validation scans; each worker segments its share."""
    for buffer in network.buffers():
        if world_size > 1:  # running statistics differ by one batch
            distributed.broadcast(buffer, 0)
    mine = [task.examine({NETWORK: network}, archive, scan_id) for scan_id in scan_ids[rank::world_size]]
    shares: list[Any] = [mine]
    if world_size > 1:
        shares = [None] * world_size
        distributed.all_gather_object(shares, mine)
    scores = task.score([found for share in shares for found in share])
    return {name.removeprefix("dice/"): score for name, score in scores.items() if name != "dice"}


def _curve(losses: Sequence[float], points: int = 100) -> list[tuple[int, float]]:
    """At most `points` pairs (step, mean loss of the steps up to it)."""
    width = math.ceil(len(losses) / points)
    parts = [losses[at : at + width] for at in range(0, len(losses), width)]
    return [(min((n + 1) * width, len(losses)), round(fmean(part), 5)) for n, part in enumerate(parts)]


@ray.remote(num_cpus=0)
class _Board:
    """Where rank 0 leaves word of how far it is, and the driver reads it."""

    def __init__(self) -> None:
        self._word = (0, math.nan)

    def post(self, step: int, loss: float) -> None:
        self._word = (step, loss)

    def read(self) -> tuple[int, float]:
        return self._word


@contextmanager
def _follow(board: Any, advance: Advance) -> Iterator[None]:
    """Move the progress bar as word comes, in a thread: `fit` holds the main one."""
    ended = threading.Event()

    def watch() -> None:
        shown = 0
        while True:
            last = ended.wait(_SHOW_EVERY_S)
            step, loss = ray.get(board.read.remote())
            if step:
                advance(step - shown, f"loss {loss:.3f}")
                shown = step
            if last:
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _use_gpu(config: TrainConfig) -> bool:
    if config.gpu is not None:
        return config.gpu
    return bool(ray.cluster_resources().get("GPU", 0) >= config.workers)


def _check_capacity(config: TrainConfig) -> None:
    """Refuse what this machine can never place. A cluster of several nodes, or a bare head, may still grow."""
    kind = "GPU" if config.gpu else "CPU"
    there = ray.cluster_resources().get(kind, 0)
    if len(ray.nodes()) == 1 and ray.cluster_resources().get("CPU", 0) and there < config.workers:
        raise Usage(f"{config.workers} workers want a {kind} each and this machine's Ray has {there:g}; lower workers")


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
        "model_sha256": run.model_sha256,
        "scans": {part: len(ids) for part, ids in scans.items()},
        "seconds": round(time.monotonic() - began, 3),
        "patients": {part: len(patients) for part, patients in asdict(run.split).items()},
    }


if __name__ == "__main__":
    main(run, TrainConfig)
