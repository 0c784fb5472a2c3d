"""What ingesting an item takes at its peak is what its task asks for, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import EnhancedCTImageStorage

from tomoray.dicom.seg import write_segmentation
from tomoray.ingest.inventory import group_dicom, head_of
from tomoray.privacy.pseudonyms import Pseudonyms

# Ingests a small series first, so that libraries are loaded, then the item; prints bytes.
PROGRAM = """
import json, sys, tempfile
from tomoray.archive import Archive
from tomoray.assembly.stack import Rules
from tomoray.config import NiftiPattern, PreprocessConfig
from tomoray.ingest.ingester import Ingester, task_bytes
from tomoray.ingest.inventory import Inventory
from tomoray.ingest.stocktaking import read_in_threads, take_stock
from tomoray.privacy.deidentify import Deidentifier
from tomoray.privacy.pseudonyms import Pseudonyms

def memory(which):
    (line,) = (line for line in open("/proc/self/status") if line.startswith(which))
    return 1024 * int(line.split()[1])

def entries(folder):
    with Inventory() as inventory:
        take_stock([folder], NiftiPattern(), inventory, names, read_in_threads)
        return list(inventory.entries())

names = Pseudonyms(b"a key for tests only, of no worth")
with tempfile.TemporaryDirectory() as folder:
    layout = PreprocessConfig(sources=["x"], archive=folder).layout
    archive = Archive.create(folder + "/a", layout)
    ingester = Ingester(archive=archive, deidentifier=Deidentifier(names), rules=Rules(), config_sha256="")
    for entry in entries(sys.argv[1]):
        ingester.ingest(entry.item)
    (entry,) = entries(sys.argv[2])
    open("/proc/self/clear_refs", "w").write("5")
    before = memory("VmRSS")
    rows = ingester.ingest(entry.item).rows
    said = {"status": [row["status"] for row in rows], "took": memory("VmHWM") - before, "peak": memory("VmHWM"),
            "working": entry.working_bytes, "asked": task_bytes(entry.working_bytes), "voxels": entry.voxel_bytes}
    print(json.dumps(said))
"""
SIDE = 512


def widen(series) -> None:
    """Slices of 512 x 512 voxels that compress as tissue does, a little."""
    rng = np.random.default_rng(0)
    for dataset in series.datasets:
        dataset.Rows = dataset.Columns = SIDE
        dataset.PixelData = rng.integers(900, 1000, (SIDE, SIDE), dtype=np.uint16).tobytes()


def item(**values) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def write(series, folder: Path) -> str:
    series.instances()
    folder.mkdir()
    for name, data in series.files.items():
        (folder / name).write_bytes(data)
    return str(folder)


def measure(small: str, folder: str) -> dict[str, int]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, small, folder], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def check(said: dict[str, int]) -> None:
    assert said["status"] == ["stored"]
    assert said["took"] <= said["working"] + 64 * 2**20  # an encoder's buffers; a worker's share covers them
    assert said["peak"] <= said["asked"]


@pytest.fixture
def small(make_series, tmp_path) -> str:
    series = make_series(4)
    for dataset in series.datasets:
        dataset.SeriesInstanceUID = "1.2.3.9"
    return write(series, tmp_path / "small")


def test_an_enhanced_file_is_held_beside_its_voxels(make_series, tmp_path, small):
    series = make_series(120)
    widen(series)
    first = series.datasets[0]
    first.SOPClassUID = first.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    first.NumberOfFrames = len(series.datasets)
    first.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=dataset.ImagePositionPatient)],
            PlaneOrientationSequence=[item(ImageOrientationPatient=dataset.ImageOrientationPatient)],
            PixelMeasuresSequence=[item(PixelSpacing=dataset.PixelSpacing, SliceThickness=2.5)],
            PixelValueTransformationSequence=[item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")],
            CTImageFrameTypeSequence=[item(FrameType=["ORIGINAL", "PRIMARY", "AXIAL", "NONE"])],
        )
        for dataset in series.datasets
    ]
    first.PixelData = b"".join(dataset.PixelData for dataset in series.datasets)
    series.datasets = [first]
    said = measure(small, write(series, tmp_path / "enhanced"))
    check(said)
    assert said["working"] > 2 * said["voxels"]


def test_a_segmentation_takes_a_mask_a_label(make_series, tmp_path, small):
    series = make_series(16)
    widen(series)
    masks = {f"label {n}": np.zeros((16, SIDE, SIDE), np.uint8) for n in range(24)}
    for n, mask in enumerate(masks.values()):
        mask[:, 20 * n : 20 * n + 20] = 1
    series.instances()
    described = {"algorithm": "a", "algorithm_version": "1", "uid_seed": "x", "series_description": "d"}
    series.files["seg.dcm"] = write_segmentation(masks, series.datasets, **described)
    said = measure(small, write(series, tmp_path / "drawn"))
    check(said)
    assert said["took"] > 1.6 * said["voxels"] + 10 * said["voxels"] // 2


def test_a_classic_series_asks_for_no_more_than_it_did(make_series):
    series = make_series(60)
    widen(series)
    (found,) = group_dicom(map(head_of, series.instances()), Pseudonyms(b"a key for tests only, of no worth"))
    assert found.working_bytes == int(1.6 * 60 * SIDE * SIDE * 2)
