"""What preprocessing would do and cost, before anything runs. Needs no cluster."""

from __future__ import annotations

import time
from typing import Any

from tomoray import settings
from tomoray.archive import Archive
from tomoray.catalog import Catalog
from tomoray.config import PlanConfig
from tomoray.errors import Fatal, Transient
from tomoray.ingest.estimate import Size, estimate, read_prices
from tomoray.ingest.inventory import Inventory
from tomoray.ingest.stocktaking import read_in_threads, take_stock
from tomoray.privacy.pseudonyms import Pseudonyms


def run(config: PlanConfig) -> dict[str, Any]:
    """Take stock of the sources and reckon up what is not in the archive yet.

    Returns:
        What `tomoray.ingest.estimate.estimate` says of the series to do, `done_before` (series that the catalog answers
        for), `files_ignored`, and `seconds` that the plan took.

    Raises:
        Fatal: a source cannot be reached, or there is nothing to read.
    """
    started = time.monotonic()
    prices = read_prices(config.prices)
    pseudonyms = Pseudonyms(settings.pseudonym_key())
    with Inventory() as inventory:
        ignored = take_stock(config.sources, config.nifti, inventory, pseudonyms, read_in_threads)
        done = _done(config.archive)
        sizes = [
            Size(n_instances=n, size_bytes=size_bytes, voxel_bytes=voxel_bytes, working_bytes=working_bytes)
            for series_id, digest, n, size_bytes, voxel_bytes, working_bytes in inventory.sizes()
            if done.get(series_id) != digest
        ]
        n_done = len(inventory) - len(sizes)
    plan = estimate(sizes, prices, node=config.node, n_nodes=config.nodes)
    return {**plan, "done_before": n_done, "files_ignored": ignored, "seconds": round(time.monotonic() - started, 3)}


def _done(url: str) -> dict[str, str]:
    """The digest of every series in the catalog; empty where there is no archive yet."""
    try:
        table = Catalog(Archive.open(url).store).table()
    except (Fatal, Transient):
        return {}
    return dict(zip(table["series_id"].to_pylist(), table["instances_sha256"].to_pylist(), strict=True))
