"""The whole way once, on a cohort that nobody is in: DICOM, archive, training, prediction, serving, report."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from cluster.demo_stages import Stages, Worked
from cluster.local import local_ray
from tomoray.config import Config, Positive
from tomoray.errors import Usage
from tomoray.reports import run_report as report

RECORD = "demo.json"
KEY = b"the demo's patients are made up, so their pseudonyms need no secret\n"


class DemoConfig(Config):
    """`tomoray demo`. The defaults fit two cores, 6 GB and five minutes.

    Attributes:
        steps: None: the recipe's.
    """

    out: str = "out/demo"
    patients: Annotated[int, Field(ge=4, description="a sixth of them is held out")] = 30
    seed: int = 0
    matrix: Annotated[int, Field(ge=64, le=512)] = 256
    recipe: str = "phantom"
    steps: Positive | None = None


def run(config: DemoConfig, *, fresh: bool = False, verbose: bool = False) -> dict[str, Any]:
    """Go the whole way in the folder `config.out`; stages that an earlier run finished there are taken over.

    Args:
        config: what to do.
        fresh: remove the earlier demo first.
        verbose: show what the workers print.

    Returns:
        `dice`: a list per label, one value per held-out patient; `stages`: `seconds` and `mb_per_s` by name;
        `report`: its path.

    Raises:
        Usage: the folder holds a demo of other settings, or something else.
        Fatal: a stage failed, or the served masks are not those of `tomoray predict`.
    """
    folder = _open_folder(Path(config.out), fresh=fresh)
    record = Record(folder / RECORD, config.model_dump(mode="json", exclude={"out"}))
    wanted = config.model_dump(include={"patients", "seed", "matrix"})
    stages = Stages(folder, cohort=wanted, recipe=config.recipe, steps=config.steps)
    work: dict[str, Callable[[], Worked]] = {
        "phantom": stages.phantom,
        "preprocess": stages.preprocess,
        "train": stages.train,
        "predict": stages.predict,
        "evaluate": stages.evaluate,
        "serve": lambda: stages.serve(verbose=verbose),
        "report": lambda: stages.report(record.results(), record.timings()),
    }
    missing = [name for name in work if name not in record.results()]
    if missing:
        with _own_key(folder / "pseudonym.key"), local_ray(verbose=verbose):
            for name in missing:
                record.stage(name, work[name])
    return {
        "dice": {label: list(scores.values()) for label, scores in record.results()["evaluate"]["dice"].items()},
        "stages": {stage.name: {"seconds": stage.seconds, "mb_per_s": stage.mb_per_s} for stage in record.timings()},
        "report": record.results()["report"]["path"],
    }


class Record:
    """What is done, in a file, so that a second run takes it over.

    Args:
        path: the file.
        settings: what the demo was asked for. Raises `Usage` where the file is of other ones.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path = path
        self._settings = settings
        self._stages: dict[str, dict[str, Any]] = {}
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["settings"] != settings:
                raise Usage(f"{path.parent} holds a demo of other settings; choose another --out, or add --fresh")
            self._stages = found["stages"]
        self._write()

    def stage(self, name: str, work: Callable[[], Worked]) -> None:
        """Do a stage and write down that it is done."""
        started = time.monotonic()
        worked = work()
        seconds = time.monotonic() - started
        self._stages[name] = {
            "seconds": round(seconds, 3),
            "mb_per_s": None if worked.megabytes is None else round(worked.megabytes / seconds, 3),
            "what": worked.what,
            "result": worked.result,
        }
        self._write()

    def results(self) -> dict[str, dict[str, Any]]:
        """What each finished stage gave, by name."""
        return {name: stage["result"] for name, stage in self._stages.items()}

    def timings(self) -> list[report.Stage]:
        """How long each finished stage took, in order."""
        return [
            report.Stage(name=name, seconds=stage["seconds"], mb_per_s=stage["mb_per_s"], what=stage["what"])
            for name, stage in self._stages.items()
        ]

    def _write(self) -> None:
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps({"settings": self._settings, "stages": self._stages}, indent=2), encoding="utf-8")
        partial.replace(self._path)


def _open_folder(folder: Path, *, fresh: bool) -> Path:
    """The demo's folder, made where it is absent. Only what is a demo's is ever removed."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD).exists():
        raise Usage(f"{folder} holds something that is no demo; choose another --out")
    if fresh and folder.is_dir():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _own_key(path: Path) -> Iterator[None]:
    """A fixed pseudonym key, so that every machine holds out the same patients and reaches the same Dice."""
    path.write_bytes(KEY)
    before = os.environ.get("TOMORAY_KEY_FILE")
    os.environ["TOMORAY_KEY_FILE"] = str(path.absolute())
    try:
        yield
    finally:
        del os.environ["TOMORAY_KEY_FILE"]
        if before is not None:
            os.environ["TOMORAY_KEY_FILE"] = before
