"""Checkpoints of a run: whole or not there, and checked before they are used.

    checkpoints/step-…/
      model.pt, state.pt    whatever files a checkpoint has
      checkpoint.json       written last: step, scores, size and SHA-256 of each file

What has no `checkpoint.json` was never finished and is no checkpoint. What does not match it is damaged, and the one
before is taken.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from tomoray.storage import Store

MARK = "checkpoint.json"
MODEL, STATE = "model.pt", "state.pt"
NEWEST_KEPT = 2  # so that a damaged one costs an interval, not the run


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """What `checkpoint.json` says.

    Attributes:
        step: steps done.
        scores: by the validation at that step; empty where there was none.
        files: size in bytes and SHA-256 of each file.
    """

    step: int
    scores: Mapping[str, float]
    files: Mapping[str, tuple[int, str]]

    @property
    def folder(self) -> str:
        """Below the folder of checkpoints."""
        return checkpoint_name(self.step)


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A checkpoint, and the bytes of its files, which are those that were written."""

    checkpoint: Checkpoint
    files: Mapping[str, bytes]


class Checkpoints:
    """The checkpoints of one run. One process writes; any may read.

    Args:
        store: their folder.
        keep: how many are kept for their scores, besides the newest.
        monitor: the score by which they are compared.
        higher_is_better: whether more of it is.
    """

    def __init__(self, store: Store, *, keep: int = 1, monitor: str = "", higher_is_better: bool = True) -> None:
        self._store = store
        self._keep = keep
        self._monitor, self._sign = monitor, 1 if higher_is_better else -1

    def write(self, step: int, files: Mapping[str, bytes], scores: Mapping[str, float]) -> Checkpoint:
        """Write a checkpoint, its mark last, then delete those that are no longer kept. Safe to repeat.

        Raises:
            Fatal: there is no room, or no right to write; earlier checkpoints stay as they are.
            Transient: the store did not answer for a minute.
        """
        sums = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()}
        checkpoint = Checkpoint(step=step, scores=dict(scores), files=sums)
        self._store.delete([f"{checkpoint.folder}/{MARK}"])  # of an earlier one, damaged or of a run that was ahead
        for name, data in files.items():
            self._store.write(f"{checkpoint.folder}/{name}", data)
        self._store.write(f"{checkpoint.folder}/{MARK}", (json.dumps(asdict(checkpoint), indent=2) + "\n").encode())
        self._prune(step)
        return checkpoint

    def load(self) -> tuple[Loaded | None, list[str]]:
        """The newest whole checkpoint, and what is wrong with each newer one, in a line."""
        troubles: list[str] = []
        for step in reversed(self._steps()):
            found, trouble = self.read(step)
            if found is not None:
                return found, troubles
            if trouble:
                troubles.append(trouble)
        return None, troubles

    def read(self, step: int) -> tuple[Loaded | None, str]:
        """The checkpoint after `step` steps, or None and why not, which is empty where it was never finished."""
        name = checkpoint_name(step)
        checkpoint = self.describe(step)
        if checkpoint is None:
            return None, ""
        files = {}
        for file, (size_bytes, sha256) in checkpoint.files.items():
            try:
                data = self._store.read(f"{name}/{file}")
            except FileNotFoundError:
                return None, f"checkpoint {name} has lost {file}"
            if len(data) != size_bytes or hashlib.sha256(data).hexdigest() != sha256:
                return None, f"{file} of checkpoint {name} is not the file that was written"
            files[file] = data
        return Loaded(checkpoint=checkpoint, files=files), ""

    def describe(self, step: int) -> Checkpoint | None:
        """What the mark of a checkpoint says; None where there is none that can be read."""
        try:
            found = json.loads(self._store.read(f"{checkpoint_name(step)}/{MARK}"))
            files = {name: (int(size), str(sha256)) for name, (size, sha256) in found["files"].items()}
            return Checkpoint(step=int(found["step"]), scores=found["scores"], files=files)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def best(self) -> Checkpoint | None:
        """The checkpoint of the best score, the earlier of two alike; without any score the newest."""
        found = self._described()
        scored = self._by_score(found)
        return scored[0] if scored else (found[-1] if found else None)

    def _prune(self, now: int) -> None:
        """Delete what is neither among the newest nor among the best; what lies ahead of `now` was overtaken."""
        found = self._described()
        past = [checkpoint for checkpoint in found if checkpoint.step <= now]
        kept = {checkpoint.step for checkpoint in [*past[-NEWEST_KEPT:], *self._by_score(past)[: self._keep]]}
        for step in self._steps():
            if step not in kept:
                name = checkpoint_name(step)
                self._store.delete([f"{name}/{MARK}"])  # first: it is no checkpoint from here on
                self._store.child(name).delete_all()

    def _by_score(self, checkpoints: list[Checkpoint]) -> list[Checkpoint]:
        scored = [checkpoint for checkpoint in checkpoints if self._monitor in checkpoint.scores]
        return sorted(scored, key=lambda checkpoint: (-self._sign * checkpoint.scores[self._monitor], checkpoint.step))

    def _described(self) -> list[Checkpoint]:
        found = (self.describe(step) for step in self._steps())
        return [checkpoint for checkpoint in found if checkpoint is not None]

    def _steps(self) -> list[int]:
        names = (re.fullmatch(r"step-(\d{8,})", name) for name in self._store.folders())
        return sorted(int(name[1]) for name in names if name)


def pack(state: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """The files of a checkpoint.

    `model.pt` holds the weights to use, the running means where there are any: of a task's one network, or by name
    of several. `state.pt` holds the rest of what `Engine.state` gave, and the history.
    """
    used = state["means"] or state["networks"]
    model = next(iter(used.values())) if len(used) == 1 else used
    rest = {
        **state,
        "names": list(used),
        "averaged": bool(state["means"]),
        "networks": state["networks"] if state["means"] else {},
        "means": {},
        "history": json.dumps(list(history)),
    }
    return {MODEL: _saved(model), STATE: _saved(rest)}


def unpack(files: Mapping[str, bytes]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What `pack` was given, on the CPU."""
    state, used = _loaded(files[STATE]), _loaded(files[MODEL])
    names = state.pop("names")
    used = used if len(names) > 1 else {names[0]: used}
    state["means" if state.pop("averaged") else "networks"] = used
    return state, json.loads(state.pop("history"))


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _loaded(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return found


def checkpoint_name(step: int) -> str:
    """The folder of the checkpoint after `step` steps."""
    return f"step-{step:08d}"
