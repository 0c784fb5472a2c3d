"""`tomoray preprocess` on Ray: on one core, on all cores, and on all cores with one task at a time.

    .venv/bin/python benchmarks/preprocess_cores.py [--series DIR] [--copies 8] [--rounds 3]

Copies of one series under UIDs of their own, uncompressed. A core is a core for everything: the driver, Ray's own
processes and the tasks stay on it. (A task alone on a machine of two cores is faster than on one core, since it writes
in threads of its own while the driver works beside it.) Ray's workers are warm; its start is not counted. The ways take
turns; medians are given.

Beside it, in the same turns, the codec alone: a process on one core, and one on each, which encode the same voxels
again and again and share nothing. What they lose against as many times one is the machine's: cores share power and
caches, and may be two threads of one core.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pydicom
from preprocess import SERIES, uncompress

from cluster.local import local_ray
from jobs import preprocess
from tomoray import multiscale
from tomoray.config import Layout, PreprocessConfig

_ENCODE_S = 4


def main() -> None:
    """All ways in turn; print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=Path, default=SERIES, help="a folder with one CT series")
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    ways = {"1 core": (1, 1), f"{cores} cores": (cores, cores), f"{cores} cores, 1 task at a time": (cores, 1)}
    alone: dict[int, list[float]] = {1: [], cores: []}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        copy(options.series, source, options.copies)
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, (on, tasks) in ways.items():
                command = [sys.executable, __file__, "--measure", str(source), str(on), str(tasks)]
                out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
                found[way].append((float(out[-2]), float(out[-1])))
            for on, rates in alone.items():
                rates.append(encode_alone(on))
    seconds = {way: statistics.median(each for each, _ in runs) for way, runs in found.items()}
    print(f"{found['1 core'][0][1]:.0f} MB of voxels in {options.copies} series")
    for way, (_, voxel_mb) in zip(ways, (runs[0] for runs in found.values()), strict=True):
        ratio = seconds["1 core"] / seconds[way]
        print(f"{way:28}{seconds[way]:6.2f} s {voxel_mb / seconds[way]:6.0f} MB/s {ratio:6.2f} x one core")
    rates = {on: statistics.median(each) for on, each in alone.items()}
    for on, rate in rates.items():
        print(f"{f'the codec alone, {on} core(s)':34}{rate:6.0f} MB/s {rate / rates[1]:6.2f} x one core")


def encode_alone(cores: int) -> float:
    """MB of voxels a second that processes encode, one on each of the first `cores` cores."""
    command = [sys.executable, __file__, "--encode"]
    places = sorted(os.sched_getaffinity(0))[:cores]
    running = [subprocess.Popen([*command, str(place)], stdout=subprocess.PIPE, text=True) for place in places]
    return sum(float(process.communicate()[0].split()[-1]) for process in running)


def encode(core: int) -> None:
    """Encode made-up voxels on one core for some seconds; MB a second on stdout."""
    os.sched_setaffinity(0, [core])
    hu = np.random.default_rng(0).normal(0, 20, (256, 256, 256)).astype(np.int16)
    metadata = multiscale.array_metadata(hu, Layout())
    n, started = 0, time.perf_counter()
    while time.perf_counter() < started + _ENCODE_S:
        n += sum(1 for _ in multiscale._encoded_shards(hu, metadata))
    print(n * hu.nbytes / 1e6 / (time.perf_counter() - started))


def measure(source: str, cores: int, tasks: int) -> None:
    """Seconds and MB of one run on the first `cores` cores, on stdout."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    with tempfile.TemporaryDirectory() as folder, local_ray(num_cpus=cores):
        run(Path(source, "0"), Path(folder, "warm-up"), tasks)
        started = time.perf_counter()
        voxel_mb = run(Path(source), Path(folder, "archive"), tasks)
        print(time.perf_counter() - started, voxel_mb)


def run(source: Path, archive: Path, tasks: int) -> float:
    """MB of voxels stored."""
    result = preprocess.run(PreprocessConfig(sources=[str(source)], archive=str(archive), in_flight=tasks))
    assert not result["refused"], result["reasons"]
    return float(result["voxel_mb"])


def copy(series: Path, out: Path, copies: int) -> None:
    """The series uncompressed, several times, as other series of other patients."""
    out.mkdir()
    uncompress(series, out / "0")
    for n in range(1, copies):
        (out / str(n)).mkdir()
        for path in (out / "0").iterdir():
            dataset = pydicom.dcmread(path)
            dataset.SeriesInstanceUID += f".{n}"
            dataset.SOPInstanceUID += f".{n}"
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            dataset.PatientID = f"copy {n}"
            dataset.save_as(out / str(n) / path.name)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    elif sys.argv[1:2] == ["--encode"]:
        encode(int(sys.argv[2]))
    else:
        main()
