"""Serving, measured: the window engine against MONAI's, the endpoint against its own engine, and memory.

    python benchmarks/serving_speed.py network               our windows against MONAI's in eager PyTorch
    python benchmarks/serving_speed.py endpoint --scans 16   the endpoint, by reference, against `predict` in-process
    python benchmarks/serving_speed.py memory --slices 1000  the peak of a replica's process, for one large scan

`network` teaches both networks for a minute to tell a body and its lungs, then asks them about a scan they have not
seen; the Dice is the lower one of both labels. It counts CPU seconds of the process, which other work on the machine
changes less than those on the clock. The networks of `endpoint` and `memory` were never trained.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from monai.networks.nets.basic_unet import BasicUNet
from monai.networks.nets.segresnet import SegResNet
from scipy.ndimage import zoom
from torch import nn

from tomoray import phantom
from tomoray.archive import Archive
from tomoray.catalog import Split
from tomoray.config import Layout, PhantomConfig, PreprocessConfig
from tomoray.geometry import Geometry
from tomoray.inference.backends import compile_network
from tomoray.inference.models import compile_segmenter, open_model
from tomoray.inference.scan_input import ArchivedVoxels
from tomoray.metrics import dice
from tomoray.networks import build_network
from tomoray.predict import Probabilities, Segmenter
from tomoray.runs import begin_run, finish_run
from tomoray.serving_config import ModelConfig, ServeConfig
from tomoray.storage import open_store
from tomoray.training.config import TrainConfig
from tomoray.transforms import scale_hu
from tomoray.volume import Image, Mask, ScanInfo, ScanUids, Volume

WINDOW = (-1000.0, 400.0)


def basic_unet() -> nn.Module:
    """As in MONAI, with its own widths."""
    return BasicUNet(in_channels=1, out_channels=3, features=(32, 32, 64, 128, 256, 32))


def segresnet() -> nn.Module:
    """As in MONAI, 16 channels first."""
    return SegResNet(in_channels=1, out_channels=3, init_filters=16)


def chest(shape_zyx: tuple[int, int, int], seed: int = 0) -> tuple[Image, Mask]:
    """A body with two lungs in it, noisy, near the middle; and the truth: 1 for the body, 2 for the lungs."""
    rng = np.random.default_rng(seed)
    shift = rng.uniform(-0.08, 0.08, 3)
    z, y, x = (np.linspace(-1, 1, size) + by for size, by in zip(shape_zyx, shift, strict=True))
    body = (y[:, None] / 0.75) ** 2 + (x / 0.9) ** 2 < 1
    lungs = [
        ((z / 0.9) ** 2)[:, None, None] + ((y / 0.5) ** 2)[:, None] + ((x - at) / 0.3) ** 2 < 1 for at in (-0.4, 0.4)
    ]
    truth = (body * np.ones((shape_zyx[0], 1, 1))).astype(np.uint8)
    truth[lungs[0] | lungs[1]] = 2
    image = np.array([-1000, 40, -850])[truth] + rng.normal(0, 20, shape_zyx)
    return image.astype(np.int16), truth


def teach(module: nn.Module, steps: int, patch: int = 32) -> None:
    """Train for a short while, on patches of chests other than the one that is asked about."""
    chests = [chest((64, 96, 96), seed) for seed in (1, 2, 3)]
    rng, optimizer = np.random.default_rng(0), torch.optim.Adam(module.parameters(), lr=2e-3)
    module.train()
    for _ in range(steps):
        image, truth = chests[rng.integers(len(chests))]
        corner = [rng.integers(size - patch + 1) for size in image.shape]
        where = tuple(slice(at, at + patch) for at in corner)
        scores = module(scale_hu(torch.from_numpy(image[where].astype(np.float32)), WINDOW)[None, None])
        loss = nn.functional.cross_entropy(scores, torch.from_numpy(truth[where].astype(np.int64))[None])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    module.eval()


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """CPU seconds of this process, seconds on the clock, and the result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def network(
    shape_zyx: tuple[int, int, int], patch: int, repeats: int, only: list[str], backends: list[str], steps: int
) -> dict[str, Any]:
    """Each backend against MONAI, on one scan: seconds, ratio, Dice with the truth and with MONAI's mask."""
    image, truth = chest(shape_zyx)
    geometry = Geometry.from_matrix(shape_zyx, np.eye(4))
    config = TrainConfig(labels=["a", "b"], patch_zyx=(patch,) * 3, hu_window=WINDOW, network={"channels": [2, 4]})
    results: dict[str, Any] = {"windows": f"{patch}^3, overlap {config.overlap}", "shape_zyx": shape_zyx}
    for name, make in {"BasicUNet": basic_unet, "SegResNet": segresnet}.items():
        if name not in only:
            continue
        torch.manual_seed(0)
        module = make()
        teach(module, steps)

        @torch.inference_mode()
        def monai(module: nn.Module = module) -> np.ndarray[Any, Any]:
            scaled = scale_hu(torch.from_numpy(image.astype(np.float32)), WINDOW)[None, None]
            scores = sliding_window_inference(
                scaled, config.patch_zyx, 1, lambda windows: module(windows).softmax(1), config.overlap, "gaussian"
            )
            return np.asarray(scores)[0].argmax(0)

        engines: dict[str, Callable[[], Any]] = {"MONAI, eager": monai}
        example = (torch.zeros(1, 1, *config.patch_zyx),)
        for backend in backends:
            compiled = compile_network(Probabilities([module]), example, backend)
            for skip in (False, True) if backend == "openvino" else (False,):
                segmenter = Segmenter(compiled.forward, config.model_copy(update={"skip_air": skip}))
                what = f"{backend}{', air left out' if skip else ''}"
                engines[what] = lambda segmenter=segmenter: segmenter.find(image, geometry).classes_zyx
        told: dict[str, list[tuple[float, float]]] = {what: [] for what in engines}
        masks = {}
        for _ in range(repeats):  # in turn, so that what else goes on meets all alike
            for what, run in engines.items():
                cpu, wall, masks[what] = cpu_seconds(run)
                told[what].append((cpu, wall))
        best = {what: min(cpu for cpu, _ in times) for what, times in told.items()}
        results[name] = {
            what: {
                "cpu_s": round(best[what], 2),
                "wall_s": round(min(wall for _, wall in told[what]), 2),
                "faster": round(best["MONAI, eager"] / best[what], 2),
                "dice": round(_alike(masks[what], truth), 4),
                "dice_with_monai": round(_alike(masks[what], masks["MONAI, eager"]), 4),
            }
            for what in engines
        }
    return results


def _alike(found: Any, wanted: Any) -> float:
    """The lowest Dice of all classes that one of both has."""
    return min(dice(found == n, wanted == n) for n in range(3) if (found == n).any() or (wanted == n).any())


def make_run(folder: Path, archive: str, patch: int, spacing: float | None, channels: list[int]) -> str:
    """A run whose network was never trained; its URL."""
    store, split = open_store(str(folder / "run")), Split(train=(), validation=(), test=())
    config = TrainConfig(
        archive=archive,
        out=store.url,
        labels=["lungs", "nodules"],
        spacing_zyx_mm=(spacing,) * 3 if spacing else None,
        patch_zyx=(patch,) * 3,
        network={"channels": channels},
        steps=1,
    )
    begin_run(store, config, split)
    torch.manual_seed(0)
    weights = io.BytesIO()
    torch.save(build_network(config.network, out_channels=3).state_dict(), weights)
    store.write("checkpoints/step-00000001/model.pt", weights.getvalue())
    return finish_run(store, config, split, {}).store.url


def endpoint(scans: int, concurrency: int) -> dict[str, Any]:
    """Volumes per second and added latency, by reference."""
    import requests

    from cluster.endpoint import serving
    from cluster.local import local_ray
    from jobs import preprocess

    with tempfile.TemporaryDirectory(prefix="tomoray-") as name, local_ray():
        folder = Path(name)
        phantom.write_cohort(PhantomConfig(out=str(folder / "cohort"), patients=4, seed=3, matrix=256))
        preprocess.run(PreprocessConfig(sources=[str(folder / "cohort")], archive=str(folder / "archive")))
        run = make_run(folder, str(folder / "archive"), 64, 2.0, [16, 32, 64, 128])
        archive = Archive.open(str(folder / "archive"))
        wanted = [archive.scan_ids()[n % len(archive.scan_ids())] for n in range(scans)]
        segmenter, compiled = compile_segmenter(open_model(run))

        def bare(scan_id: str) -> float:
            start = time.perf_counter()
            scan = archive.scan(scan_id)
            found = segmenter.find(ArchivedVoxels(scan), scan.geometry)
            for label in segmenter.config.labels:
                segmenter.packed(found.classes_zyx, label)
            return time.perf_counter() - start

        model = ModelConfig(source=run, cpus=torch.get_num_threads(), requests_at_once=concurrency, memory_mb=4000)
        with serving(ServeConfig(models=[model], port=0)) as url, requests.Session() as session:

            def served(scan_id: str, session: Any = session) -> float:
                start = time.perf_counter()
                reply = session.post(f"{url}/v1/segment", json={"scan_id": scan_id}, timeout=600)
                reply.raise_for_status()
                return time.perf_counter() - start

            bare(wanted[0]), served(wanted[0])
            rounds: dict[str, list[float]] = {"bare": [], "endpoint": []}
            one: dict[str, list[float]] = {"bare": [], "endpoint": []}
            for _ in range(3):  # in turn, so that what else goes on meets both alike
                start = time.perf_counter()
                for scan_id in wanted:
                    bare(scan_id)
                rounds["bare"].append(scans / (time.perf_counter() - start))
                start = time.perf_counter()
                with ThreadPoolExecutor(concurrency) as pool:
                    list(pool.map(lambda scan_id: served(scan_id, requests), wanted))
                rounds["endpoint"].append(scans / (time.perf_counter() - start))
                for scan_id in wanted[:8]:
                    one["bare"].append(bare(scan_id))
                    one["endpoint"].append(served(scan_id))
        per_s = {what: statistics.median(values) for what, values in rounds.items()}
        p50 = {what: statistics.median(values) for what, values in one.items()}
        return {
            "backend": compiled.backend,
            "volumes_per_s": {what: round(value, 3) for what, value in per_s.items()},
            "rounds": {what: [round(value, 3) for value in values] for what, values in rounds.items()},
            "share": round(per_s["endpoint"] / per_s["bare"], 3),
            "p50_s": {what: round(value, 3) for what, value in p50.items()},
            "added_p50_ms": round(1000 * (p50["endpoint"] - p50["bare"])),
        }


def memory(slices: int) -> dict[str, Any]:
    """Peak memory of a process that does what a replica does, for one scan of an archive."""
    from cluster.local import local_ray
    from serving.messages import ArchivedScan, Finding, Request
    from serving.model import ModelServer, served_model

    with tempfile.TemporaryDirectory(prefix="tomoray-") as name, local_ray():  # as a replica is of Ray, its metrics too
        folder = Path(name)
        archive = Archive.create(str(folder / "archive"), Layout(levels=1))
        _large_scan(archive, slices)
        run = make_run(folder, archive.url, 96, 1.5, [16, 32, 64, 128])
        config = ModelConfig(source=run)
        server = ModelServer(config, served_model(config)[0], "cpu")
        loaded_mb = _peak_mb()

        async def find() -> Finding:
            request = Request(scan=ArchivedScan(archive=archive.url, scan_id="large"))
            *_, finding = [answer async for answer in server.find(request)]
            assert isinstance(finding, Finding)
            return finding

        start = time.perf_counter()
        asyncio.run(find())
        seconds = time.perf_counter() - start
        return {
            "slices": slices,
            "scan_mb": round(slices * 512 * 512 * 2 / 1e6),
            "peak_mb_before": loaded_mb,
            "peak_mb": _peak_mb(),
            "seconds": round(seconds, 1),
        }


def _large_scan(archive: Archive, slices: int) -> None:
    small, _ = chest((slices // 8, 64, 64))
    image = zoom(small, (slices / len(small), 8, 8), order=0)
    uids = ScanUids(study="2.25.1", series="2.25.2", frame_of_reference="2.25.3", instances=("2.25.4",))
    info = ScanInfo(
        scan_id="large", series_id="large", patient_id="large", source_uri="memory", n_instances=slices,
        instances_sha256="1" * 64, input_sha256="2" * 64, uids=uids,
    )  # fmt: skip
    geometry = Geometry.from_matrix(image.shape, np.diag([0.7, 0.7, 1.0, 1.0]))
    archive.write_scan(Volume(image_zyx=image, geometry=geometry, info=info))


def _peak_mb() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)


def main() -> None:
    """Measure what the command line names, and print it as JSON."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["network", "endpoint", "memory"])
    parser.add_argument("--shape", type=int, nargs=3, default=[96, 192, 192])
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--only", nargs="+", default=["BasicUNet", "SegResNet"])
    parser.add_argument("--backends", nargs="+", default=["torch", "onnxruntime", "openvino"])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60, help="of training, before networks are compared")
    parser.add_argument("--scans", type=int, default=16)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--slices", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    if flags.what == "network":
        z, y, x = flags.shape
        result = network((z, y, x), flags.patch, flags.repeats, flags.only, flags.backends, flags.steps)
    elif flags.what == "endpoint":
        result = endpoint(flags.scans, flags.concurrency)
    else:
        result = memory(flags.slices)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
