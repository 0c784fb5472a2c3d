"""Memory of the patch stream by the archive's size: 10 and 1,000 scans.

    .venv/bin/python benchmarks/patches_memory.py [--series DIR] [--scans 10 1000] [--patches 4000] [--json]

The scans are one thin-slice chest CT and its mirror images under ever new names (hard links on disk, so that a thousand
fit); a stream cannot tell. Each size runs in a process of its own. `at first` is what the process holds after its first
batch: the libraries and the scans that were opened; `most` is its peak.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from preprocess import SERIES, tomoray

from tomoray.archive import Archive
from tomoray.patches import PatchStream
from tomoray.training.config import TrainConfig


def main() -> None:
    """Make an archive of each size, stream from it in a process of its own, print what that took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=Path, default=SERIES, help="a folder with one CT series")
    parser.add_argument("--scans", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--patches", type=int, default=4000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tomoray(options.series, folder)
        for scans in options.scans:
            archive = multiply(Path(folder, "archive"), Path(folder, f"archive-{scans}"), scans)
            command = [sys.executable, "-W", "ignore", __file__, "--run", str(archive), str(options.patches)]
            rows.append(json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout))
            shutil.rmtree(archive)
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print("scans  patches  scans read  at first MB  most MB  held for patches MB")
    for row in rows:
        print(
            f"{row['scans']:5}{row['patches']:9}{row['scans_read']:12}{row['first_mb']:13.0f}{row['most_mb']:9.0f}"
            f"{row['held_mb']:22.0f}"
        )


def multiply(archive: Path, copy: Path, scans: int) -> Path:
    """The one scan of an archive, under many names."""
    (source,) = (archive / "scans").iterdir()
    copy.mkdir()
    shutil.copy(archive / "tomoray.json", copy)
    for n in range(scans):
        shutil.copytree(source, copy / "scans" / f"{n:016x}", copy_function=os.link)
    return copy


def run(url: str, patches: int) -> dict[str, Any]:
    """Stream patches as a training does, and let go of each."""
    archive = Archive.open(url)
    config = TrainConfig.model_validate({"labels": [], "patch_zyx": (96, 96, 96), "task": "pretraining"})
    stream = PatchStream(archive, archive.scan_ids(), config)
    count, first_mb, seen = 0, 0.0, set()
    for batch in stream:
        first_mb = first_mb or peak_mb()
        seen.update(batch.scan_ids)
        count += len(batch.samples)
        if count >= patches:
            break
    return {
        "scans": len(archive.scan_ids()),
        "patches": count,
        "scans_read": len(seen),
        "first_mb": first_mb,
        "most_mb": peak_mb(),
        "held_mb": stream.stats.peak_bytes / 1e6,
    }


def peak_mb() -> float:
    """Most that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        print(json.dumps(run(sys.argv[2], int(sys.argv[3]))))
        sys.stdout.flush()
        os._exit(0)
    main()
