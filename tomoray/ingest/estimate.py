"""What preprocessing will take, before anything runs: bytes, memory, node-hours and dollars.

Rates are those of `benchmarks/preprocess.py`, of one vCPU; everything that is assumed stands in the result.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import ValidationError

from tomoray.config import Config
from tomoray.errors import Usage
from tomoray.ingest.ingester import task_bytes

NATIVE_MB_PER_S = 130.0  # uncompressed voxels of a native series by one vCPU, source to archive
COMPRESSED_MB_PER_S = 45.0  # of a JPEG-LS series
ARCHIVE_RATIO = 2.0  # voxels to archive, halved levels included
SHARD_MB = 256**3 * 2 / 1e6


class NodePrice(Config):
    """A kind of machine; dollars an hour."""

    vcpus: int
    memory_gb: float
    on_demand: float
    spot: float
    gpus: int = 0


class StoragePrices(Config):
    """S3; dollars."""

    per_gb_month: float
    per_thousand_gets: float
    per_thousand_puts: float


class ServicePrices(Config):
    """What stands in a cloud beside machines and buckets; dollars an hour or a month, as the names say."""

    eks_cluster_hour: float
    nat_hour: float
    public_address_hour: float
    endpoint_zone_hour: float
    key_month: float
    alarm_month: float
    disk_gb_month: float
    fsx_gb_month: float


class Prices(Config):
    """A price table and its date.

    Attributes:
        source: where the prices of machines, storage and services are from.
        spot_is: what the prices of spot machines are, where they are not looked up; empty where they are.
        services: wanted by `tomoray cost estimate` of a plan alone.
    """

    date: str
    source: str = ""
    spot_is: str = ""
    region: str
    nodes: dict[str, NodePrice]
    storage: StoragePrices
    services: ServicePrices | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """A series by its listing: files, their bytes, the bytes of its voxels as int16, and what a task holds at once."""

    n_instances: int
    size_bytes: int
    voxel_bytes: int
    working_bytes: int


def read_prices(path: str | None = None) -> Prices:
    """The price table of a YAML file, or TomoRay's own. Raises `Usage` where it is none."""
    table = Path(path) if path else resources.files("tomoray.ingest") / "prices.yaml"
    try:
        return Prices.model_validate(
            {**(values := yaml.safe_load(table.read_text("utf-8"))), "date": str(values["date"])}
        )
    except (yaml.YAMLError, ValidationError, TypeError, KeyError) as error:
        raise Usage(
            f"{path} is no price table ({type(error).__name__}); see tomoray/ingest/prices.yaml for one"
        ) from error


def estimate(sizes: Iterable[Size], prices: Prices, *, node: str, n_nodes: int) -> dict[str, Any]:
    """Work and cost of preprocessing series of these sizes on `n_nodes` machines of a kind.

    Returns:
        JSON-able: `series`, `instances`, `source_gb`, `voxel_gb`, `archive_gb`, `memory_per_task_gb` (median,
        largest), `cpu_hours`, `nodes`, `tasks_per_node`, `node_hours`, `hours`, `dollars` (compute on demand and on
        spot machines, requests, storage a month), `assumes`.

    Raises:
        Usage: a node that is not in the table, or too small for the largest task.
    """
    if node not in prices.nodes:
        raise Usage(f"no prices for node {node!r}; the table of {prices.date} has: {', '.join(prices.nodes)}")
    kind = prices.nodes[node]
    rows = [(s.n_instances, s.size_bytes, s.voxel_bytes, s.working_bytes) for s in sizes]
    found = np.array(rows, dtype=np.int64).reshape(-1, 4)
    instances, source_bytes, voxel_bytes, _ = (int(total) for total in found.sum(axis=0))
    compressed = found[:, 2] > 1.3 * found[:, 1]
    native_mb = float(found[~compressed, 2].sum()) / 1e6
    compressed_mb = float(found[compressed, 2].sum()) / 1e6
    cpu_hours = (native_mb / NATIVE_MB_PER_S + compressed_mb / COMPRESSED_MB_PER_S) / 3600
    memory = np.array([task_bytes(held) for held in found[:, 3].tolist() or [0]]) / 1e9
    if memory.max() > kind.memory_gb:
        wants = f"the largest series wants {memory.max():.1f} GB"
        raise Usage(f"{wants}, and {node} has {kind.memory_gb:g}: name a larger --node")
    tasks = max(1, min(kind.vcpus, int(kind.memory_gb * 0.7 / np.quantile(memory, 0.9))))
    node_hours = cpu_hours / tasks
    archive_gb = voxel_bytes / 1e9 / ARCHIVE_RATIO
    puts = 20 * len(found) + voxel_bytes / 1e6 / SHARD_MB
    requests = 2 * instances / 1000 * prices.storage.per_thousand_gets + puts / 1000 * prices.storage.per_thousand_puts
    return {
        "series": len(found),
        "instances": instances,
        "source_gb": round(source_bytes / 1e9, 3),
        "voxel_gb": round(voxel_bytes / 1e9, 3),
        "archive_gb": round(archive_gb, 3),
        "memory_per_task_gb": {"median": round(float(np.median(memory)), 2), "largest": round(float(memory.max()), 2)},
        "cpu_hours": round(cpu_hours, 3),
        "node": node,
        "nodes": n_nodes,
        "tasks_per_node": tasks,
        "node_hours": round(node_hours, 3),
        "hours": round(node_hours / n_nodes, 3),
        "dollars": {
            "on_demand": round(node_hours * kind.on_demand, 2),
            "spot": round(node_hours * kind.spot, 2),
            "requests": round(requests, 2),
            "storage_per_month": round(archive_gb * prices.storage.per_gb_month, 2),
        },
        "assumes": {
            "prices": f"{prices.region}, {prices.date}",
            "spot_prices": prices.spot_is,
            "native_mb_per_s": NATIVE_MB_PER_S,
            "compressed_mb_per_s": COMPRESSED_MB_PER_S,
            "archive_ratio": ARCHIVE_RATIO,
        },
    }
