"""Memory of a step: what is free, and a stop in one line before the machine ends the process without any."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from tomoray.errors import Shortage
from tomoray.training.config import TrainConfig

_LEAST_PEAK = 1.3  # a step's peak by what autograd keeps; 1.5 to 1.95 were measured (tomoray.statistics.step_memory)
_UNLIMITED = 1 << 60  # what cgroup v1 says instead of "max" is above
_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def advice(config: TrainConfig) -> str:
    """What to change where a step does not fit."""
    return (
        f"lower patch_zyx {config.patch_zyx} or batch_size ({config.batch_size}), raise optimizer.accumulate "
        f"({config.optimizer.accumulate}) or workers, or set precision to bf16"
    )


@contextmanager
def explained_shortage(what: str, config: TrainConfig) -> Iterator[None]:
    """What PyTorch says where memory is used up, as `Shortage`."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise Shortage(f"{what} wants more memory than there is; {advice(config)}") from error


@contextmanager
def bounded(free_bytes: int, there: Iterable[Tensor], config: TrainConfig) -> Iterator[None]:
    """A forward pass that ends with `Shortage` as soon as its backward pass cannot fit.

    On CPUs a process that takes too much is killed without a word, so that nothing could be said later. What autograd
    keeps is counted as it is kept, a piece of memory once, and a step's peak is at least 1.3 times that. A step that
    fits is never stopped.

    Args:
        free_bytes: what this process may take.
        there: weights and samples, whose memory is taken already.
        config: for the advice.
    """
    seen = {tensor.untyped_storage()._cdata for tensor in there}
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            kept += storage.nbytes()
            if _LEAST_PEAK * kept > free_bytes:
                raise Shortage(
                    f"a step wants more than {_LEAST_PEAK * kept / 1e9:.1f} GB of memory and {free_bytes / 1e9:.1f} GB "
                    f"are free for it; {advice(config)}"
                )
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield


def free_memory() -> int | None:
    """Bytes that this process may still take, by the machine and by its control groups; None where nobody says."""
    found = [each for each in (_available_bytes(), *_group_headrooms()) if each is not None]
    return min(found) if found else None


def _available_bytes() -> int | None:
    """What the machine can give without swapping (proc(5))."""
    for line in _lines(_PROC / "meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _group_headrooms() -> Iterator[int]:
    """What the limits of this process's control groups leave, of both versions; files that were read count as free."""
    for line in _lines(_PROC / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        second = not controllers
        root = _CGROUPS if second else _CGROUPS / "memory"
        names = ("memory.max", "memory.current") if second else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        group = root / path.lstrip("/")
        for folder in {root, group, *(parent for parent in group.parents if root in parent.parents)}:
            limit, used = ("".join(_lines(folder / name)) for name in names)
            if limit.isdigit() and used.isdigit() and int(limit) < _UNLIMITED:
                cached = dict(line.split() for line in _lines(folder / "memory.stat"))
                files = int(cached.get("inactive_file", 0)) + int(cached.get("active_file", 0))
                yield max(0, int(limit) - int(used) + files)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
