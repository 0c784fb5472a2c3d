"""What the tests of killed runs share: a cohort of everything, the command, and a look at its processes.

Loaded with `runpy.run_path`, for tests are no package.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom

from tomoray import phantom
from tomoray.catalog import Catalog
from tomoray.config import PhantomConfig
from tomoray.storage import open_store

ROOT = Path(__file__).parents[1]
N_STORED, N_REFUSED = 25, 4
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
# Small shards make a scan many objects, so that there are many moments to be killed at; rows are written often.
CONFIG = "layout: {chunk_zyx: [16, 16, 16], shard_zyx: [32, 32, 32]}\n"
COMMAND = (
    "import sys; from jobs import preprocess; from cluster.cli import main; "
    "preprocess.FLUSH_EVERY_S = 0.3; sys.exit(main())"
)


def write_cohort(out: Path) -> None:
    """24 CT series, four of them with masks, a NIfTI pair, and four that are refused."""
    phantom.write_cohort(PhantomConfig(out=str(out / "first"), patients=2, seed=11, matrix=64))
    first, second = sorted((out / "first").iterdir())
    for number in range(11):
        for patient in (first, second):
            masks_too = number == 0
            _copy(patient, out / f"copy-{number}" / patient.name, number, n_slices=None if masks_too else 40)
    for number, name in enumerate(("cut", "gap", "short"), start=11):
        _copy(first, out / name, number, n_slices=40)
    slices = sorted((out / "cut").rglob("*.dcm"))
    slices[7].write_bytes(slices[7].read_bytes()[:-1000])
    sorted((out / "gap").rglob("*.dcm"))[9].unlink()
    for path in sorted((out / "short").rglob("*.dcm"))[2:]:
        path.unlink()
    (out / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"no element")
    (out / "notes.txt").write_text("what is neither DICOM nor NIfTI")
    hu = np.random.default_rng(5).integers(-1000, 400, (48, 40, 60), dtype=np.int16)
    for name, array in (("case_ct", hu), ("case_lungs", (hu > 0).astype(np.uint8))):
        nibabel.save(nibabel.Nifti1Image(array, np.diag([0.8, 0.8, 2.0, 1.0])), out / f"{name}.nii.gz")


def _copy(patient: Path, out: Path, number: int, *, n_slices: int | None) -> None:
    """The same patient under another series UID of the same length: all of it, or some slices without masks."""
    slices = sorted((patient / "ct").iterdir())
    uid = pydicom.dcmread(slices[0], stop_before_pixels=True).SeriesInstanceUID
    other = f"{uid[:-2]}{number:02d}"
    assert other != uid, "the phantom's UID ends like a copy's; choose another seed"
    masks = sorted((patient / "seg").iterdir())
    for path in (*slices, *masks) if n_slices is None else slices[:n_slices]:
        target = out / path.relative_to(patient)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes().replace(uid.encode(), other.encode()))


def start(cohort: Path, archive: str, out: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """`tomoray preprocess`, in a process group of its own; what it says goes to files in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(CONFIG)
    flags = ["--config", str(out / "config.yaml"), "--json"]
    with (out / "stdout").open("wb") as stdout, (out / "stderr").open("wb") as stderr:
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, "preprocess", str(cohort), archive, *flags],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )


def answer(out: Path) -> dict[str, Any]:
    """What the command printed as JSON. Fails with what it said instead."""
    said = (out / "stdout").read_text().splitlines()
    assert said, (out / "stderr").read_text()
    return json.loads(said[-1])


def objects(url: str) -> dict[str, str]:
    """Every object of an archive with its digest; of a folder, also what no store would list."""
    if "://" not in url:
        paths = [path for path in Path(url).rglob("*") if not path.is_dir()]
        return {str(path.relative_to(url)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}
    store = open_store(url)
    return {info.key: hashlib.sha256(store.read(info.key)).hexdigest() for info in store.list()}


def run_undisturbed(cohort: Path, out: Path) -> dict[str, str]:
    """The objects of an archive below `out` that nothing disturbed; every other has to be the same."""
    assert start(cohort, str(out / "archive"), out / "run").wait() == 0
    said = answer(out / "run")
    assert (said["stored"], said["refused"], said["failed"]) == (N_STORED, N_REFUSED, [])
    return objects(str(out / "archive"))


def check(url: str, undisturbed: dict[str, str]) -> None:
    """Byte by byte the undisturbed archive, nothing more and nothing less, and a row a series."""
    found = objects(url)
    assert sorted(found.keys() - undisturbed.keys()) == [], "objects that should not be there"
    assert sorted(undisturbed.keys() - found.keys()) == [], "objects that are missing"
    assert [key for key in found if found[key] != undisturbed[key]] == [], "objects with other bytes"
    rows = Catalog(open_store(url)).rows()
    assert len({(row["series_id"], row["part"]) for row in rows}) == len(rows) == N_STORED + N_REFUSED


@dataclass(frozen=True)
class Process:
    """A process of this machine: `born` tells it from a later one with the same id."""

    pid: int
    born: str
    name: str

    @property
    def alive(self) -> bool:
        state = _stat(self.pid)
        return state is not None and state[19] == self.born and state[0] not in "ZX"

    def kill(self) -> bool:
        """Kill -9; False where it had ended before."""
        with contextlib.suppress(ProcessLookupError):
            if self.alive:
                os.kill(self.pid, signal.SIGKILL)
                return True
        return False


def descendants(pid: int) -> list[Process]:
    """All that a process has started and that what it has started has started."""
    children: dict[int, list[Process]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (state := _stat(int(entry.name))) is not None:
            process = Process(int(entry.name), state[19], _command_line(int(entry.name)))
            children.setdefault(int(state[1]), []).append(process)
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += [process.pid for process in below]
    return found


def workers(pid: int) -> list[Process]:
    """The processes that bring a series into the archive at this moment."""
    return [process for process in descendants(pid) if process.name.startswith("ray::_ingest")]


def wait_until_gone(processes: list[Process], within_s: float = 120) -> None:
    """Ray and its workers end by themselves when their driver is killed; its agents take long, and are killed too."""
    until = time.monotonic() + within_s
    agents = [process for process in processes if process.name.startswith(AGENTS)]
    while alive := [process.name for process in processes if process.alive and process not in agents]:
        assert time.monotonic() < until, f"still there, {within_s} s after their driver: {alive}"
        time.sleep(0.05)
    for agent in agents:
        agent.kill()


def _stat(pid: int) -> list[str] | None:
    """State, parent, …, as in proc(5) from the third field on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
