"""The same series from disk to disk and from S3 to S3: seconds on the clock and CPU seconds of TomoRay's own process.

    .venv/bin/python benchmarks/preprocess_s3.py [--series DIR] [--rounds 5]

The server is the tests' own (`tests/services/s3_server.py`: Ceph's gateway where it is installed), on this machine.
TomoRay has the first core for itself, from disk as from S3, and the server the last one; so neither burns the other's
time or cache. The clock's ratio is still a lower bound of what a server of more than one core gives.

`listed` is S3 as a source that knows its series (IDC): each file is asked for once, and no header before it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from preprocess import KEY, SERIES, cpu_s, digest, tomoray, uncompress

from tomoray.archive import Archive
from tomoray.assembly.stack import Rules
from tomoray.catalog import Catalog
from tomoray.config import DeidentifyConfig, Layout
from tomoray.ingest.ingester import Ingester
from tomoray.ingest.inventory import read_heads
from tomoray.ingest.series import ListedSeries
from tomoray.privacy.deidentify import Deidentifier
from tomoray.sources import SeriesListing, list_source
from tomoray.storage import open_store

SERVER = Path(__file__).resolve().parents[1] / "tests" / "services" / "s3_server.py"


def main() -> None:
    """Run both ways in turn; print medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=Path, default=SERIES, help="a folder with one CT series")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(SERVER), f"{folder}/server"]
        os.sched_setaffinity(0, cores[-1:])
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            os.sched_setaffinity(0, cores[:1])  # threads that begin from here on stay there too
            said = json.loads(server.stdout.readline())
            os.environ.update(
                AWS_ENDPOINT_URL=said["endpoint"],
                AWS_ACCESS_KEY_ID=said["access_key_id"],
                AWS_SECRET_ACCESS_KEY=said["secret_access_key"],
            )
            compare(options.series, Path(folder), options.rounds, said["kind"])


def compare(series: Path, folder: Path, rounds: int, kind: str) -> None:
    """Disk and S3, interleaved; the first round warms both up and is not counted."""
    import boto3

    boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], region_name="us-east-1").create_bucket(
        Bucket="bench"
    )
    native = folder / "native"
    uncompress(series, native)
    bucket = open_store("s3://bench/native")
    for path in native.iterdir():
        bucket.write(path.name, path.read_bytes())
    ways: dict[str, Callable[[str], Callable[[], Any]]] = {
        "disk": lambda out: tomoray(native, folder / out),
        kind: lambda out: tomoray(bucket.url, f"s3://bench/{out}"),
        f"{kind}, listed": lambda out: tomoray_listed(bucket.url, f"s3://bench/{out}"),
    }
    spent: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    found = set()
    for n in range(rounds + 1):
        for number, (way, store_series) in enumerate(ways.items()):
            before, clock = cpu_s(), time.perf_counter()
            read_back = store_series(f"{n}-{number}")
            if n:
                spent[way].append((time.perf_counter() - clock, cpu_s() - before))
            found.add(digest(read_back()))
    assert len(found) == 1, f"disk and S3 gave other voxels: {found}"
    medians = {way: [statistics.median(column) for column in zip(*each, strict=True)] for way, each in spent.items()}
    disk_s, disk_cpu_s = medians["disk"]
    print(f"{'':14}seconds   CPU s   speed of the disk's: by the clock   by CPU seconds")
    for way, (seconds, cpu) in medians.items():
        print(f"{way:14}{seconds:7.2f}{cpu:8.2f}{disk_s / seconds:35.0%}{disk_cpu_s / cpu:17.0%}")


def tomoray_listed(source: str, out: str) -> Callable[[], Any]:
    """As `preprocess.tomoray`, of a prefix that is known to be one series."""
    archive = Archive.create(f"{out}/archive", Layout())
    ingester = Ingester(
        archive=archive, deidentifier=Deidentifier(KEY, DeidentifyConfig()), rules=Rules(), config_sha256=""
    )
    files = list(list_source(source))
    (head,) = read_heads(files[:1]).heads
    listing = SeriesListing(
        root=source,
        series_uid=head.series_uid,
        patient_id=head.patient_id,
        study_uid=head.study_uid,
        modality="CT",
        n_instances=len(files),
        size_bytes=sum(file.size_bytes for file in files),
        version="1",
        manufacturer=None,
    )
    rows = ingester.ingest(ListedSeries(listing=listing)).rows
    Catalog(archive.store).upsert(list(rows))
    scan = archive.scan(rows[0]["scan_id"])
    return lambda: scan.image().read().result()


if __name__ == "__main__":
    main()
