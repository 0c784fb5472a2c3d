"""How long manifests take to render, and the command line to answer `--help`.

    .venv/bin/python benchmarks/submit.py [--rounds 7]

Renders what `tomoray submit --dry-run -o yaml` prints: a training on 64 GPUs, and a preprocessing of 100,000 series,
which are named by their collection; and what it takes to refuse the same series named one by one, whose config is too
large for a ConfigMap. Validation, the operator's rules and the YAML are in it; the start of Python is not. Medians, as
wall-clock and as CPU seconds of this process. `--help` is a process of its own.
"""

from __future__ import annotations

import argparse
import io
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from cluster import job_views
from cluster.manifests import job_manifests
from cluster.submission import Shape, prepare
from cluster.targets import KubernetesTarget
from tomoray.errors import Usage

TARGET = KubernetesTarget(kind="kubernetes", image="registry.example/tomoray:0.1.0", pseudonym_key="pseudonyms/key")
TRAINING = {"archive": "s3://ct/archive", "out": "s3://ct/run", "batch_size": 128}


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        collection, listed = Path(folder, "collection.yaml"), Path(folder, "listed.yaml")
        collection.write_text("sources: [idc://nlst]\narchive: s3://ct/nlst\n", "utf-8")
        series = "".join(f"- s3://ct/{number:064}/\n" for number in range(100_000))
        listed.write_text(f"archive: s3://ct/nlst\nsources:\n{series}", "utf-8")
        _tell("training on 64 GPUs", lambda: _render("phantom", TRAINING, Shape(workers=(8, 8), gpus=8)), rounds)
        _tell("preprocessing, one collection", lambda: _render(str(collection), {}, Shape(workers=(2, 64))), rounds)
        _tell("preprocessing, 100000 sources: refused", lambda: _refused(str(listed)), min(rounds, 3))
    _tell("tomoray --help", _help, rounds, who=resource.RUSAGE_CHILDREN)


def _render(source: str, changes: dict[str, object], shape: Shape) -> None:
    manifests = job_manifests(prepare(source, changes, TARGET, shape), TARGET)
    Console(file=io.StringIO()).print(job_views.documents(manifests, "yaml"), soft_wrap=True, highlight=False)


def _refused(source: str) -> None:
    try:
        _render(source, {}, Shape(workers=(2, 64)))
    except Usage:
        return
    raise AssertionError("it fits")


def _help() -> None:
    command = [sys.executable, "-c", "from cluster.cli import main; main(['--help'])"]
    subprocess.run(command, check=True, capture_output=True)


def _tell(what: str, do: Callable[[], None], rounds: int, *, who: int = resource.RUSAGE_SELF) -> None:
    walls, cpus = [], []
    for _ in range(rounds):
        before, began = resource.getrusage(who), time.perf_counter()
        do()
        after = resource.getrusage(who)
        walls.append(time.perf_counter() - began)
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    print(f"{what}: {statistics.median(walls):.3f} s, {statistics.median(cpus):.3f} CPU seconds", flush=True)


if __name__ == "__main__":
    main()
