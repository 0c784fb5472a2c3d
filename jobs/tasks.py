"""Many Ray tasks, a bounded number at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from tomoray.errors import TomoRayError

T = TypeVar("T")


def run_bounded(
    submit: Callable[[T], ray.ObjectRef], items: Iterable[T], in_flight: int
) -> Iterator[tuple[T, Any | Exception]]:
    """Submit `items` and yield each with its result as it comes, or with the exception its task ended in.

    At most `in_flight` tasks exist at once, so the driver's memory does not grow with the number of items. Errors that
    TomoRay raises on purpose (`Fatal`, `Transient` after its retries) end the run; any other is the item's own.
    """
    waiting = iter(items)
    running: dict[ray.ObjectRef, T] = {submit(item): item for item in islice(waiting, in_flight)}
    while running:
        references = list(running)
        ray.wait(references, num_returns=1)
        done, _ = ray.wait(references, num_returns=len(references), timeout=0)  # all at once: asking costs by the task
        for reference in done:
            item = running.pop(reference)
            result = _result(reference)
            running.update((submit(next_item), next_item) for next_item in islice(waiting, 1))
            yield item, result


def cluster_cpus() -> int:
    """CPUs of the whole cluster."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def largest_node_bytes() -> int:
    """Memory that a task can ask for at most: that of the largest node."""
    return int(max(node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]))


def _result(reference: ray.ObjectRef) -> Any | Exception:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, TomoRayError):
            raise error.cause from error
        return error
    except ray.exceptions.RayError as error:  # the worker died, and its retries too
        return error
