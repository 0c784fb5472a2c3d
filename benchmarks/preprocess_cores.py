"""`tomoray preprocess` on Ray with one task at a time and with as many as there are cores.

    .venv/bin/python benchmarks/preprocess_cores.py [--series DIR] [--copies 8] [--rounds 3]

Copies of one series under UIDs of their own, uncompressed. Ray's workers are warm; its start is not counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import pydicom
from preprocess import SERIES, uncompress

from cluster.local import local_ray
from jobs import preprocess
from tomoray.config import PreprocessConfig


def main() -> None:
    """Both ways in turn; print medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=Path, default=SERIES, help="a folder with one CT series")
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        copy(options.series, source, options.copies)
        seconds: dict[int, list[float]] = {1: [], cores: []}
        with local_ray():
            run(source, Path(folder, "warm-up"), cores)
            for n in range(options.rounds):
                for tasks in seconds:
                    started = time.perf_counter()
                    voxel_mb = run(source, Path(folder, f"{n}-{tasks}"), tasks)
                    seconds[tasks].append(time.perf_counter() - started)
        one, all_s = (statistics.median(seconds[tasks]) for tasks in (1, cores))
        print(f"{voxel_mb:.0f} MB of voxels in {options.copies} series")
        print(f"1 task:  {one:.2f} s, {voxel_mb / one:.0f} MB/s")
        print(f"{cores} tasks: {all_s:.2f} s, {voxel_mb / all_s:.0f} MB/s, {one / all_s:.2f} x")


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
    main()
