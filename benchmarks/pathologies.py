"""What common readers do with a hundred CT series that went wrong, each in one way: they refuse, warn, or say nothing.

    .venv/bin/python benchmarks/pathologies.py [--write] [--only WORDS]

Every reader gets the same files (`benchmarks/pathology_cases.py`) in a folder of their own: MONAI's LoadImage with
PydicomReader, SimpleITK's ImageSeriesReader with GDCM's order of files, dcm2niix, and TomoRay. An answer is right where
every voxel has the HU that was scanned at the place where the answer puts it, and every slice scanned is there;
resampled voxels cannot be judged so, and are called resampled. `--write` makes docs/pathologies.md.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import logging
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

import dcm2niix
import nibabel
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813
from monai.transforms import LoadImage
from scipy.spatial import cKDTree

from benchmarks.pathology_cases import CASES, Series, good
from tomoray.assembly.stack import Rules
from tomoray.ingest.inventory import group_dicom, read_heads
from tomoray.ingest.loader import LoadedScan, load_dicom
from tomoray.privacy.deidentify import Deidentifier
from tomoray.privacy.pseudonyms import Pseudonyms
from tomoray.sources import list_source, read_file

PAGE = Path(__file__).resolve().parents[1] / "docs" / "pathologies.md"
KEY = Pseudonyms(b"benchmarks only: no secret")
PLACE_TOLERANCE_MM = 0.05
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Image:
    """Voxels [i, j, k] and the affine that puts them into LPS mm."""

    voxels: npt.NDArray[Any]
    matrix: npt.NDArray[np.float64]
    resampled: bool = False


@dataclass(frozen=True)
class Answer:
    """What a reader made of a folder: images, or none where it refused; and the warnings that it gave."""

    images: tuple[Image, ...]
    said: frozenset[str] = frozenset()


# --- the readers --------------------------------------------------------------------------------------------------


def ask_tomoray(folder: Path, _: Path) -> Answer:
    """As preprocessing reads it. A note in the catalog, or a part that was refused beside a scan, is a warning."""
    images: list[Image] = []
    said: set[str] = set()
    for series in group_dicom(read_heads(list(list_source(str(folder)))).heads, KEY):
        for part in load_dicom(series, read_file, Deidentifier(KEY), Rules()):
            if isinstance(part, LoadedScan):
                images.append(Image(part.volume.image_zyx.transpose(2, 1, 0), part.volume.geometry.matrix))
                said.update(part.volume.info.notes)
            else:
                said.add(part.refusal.evidence)
    return Answer(tuple(images), frozenset(said))


def ask_monai(folder: Path, _: Path) -> Answer:
    """`LoadImage(reader="PydicomReader")` on the folder; its affine is RAS."""
    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            voxels, meta = LoadImage(reader="PydicomReader", image_only=False)(str(folder))
    except Exception:  # a refusal, whatever its kind
        return Answer(())
    finally:
        logging.getLogger().removeHandler(handler)
    heard += [str(w.message) for w in caught if not issubclass(w.category, (DeprecationWarning, FutureWarning))]
    matrix = TO_LPS @ np.asarray(meta["affine"], float)
    return Answer((Image(np.asarray(voxels), matrix),), frozenset(heard))


def ask_simpleitk(folder: Path, _: Path) -> Answer:
    """Every series that GDCM finds in the folder, its files in GDCM's order."""
    images = []
    with _stderr() as said:
        for series in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)):
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), series))
            try:
                image = reader.Execute()
            except RuntimeError:
                continue
            n = image.GetDimension()  # 4 of a multi-frame object
            matrix = np.eye(4)
            matrix[:3, :3] = (np.reshape(image.GetDirection(), (n, n)) @ np.diag(image.GetSpacing()))[:3, :3]
            matrix[:3, 3] = image.GetOrigin()[:3]
            voxels = sitk.GetArrayFromImage(image).T
            images.append(Image(voxels.reshape(voxels.shape[:3]) if voxels.shape[3:] == (1,) else voxels, matrix))
    return Answer(tuple(images), _warnings("".join(said)))


def ask_dcm2niix(folder: Path, out: Path) -> Answer:
    """Everything that it writes; its names tell what it resampled (_Eq, _Tilt)."""
    done = subprocess.run(
        [str(dcm2niix.bin), "-b", "n", "-f", "%s_%p", "-o", str(out), str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        errors="replace",
    )
    images = []
    for path in sorted(out.glob("*.nii")):
        found = nibabel.load(path)
        resampled = re.search(r"_(Eq|Tilt)", path.stem) is not None
        colour = found.get_data_dtype().fields is not None  # no HU, whatever is in it
        voxels = np.empty(0) if colour else np.asarray(found.dataobj)
        images.append(Image(voxels, TO_LPS @ found.affine, resampled))
    return Answer(tuple(images), _warnings(done.stdout + done.stderr))


READERS: Mapping[str, tuple[str, Callable[[Path, Path], Answer]]] = {
    "TomoRay": (version("tomoray"), ask_tomoray),
    "MONAI PydicomReader": (version("monai"), ask_monai),
    "SimpleITK": (version("simpleitk"), ask_simpleitk),
    "dcm2niix": (version("dcm2niix"), ask_dcm2niix),
}


def _warnings(printed: str) -> frozenset[str]:
    return frozenset(line for line in printed.splitlines() if re.search("warning|error", line, re.IGNORECASE))


@contextlib.contextmanager
def _stderr() -> Iterator[list[str]]:
    """What native code says on stderr."""
    said: list[str] = []
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said.append(file.read().decode(errors="replace"))


# --- the judgement ------------------------------------------------------------------------------------------------


def judge(series: Series, answer: Answer, usual: frozenset[str]) -> str:
    """One word or two: refuses; or right, wrong, resampled, a part; and "warns" where it said something unusual.

    Args:
        series: what was scanned.
        answer: what a reader made of it.
        usual: what the reader says of a good series too, by `shapes`.
    """
    if not answer.images:
        return "refuses"
    scanned = [plane for plane in series.planes if plane.hu is not None]
    at, hu = np.concatenate([p.points() for p in scanned]), np.concatenate([p.hu.ravel() for p in scanned])
    n_scanned = len(np.unique(np.column_stack([np.round(at, 3), hu]), axis=0))
    verdicts, n_right = set(), 0
    for image in answer.images:
        right = image.voxels.ndim == 3 and _is_right(image, at, hu)
        n_right += image.voxels.size if right else 0
        verdicts.add("right" if right else "resampled" if image.resampled else "wrong")
    verdict = next(word for word in ("wrong", "resampled", "right") if word in verdicts)
    if verdict == "right" and n_right < n_scanned:
        verdict = "a part"
    return f"{verdict}, warns" if shapes(answer.said) - usual else verdict


def shapes(said: frozenset[str]) -> frozenset[str]:
    """Messages without the words that change from run to run: paths and numbers."""
    return frozenset(re.sub(r"\S*/\S*|0x\w+|[\d.]+", "", message) for message in said)


def _is_right(image: Image, at: npt.NDArray[np.float64], hu: npt.NDArray[np.int16]) -> bool:
    indices = np.indices(image.voxels.shape).reshape(3, -1)
    places = (image.matrix @ np.vstack([indices, np.ones(indices.shape[1])]))[:3].T
    if not np.isfinite(places).all():
        return False
    hits = cKDTree(at).query_ball_point(places, PLACE_TOLERANCE_MM)
    found = image.voxels.ravel()
    return all(any(hu[n] == value for n in near) for near, value in zip(hits, found.tolist(), strict=True))


def ask_all(series: Series) -> dict[str, Answer]:
    """Reader -> what it did."""
    answers = {}
    for reader, (_, ask) in READERS.items():
        with tempfile.TemporaryDirectory() as place:
            folder, out = Path(place) / "ct", Path(place) / "out"
            folder.mkdir()
            out.mkdir()
            for name, data in series.files().items():
                (folder / name).write_bytes(data)
            answers[reader] = ask(folder, out)
    return answers


# --- the page -----------------------------------------------------------------------------------------------------


SILENT = ("right", "wrong", "resampled", "a part")
PREFACE = """# What goes wrong in CT series, and who notices

{n_cases} small series, each made from one good one by a single change. What was scanned is known, so each answer can
be judged: it is *right* where every voxel has the HU that was scanned at the place where the answer puts it, and no
slice is left out; *a part* where voxels are right and slices are left out; *resampled* where voxels were interpolated,
which is not judged; else *wrong*. *Warns* is anything said that is not said of the good series too: a Python warning,
a log line, a line with "warning" or "error"; of TomoRay, a note in the catalog or a part that is refused beside a scan.

Several answers for one folder are judged together. Some cases that TomoRay refuses are right as they stand, such as
one slice of another patient: that is no error of the pixels, and should not pass in silence either.

MONAI and SimpleITK read what they are given and leave it to the caller to give them one whole scan; dcm2niix converts
whatever can be converted. These are their defaults, without options.

Measured on {date} with Python {python}. This page is written by `benchmarks/pathologies.py --write`;
`tests/unit/test_pathologies.py` reads the very same files with TomoRay.
"""


def page(rows: Mapping[str, dict[str, str]]) -> str:
    """docs/pathologies.md."""
    refused = [rows[case.name] for case in CASES if case.n_scans == 0]
    silent = {reader: sum(row[reader] in SILENT for row in refused) for reader in READERS}
    wrong = {reader: sum(row[reader] == "wrong" for row in rows.values()) for reader in READERS}
    names = [f"{reader} {number}" for reader, (number, _) in READERS.items()]
    lines = [
        PREFACE.format(
            n_cases=len(CASES), date=datetime.datetime.now(datetime.UTC).date(), python=sys.version.split()[0]
        ),
        f"| | {' | '.join(names)} |",
        f"| --- |{' --- |' * len(READERS)}",
        f"| accepts silently, of {len(refused)} that TomoRay refuses | {' | '.join(map(str, silent.values()))} |",
        f"| gives wrong voxels or places silently, of {len(CASES)} | {' | '.join(map(str, wrong.values()))} |",
        "",
        f"| what is the matter | {' | '.join(names)} | TomoRay's reason or note |",
        f"| --- |{' --- |' * (len(READERS) + 1)}",
    ]
    for case in CASES:
        why = [*(f"`{reason}`" for reason in case.refused), *(f"“{note}”" for note in case.notes)]
        cells = [rows[case.name][reader] for reader in READERS]
        lines.append(f"| {case.name} | {' | '.join(cells)} | {', '.join(why)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Ask every reader about every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--only", default="", help="cases whose name holds these words")
    options = parser.parse_args()
    usual = {reader: shapes(answer.said) for reader, answer in ask_all(good()).items()}
    rows = {}
    for case in CASES:
        if options.only in case.name:
            series = case.make()
            answers = ask_all(series)
            rows[case.name] = {reader: judge(series, answers[reader], usual[reader]) for reader in READERS}
            print(f"{case.name}: {rows[case.name]}", flush=True)
    if options.write:
        if len(rows) < len(CASES):
            raise SystemExit("--write wants every case; leave --only away")
        PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
