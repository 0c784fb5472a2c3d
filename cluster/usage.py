"""What a job or an endpoint took of which machines, and what that cost by a price table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tomoray.ingest.estimate import Prices


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeUse:
    """Seconds on one machine.

    Attributes:
        role: `head` or `worker`.
        node_type: as the price table names it; empty where nothing tells.
        spot: whether it might have been reclaimed at any time.
        cpus, memory_gb: that were held of it; 0: all of it.
        known: False where the records are gone and the seconds follow from the job's own times.
    """

    role: str
    node_type: str
    spot: bool
    seconds: float
    cpus: float = 0.0
    memory_gb: float = 0.0
    known: bool = True


def cost_of(uses: Sequence[NodeUse], prices: Prices) -> dict[str, Any]:
    """Node-seconds and dollars.

    A machine that is held in part counts by its larger share, of CPUs or of memory.

    Returns:
        `dollars`, `node_seconds` and `dollars_by` (each for `on_demand` and `spot`), `by_node_type`, `unpriced`
        (seconds on machines that the table does not have), `estimated` (True where records were gone), `prices`.
    """
    priced = [use for use in uses if use.node_type in prices.nodes]
    kinds = ("on_demand", "spot")
    seconds = {kind: sum(use.seconds for use in uses if use.spot == (kind == "spot")) for kind in kinds}
    dollars = {kind: sum(_dollars(use, prices) for use in priced if use.spot == (kind == "spot")) for kind in kinds}
    by_type = {
        name: round(sum(_dollars(use, prices) for use in priced if use.node_type == name), 4)
        for name in sorted({use.node_type for use in priced})
    }
    return {
        "dollars": round(sum(dollars.values()), 4),
        "dollars_by": {kind: round(value, 4) for kind, value in dollars.items()},
        "node_seconds": {kind: round(value, 1) for kind, value in seconds.items()},
        "by_node_type": by_type,
        "unpriced": _unpriced(uses, prices),
        "estimated": not all(use.known for use in uses),
        "prices": f"{prices.region}, {prices.date}" + (f"; spot {prices.spot_is}" if prices.spot_is else ""),
    }


def _dollars(use: NodeUse, prices: Prices) -> float:
    node = prices.nodes[use.node_type]
    share = min(1.0, max(use.cpus / node.vcpus, use.memory_gb / node.memory_gb)) if use.cpus else 1.0
    return use.seconds / 3600 * share * (node.spot if use.spot else node.on_demand)


def _unpriced(uses: Iterable[NodeUse], prices: Prices) -> dict[str, float]:
    found: dict[str, float] = {}
    for use in uses:
        if use.node_type not in prices.nodes:
            name = use.node_type or "unknown"
            found[name] = round(found.get(name, 0.0) + use.seconds, 1)
    return found


def units_of(job: str, result: dict[str, Any], config: dict[str, Any]) -> dict[str, float]:
    """How much of what a job did, by its result: `series`, `epochs`, `scans`; empty where nothing tells.

    Epochs are those of the whole run: a worker that was lost is no second job, and what it had cost is counted too.
    """
    if job == "preprocess" and "stored" in result:
        return {"series": result["stored"] + result["refused"]}
    if job == "train" and result.get("scans", {}).get("train"):
        samples = result["steps"] * config.get("batch_size", 2)
        per_visit = config.get("stream", {}).get("patches_per_visit", 4)
        return {"epochs": samples / per_visit / result["scans"]["train"]}
    if job == "predict" and "predicted" in result:
        return {"scans": result["predicted"]}
    return {}


def mean_gpu_use(summary: dict[str, Any]) -> float | None:
    """The mean over all GPUs, by Ray's dashboard (`/nodes?view=summary`); None where there is none."""
    nodes = summary.get("data", {}).get("summary", [])
    used = [gpu.get("utilizationGpu") for node in nodes for gpu in node.get("gpus") or []]
    known = [percent for percent in used if percent is not None]
    return sum(known) / len(known) / 100 if known else None
