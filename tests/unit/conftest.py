"""A small, right CT series as DICOM bytes, for tests that break it in one way each; and training on tiny archives."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from tomoray.archive import Archive
from tomoray.assembly.stack import Rules
from tomoray.config import Layout
from tomoray.dicom.headers import Instance, read_instance
from tomoray.geometry import Geometry
from tomoray.ingest.inventory import group_dicom, head_of
from tomoray.ingest.loader import LoadedScan, RefusedPart, load_dicom
from tomoray.patches import PatchStream
from tomoray.privacy.deidentify import Deidentifier
from tomoray.privacy.pseudonyms import Pseudonyms
from tomoray.volume import ScanInfo, ScanUids, Volume

KEY = b"a key for tests only, of no worth"
NAMES = Pseudonyms(KEY)


@dataclass
class Series:
    """Datasets to be changed at will, then loaded as files in memory."""

    datasets: list[Dataset]
    files: dict[str, bytes] = field(default_factory=dict)

    def instances(self) -> list[Instance]:
        """Write every dataset and read its header back."""
        written = {f"{n}.dcm": _as_file(dataset) for n, dataset in enumerate(self.datasets)}
        self.files |= written
        found = [read_instance(data, root="mem", key=key, size_bytes=len(data)) for key, data in written.items()]
        return [instance for instance in found if instance is not None]

    def parts(self, *drawings: Instance, rules: Rules | None = None) -> list[LoadedScan | RefusedPart]:
        """Everything that the series ends in, as preprocessing finds it; drawings' bytes are in `files`."""
        heads = [head_of(instance) for instance in (*self.instances(), *drawings)]
        found = group_dicom(heads, NAMES)
        read, deidentifier = (lambda _root, key: self.files[key]), Deidentifier(NAMES)
        wanted = rules or Rules()
        return [
            p for s in found for p in load_dicom(s, read, deidentifier, wanted, source_uri="mem", keep_headers=True)
        ]

    def load(self, *drawings: Instance) -> LoadedScan:
        """The one scan that the series is. Raises what it is refused with."""
        parts = self.parts(*drawings)
        scans = [part for part in parts if isinstance(part, LoadedScan)]
        for part in parts:
            if isinstance(part, RefusedPart) and not scans:
                raise part.refusal
        (scan,) = scans
        return scan


@pytest.fixture
def make_series() -> Callable[..., Series]:
    """`make_series(n)`: n axial slices of 36 x 33 voxels, 2.5 mm apart, whose stored values are random."""

    def make(n: int = 8, *, step_mm: float = 2.5, seed: int = 0) -> Series:
        rng = np.random.default_rng(seed)
        return Series([_slice(z, -100.0 + z * step_mm, rng) for z in range(n)])

    return make


def _slice(z: int, height_mm: float, rng: np.random.Generator) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{z + 1}"
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = f"1.2.3.4.{z + 1}"
    dataset.StudyInstanceUID = "1.2.3"
    dataset.SeriesInstanceUID = "1.2.3.4"
    dataset.FrameOfReferenceUID = "1.2.3.5"
    dataset.PatientID = "SECRET-ID-17"
    dataset.PatientName = "SECRET^NAME"
    dataset.PatientSex = "F"
    dataset.PatientAge = "061Y"
    dataset.Modality = "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Manufacturer = "Test"
    dataset.InstanceNumber = z + 1
    dataset.Rows, dataset.Columns = 36, 33
    dataset.PixelSpacing = [0.8, 0.7]
    dataset.SliceThickness = 2.5
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [-20, -30, height_mm]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation, dataset.SamplesPerPixel = 0, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.PixelData = rng.integers(900, 1200, (36, 33), dtype=np.uint16).tobytes()
    return dataset


def _as_file(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.fixture
def tiny_archive(tmp_path):
    """`tiny_archive({scan_id: (image_zyx in HU, masks)})`: an archive with one scan of each, voxels of 1 mm."""

    def write(volumes):
        archive = Archive.create(str(tmp_path / "archive"), Layout(chunk_zyx=(16,) * 3, shard_zyx=(32,) * 3, levels=1))
        uids = ScanUids(study="2.25.1", series="2.25.2", frame_of_reference="2.25.3", instances=("2.25.4",))
        for scan_id, (image, masks) in volumes.items():
            info = ScanInfo(
                scan_id=scan_id,
                series_id=scan_id,
                patient_id=scan_id,
                source_uri="memory",
                n_instances=1,
                instances_sha256="1" * 64,
                input_sha256="2" * 64,
                uids=uids,
            )
            geometry = Geometry.from_matrix(image.shape, np.eye(4))
            hu = np.clip(np.rint(image), -1024, 3071).astype(np.int16)
            archive.write_scan(Volume(image_zyx=hu, geometry=geometry, info=info, labels=masks))
        return archive

    return write


@pytest.fixture
def train_task():
    """`train_task(task, config, archive, scan_ids, steps)`: networks in `eval` mode, and the losses of the last one.

    A plain loop, without workers or checkpoints.
    """

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny networks are faster so

    def train(task, config, archive, scan_ids, steps):
        torch.manual_seed(config.seed)
        networks = task.build_networks()
        optimizers = {
            name: torch.optim.Adam((p for p in network.parameters() if p.requires_grad), config.learning_rate)
            for name, network in networks.items()
        }
        losses = []
        for batch in islice(PatchStream(archive, scan_ids, config), steps):
            for name, optimizer in optimizers.items():
                for network in networks.values():
                    network.zero_grad()
                loss = task.loss(networks, batch, name)
                loss.backward()
                optimizer.step()
            losses.append(float(loss.detach()))
        for network in networks.values():
            network.eval()
        return networks, losses

    yield train
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def answering() -> Callable[[type[BaseHTTPRequestHandler]], AbstractContextManager[int]]:
    """`with answering(Handler) as port`: a server on loopback that says nothing of what it is asked."""

    @contextmanager
    def answer(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
        class Silent(handler):  # type: ignore[misc, valid-type]
            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield server.server_address[1]
            server.shutdown()
            thread.join()

    return answer


@pytest.fixture
def archive(tmp_path: Path, make_volume: Callable[..., Volume]) -> str:
    """The URL of an archive with one scan, `scan-1`."""
    opened = Archive.create(str(tmp_path / "archive"), Layout())
    opened.write_scan(make_volume(scan_id="scan-1"))
    return opened.url
