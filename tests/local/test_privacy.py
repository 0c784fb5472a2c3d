"""Identifiers planted everywhere in 200 studies, taken through the real commands: none is in anything written or said.

Every planted name holds the letters of MARK, every planted number and UID its DIGITS, every planted day its YEAR. So
one search finds any of them, whatever became of case and separators.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import sys
import tempfile
import unicodedata
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
import ray
from pydicom import Dataset, Sequence
from pydicom.datadict import dictionary_VM, dictionary_VR, keyword_for_tag
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, SecondaryCaptureImageStorage

from cluster import cli
from tomoray.archive import Archive
from tomoray.catalog import Catalog
from tomoray.dicom.headers import quiet_pydicom
from tomoray.dicom.seg import write_segmentation
from tomoray.predictions import Predictions
from tomoray.privacy import ps3_15
from tomoray.storage import open_store

pytestmark = pytest.mark.usefixtures("ray_local")

MARK, DIGITS, YEAR = "zqxwvkj", "70419258360", "1893"
N_STUDIES = 200
TEXT_VRS = ("AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
PLANTED_VRS = (*TEXT_VRS, "DA", "DT", "UI")

# Elements that say what an image is, and not whose; the classes of objects, and what the planter sets by itself.
SET_APART = {
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    *("PatientID", "PatientName", "Manufacturer", "ManufacturerModelName", "SpecificCharacterSet"),
}
TAGS = [
    tag
    for tag in sorted(ps3_15.TABLE)
    if tag >> 16 not in (0x0000, 0x0002, 0x0004, 0x0006, 0xFFFA, 0xFFFC)
    and dictionary_VR(tag) in PLANTED_VRS
    and dictionary_VM(tag).startswith("1")
    and keyword_for_tag(tag) not in SET_APART
]


class Planter:
    """The identifiers of one study."""

    def __init__(self, number: int) -> None:
        self.number, self.random, self.uids = number, random.Random(number), 0
        self.family = self.word(accents=True)
        self.given, self.other = self.word(), self.word()
        self.id = self.digits()

    def word(self, *, accents: bool = False) -> str:
        tail = "".join(self.random.choice("bcdfg") + self.random.choice("aeiou") for _ in range(2))
        return f"{MARK}{'ö' if accents else ''}{tail}".title()

    def digits(self) -> str:
        return f"{DIGITS}{self.random.randrange(100, 1000)}"

    def day(self) -> str:
        return f"{YEAR}{self.random.randrange(1, 13):02d}{self.random.randrange(1, 29):02d}"

    def uid(self) -> str:
        self.uids += 1
        return f"1.2.826.{DIGITS}.{self.number}.{self.uids}"

    def text(self) -> str:
        """A name or a number, spelled as people spell them."""
        given, other = self.given, self.other
        spelled = (
            f"{given} {other}",
            f"{other.upper()}_{given}",
            f"Dr. {given.lower()}",
            ".".join(given),
            f"Chest {given} 1.25mm",
            self.id,
            "-".join((self.id[:3], self.id[3:7], self.id[7:])),
        )
        return self.random.choice(spelled)

    def value(self, vr: str) -> str:
        if vr in ("DA", "DT"):
            return self.day() + ("101112" if vr == "DT" else "")
        if vr == "UI":
            return self.uid()
        if vr == "PN":
            return f"{self.family}^{self.given}"
        return {"AE": self.other.upper(), "SH": self.text()[:16]}.get(vr, self.text())

    def plant(self, dataset: Dataset, count: int) -> None:
        """Some of the standard's identifying elements, private ones, and some nested in sequences."""
        for tag in self.random.sample(TAGS, count):
            dataset.add_new(tag, dictionary_VR(tag), self.value(dictionary_VR(tag)))
        block = dataset.private_block(0x0009, f"ACME {self.number % 3}", create=True)
        for offset, vr in enumerate(PLANTED_VRS, start=0x10):
            block.add_new(offset, vr, self.value(vr))
        block.add_new(0x60, "UN", self.given.encode())
        block.add_new(0x61, "OB", self.id.encode() + b"\0")


@dataclass
class Study:
    """One study's datasets, and what is wrong with it."""

    planter: Planter
    kind: str
    slices: list[Dataset]
    seg: bytes | None = None


KINDS = (
    "good",
    "packed",
    "labelled",
    "label with a name",
    "implicit",
    "gap",
    "capture",
    "burned in",
    "cut off",
    "torn",
)


def make_study(number: int) -> Study:
    planter, kind = Planter(number), KINDS[number % len(KINDS)]
    study, series, frame = planter.uid(), planter.uid(), planter.uid()
    common = Dataset()
    with quiet_pydicom():
        planter.plant(common, 40)
        inner, outer = Dataset(), Dataset()
        planter.plant(inner, 15)
        outer.ReferencedSeriesSequence = Sequence([inner])
        common.RequestAttributesSequence = Sequence([outer])
        common.SpecificCharacterSet = "ISO_IR 192"
        common.PatientName, common.PatientID = f"{planter.family}^{planter.given}", planter.id
        common.PatientBirthDate, common.StudyDate = planter.day(), planter.day()
        common.SeriesDescription, common.ConvolutionKernel = f"Thorax {planter.given} 1.25", "B30f"
        common.ManufacturerModelName, common.Manufacturer = f"SOMATOM {planter.other}", f"SIEMENS {planter.given}"
        common.ImageComments = f"seen by {planter.other} on {planter.day()}"
        common.add_new(0x60004000, "LT", planter.text())
        slices = [make_slice(common, planter, z, (study, series, frame), kind) for z in range(3)]
        seg = None
        if kind.startswith("label"):
            label = "lungs" if kind == "labelled" else f"nodule of {planter.given}"
            mask = np.zeros((3, 16, 16), np.uint8)
            mask[1, 4:9, 5:11] = 1
            seg = write_segmentation(
                {label: mask},
                slices,
                algorithm="test",
                algorithm_version="1",
                uid_seed=str(number),
                series_description="Segmentation",
            )
    return Study(planter, kind, slices, seg)


def make_slice(common: Dataset, planter: Planter, z: int, uids: tuple[str, str, str], kind: str) -> Dataset:
    dataset = Dataset()
    dataset.update(common)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if kind == "implicit" else ExplicitVRLittleEndian
    dataset.SOPClassUID = SecondaryCaptureImageStorage if kind == "capture" else CTImageStorage
    dataset.SOPInstanceUID = planter.uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = uids
    dataset.Modality, dataset.ImageType, dataset.InstanceNumber = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], z + 1
    dataset.BurnedInAnnotation = "YES" if kind == "burned in" else "NO"
    dataset.Rows = dataset.Columns = 16
    dataset.PixelSpacing, dataset.SliceThickness = [0.8, 0.7], 2.5
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [-20, -30, (2.5 if z < 2 or kind != "gap" else 4.1) * z]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.PixelData = np.random.default_rng(z).integers(0, 2000, (16, 16), dtype=np.uint16).tobytes()
    return dataset


def write_study(study: Study, root: Path) -> None:
    """Names of folders, files and members of archives name the patient too."""
    planter = study.planter
    files: dict[str, bytes] = {}
    for z, dataset in enumerate(study.slices):
        buffer = io.BytesIO()
        with quiet_pydicom():
            dataset.save_as(buffer, enforce_file_format=True)
        data = buffer.getvalue()
        if study.kind == "cut off" and z == 1:
            data = data[:-200]
        if study.kind == "torn" and z == 1:
            data = data[: len(data) // 3]
        files[f"{planter.family}_{planter.given}/{planter.id}/{planter.day()}_{z}.dcm"] = data
    if study.seg is not None:
        files[f"{planter.family}_{planter.given}/{planter.other}.dcm"] = study.seg
    if study.kind == "packed":
        root.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(root / f"{planter.given}_{planter.id}.zip", "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def leaks(data: bytes | str) -> list[str]:
    """What was planted and is found in some bytes, whatever the encoding, the case and the separators."""
    texts = [data] if isinstance(data, str) else [data.decode("latin-1"), data.decode("utf-8", "ignore")]
    found = []
    for text in texts:
        plain = unicodedata.normalize("NFKD", text).casefold()
        squeezed = re.sub(r"[\W_]+", "", plain)
        found += [needle for needle in (MARK, DIGITS) if needle in squeezed]
        found += re.findall(
            rf"(?<![0-9a-f.])(?:{YEAR}[-./: ]?[01]\d[-./: ]?[0-3]\d|[0-3]\d[-./ ]?[01]\d[-./ ]?{YEAR})(?![0-9a-f])",
            plain,
        )
    return found


def written(folder: Path) -> Iterator[tuple[str, bytes | str]]:
    """Every file below a folder by name: as bytes, and the rows of Parquet as text too."""
    for path in sorted(folder.rglob("*")):
        yield "the name of a file", str(path.relative_to(folder))
        if path.is_file() and not path.is_symlink():
            yield path.name, path.read_bytes()
            if path.suffix == ".parquet":
                table = pq.read_table(path)
                yield path.name, json.dumps(table.to_pylist(), ensure_ascii=False, default=str)
                yield path.name, str(table.schema)


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("hospital")
    for number in range(N_STUDIES):
        write_study(make_study(number), root / "incoming")
    (root / "incoming" / f"{MARK}-broken.zip").write_bytes(b"PK\3\4 no archive " + MARK.encode())
    (root / "incoming" / f"{MARK}.dcm").write_bytes(bytes(128) + b"DICM" + MARK.encode() * 9)
    return root / "incoming"


@pytest.fixture(scope="module")
def archive(studies, tmp_path_factory, request) -> tuple[Path, str]:
    """The archive, and everything that the commands said."""
    out = tmp_path_factory.mktemp("out")
    capture = request.config.pluginmanager.getplugin("capturemanager")
    place, said = str(out / "archive"), []

    def run(*args: str, code: int = 0) -> str:
        with capture.global_and_fixture_disabled(), _both_streams() as streams:
            assert cli.main(list(args)) == code
        said.append("".join(streams))
        return said[-1]

    run("preprocess", str(studies), place, "--json")
    run("preprocess", str(studies), place)
    run("info", place, "--json")
    run("catalog", place, "--limit", "0")
    run("catalog", place, "--limit", "0", "--json", "--out", str(out / "rows.csv"))
    run("fingerprint", place, "--json")
    run("qc", place, "--out", str(out / "qc.html"))
    rows = Catalog(open_store(place)).rows()
    for reason in sorted({row["reason"] or "" for row in rows}):
        run("explain", place, next(row["series_id"] for row in rows if (row["reason"] or "") == reason), "--json")
    run("explain", place, "1.2.826.1.1", code=1)
    return out, "\n".join(said)


@contextmanager
def _both_streams() -> Iterator[list[str]]:
    """What is printed to stdout and stderr by this process, its libraries included."""
    streams: list[str] = []
    with tempfile.TemporaryFile() as file:
        sys.stdout.flush()
        sys.stderr.flush()
        kept = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield streams
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, before in zip((1, 2), kept, strict=True):
                os.dup2(before, number)
                os.close(before)
            file.seek(0)
            streams.append(file.read().decode(errors="replace"))


def test_the_sources_are_full_of_identifiers(studies):
    found = [leaks(path.read_bytes()) for path in studies.rglob("*") if path.is_file()]
    assert len(found) >= 2 * N_STUDIES
    assert sum({MARK, DIGITS} <= set(each) and len(each) > 2 for each in found) > N_STUDIES
    assert leaks(str(next(path for path in studies.rglob("*.dcm")).relative_to(studies)))


def test_studies_were_stored_and_refused_in_many_ways(archive):
    out, _ = archive
    rows = Catalog(open_store(str(out / "archive"))).rows()
    stored = [row for row in rows if row["status"] == "stored"]
    assert len(stored) == N_STUDIES // len(KINDS) * 5
    assert sum("lungs" in row["labels"] for row in stored) == N_STUDIES // len(KINDS)
    assert {row["reason"] for row in rows if row["reason"]} >= {
        *("variable_spacing", "derived", "burned_in_annotation", "undecodable_pixels", "label_unsupported"),
        *("unreadable", "too_few_slices"),
    }


def test_nothing_written_holds_an_identifier(archive):
    out, _ = archive
    n_files = 0
    for name, data in written(out):
        n_files += 1
        assert leaks(data) == [], name
    assert n_files > 5 * N_STUDIES


def test_no_voxel_or_header_that_is_read_back_holds_an_identifier(archive):
    out, _ = archive
    opened = Archive.open(str(out / "archive"))
    for scan_id in opened.scan_ids():
        scan = opened.scan(scan_id)
        assert leaks(scan.image().read().result().tobytes()) == []
        assert leaks(f"{scan.header} {scan.info} {scan.label_names}") == []


def test_nothing_that_the_commands_say_holds_an_identifier(archive):
    _, said = archive
    assert len(said) > 10_000
    assert '"stored"' in said
    assert leaks(said) == []


def test_no_log_of_ray_holds_an_identifier(archive):
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    paths = [path for path in logs.rglob("*") if path.is_file()]
    assert paths
    for path in paths:
        assert leaks(path.read_bytes()) == [], path.name


def test_segmentations_of_archived_scans_hold_none_and_say_so(archive, tmp_path):
    opened = Archive.open(str(archive[0] / "archive"))
    predictions = Predictions(store=open_store(str(tmp_path / "seg")), format="dicom-seg", model_sha256="0" * 64)
    predictions.prepare(opened.layout)
    for scan_id in opened.scan_ids()[:5]:
        scan = opened.scan(scan_id)
        predictions.write(scan, {"lungs": np.ones(scan.geometry.shape_zyx, np.uint8)})
        path = tmp_path / "seg" / scan_id / "segmentation.dcm"
        dataset = pydicom.dcmread(path)
        assert dataset.PatientIdentityRemoved == "YES"
        assert dataset.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
        assert leaks(path.read_bytes()) == []
        assert leaks(str(dataset)) == []


def test_identifiers_that_are_kept_are_found(studies, tmp_path, capfd):
    """So this search can fail."""
    some = tmp_path / "some"
    for number in (0, 2, 4):
        write_study(make_study(number), some)
    assert cli.main(["preprocess", str(some), str(tmp_path / "archive"), "--json", "--keep-identifiers"]) == 0
    found = {needle for _, data in written(tmp_path / "archive") for needle in leaks(data)}
    assert {MARK, DIGITS} <= found
    assert any(YEAR in needle for needle in found)
