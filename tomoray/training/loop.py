"""The loop of one worker: steps, validations and checkpoints, from the last whole checkpoint to the end.

Pure PyTorch. Every worker runs it alike; rank 0 writes. Where it stops in between, the next loop, of however many
workers, goes on with the next sample.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, TypeVar

from torch import distributed

from tomoray.archive import Archive
from tomoray.errors import Fatal, Shortage, TomoRayError, Transient
from tomoray.lease import RUN_MARK, read_run
from tomoray.patches import Batch, PatchStream
from tomoray.runs import ATTEMPTS, CHECKPOINTS, HISTORY
from tomoray.storage import Store
from tomoray.tasks.task import Task
from tomoray.training.checkpoints import Checkpoints, pack, unpack
from tomoray.training.config import TrainConfig
from tomoray.training.engine import Engine
from tomoray.training.memory import explained_shortage

T = TypeVar("T")
Line = dict[str, Any]

LINES = 1000  # of a history, or up to twice as many
STALL_S = 600.0  # how long a store may be gone before the worker gives up
_ASK_EVERY_S = 2.0  # for a notice; asking takes milliseconds
_WRITE_EVERY_S = 30.0  # history and attempt, between checkpoints
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """One of the processes that train together.

    Attributes:
        neighbours: workers on this machine, itself included.
        device: where it computes.
        noticed: whether the machine is about to go; a call that all workers make together.
        post: tell whoever watches about a new line of the history; rank 0 only.
        goes_on: whether training is worth it still, by the line of a validation that was just saved; rank 0 only.
    """

    rank: int = 0
    world_size: int = 1
    neighbours: int = 1
    device: str = "cpu"
    noticed: Callable[[], bool] = field(default=lambda: False)
    post: Callable[[Line], None] = field(default=lambda line: None)
    goes_on: Callable[[Line], bool] = field(default=lambda line: True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a loop ended.

    Attributes:
        status: `done`; `preempted`: everything is saved, go on elsewhere; `fatal`: trying again would not help.
        message: why, in one line.
        first_step: where it began.
        steps: how many are done.
        history: a line for each few steps (docs/training.md).
        step_seconds: spent in steps.
        waiting_seconds: of these, waiting for patches.
        troubles: damaged checkpoints that were passed over.
    """

    status: Literal["done", "preempted", "fatal"]
    message: str = ""
    first_step: int = 0
    steps: int = 0
    history: Sequence[Line] = ()
    step_seconds: float = 0.0
    waiting_seconds: float = 0.0
    troubles: Sequence[str] = ()


class Loop:
    """Training on one worker.

    Args:
        config: what is trained, and how.
        task: made from it.
        archive: where scans are.
        scans: scan ids to train on, and to validate on.
        store: the run's folder.
        worker: this worker.
        augment: `(batch, config.augment, seed, spacing_zyx_mm=…) -> batch`.
    """

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        archive: Archive,
        scans: tuple[Sequence[str], Sequence[str]],
        store: Store,
        worker: Worker,
        *,
        augment: Callable[..., Batch] | None = None,
    ) -> None:
        self._config, self._task, self._archive, self._store, self._worker = config, task, archive, store, worker
        self._train_scans, self._validation_scans = scans
        varied = None if augment is None else partial(augment, spacing_zyx_mm=config.spacing_zyx_mm)
        self._engine = Engine(
            task,
            config,
            worker.device,
            rank=worker.rank,
            world_size=worker.world_size,
            neighbours=worker.neighbours,
            augment=varied,
        )
        self._checkpoints = Checkpoints(
            store.child(CHECKPOINTS),
            keep=config.keep,
            monitor=task.monitor,
            higher_is_better=task.higher_is_better,
        )
        self._holder = read_run(store, RUN_MARK) if worker.rank == 0 else None
        self._history: list[Line] = []
        self._first_step = 0
        self._began, self._began_at = time.monotonic(), datetime.now(UTC)
        self._wrote = self._asked = self._began
        self._step_s = self._waited_s = 0.0

    def run(self) -> Outcome:
        """Train to the end, to a notice, or until something is wrong that trying again would not mend.

        Raises:
            Transient, Fatal: on this worker alone; the others will find that it is gone.
        """
        troubles: list[str] = []
        batches = self._batches()
        try:
            troubles = self._resume()
            status = self._train(batches)
        except (_Together, Fatal) as error:
            if isinstance(error, Fatal) and self._worker.world_size > 1:  # the others do not know of it
                raise
            return Outcome(status="fatal", message=str(error), first_step=self._first_step, troubles=troubles)
        finally:
            batches.close()
        return Outcome(
            status=status,
            first_step=self._first_step,
            steps=self._engine.steps_done,
            history=self._history,
            step_seconds=round(self._step_s, 3),
            waiting_seconds=round(self._waited_s, 3),
            troubles=troubles,
        )

    def _train(self, batches: Generator[Batch, None, None]) -> Literal["done", "preempted"]:
        config, engine = self._config, self._engine
        line = _Sum(engine.steps_done)
        if not self._goes_on():  # a loop that was killed had asked, and did not hear the answer
            return "done"
        while not self._ended():
            since = time.perf_counter()
            batch = next(batches)
            asks = self._worker.rank == 0 and time.monotonic() - self._asked > _ASK_EVERY_S
            loss = _together(partial(engine.step, batch, asks=asks))
            line.add(loss, time.perf_counter() - since, batch.waited_s)
            done = engine.steps_done
            last = done == config.steps
            validates = last or (config.validate_every is not None and done % config.validate_every == 0)
            if validates or done % max(1, config.steps // LINES) == 0:
                self._note(line, self._validate() if validates else {})
                line = _Sum(done)
            noticed = False
            if engine.asked:
                self._asked = time.monotonic()
                noticed = self._worker.noticed()
            if validates or noticed or done % config.checkpoint_every == 0:
                self._save()
            if validates and not self._goes_on():
                return "done"
            if noticed and not self._ended():
                return "preempted"
        return "done"

    def _goes_on(self) -> bool:
        """What rank 0 is told about the newest line, where that is of a validation."""
        if not (self._history and self._history[-1].get("scores")):
            return True
        told = self._worker.rank != 0 or self._worker.goes_on(self._history[-1])
        return _from_rank_0(told, self._worker.world_size)

    def _ended(self) -> bool:
        """All steps are done, or validations have not become better for too long."""
        if self._engine.steps_done >= self._config.steps:
            return True
        if self._config.patience is None:
            return False
        sign = 1 if self._task.higher_is_better else -1
        scores = [sign * line["scores"][self._task.monitor] for line in self._history if line.get("scores")]
        return len(scores) - scores.index(max(scores)) > self._config.patience if scores else False

    def _batches(self) -> Generator[Batch, None, None]:
        """This worker's batches from the next step on. A store that does not answer is asked again for minutes."""
        stalled, step = None, -1
        while True:
            stream = PatchStream(
                self._archive,
                self._train_scans,
                self._config,
                rank=self._worker.rank,
                world_size=self._worker.world_size,
                start_step=self._engine.steps_done,
            )
            try:
                yield from stream
            except Transient as error:
                if stalled is None or self._engine.steps_done > step:
                    stalled, step = time.monotonic(), self._engine.steps_done
                if time.monotonic() - stalled > STALL_S:
                    raise
                _log.warning("waiting for the archive: %s", error)
                time.sleep(1)

    def _validate(self) -> dict[str, float]:
        """Scores of the validation scans; each worker examines its share, a scan at a time."""
        if not self._validation_scans:
            return {}
        networks = self._engine.networks_for_use()
        worker = self._worker
        with explained_shortage("validation", self._config):
            mine = [
                self._task.examine(networks, self._archive, scan_id)
                for scan_id in self._validation_scans[worker.rank :: worker.world_size]
            ]
        return self._task.score([found for share in _gather(mine, worker.world_size) for found in share])

    def _note(self, line: _Sum, scores: dict[str, float]) -> None:
        """A line of the history, and every now and then the history as a file."""
        done = self._engine.steps_done
        self._step_s += line.seconds
        self._waited_s += line.waited_s
        note: Line = {
            "step": done,
            "loss": round(line.loss / (done - line.first_step), 6),
            "learning_rate": self._engine.learning_rate_of(done - 1),
            "samples": done * self._config.batch_size,
            "samples_per_s": round((done - line.first_step) * self._config.batch_size / max(line.seconds, 1e-9), 3),
            "waited_share": round(line.waited_s / max(line.seconds, 1e-9), 4),
            "workers": self._worker.world_size,
        }
        if len(self._engine.losses) > 1:
            note["losses"] = {name: round(loss, 6) for name, loss in self._engine.losses.items()}
        if scores:
            note["scores"] = {name: round(score, 6) for name, score in scores.items()}
        self._history.append(note)
        if self._worker.rank == 0:
            self._worker.post(note)
            if time.monotonic() - self._wrote > _WRITE_EVERY_S:
                self._write_history()

    def _write_history(self) -> None:
        """Rank 0: what people look at meanwhile. Not worth stopping for: a checkpoint will tell what is wrong."""
        lines = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in self._history)
        attempt = {
            "began": self._began_at.isoformat(timespec="seconds"),
            "workers": self._worker.world_size,
            "first_step": self._first_step,
            "steps": self._engine.steps_done,
            "seconds": round(time.monotonic() - self._began, 1),
        }
        with suppress(TomoRayError):
            self._store.write(HISTORY, lines.encode())
            name = f"{self._began_at.strftime('%Y%m%dT%H%M%S.%fZ')}.json"
            self._store.write(f"{ATTEMPTS}/{name}", (json.dumps(attempt) + "\n").encode())
        self._wrote = time.monotonic()

    def _save(self) -> None:
        """A checkpoint. What keeps rank 0 from writing it ends the loop of all."""
        state = _together(self._engine.state)
        trouble = ""
        if self._worker.rank == 0:
            scores = self._history[-1].get("scores", {}) if self._history else {}
            if not self._history or self._history[-1]["step"] != self._engine.steps_done:
                scores = {}
            try:
                _patiently(self._require_lease)
                _patiently(lambda: self._checkpoints.write(self._engine.steps_done, pack(state, self._history), scores))
            except TomoRayError as error:
                trouble = str(error)
            self._write_history()
        trouble = _from_rank_0(trouble, self._worker.world_size)
        if trouble:
            raise _Together(f"no checkpoint after step {self._engine.steps_done}: {trouble}")

    def _require_lease(self) -> None:
        """Rank 0: raise `Fatal` where another run has taken the folder over, as ours did not renew its lease."""
        now = read_run(self._store, RUN_MARK)
        if self._holder is not None and now is not None and now["id"] != self._holder["id"]:
            raise Fatal(f"process {now['pid']} on {now['host']} trains in {self._store.url} by now; that one goes on")

    def _resume(self) -> list[str]:
        """Go on from the newest whole checkpoint; what is wrong with newer ones."""
        found, troubles = self._checkpoints.load() if self._worker.rank == 0 else (None, [])
        step, troubles = _from_rank_0((found.checkpoint.step if found else 0, troubles), self._worker.world_size)
        if step and found is None:
            found, why = self._checkpoints.read(step)
            if found is None:
                raise Fatal(
                    f"{self._store.url} is not the same folder on every machine ({why or 'no checkpoint there'}); "
                    f"choose an S3 prefix or a shared folder as --out"
                )
        if found is not None:
            state, self._history = unpack(found.files)
            _together(lambda: self._engine.load_state(state))
        self._first_step = self._engine.steps_done
        if self._worker.rank == 0:
            self._write_history()
            for line in self._history:
                self._worker.post(line)
        return list(troubles)


@dataclass(slots=True)
class _Sum:
    """Of the steps since the last line."""

    first_step: int
    loss: float = 0.0
    seconds: float = 0.0
    waited_s: float = 0.0

    def add(self, loss: float, seconds: float, waited_s: float) -> None:
        self.loss += loss
        self.seconds += seconds
        self.waited_s += waited_s


class _Together(Exception):
    """What every worker has met at the same moment, so that none waits for another."""


def _together(call: Callable[[], T]) -> T:
    try:
        return call()
    except Shortage:  # of this machine
        raise
    except Fatal as error:
        raise _Together(str(error)) from error


def _patiently(call: Callable[[], T]) -> T:
    until = time.monotonic() + STALL_S
    while True:
        try:
            return call()
        except Transient as error:
            if time.monotonic() > until:
                raise
            _log.warning("waiting for the run's store: %s", error)
            time.sleep(1)


def _gather(mine: T, world_size: int) -> list[T]:
    if world_size == 1:
        return [mine]
    shares: list[Any] = [None] * world_size
    distributed.all_gather_object(shares, mine)
    return shares


def _from_rank_0(value: T, world_size: int) -> T:
    if world_size == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, 0)
    return values[0]


def loss_curve(history: Sequence[Line], points: int = 100) -> list[tuple[int, float]]:
    """At most `points` pairs (step, mean loss of the steps up to it)."""
    width = math.ceil(len(history) / points)
    parts = [history[at : at + width] for at in range(0, len(history), width)] if width else []
    return [(part[-1]["step"], round(math.fsum(line["loss"] for line in part) / len(part), 5)) for part in parts]
