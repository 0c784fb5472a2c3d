"""The same series from disk to disk and from S3 to S3: seconds on the clock and CPU seconds of TomoRay's own process.

    .venv/bin/python benchmarks/preprocess_s3.py [--series DIR] [--rounds 5]

The server is the tests' own (`tests/services/s3_server.py`: Ceph's gateway where it is installed), on this machine:
what it burns is taken from the same cores, so the clock's ratio is a lower bound of what a server elsewhere gives.
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
from pathlib import Path

from preprocess import SERIES, cpu_s, digest, tomoray, uncompress

from tomoray.storage import open_store

SERVER = Path(__file__).resolve().parents[1] / "tests" / "services" / "s3_server.py"


def main() -> None:
    """Run both ways in turn; print medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=Path, default=SERIES, help="a folder with one CT series")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(SERVER), f"{folder}/server"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
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
    spent: dict[str, list[tuple[float, float]]] = {"disk": [], "s3": []}
    found = set()
    for n in range(rounds + 1):
        for where, source, out in (("disk", str(native), f"{folder}/{n}"), ("s3", bucket.url, f"s3://bench/{n}")):
            before, clock = cpu_s(), time.perf_counter()
            read_back = tomoray(source, out)
            if n:
                spent[where].append((time.perf_counter() - clock, cpu_s() - before))
            found.add(digest(read_back()))
    assert len(found) == 1, f"disk and S3 gave other voxels: {found}"
    (disk_s, disk_cpu), (s3_s, s3_cpu) = (
        [statistics.median(column) for column in zip(*spent[where], strict=True)] for where in ("disk", "s3")
    )
    print(f"{'':8}seconds   CPU s")
    print(f"disk    {disk_s:7.2f}{disk_cpu:8.2f}")
    print(f"{kind:8}{s3_s:7.2f}{s3_cpu:8.2f}")
    print(f"S3 runs at {disk_s / s3_s:.0%} of the disk's speed by the clock, {disk_cpu / s3_cpu:.0%} by CPU seconds")


if __name__ == "__main__":
    main()
