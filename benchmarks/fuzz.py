"""Broken files against the whole path from source to catalog: what is found, and that nothing is lost or runs away.

    .venv/bin/python benchmarks/fuzz.py [--files 10000] [--seed 0] [--json]

Seeds are the phantom's slices in seven transfer syntaxes with their segmentation and contours, pydicom's test files,
a NIfTI and an NRRD image with masks and, where they are there, real slices (shared/ct). A case is a folder of a few
files, most of them broken in one way or two; one case in eight is packed into a zip or tar file that is broken itself.

Each case goes through `take_stock` and `Ingester.ingest` in a child process, which must not die; no item may take
more than five seconds of CPU, nor the process more memory than `task_bytes` of the item; every file must end in a
stored scan, as a copy, refused with a reason, or as neither DICOM nor volume; and no identifier of the seeds may stand
in a row. The exit code is 1 where one of these fails; the case is named by its number, and `--case N` runs it alone.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import resource
import struct
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from copy import deepcopy
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

import nibabel
import numpy as np
import pydicom
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    RTStructureSetStorage,
)

from tomoray.archive import Archive
from tomoray.assembly.stack import Rules
from tomoray.config import Layout, NiftiPattern, PhantomConfig
from tomoray.errors import Fatal, Reason
from tomoray.ingest.ingester import Ingester, task_bytes
from tomoray.ingest.inventory import Entry, Inventory
from tomoray.ingest.series import DicomSeries
from tomoray.ingest.stocktaking import read_in_threads, take_stock
from tomoray.phantom import write_patient
from tomoray.privacy.deidentify import Deidentifier
from tomoray.privacy.pseudonyms import Pseudonyms
from tomoray.sources import list_source

ITEM_CPU_S = 5.0
SILENT_S = 60.0  # wall clock of one item on a busy machine; then the child is stopped
LIBRARY_BYTES = 200_000_000  # of a process that imported `tomoray.ingest.ingester`
ADDRESS_SPACE = 16 * 2**30  # protects the machine, far above what is tolerated
NAMES = Pseudonyms(b"fuzzing only: no secret")
REAL = Path(__file__).resolve().parents[2] / "shared" / "ct"

Files = dict[str, bytes]


def main() -> int:
    """Run the cases, print what they ended in, and say what must not be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000, help="at least so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="only this one")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        found = run(Path(folder), options.files, options.seed, options.case)
    found["seconds"] = round(time.monotonic() - started, 1)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name:12}", value if not isinstance(value, list) else "".join(f"\n  {line}" for line in value))
    return 1 if found["failures"] else 0


def run(folder: Path, n_files: int, seed: int, only: int | None) -> dict[str, Any]:
    """Cases until `n_files` were made; a child that dies or falls silent is a failure, and another takes over."""
    total: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    failures: list[str] = []
    slowest_s, most_memory, case = 0.0, 0.0, only or 0
    child, ours = _start(folder, seed)
    while (only is None and total["files"] < n_files) or (only is not None and case == only):
        ours.send(case)
        what, found = "case", None
        while True:
            if not ours.poll(SILENT_S):
                found = f"was silent for {SILENT_S:.0f} s at {what}"
            else:
                try:
                    what, found = ours.recv()
                except (EOFError, ConnectionError):
                    child.join()
                    found = f"killed its process (exit code {child.exitcode}) at {what}"
            if isinstance(found, str) or what == "done":
                break
        if isinstance(found, str):
            failures.append(f"case {case}: {found}")
            if what != "error":
                child.kill()
                child.join()
                child, ours = _start(folder, seed)
        elif found is not None:
            total.update(found["counts"])
            reasons.update(found["reasons"])
            failures += [f"case {case}: {failure}" for failure in found["failures"]]
            slowest_s = max(slowest_s, found["slowest_s"])
            most_memory = max(most_memory, found["most_memory"])
        case += 1
    ours.send(None)
    child.join()
    return {
        "cases": case,
        **{name: total[name] for name in ("files", "stored", "copies", "refused", "drawn", "ignored")},
        "reasons": dict(sorted(reasons.items())),
        "slowest_item_cpu_s": round(slowest_s, 2),
        "most_memory_of_allowed": round(most_memory, 2),
        "failures": failures,
    }


def _start(folder: Path, seed: int) -> tuple[Any, Any]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=work, args=(theirs, folder, seed), daemon=True)
    child.start()
    theirs.close()
    return child, ours


def work(pipe: Any, folder: Path, seed: int) -> None:
    """The child: a case for each number that comes."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - codecs in C print what they dislike
    seeds = make_seeds(folder / f"seeds-{os.getpid()}")
    ingester = Ingester(
        archive=Archive.create(str(folder / f"archive-{os.getpid()}"), Layout()),
        deidentifier=Deidentifier(NAMES),
        rules=Rules(),
        config_sha256="0" * 64,
    )
    while (case := pipe.recv()) is not None:
        place = folder / f"case-{case}"
        try:
            make_case(seeds, place, random.Random(f"{seed} {case}"))
            pipe.send(("done", take_case(place, ingester, lambda what: pipe.send((what, None)))))
        except Exception as error:  # that is what is looked for
            import traceback

            last = traceback.extract_tb(error.__traceback__)[-3:]
            where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(last))
            pipe.send(("error", f"{type(error).__name__}: {str(error)[:120]} ({where})"))


def take_case(place: Path, ingester: Ingester, tell: Callable[[str], None]) -> dict[str, Any]:
    """One case through the whole path, with its accounts."""
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    failures: list[str] = []
    slowest_s = most_memory = 0.0
    files = sum(1 for _ in list_source(str(place)))
    counts["files"] = files
    with Inventory() as inventory:
        tell("take_stock")
        memory, started = Memory(), time.process_time()
        try:
            with redirect_stderr(io.StringIO()):
                counts["ignored"] = take_stock([str(place)], NiftiPattern(), inventory, NAMES, read_in_threads)
        except Fatal:  # nothing in it
            counts["ignored"] = files
        slowest_s, most_memory = time.process_time() - started, memory.peak_bytes() / task_bytes(0)
        if most_memory > 1:
            failures.append(f"headers took {memory.peak_bytes() / 1e6:.0f} MB")
        entries = list(inventory.entries())
    if files != counts["ignored"] + sum(_n_files(entry) for entry in entries):
        kinds = [type(entry.item).__name__ for entry in entries]
        failures.append(f"{files} files: {counts['ignored']} ignored, {sum(map(_n_files, entries))} in {kinds}")
    for entry in entries:
        tell(f"item {type(entry.item).__name__}")
        memory, started = Memory(), time.process_time()
        rows = ingester.ingest(entry.item).rows
        slowest_s = max(slowest_s, time.process_time() - started)
        peak_bytes, asked_bytes = memory.peak_bytes(), task_bytes(entry.working_bytes)
        most_memory = max(most_memory, peak_bytes / asked_bytes)
        if peak_bytes > asked_bytes:
            failures.append(f"{peak_bytes / 1e6:.0f} MB; asked for {asked_bytes / 1e6:.0f}")
        failures += _accounts(entry, rows, counts, reasons)
    if slowest_s > ITEM_CPU_S:
        failures.append(f"{slowest_s:.1f} s of CPU")
    return {
        "counts": counts,
        "reasons": reasons,
        "failures": failures,
        "slowest_s": slowest_s,
        "most_memory": most_memory,
    }


def _n_files(entry: Entry) -> int:
    item = entry.item
    drawings = len(item.drawings) if isinstance(item, DicomSeries) else len(getattr(item, "labels", ()))
    return item.n_instances + drawings


def _accounts(entry: Entry, rows: Sequence[Any], counts: Counter[str], reasons: Counter[str]) -> list[str]:
    """Every file of the item has its place in one of `rows`; what is wrong with that."""
    own = [row for row in rows if row["series_id"] == entry.identity.series_id]
    others = len(rows) - len(own)
    copies = sum(int(note.split()[0]) for row in own for note in row["notes"] or () if note.endswith("were left out"))
    told = sum(row["n_instances"] for row in own) + copies
    stored = [row for row in own if row["status"] == "stored"]
    drawn = _n_files(entry) - entry.item.n_instances - others
    counts["stored"] += sum(row["n_instances"] for row in stored)
    counts["copies"] += copies
    counts["refused"] += sum(row["n_instances"] for row in rows if row["status"] == "refused")
    counts["drawn" if stored else "refused"] += drawn
    reasons.update(row["reason"] for row in rows if row["status"] == "refused")
    wrong = []
    if told != entry.item.n_instances:
        wrong.append(f"{told} instances told of {entry.item.n_instances} ({[row['reason'] for row in own]})")
    if not own or drawn < 0 or {row["reason"] for row in rows} - {None, *Reason}:
        wrong.append("rows that do not speak of the item")
    text = json.dumps(rows, default=str)
    wrong += [f"a row holds {name}" for name in IDENTIFIERS if name in text]
    return wrong


IDENTIFIERS = ("FUZZ^PATIENT", "FUZZ-ID-4711", "1.2.826.0.1.3680043.4711")


def make_seeds(folder: Path) -> list[Files]:
    """Folders of good files."""
    write_patient(PhantomConfig(out=str(folder), patients=1, seed=1, matrix=64), 0)
    (patient,) = folder.iterdir()
    slices = [dcmread(path) for path in sorted((patient / "ct").iterdir())[40:45]]
    segmentation = dcmread(next((patient / "seg").iterdir()))
    for dataset in slices:
        dataset.decompress(generate_instance_uid=False)
    for dataset in (*slices, segmentation):
        dataset.PatientName, dataset.PatientID = IDENTIFIERS[:2]
        dataset.StudyInstanceUID = f"{IDENTIFIERS[2]}.1"
    seeds = [{f"{n}.dcm": _bytes(each) for n, each in enumerate(slices)}]
    seeds.append(seeds[0] | {"seg.dcm": _bytes(segmentation), "rt.dcm": _bytes(_contours(slices))})
    for syntax in (JPEGLSLossless, JPEG2000Lossless, RLELossless):
        seeds += [{f"{n}.dcm": _bytes(_compressed(each, syntax)) for n, each in enumerate(slices)}]
    for syntax in (ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian):
        seeds += [{f"{n}.dcm": _bytes(_recoded(each, syntax)) for n, each in enumerate(slices)}]
    tests = Path(pydicom.__file__).parent / "data" / "test_files"
    for path in sorted(tests.glob("*.dcm")):
        data = path.read_bytes()
        seeds.append({"0.dcm": data, "1.dcm": _as_ct(data)})
    for path in sorted(REAL.glob("syntaxes-cornerstone/*.dcm")) + sorted(REAL.glob("pydicom/*.dcm")):
        seeds += [{"0.dcm": path.read_bytes()}]
    return [*seeds, *_volumes()] + seeds[:8] * 6  # the phantom's more often than each of pydicom's


def make_case(seeds: Sequence[Files], place: Path, rng: random.Random) -> None:
    """Write a seed's files below `place`, broken."""
    seed = rng.choice(seeds)
    files = {name: _broken(data, rng) if rng.random() < 0.5 or len(seed) == 1 else data for name, data in seed.items()}
    if rng.random() < 0.1:  # a file twice, or another seed's among them
        files["more.dcm"] = _broken(rng.choice(list(rng.choice(seeds).values())), rng)
    if rng.random() < 0.125:
        kind = rng.choice(("zip", "tar", "tgz"))
        packed = _packed(files, kind)
        files = {f"all.{kind}": _broken(packed, rng) if rng.random() < 0.7 else packed}
    place.mkdir()
    for name, data in files.items():
        (place / name).write_bytes(data)


def _broken(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2))):
        data = rng.choice(BREAKS)(data, rng)
    return data


def _flip(data: bytes, rng: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(rng.choice((1, 3, 30))):
        if found:
            found[rng.randrange(len(found))] = rng.randrange(256)
    return bytes(found)


def _flip_header(data: bytes, rng: random.Random) -> bytes:
    return _flip(data[:1500], rng) + data[1500:]


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _drop(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.choice((1, 2, 8, 1000)) :]


def _lie_of_length(data: bytes, rng: random.Random) -> bytes:
    """An element that says it is as long as it is not."""
    places = [n for n in range(132, min(len(data) - 8, 4000)) if data[n + 4 : n + 6].isupper()]
    if not places:
        return _flip(data, rng)
    start = rng.choice(places) + rng.choice((6, 8))
    lie = struct.pack(*rng.choice((("<H", 0xFFFF), ("<L", 0xFFFFFFFF), ("<L", 0x7FFFFFFF), ("<H", 0), ("<L", 1))))
    return data[:start] + lie + data[start + len(lie) :]


def _swap_tags(data: bytes, rng: random.Random) -> bytes:
    places = [n for n in range(132, min(len(data) - 8, 4000)) if data[n + 4 : n + 6].isupper()]
    if len(places) < 2:
        return _flip(data, rng)
    a, b = sorted(rng.sample(places, 2))
    return data[:a] + data[b : b + 4] + data[a + 4 : b] + data[a : a + 4] + data[b + 4 :]


def _nest(data: bytes, rng: random.Random) -> bytes:
    """A sequence in a sequence in a sequence, before the pixels."""
    depth = rng.choice((10, 100, 1000, 20_000))
    start = data.find(b"\xe0\x7f\x10\x00")
    start = start if start > 0 else len(data)
    private = struct.pack("<HH2sHL", 0x0029, 0x1001, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    ends = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0) if rng.random() < 0.5 else b""
    return data[:start] + private * depth + ends * depth + data[start:]


def _forge(data: bytes, rng: random.Random) -> bytes:
    """Numbers in the header that are not those of the pixels."""
    try:
        dataset = dcmread(io.BytesIO(data), force=True)
        shorts = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel", "PixelRepresentation")
        for _ in range(rng.choice((1, 2))):
            if rng.random() < 0.7:
                setattr(dataset, rng.choice(shorts), rng.choice((0, 1, 7, 8, 12, 15, 16, 32, 64, 255, 4096, 65535)))
            else:
                name = rng.choice(("NumberOfFrames", "RescaleSlope", "RescaleIntercept", "InstanceNumber"))
                setattr(dataset, name, rng.choice((0, 1, -1, 2, 1000, 2**31 - 1, "1e300", "")))
        return _bytes(dataset)
    except Exception:  # the seed is broken already
        return _flip(data, rng)


def _swap_syntax(data: bytes, rng: random.Random) -> bytes:
    """The file meta information names another transfer syntax than the file is in."""
    try:
        dataset = dcmread(io.BytesIO(data), force=True)
        plain = _bytes(dataset)
        names = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.5")
        names += ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99")
        before = str(dataset.file_meta.TransferSyntaxUID).encode()
        after = rng.choice(names).encode()[: len(before)].ljust(len(before), b"\0")
        return plain.replace(before, after, 1)
    except Exception:  # as above
        return _flip(data, rng)


def _bomb(data: bytes, rng: random.Random) -> bytes:
    """A deflated file that inflates to far more than it should."""
    try:
        dataset = dcmread(io.BytesIO(data), force=True)
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        whole = _bytes(dataset)
        start = 144 + dataset.file_meta.FileMetaInformationGroupLength
        plain = zlib.decompress(whole[start:], -zlib.MAX_WBITS)
        deflater = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
        size = rng.choice((10**6, 50 * 10**6, 300 * 10**6))
        private = struct.pack("<HH2sHL", 0x7FDF, 0x1001, b"OB", 0, size)
        at = plain.find(b"\xe0\x7f\x10\x00")
        parts = [deflater.compress(plain[:at] + private)]
        parts += [deflater.compress(bytes(10**6)) for _ in range(size // 10**6)]
        return whole[:start] + b"".join(parts) + deflater.compress(plain[at:]) + deflater.flush()
    except Exception:  # as above
        return _flip(data, rng)


def _damage_codestream(data: bytes, rng: random.Random) -> bytes:
    """Bytes behind the start of the pixels: headers of codestreams, offset tables, fragments."""
    start = data.rfind(b"\xe0\x7f\x10\x00")
    if start < 0:
        return _flip(data, rng)
    found = bytearray(data)
    for _ in range(rng.choice((1, 2, 10))):
        place = min(len(found) - 1, start + int(rng.paretovariate(0.6)) + 3)
        found[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(found)


BREAKS = (
    *(_flip, _flip_header, _truncate, _drop, _lie_of_length, _swap_tags, _nest, _forge, _forge, _swap_syntax),
    *(_damage_codestream, _damage_codestream, _bomb),
)


def _bytes(dataset: Dataset) -> bytes:
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def _compressed(dataset: Dataset, syntax: str) -> Dataset:
    found = deepcopy(dataset)
    found.compress(syntax, generate_instance_uid=False)
    return found


def _recoded(dataset: Dataset, syntax: Any) -> Dataset:
    found = deepcopy(dataset)
    if syntax == ExplicitVRBigEndian:
        found.PixelData = np.frombuffer(found.PixelData, "<u2").astype(">u2").tobytes()
    found = dcmread(io.BytesIO(_bytes(found)))
    out = io.BytesIO()
    found.file_meta.TransferSyntaxUID = syntax
    found.walk(lambda ds, element: None)  # every element parsed, so that it is written anew
    options = {"implicit_vr": syntax.is_implicit_VR, "little_endian": syntax.is_little_endian}
    dcmwrite(out, found, force_encoding=True, **options)
    return dcmread(io.BytesIO(out.getvalue()))


def _as_ct(data: bytes) -> bytes:
    """The same file, were it a CT slice."""
    try:
        dataset = dcmread(io.BytesIO(data), force=True)
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
        dataset.Modality, dataset.RescaleSlope, dataset.RescaleIntercept = "CT", 1, -1024
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 0]
        dataset.PixelSpacing, dataset.ImageType = [1, 1], ["ORIGINAL", "PRIMARY", "AXIAL"]
        return _bytes(dataset)
    except Exception:  # some of pydicom's test files are broken on purpose
        return data


def _contours(slices: Sequence[Dataset]) -> Dataset:
    """A structure set with a triangle on every slice."""
    found = Dataset()
    found.file_meta = deepcopy(slices[0].file_meta)
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID = RTStructureSetStorage
    found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID = f"{IDENTIFIERS[2]}.9"
    found.Modality, found.PatientID, found.PatientName = "RTSTRUCT", IDENTIFIERS[1], IDENTIFIERS[0]
    found.SeriesInstanceUID, found.StudyInstanceUID = f"{IDENTIFIERS[2]}.8", slices[0].StudyInstanceUID
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = slices[0].SeriesInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = slices[0].FrameOfReferenceUID, [study]
    found.ReferencedFrameOfReferenceSequence = [frame]
    roi, contours = Dataset(), Dataset()
    roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = 1, "mass", slices[0].FrameOfReferenceUID
    contours.ReferencedROINumber, contours.ContourSequence = 1, []
    for each in slices:
        x, y, z = map(float, each.ImagePositionPatient)
        contour = Dataset()
        contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", 3
        contour.ContourData = [x + 20, y + 20, z, x + 60, y + 20, z, x + 40, y + 60, z]
        contours.ContourSequence.append(contour)
    found.StructureSetROISequence, found.ROIContourSequence = [roi], [contours]
    return found


def _volumes() -> list[Files]:
    image = np.arange(8 * 9 * 10, dtype=np.int16).reshape(8, 9, 10)
    nifti = [
        nibabel.Nifti1Image(array, np.diag([1, 1, 2, 1])).to_bytes()
        for array in (image, (image > 300).astype(np.uint8))
    ]
    header = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 10 9 8\n"
        "space directions: (1,0,0) (0,1,0) (0,0,2)\nendian: little\nencoding: raw\nspace origin: (0,0,0)\n\n"
    )
    nrrd = header.encode() + image.tobytes()
    packed = {"a_ct.nii.gz": zlib.compress(nifti[0], wbits=31), "a_mass.nii.gz": zlib.compress(nifti[1], wbits=31)}
    return [packed, {"a_ct.nii": nifti[0], "a_mass.nii": nifti[1]}, {"a_ct.nrrd": nrrd}] * 5


def _packed(files: Files, kind: str) -> bytes:
    out = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return out.getvalue()
    with tarfile.open(fileobj=out, mode="w:gz" if kind == "tgz" else "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


class Memory:
    """What this process takes from now on, as if it held the library and no seeds."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self._before = _status_bytes("VmRSS")

    def peak_bytes(self) -> int:
        """The peak until now."""
        return _status_bytes("VmHWM") - self._before + LIBRARY_BYTES


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in /proc/self/status")


if __name__ == "__main__":
    sys.exit(main())
