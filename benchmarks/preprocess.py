"""Source to archive beside the tools people use: MB of uncompressed voxels a CPU second, one core, same files.

    .venv/bin/python benchmarks/preprocess.py [--series DIR] [--rounds 5] [--json]

Every peer starts from the same files on disk and ends with its own on disk; all read the same voxels, which is
checked. TomoRay's time holds everything: headers, checks, SHA-256, de-identification, three resolutions, catalog.
MONAI's ITKReader wants `pip install itk`; without it MONAI's PydicomReader stands in, and the table says so.

CPU seconds are those of the process and its children, so that threads hide nothing. Each peer does the work twice in
one process: `first` pays for memory that is new to the process, `next` is what a worker's every further series takes.
Medians of the rounds, which are interleaved: the machine's moods meet everybody alike.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")
warnings.simplefilter("ignore")

import numpy as np
import pydicom
import SimpleITK
import zarr
from pydicom.uid import ExplicitVRLittleEndian

from tomoray.archive import Archive
from tomoray.assembly.stack import Rules
from tomoray.catalog import Catalog
from tomoray.config import DeidentifyConfig, Layout
from tomoray.ingest.ingester import Ingester
from tomoray.ingest.inventory import Inventory, read_heads
from tomoray.privacy.deidentify import Deidentifier
from tomoray.privacy.pseudonyms import Pseudonyms
from tomoray.sources import list_source

SERIES = Path(__file__).resolve().parents[2] / "shared" / "ct" / "lidc-idri-0314" / "ct"
RATES = ("first_mb_per_cpu_s", "next_mb_per_cpu_s")
KEY = Pseudonyms(b"benchmarks only: no secret")


def main() -> None:
    """Run every peer on a JPEG-LS series and on the same series uncompressed; print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=Path, default=SERIES, help="a folder with one CT series")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        native = Path(folder, "native")
        uncompress(options.series, native)
        found = {
            "uncompressed": measure(native, Path(folder, "a"), options.rounds),
            "as it came (JPEG-LS)": measure(options.series, Path(folder, "b"), options.rounds),
        }
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for name, table in found.items():
        print(f"\n{name}: {table['voxel_mb']:.0f} MB of voxels, {table['slices']} slices; MB a CPU second")
        print(f"{'':28}   first  TomoRay is    next  TomoRay is   peak MB   files MB")
        ours = table["peers"]["tomoray"]
        for peer, row in table["peers"].items():
            rates = "".join(f"{row[each]:8.1f}{ours[each] / row[each]:10.2f} x" for each in RATES)
            print(f"{peer:28}{rates}{row['peak_mb']:10.0f}{row['files_mb']:11.1f}")
        for part, rate in table["alone_mb_per_cpu_s"].items():
            print(f"{part:28}{'':20}{rate:8.1f}{ours['next_mb_per_cpu_s'] / rate:10.2f} x")


def measure(series: Path, work: Path, rounds: int) -> dict[str, Any]:
    """Medians of every peer on one folder. Each run is a process of its own, which times itself after its imports."""
    seconds: dict[str, list[dict[str, Any]]] = {name: [] for name in PEERS}
    for _ in range(rounds):
        for name in PEERS:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            command = [sys.executable, "-W", "ignore", "-c", _RUN, name, str(series), str(work)]
            out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parent)
            seconds[name].append(json.loads(out.stdout.splitlines()[-1]))
    voxels = read_simpleitk(series)
    want = digest(voxels)
    for name, runs in seconds.items():
        wrong = [run["digest"] for run in runs if run["digest"] != want]
        assert not wrong, f"{name} read other voxels: {wrong[0]}, not {want}"
    shutil.rmtree(work, ignore_errors=True)
    megabytes = voxels.nbytes / 1e6
    peers = {
        name: {
            "first_mb_per_cpu_s": megabytes / statistics.median(run["first_s"] for run in runs),
            "next_mb_per_cpu_s": megabytes / statistics.median(run["next_s"] for run in runs),
            "peak_mb": statistics.median(run["peak_mb"] for run in runs),
            "files_mb": runs[0]["files_mb"],
        }
        for name, runs in seconds.items()
    }
    codec_s = statistics.median(codec_alone(series, voxels) for _ in range(rounds))
    hashing_s = statistics.median(hashing_alone(series) for _ in range(rounds))
    alone = {
        "decoder and codec alone": codec_s,
        "the same, and SHA-256": codec_s + hashing_s,
        "SHA-256 of the files": hashing_s,
    }
    return {
        "voxel_mb": megabytes,
        "slices": len(voxels),
        "peers": peers,
        "alone_mb_per_cpu_s": {part: megabytes / seconds for part, seconds in alone.items()},
    }


def digest(voxels: np.ndarray[Any, Any]) -> str:
    """The same for the same voxels in any order and flip: their exact histogram."""
    values, counts = np.unique(np.asarray(voxels).ravel(), return_counts=True)
    return f"{len(values)} values, {int((values.astype(np.int64) ** 2) @ counts)}"


def tomoray(series: Path | str, work: Path | str, layout: Layout | None = None) -> Callable[[], np.ndarray[Any, Any]]:
    """All that `tomoray preprocess` does to a series, but for Ray."""
    archive = Archive.create(f"{work}/archive", layout or Layout())
    rules, deidentifier = Rules(), Deidentifier(KEY, DeidentifyConfig())
    ingester = Ingester(archive=archive, deidentifier=deidentifier, rules=rules, config_sha256="")
    rows = []
    with Inventory() as inventory:
        inventory.add_heads(read_heads(list(list_source(str(series)))).heads)
        inventory.seal(KEY)
        for entry in inventory.entries():
            rows += ingester.ingest(entry.item).rows
    Catalog(archive.store).upsert(rows)
    scan = archive.scan(rows[0]["scan_id"])
    return lambda: scan.image().read().result()


def tomoray_lz4(series: Path, work: Path) -> Callable[[], np.ndarray[Any, Any]]:
    """The same with `layout.codec: lz4`."""
    return tomoray(series, work, Layout(codec="lz4"))


def monai(series: Path, work: Path) -> Callable[[], np.ndarray[Any, Any]]:
    """LoadImage, then zarr with zarr-python's defaults."""
    from monai.transforms import LoadImage

    image = LoadImage(image_only=True, reader="ITKReader" if has_itk() else "PydicomReader")(str(series))
    out = zarr.create_array(str(work / "a.zarr"), data=np.asarray(image).astype(np.int16), chunks=(64, 64, 64))
    return lambda: out[:]


def simpleitk_nifti(series: Path, work: Path) -> Callable[[], np.ndarray[Any, Any]]:
    """ImageSeriesReader, then NIfTI.gz."""
    image = simpleitk_image(series)
    SimpleITK.WriteImage(image, str(work / "a.nii.gz"))
    return lambda: SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(work / "a.nii.gz")))


def simpleitk_zarr(series: Path, work: Path) -> Callable[[], np.ndarray[Any, Any]]:
    """ImageSeriesReader, then zarr with zarr-python's defaults."""
    voxels = read_simpleitk(series).astype(np.int16)
    out = zarr.create_array(str(work / "a.zarr"), data=voxels, chunks=(64, 64, 64))
    return lambda: out[:]


def dcm2niix(series: Path, work: Path) -> Callable[[], np.ndarray[Any, Any]]:
    """The command of PyPI's package, to NIfTI.gz."""
    program = Path(importlib.util.find_spec("dcm2niix").origin).with_name("dcm2niix")
    subprocess.run([program, "-z", "y", "-b", "n", "-o", work, series], check=True, stdout=subprocess.DEVNULL)
    (made,) = work.glob("*.nii.gz")
    return lambda: SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(made)))


PEERS: dict[str, Callable[[Path, Path], Callable[[], np.ndarray[Any, Any]]]] = {
    "tomoray": tomoray,
    "tomoray, lz4": tomoray_lz4,
    "MONAI LoadImage -> zarr": monai,
    "SimpleITK -> NIfTI.gz": simpleitk_nifti,
    "SimpleITK -> zarr-python": simpleitk_zarr,
    "dcm2niix -> NIfTI.gz": dcm2niix,
}

_RUN = """
import sys
from pathlib import Path
import preprocess
preprocess.run_one(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
"""


def run_one(name: str, series: Path, work: Path) -> None:
    """One run of one peer, in this process; prints its CPU seconds, its peak, and what it wrote."""
    if name.startswith("MONAI"):
        import monai.transforms  # noqa: F401 - not part of the work
    (work / "first").mkdir()
    before = cpu_s()
    PEERS[name](series, work / "first")
    first = cpu_s() - before
    before = cpu_s()
    read_back = PEERS[name](series, work)
    spent = cpu_s() - before
    peak_mb = max(own_peak_mb(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3)
    shutil.rmtree(work / "first")
    files = sum(path.stat().st_size for path in work.rglob("*") if path.is_file()) / 1e6
    found = {"first_s": first, "next_s": spent, "peak_mb": peak_mb, "files_mb": files, "digest": digest(read_back())}
    print(json.dumps(found))


def codec_alone(series: Path, voxels: np.ndarray[Any, Any]) -> float:
    """CPU seconds of decoding the slices' bytes and encoding the levels' chunks, and of nothing else."""
    from tomoray import multiscale
    from tomoray.dicom.headers import read_instance
    from tomoray.dicom.pixels import Frames

    files = [path.read_bytes() for path in sorted(series.iterdir())]
    heads = [read_instance(data, root="", key="", size_bytes=len(data)) for data in files]
    out = np.empty(voxels.shape[1:], dtype=np.int16)
    compressed = heads[0].pixels.length is None
    levels = [voxels.astype(np.int16)]
    for _ in range(Layout().levels - 1):
        levels.append(multiscale.halve(levels[-1]))
    before = time.process_time()
    if compressed:
        for data, head in zip(files, heads, strict=True):
            Frames(data, head).decode_hu(0, out)
    for level in levels:
        for _ in multiscale._encoded_shards(level, multiscale.array_metadata(level, Layout())):
            pass
    return time.process_time() - before


def hashing_alone(series: Path) -> float:
    """CPU seconds of hashing the files: next to nothing where the CPU has instructions for it, else much."""
    files = [path.read_bytes() for path in series.iterdir()]
    before = time.process_time()
    for data in files:
        hashlib.sha256(data)
    return time.process_time() - before


def uncompress(series: Path, out: Path) -> None:
    """The same series as explicit VR little endian."""
    out.mkdir()
    for path in sorted(series.iterdir()):
        dataset = pydicom.dcmread(path)
        if dataset.file_meta.TransferSyntaxUID.is_compressed:
            dataset.decompress(decoding_plugin="pyjpegls")
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.save_as(out / path.name)


def simpleitk_image(series: Path) -> SimpleITK.Image:
    """The series in ITK's order."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
    return reader.Execute()


def read_simpleitk(series: Path) -> np.ndarray[Any, Any]:
    """Voxels, [z, y, x]."""
    return SimpleITK.GetArrayFromImage(simpleitk_image(series))


def own_peak_mb() -> float:
    """Largest resident memory of this process since it began (`ru_maxrss` would count its parent's too)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3


def has_itk() -> bool:
    """True where MONAI's ITKReader can work."""
    return importlib.util.find_spec("itk") is not None


def cpu_s() -> float:
    """User and system seconds of this process and its children."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


if __name__ == "__main__":
    main()
