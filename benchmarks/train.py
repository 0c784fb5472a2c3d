"""What our training step costs beside the same network and batches in a bare PyTorch loop that is fed from memory.

    .venv/bin/python benchmarks/train.py [--steps 60] [--repeats 3] [--ray] [--json]

- bare: a loop of ten lines over batches that lie in memory: forward, loss, backward, clip, AdamW.
- ours: `tomoray.training.loop.Loop`, patches read from an archive on disk, history and checkpoint written.
- two: the same by two workers that average their gradients (gloo), each with a batch of that size (weak scaling).
- apart: two bare loops at once that know nothing of each other: what the machine itself loses when both cores compute.
- ray (`--ray`): the same as ours through `jobs.train`, so that what Ray Train adds can be stated.

Each runs in processes of its own, one thread each, each pinned to one core, so that reading takes its time from the
step. They take turns; medians are given. The losses of bare and ours are compared to six decimals. The first steps are
left out: they allocate, and until the stream is as far ahead as it goes, each pays for several.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import distributed, multiprocessing, nn

from cluster.local import local_ray
from jobs import train
from tomoray.archive import Archive
from tomoray.catalog import Catalog, stored_row
from tomoray.config import Layout
from tomoray.geometry import Geometry
from tomoray.patches import PatchStream
from tomoray.runs import read_history
from tomoray.storage import open_store
from tomoray.tasks.segmentation import NETWORK, Segmentation
from tomoray.training.config import TrainConfig
from tomoray.training.loop import Loop, Worker
from tomoray.volume import ScanInfo, ScanUids, Volume

SKIPPED = 20  # by then the stream is as far ahead as it goes: 4 patches a visit, 8 visits at once
PATIENTS = 4


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.steps <= SKIPPED:
        parser.error(f"--steps is {options.steps}; the first {SKIPPED} are left out")
    with tempfile.TemporaryDirectory(prefix="tomoray-") as folder:
        write_archive(f"{folder}/archive")
        kinds = ["bare", "ours", "two", "apart"]
        runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
        for number in range(options.repeats):
            for kind in kinds:
                runs[kind].append(measure(kind, folder, number, options.steps))
        result = summarize(runs)
        if options.ray:
            result |= through_ray(folder, options.steps, result["samples_per_s"]["ours"])
    print(json.dumps(result) if options.json else "\n".join(f"{name}: {value}" for name, value in result.items()))


def summarize(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians and ratios; raises where the losses differ."""
    speeds = {kind: median(run["samples_per_s"] for run in found) for kind, found in runs.items()}
    for bare, ours in zip(runs["bare"], runs["ours"], strict=True):
        if bare["losses"] != ours["losses"]:
            raise SystemExit(f"the losses differ: {bare['losses'][:5]} {ours['losses'][:5]}")
    return {
        "samples_per_s": {kind: round(speed, 2) for kind, speed in speeds.items()},
        "ours_to_bare": round(speeds["ours"] / speeds["bare"], 3),
        "waited_share": round(median(run["waited_share"] for run in runs["ours"]), 4),
        "two_workers_efficiency": round(speeds["two"] / (2 * speeds["ours"]), 3),
        "two_apart_efficiency": round(speeds["apart"] / speeds["bare"], 3),
        "equal_losses": True,
    }


def measure(kind: str, folder: str, number: int, steps: int) -> dict[str, Any]:
    """One run of one kind, in processes of its own."""
    world_size = 2 if kind in ("two", "apart") else 1
    out = Path(folder, f"{kind}-{number}")
    out.mkdir()
    multiprocessing.spawn(work, (kind, folder, str(out), world_size, steps), nprocs=world_size)
    return json.loads((out / "measured.json").read_text())


def work(rank: int, kind: str, folder: str, out: str, world_size: int, steps: int) -> None:
    """A process of a run."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    torch.set_num_threads(1)
    if world_size > 1:
        distributed.init_process_group("gloo", Path(out, "rendezvous").as_uri(), rank=rank, world_size=world_size)
    config = wanted(steps, world_size if kind == "two" else 1)
    archive = Archive.open(f"{folder}/archive")
    if kind in ("bare", "apart"):
        measured = bare(config, archive)
    else:
        worker = Worker(rank=rank, world_size=world_size)
        loop = Loop(config, Segmentation(config), archive, (archive.scan_ids(), ()), open_store(out), worker)
        measured = of_history(loop.run().history)
    if rank == 0:
        Path(out, "measured.json").write_text(json.dumps(measured))
    if world_size > 1:
        distributed.destroy_process_group()


def bare(config: TrainConfig, archive: Archive) -> dict[str, Any]:
    """The peer: batches in memory, and nothing but the step."""
    stream = iter(PatchStream(archive, archive.scan_ids(), config))
    batches = list(islice(stream, config.steps))
    stream.close()
    task = Segmentation(config)
    torch.manual_seed(config.seed)
    network = task.build_networks()[NETWORK]
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=0.01)
    losses, began = [], 0.0
    for step, batch in enumerate(batches):
        if step == SKIPPED:
            if distributed.is_initialized():
                distributed.barrier()  # so that both compute all the while
            began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (1 - step / config.steps) ** 0.9
        loss = task.loss({NETWORK: network}, batch, NETWORK)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        losses.append(round(float(loss.detach()), 6))
    seconds = time.perf_counter() - began
    return {"samples_per_s": (config.steps - SKIPPED) * config.batch_size / seconds, "losses": losses}


def of_history(history: list[dict[str, Any]]) -> dict[str, Any]:
    """Speed and waiting after the first steps, by the run's own account."""
    lines = history[SKIPPED:]
    size = lines[0]["samples"] - history[SKIPPED - 1]["samples"]
    seconds = [size / line["samples_per_s"] for line in lines]
    waited = sum(line["waited_share"] * s for line, s in zip(lines, seconds, strict=True))
    return {
        "samples_per_s": size * len(lines) / sum(seconds),
        "waited_share": waited / sum(seconds),
        "losses": [line["loss"] for line in history],
    }


def through_ray(folder: str, steps: int, alone: float) -> dict[str, Any]:
    """The same by `jobs.train`: speed of its steps beside the loop's, and the seconds around them."""
    config = wanted(steps, 1).model_copy(update={"archive": f"{folder}/archive", "out": f"{folder}/ray"})
    with local_ray(num_cpus=1):
        began = time.perf_counter()
        result = train.run(config)
        seconds = time.perf_counter() - began
    found = of_history(read_history(open_store(f"{folder}/ray")))
    return {
        "ray_to_alone": round(found["samples_per_s"] / alone, 3),
        "ray_seconds_around_the_steps": round(seconds - result["metrics"]["step_seconds"], 2),
    }


def wanted(steps: int, world_size: int) -> TrainConfig:
    """The phantom recipe's network, patches and batch."""
    return TrainConfig.model_validate(
        {
            "labels": ["organ"],
            "patch_zyx": (48, 48, 48),
            "network": {"channels": [16, 32, 64, 128], "residual_units": 0, "norm": "batch"},
            "split": {"validation": 0, "test": 0},
            "batch_size": 2 * world_size,
            "workers": world_size,
            "steps": steps,
            "learning_rate": 0.01,
            "checkpoint_every": steps,
        }
    )


def write_archive(url: str) -> None:
    """Scans of 128 voxels a side: noise, and a bright box in it that is the label."""
    archive = Archive.create(url, Layout())
    for number in range(PATIENTS):
        rng = np.random.default_rng(number)
        image = rng.normal(0, 50, (128, 128, 128)).astype(np.int16)
        mask = np.zeros(image.shape, np.uint8)
        corner = rng.integers(10, 60, 3)
        mask[tuple(slice(at, at + 40) for at in corner)] = 1
        image[mask > 0] += 300
        uids = tuple(f"2.25.{number}{z:04d}" for z in range(128))
        info = ScanInfo(
            scan_id=f"{number:016x}",
            series_id=f"{number:016x}",
            patient_id=f"p{number}",
            source_uri="memory",
            n_instances=128,
            instances_sha256="1" * 64,
            input_sha256="2" * 64,
            uids=ScanUids(study="2.25.1", series="2.25.2", frame_of_reference="2.25.3", instances=uids),
        )
        geometry = Geometry.from_matrix(image.shape, np.diag([1.0, 1.0, 1.0, 1.0]))
        volume = Volume(image_zyx=image, geometry=geometry, info=info, labels={"organ": mask})
        archive.write_scan(volume)
        Catalog(archive.store).upsert([stored_row(volume, "0" * 64)])


if __name__ == "__main__":
    main()
