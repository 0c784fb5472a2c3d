"""Archive -> fingerprint: dask's expressions on Ray's scheduler, a task a shard.

Shards are read by the tasks that count them; the driver and the object store see histograms only.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ray.exceptions import RayTaskError
from ray.util.dask import ray_dask_get

from jobs.main import main
from jobs.tasks import cluster_cpus
from tomoray.archive import Archive
from tomoray.catalog import Catalog
from tomoray.config import FingerprintConfig
from tomoray.errors import TomoRayError, Transient
from tomoray.progress import track
from tomoray.statistics.fingerprint import Fingerprint, save_fingerprint, take_fingerprint


def run(config: FingerprintConfig) -> dict[str, Any]:
    """Measure every stored scan of an archive.

    Returns:
        The fields of `tomoray.statistics.fingerprint.Fingerprint`: the same archive, the same bytes.

    Raises:
        Fatal: no such archive, no scan in it, or one cannot be read.
    """
    archive = Archive.open(config.archive)
    scan_ids = [row["scan_id"] for row in Catalog(archive.store).stored()]
    found = measure(archive, scan_ids, body_level=config.body_level, in_flight=config.in_flight)
    if config.save:
        save_fingerprint(archive.store, found)
    return found.model_dump(mode="json")


def measure(archive: Archive, scan_ids: list[str], *, body_level: int = 2, in_flight: int = 0) -> Fingerprint:
    """`take_fingerprint` on the Ray cluster, with a bar; 0 in flight is twice the cluster's CPUs."""
    with track("fingerprint", len(scan_ids)) as advance:
        try:
            return take_fingerprint(
                archive,
                scan_ids,
                body_level=body_level,
                scheduler=partial(ray_dask_get, ray_remote_args={"retry_exceptions": [Transient]}),
                in_flight=in_flight or 2 * cluster_cpus(),
                advance=advance,
            )
        except RayTaskError as error:
            if isinstance(error.cause, TomoRayError):
                raise error.cause from error
            raise


if __name__ == "__main__":
    main(run, FingerprintConfig)
