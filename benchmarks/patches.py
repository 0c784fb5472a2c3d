"""Patches a second beside the tools people use: the same volumes, 96^3 voxels of image and mask, float32 out.

    .venv/bin/python benchmarks/patches.py [--series DIR] [--rounds 3] [--seconds 8] [--peers DIR] [--json]

The volumes are one thin-slice chest CT (real noise: it decides what decoding costs) and its mirror images, so that no
peer finds the bytes of one in the memory of another; the mask is air within the body, i.e. lungs. Every peer reads
both, draws a third of its patches on the mask and the rest anywhere, and may use two processes. nnU-Net, TorchIO and
blosc2 come from `--peers`, a folder filled with `pip install --target`; peers that are not there are left out and said
to be. nnU-Net runs its own dataset and loader classes on files written by its own `save_case` with its own parameters.

`cut alike` says that the peer's patch at given corners has the voxels that all others have. `CPU ms` are of the peer's
processes for one patch, its own S3 server's not among them: by the clock the server, on the same cores, is paid too.
Medians of the rounds, which are interleaved.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.simplefilter("ignore")

import numpy as np
import torch
import zarr
from preprocess import SERIES, cpu_s, tomoray

from tomoray.archive import Archive
from tomoray.config import Layout
from tomoray.patches import PatchStream
from tomoray.storage import open_store
from tomoray.training.config import TrainConfig

SERVER = Path(__file__).resolve().parents[1] / "tests" / "services" / "s3_server.py"
SIDE = 96
PATCH = (SIDE, SIDE, SIDE)
LABEL = "lungs"
FOREGROUND = 1 / 3
WINDOW = (-1000.0, 400.0)
ARCHIVES = {"archive": Layout(), "archive-lz4": Layout(codec="lz4"), "archive-32": Layout(chunk_zyx=(32, 32, 32))}
MIRRORS = ((1, 1, 1), (1, -1, 1), (1, 1, -1), (-1, 1, 1))
Patches = Iterator[int]  # how many came at once


def main() -> None:
    """Make the volumes in every format, run all peers in turn, print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=Path, default=SERIES, help="a folder with one CT series")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--peers", type=Path, default=Path("peers"), help="where nnunetv2 and torchio are")
    parser.add_argument("--only", nargs="+", default=[""], help="peers whose name holds one of these")
    parser.add_argument("--folder", type=Path, help="keep the volumes here, and use those that are there")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ["TOMORAY_PEERS"] = str(options.peers.resolve())
    with tempfile.TemporaryDirectory() as temporary, s3_server(Path(temporary)) as kind:
        folder = options.folder or Path(temporary)
        prepare(options.series, folder)
        names = [name for name in PEERS if any(part in name for part in options.only)]
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _, name in itertools.product(range(options.rounds), names):
            runs[name].append(measure(name, folder, options.seconds))
            print(name, runs[name][-1], file=sys.stderr, flush=True)
        table = {name: summary(found) for name, found in runs.items()}
    if options.json:
        print(json.dumps({"s3": kind, "peers": table}, indent=2))
        return
    print(f"{SIDE}^3 patches, image and mask; S3 is {kind} on the same two cores")
    print(f"{'':44}patches/s   CPU ms  requests   MB  peak MB  cut alike")
    for name, row in table.items():
        if "missing" in row:
            print(f"{name:44}left out: {row['missing']}")
            continue
        asked = "".join(
            f"{row[key]:{width}.1f}" if row.get(key) is not None else " " * (width - 1) + "-"
            for key, width in (("requests", 9), ("mb", 6))
        )
        print(f"{name:44}{row['rate']:9.1f}{row['cpu_ms']:9.1f} {asked}{row['peak_mb']:9.0f}  {row['alike']}")
    for ours, peer, wanted in RATIOS:
        if all("rate" in table.get(name, {}) for name in (ours, peer)):
            by_clock = table[ours]["rate"] / table[peer]["rate"]
            by_cpu = table[peer]["cpu_ms"] / table[ours]["cpu_ms"]
            print(f"{ours} / {peer}: {by_clock:.1f} x by the clock (wanted {wanted}), {by_cpu:.1f} x by CPU seconds")


def measure(name: str, folder: Path, seconds: float) -> dict[str, Any]:
    """One run of one peer in processes of its own, which begin to count together."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__)), "--run", name, str(folder), str(seconds)]
    processes = [
        subprocess.Popen([*command, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for n in range(PROCESSES.get(name, 1))
    ]
    ready = [process.stdout.readline() for process in processes]
    if not all(line.startswith("ready") for line in ready):  # it is missing, or its workers died
        for process in processes:
            process.communicate()
        return json.loads(ready[0]) if ready[0].startswith("{") else {"missing": "it ended with an error"}
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
    patches = sum(each["patches"] for each in found)
    return {
        "rate": sum(each["patches"] / each["seconds"] for each in found),
        "cpu_ms": 1e3 * sum(each["cpu_s"] for each in found) / patches,
        "peak_mb": max(each["peak_mb"] for each in found),
        "alike": found[0]["alike"],
        "requests": found[0]["requests"],
        "mb": found[0]["mb"],
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over rounds."""
    if any("missing" in run for run in runs):
        return next(run for run in runs if "missing" in run)
    middle = {
        key: statistics.median(run[key] for run in runs) if runs[0][key] is not None else None
        for key in ("rate", "cpu_ms", "peak_mb", "requests", "mb")
    }
    return {**middle, "alike": runs[0]["alike"]}


def run(name: str, folder: Path, seconds: float, number: int) -> None:
    """In a process of its own: check, warm up, wait for the word, count."""
    torch.set_num_threads(1)
    random.seed(number)
    np.random.seed(number)
    try:
        peer = PEERS[name](folder, number)
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), flush=True)
        return
    alike = "-"
    if peer.cut is not None:
        for scan, corner in ((0, (60, 100, 200)), (1, (170, 33, 130)), (3, (1, 300, 90))):
            image, mask = peer.cut(scan, corner)
            want, want_mask = truth(folder, scan, corner)
            assert np.allclose(image, want, atol=2e-3), f"{name} cut other voxels at {corner}: {image.flat[0]}"
            assert np.array_equal(np.asarray(mask) > 0, want_mask > 0), f"{name} cut another mask at {corner}"
        alike = "yes"
    patches = peer.patches()
    warm = 0
    while warm < peer.warm_up:
        warm += next(patches)
    before_asked = peer.asked() if peer.asked else None
    print("ready", flush=True)
    sys.stdin.readline()
    began, burnt, count = time.perf_counter(), cpu_of_all(), 0
    while (now := time.perf_counter()) < began + seconds or not count:
        count += next(patches)
    now = time.perf_counter()
    spent = cpu_of_all() - burnt
    asked = [after - before for after, before in zip(peer.asked(), before_asked, strict=True)] if peer.asked else None
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(
        json.dumps(
            {
                "patches": count,
                "seconds": now - began,
                "cpu_s": spent,
                "peak_mb": peak_mb,
                "alike": alike,
                "requests": asked[0] / count if asked else None,
                "mb": asked[1] / 1e6 / count if asked else None,
            }
        ),
        flush=True,
    )
    os._exit(0)  # peers' worker processes would be waited for


def cpu_of_all() -> float:
    """CPU seconds of this process and its living and ended children."""
    ticks = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                ticks += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return cpu_s() + ticks


@dataclasses.dataclass(frozen=True)
class Peer:
    """Something that gives patches.

    Attributes:
        patches: an endless iterator that says how many patches came.
        cut: image 0..1 and mask at a corner of a volume, to compare; None where it draws corners itself.
        asked: requests to the store and bytes so far.
        warm_up: patches before counting.
    """

    patches: Callable[[], Patches]
    cut: Callable[[int, tuple[int, int, int]], tuple[Any, Any]] | None = None
    asked: Callable[[], tuple[int, int]] | None = None
    warm_up: int = 16


# --- the volumes ---------------------------------------------------------------------------------------------------


def prepare(series: Path, folder: Path) -> None:
    """The volumes as archives on disk and S3, NIfTI.gz, nnU-Net's files and plain arrays to compare with."""
    import boto3
    import nibabel
    from scipy import ndimage

    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as work:
            tomoray(series, work)
            source = Archive.open(f"{work}/archive")
            whole = source.scan(source.scan_ids()[0]).read()
        body = np.stack([ndimage.binary_fill_holes(plane) for plane in whole.image_zyx > -300])
        mask = (body & (whole.image_zyx < -500)).astype(np.uint8)
        archives = [Archive.create(str(folder / name), layout) for name, layout in ARCHIVES.items()]
        for n, mirror in enumerate(MIRRORS):
            if (folder / f"{n}.done").exists():
                continue
            turn = tuple(slice(None, None, step) for step in mirror)
            image, lungs = np.ascontiguousarray(whole.image_zyx[turn]), np.ascontiguousarray(mask[turn])
            info = dataclasses.replace(whole.info, scan_id=f"{n:016x}")
            for archive in archives:
                archive.write_scan(dataclasses.replace(whole, image_zyx=image, labels={LABEL: lungs}, info=info))
            np.save(folder / f"{n}.npy", image)
            np.save(folder / f"{n}_mask.npy", lungs)
            for name, voxels in (("ct", image), ("lungs", lungs)):
                nibabel.save(nibabel.Nifti1Image(voxels.T, np.eye(4)), folder / f"{n}_{name}.nii.gz")
            with contextlib.suppress(ImportError):
                save_nnunet(folder, n, image, lungs)
            (folder / f"{n}.done").touch()
        (folder / "done").touch()
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], region_name="us-east-1")
    client.create_bucket(Bucket="bench")
    bucket = open_store("s3://bench")
    for name in ARCHIVES:
        for path in sorted((folder / name).rglob("*")):
            if path.is_file():
                bucket.write(str(path.relative_to(folder)), path.read_bytes())


def truth(folder: Path, scan: int, corner: tuple[int, int, int]) -> tuple[Any, Any]:
    """What a patch holds."""
    window = tuple(slice(at, at + SIDE) for at in corner)
    image = np.load(folder / f"{scan}.npy", mmap_mode="r")[window]
    return scaled(image), np.load(folder / f"{scan}_mask.npy", mmap_mode="r")[window]


def scaled(hu: Any) -> Any:
    """HU to 0..1, float32."""
    low, high = WINDOW
    return np.clip((np.asarray(hu, dtype=np.float32) - low) / (high - low), 0, 1)


def random_corners(folder: Path) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """For peers that only read windows: a volume and a corner, a third of them on the mask."""
    masks = [np.load(folder / f"{n}_mask.npy", mmap_mode="r") for n in range(len(MIRRORS))]
    shape = masks[0].shape
    archive = Archive.open(str(folder / "archive"))
    voxels = [archive.scan(scan_id).foreground_voxels_zyx(LABEL) for scan_id in archive.scan_ids()]
    while True:
        n = random.randrange(len(masks))
        corner = [random.randrange(size - SIDE + 1) for size in shape]
        if random.random() < FOREGROUND:
            centre = voxels[n][random.randrange(len(voxels[n]))]
            corner = [min(max(int(at) - SIDE // 2, 0), size - SIDE) for at, size in zip(centre, shape, strict=True)]
        yield n, (corner[0], corner[1], corner[2])


# --- ours ----------------------------------------------------------------------------------------------------------


def ours(url: str, patches_per_visit: int, *, augmented: bool = False, cached: bool = False) -> Callable[..., Peer]:
    """The patch stream in one process."""

    def make(folder: Path, number: int) -> Peer:
        config = TrainConfig.model_validate(
            {
                "labels": [LABEL],
                "patch_zyx": PATCH,
                "hu_window": WINDOW,
                "foreground_fraction": FOREGROUND,
                "augment": {"preset": "standard"} if augmented else {},
                "stream": {
                    "patches_per_visit": patches_per_visit,
                    "cache_folder": str(folder / "cache") if cached else None,
                },
            }
        )
        archive = Archive.open(url.format(folder=folder))
        stream = PatchStream(archive, archive.scan_ids(), config)

        def cut(scan: int, corner: tuple[int, int, int]) -> tuple[Any, Any]:
            from tomoray.patches import Sample

            image, classes = stream.cut(Sample(scan_id=f"{scan:016x}", corner_zyx=corner, flips=(False,) * 3))
            return image.numpy(), classes.numpy()

        def patches() -> Patches:
            from tomoray.training.augment import augment

            if augmented:
                torch.set_num_threads(2)  # others may use two processes
            for batch in stream:
                if augmented:
                    augment(batch, config.augment, 0)
                yield len(batch.samples)

        return Peer(
            patches,
            cut,
            lambda: (stream.stats.requests, stream.stats.fetched_bytes),
            warm_up=64 if not cached else 600,
        )

    return make


# --- peers that read windows of the same archive -------------------------------------------------------------------


def plain_tensorstore(url: str, in_flight: int) -> Callable[..., Peer]:
    """TensorStore on our archive, windows drawn one by one, `in_flight` of them under way."""

    def make(folder: Path, number: int) -> Peer:
        del number
        archive = Archive.open(url.format(folder=folder))
        scans = [archive.scan(scan_id) for scan_id in archive.scan_ids()]
        arrays = [(scan.image(), scan.label(LABEL)) for scan in scans]

        def read(scan: int, corner: tuple[int, int, int]) -> tuple[Any, Any]:
            window = tuple(slice(at, at + SIDE) for at in corner)
            return tuple(array[window].read() for array in arrays[scan])

        def finish(pending: tuple[Any, Any]) -> tuple[Any, Any]:
            return scaled(pending[0].result()), pending[1].result()

        def patches() -> Patches:
            corners = random_corners(folder)
            pending = [read(*next(corners)) for _ in range(in_flight)]
            while True:
                finish(pending.pop(0))
                pending.append(read(*next(corners)))
                yield 1

        return Peer(patches, lambda scan, corner: finish(read(scan, corner)))

    return make


def zarr_python(url: str) -> Callable[..., Peer]:
    """zarr-python on our archive; on S3 with obstore."""

    def make(folder: Path, number: int) -> Peer:
        del number
        place = url.format(folder=folder)
        if place.startswith("s3://"):
            from obstore.store import S3Store
            from zarr.storage import ObjectStore

            store = ObjectStore(
                S3Store(
                    "bench",
                    prefix="archive",
                    endpoint=os.environ["AWS_ENDPOINT_URL"],
                    region="us-east-1",
                    client_options={"allow_http": True},
                    virtual_hosted_style_request=False,
                ),
                read_only=True,
            )
        else:
            store = zarr.storage.LocalStore(place, read_only=True)
        arrays = [
            tuple(
                zarr.open_array(store, path=f"scans/{n:016x}/{path}", mode="r") for path in ("0", f"labels/{LABEL}/0")
            )
            for n in range(len(MIRRORS))
        ]

        def cut(scan: int, corner: tuple[int, int, int]) -> tuple[Any, Any]:
            window = tuple(slice(at, at + SIDE) for at in corner)
            return scaled(arrays[scan][0][window]), arrays[scan][1][window]

        def patches() -> Patches:
            for scan, corner in random_corners(folder):
                cut(scan, corner)
                yield 1

        return Peer(patches, cut, warm_up=4)

    return make


# --- nnU-Net -------------------------------------------------------------------------------------------------------


def _peers_path() -> None:
    if os.environ["TOMORAY_PEERS"] not in sys.path:
        sys.path.append(os.environ["TOMORAY_PEERS"])
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.setdefault(name, tempfile.gettempdir())


def save_nnunet(folder: Path, n: int, image: Any, mask: Any) -> None:
    """One case as nnU-Net's preprocessor stores it: float32, normalised, its own chunks and blocks for this patch."""
    _peers_path()
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    (folder / "nnunet").mkdir(exist_ok=True)
    data, seg = scaled(image)[None], mask[None].astype(np.int8)
    blocks, chunks = comp_blosc2_params(data.shape, PATCH, data.itemsize)
    blocks_seg, chunks_seg = comp_blosc2_params(seg.shape, PATCH, seg.itemsize)
    voxels = np.argwhere(mask)[np.random.default_rng(0).integers(mask.sum(), size=10000)]
    locations = {1: np.concatenate([np.zeros((len(voxels), 1), int), voxels], axis=1)}
    nnUNetDatasetBlosc2.save_case(
        data,
        seg,
        {"class_locations": locations},
        str(folder / "nnunet" / str(n)),
        chunks=chunks,
        blocks=blocks,
        chunks_seg=chunks_seg,
        blocks_seg=blocks_seg,
    )


def nnunet(*, augmented: bool) -> Callable[..., Peer]:
    """nnU-Net's dataset and loader, one in each of two processes; with its default transforms where asked for."""

    def make(folder: Path, number: int) -> Peer:
        del number
        _peers_path()
        from batchgenerators.utilities.file_and_folder_operations import join  # noqa: F401
        from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
        from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
        from nnunetv2.utilities.label_handling.label_handling import LabelManager

        dataset = nnUNetDatasetBlosc2(str(folder / "nnunet"))
        labels = LabelManager({"background": 0, LABEL: 1}, None)
        transforms, size = None, PATCH
        if augmented:
            from batchgeneratorsv2.helpers.scalar_type import RandomScalar  # noqa: F401
            from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
            from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

            angle = (-30.0 / 360 * 2 * np.pi, 30.0 / 360 * 2 * np.pi)
            size = tuple(int(n) for n in get_patch_size(PATCH, angle, angle, angle, (0.85, 1.25)))
            transforms = nnUNetTrainer.get_training_transforms(
                PATCH, angle, None, (0, 1, 2), False, is_cascaded=False, foreground_labels=[1]
            )
        loader = nnUNetDataLoader(
            dataset,
            2,
            size,
            PATCH,
            labels,
            oversample_foreground_percent=FOREGROUND,
            transforms=transforms,
            probabilistic_oversampling=True,
        )

        def cut(scan: int, corner: tuple[int, int, int]) -> tuple[Any, Any]:
            data, seg, *_ = dataset.load_case(str(scan))
            window = (0, *(slice(at, at + SIDE) for at in corner))
            return data[window], seg[window]

        def patches() -> Patches:
            while True:
                yield len(next(loader)["data"])

        return Peer(patches, cut, warm_up=8)

    return make


# --- MONAI and TorchIO ---------------------------------------------------------------------------------------------


def monai(kind: str, crops: int) -> Callable[..., Peer]:
    """MONAI's datasets on NIfTI.gz, random crops by label, a DataLoader with two workers."""

    def make(folder: Path, number: int) -> Peer:
        del number
        from monai.data import CacheDataset, DataLoader, Dataset, PersistentDataset, list_data_collate
        from monai.transforms import (
            Compose,
            EnsureChannelFirstd,
            EnsureTyped,
            FgBgToIndicesd,
            LoadImaged,
            RandCropByPosNegLabeld,
            ScaleIntensityRanged,
        )
        from torch.utils.data import RandomSampler

        keys = ["image", "label"]
        steps = Compose(
            [
                LoadImaged(keys),
                EnsureChannelFirstd(keys),
                ScaleIntensityRanged("image", *WINDOW, 0, 1, clip=True),
                EnsureTyped(keys),
                FgBgToIndicesd("label"),  # kept by those that keep volumes, as MONAI's guides advise
                RandCropByPosNegLabeld(
                    keys,
                    "label",
                    PATCH,
                    pos=1,
                    neg=2,
                    num_samples=crops,
                    fg_indices_key="label_fg_indices",
                    bg_indices_key="label_bg_indices",
                ),
            ]
        )
        files = [
            {"image": str(folder / f"{n}_ct.nii.gz"), "label": str(folder / f"{n}_lungs.nii.gz")}
            for n in range(len(MIRRORS))
        ]
        if kind == "cache":  # each volume once: 0.6 GB of float32 image and mask
            dataset: Any = CacheDataset(files, steps, num_workers=2, progress=False)
        elif kind == "persistent":
            dataset = PersistentDataset(files, steps, cache_dir=folder / "persistent")
        else:
            dataset = Dataset(files, steps)
        workers = DataLoader(
            dataset,
            batch_size=1,
            sampler=RandomSampler(dataset, replacement=True, num_samples=10**6),
            num_workers=2,
            collate_fn=list_data_collate,
        )

        def patches() -> Patches:
            for batch in workers:
                yield len(batch["image"])

        return Peer(patches, warm_up=8 if kind == "persistent" else 2)

    return make


def torchio() -> Callable[..., Peer]:
    """TorchIO's queue with two workers."""

    def make(folder: Path, number: int) -> Peer:
        del number
        _peers_path()
        import torchio as tio
        from torch.utils.data import DataLoader

        subjects = [
            tio.Subject(
                image=tio.ScalarImage(folder / f"{n}_ct.nii.gz"), label=tio.LabelMap(folder / f"{n}_lungs.nii.gz")
            )
            for n in range(len(MIRRORS))
        ] * 8
        dataset = tio.SubjectsDataset(subjects, transform=tio.RescaleIntensity((0, 1), in_min_max=WINDOW))
        sampler = tio.LabelSampler(PATCH, "label", {0: 1 - FOREGROUND, 1: FOREGROUND})
        queue = tio.Queue(dataset, max_length=32, samples_per_volume=8, sampler=sampler, num_workers=2)

        def patches() -> Patches:
            while True:
                for batch in (
                    tio.SubjectsLoader(queue, batch_size=2)
                    if hasattr(tio, "SubjectsLoader")
                    else DataLoader(queue, batch_size=2)
                ):
                    yield len(batch["image"][tio.DATA])

        return Peer(patches, warm_up=8)

    return make


DISK, S3 = "{folder}/archive", "s3://bench/archive"
DISK_LZ4, S3_LZ4 = "{folder}/archive-lz4", "s3://bench/archive-lz4"
DISK_32 = "{folder}/archive-32"
PEERS: dict[str, Callable[[Path, int], Peer]] = {
    "tomoray, disk": ours(DISK, 4),
    "tomoray, disk, 8 patches a visit": ours(DISK, 8),
    "tomoray, disk, 1 patch a visit": ours(DISK, 1),
    "tomoray, disk, lz4": ours(DISK_LZ4, 4),
    "tomoray, disk, lz4, 8 patches a visit": ours(DISK_LZ4, 8),
    "tomoray, disk, 32^3 chunks": ours(DISK_32, 4),
    "tomoray, disk, 32^3 chunks, 1 patch a visit": ours(DISK_32, 1),
    "tomoray, disk, augmented": ours(DISK, 4, augmented=True),
    "tomoray, S3": ours(S3, 4),
    "tomoray, S3, 8 patches a visit": ours(S3, 8),
    "tomoray, S3, 1 patch a visit": ours(S3, 1),
    "tomoray, S3, lz4, 8 patches a visit": ours(S3_LZ4, 8),
    "tomoray, S3, cache full": ours(S3, 4, cached=True),
    "nnU-Net, its blosc2 files, 2 processes": nnunet(augmented=False),
    "nnU-Net, augmented, 2 processes": nnunet(augmented=True),
    "tensorstore, disk, one by one": plain_tensorstore(DISK, 1),
    "tensorstore, disk, 16 in flight": plain_tensorstore(DISK, 16),
    "tensorstore, S3, one by one": plain_tensorstore(S3, 1),
    "tensorstore, S3, 8 in flight": plain_tensorstore(S3, 8),
    "tensorstore, S3, 32 in flight": plain_tensorstore(S3, 32),
    "zarr-python, disk, 2 processes": zarr_python(DISK),
    "zarr-python + obstore, S3, 2 processes": zarr_python(S3),
    "MONAI on NIfTI.gz": monai("plain", 1),
    "MONAI on NIfTI.gz, 4 crops a volume": monai("plain", 4),
    "MONAI PersistentDataset": monai("persistent", 1),
    "MONAI PersistentDataset, 4 crops": monai("persistent", 4),
    "MONAI CacheDataset": monai("cache", 1),
    "TorchIO queue, 8 patches a volume": torchio(),
}
PROCESSES = {name: 2 for name in PEERS if name.endswith("2 processes")}
RATIOS = (
    ("tomoray, disk", "nnU-Net, its blosc2 files, 2 processes", 3.0),
    ("tomoray, disk, 8 patches a visit", "nnU-Net, its blosc2 files, 2 processes", 3.0),
    ("tomoray, disk, lz4, 8 patches a visit", "nnU-Net, its blosc2 files, 2 processes", 3.0),
    ("tomoray, disk", "MONAI on NIfTI.gz", 40.0),
    ("tomoray, disk, augmented", "nnU-Net, augmented, 2 processes", 2.5),
    ("tomoray, S3", "nnU-Net, its blosc2 files, 2 processes", 1.5),
    ("tomoray, S3, 8 patches a visit", "nnU-Net, its blosc2 files, 2 processes", 1.5),
    ("tomoray, S3", "tensorstore, S3, 8 in flight", 2.0),
    ("tomoray, S3", "tensorstore, S3, 32 in flight", 2.0),
    ("tomoray, S3", "zarr-python + obstore, S3, 2 processes", 8.0),
)


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """The tests' own S3 server, for as long as this runs; the AWS variables name it."""
    command = [sys.executable, str(SERVER), str(folder / "server")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        said = json.loads(server.stdout.readline())
        os.environ.update(
            AWS_ENDPOINT_URL=said["endpoint"],
            AWS_ACCESS_KEY_ID=said["access_key_id"],
            AWS_SECRET_ACCESS_KEY=said["secret_access_key"],
        )
        yield said["kind"]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run(sys.argv[2], Path(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
