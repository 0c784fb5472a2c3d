"""A run: what `tomoray train` leaves behind, on a path or S3.

    RUN/
      started.json              config, split, archive and versions, written first; the same command resumes, another is
                                refused
      checkpoints/step-…/       model.pt (weights), state.pt (optimizer and so on), checkpoint.json (tomoray.training)
      history.jsonl             a line for each few steps: loss, speed, scores of validations
      attempts/*.json           when how many workers trained, from which step to which
      run.json                  written last: the run is finished and this is its model
      predictions/              masks by `tomoray predict`

Objects are written whole; `run.json` is there only when all else is.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Literal

from tomoray import __version__
from tomoray.catalog import Split
from tomoray.config import make_config
from tomoray.errors import Fatal, Usage
from tomoray.ingest.estimate import read_prices
from tomoray.storage import Store, open_store
from tomoray.training.checkpoints import MODEL, checkpoint_name
from tomoray.training.config import HOW_IT_RUNS, TrainConfig

STARTED, FINISHED, CHECKPOINTS = "started.json", "run.json", "checkpoints"
HISTORY, ATTEMPTS = "history.jsonl", "attempts"

# No effect on the samples. With other `workers` sums are in another order, which changes the last bits of the weights.
MAY_CHANGE = {*HOW_IT_RUNS, "out", "validate_every", "patience"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A finished run.

    Attributes:
        store: the run's folder.
        config: what it was trained with; `config.archive` is the archive's full URL.
        split: patients by part.
        steps: steps trained.
        metrics: final loss, validation Dice per label and so on.
        model_key: key of the weights in `store`.
        model_sha256: digest of the weights; names the model in predictions.
    """

    store: Store
    config: TrainConfig
    split: Split
    steps: int
    metrics: Mapping[str, Any]
    model_key: str
    model_sha256: str

    def read_model(self) -> bytes:
        """The weights' file. Raises `Fatal` where it is not the file that was trained."""
        try:
            data = self.store.read(self.model_key)
        except FileNotFoundError as error:
            raise Fatal(f"run {self.store.url} has lost its model {self.model_key}; train it again") from error
        if hashlib.sha256(data).hexdigest() != self.model_sha256:
            raise Fatal(f"the model {self.model_key} of run {self.store.url} was changed after training")
        return data


def open_run(url: str) -> Run:
    """Open a finished run. Raises `Fatal` in one line where there is none."""
    store = open_store(url)
    store.check()
    found = _read_json(store, FINISHED)
    if found is None:
        if store.exists(STARTED):
            raise Fatal(f"{url} is not a finished run: run `tomoray train … --out {url}` again to resume it")
        raise Fatal(f"{url} is not a run; make one with: tomoray train CONFIG --archive ARCHIVE --out {url}")
    return Run(
        store=store,
        config=make_config(TrainConfig, found["config"], f"{url}/{FINISHED}"),
        split=_split(found["split"]),
        steps=found["steps"],
        metrics=found["metrics"],
        model_key=found["model_key"],
        model_sha256=found["model_sha256"],
    )


def begin_run(store: Store, config: TrainConfig, split: Split, archive_sha256: str = "") -> tuple[Split, bool]:
    """Mark the run as started, or agree to resume the one that is there.

    `steps` may grow: the run then goes on from its last checkpoint, with the learning rate of the new schedule.

    Args:
        store: the run's folder.
        config: what is to be trained.
        split: patients by part.
        archive_sha256: `catalog_sha256` of the archive, to be noted.

    Returns:
        The split to use (that of the first start) and whether the run was finished already, for all its steps.

    Raises:
        Usage: the folder holds a run of another config; the fields that differ are named.
    """
    wanted = {
        "config": config.model_dump(mode="json"),
        "split": asdict(split),
        "archive_sha256": archive_sha256,
        **_versions(),
    }
    if store.write_new(STARTED, to_indented_json(wanted)):
        return split, False
    found = _read_json(store, STARTED) or wanted
    before = make_config(TrainConfig, found["config"], f"{store.url}/{STARTED}").model_dump(mode="json")
    differ = [
        name
        for name, value in wanted["config"].items()
        if name not in MAY_CHANGE and value != before.get(name) and not (name == "steps" and value > before[name])
    ]
    if differ:
        there, here = before, wanted["config"]
        changes = ", ".join(f"{name} (there {there.get(name)!r}, wanted {here[name]!r})" for name in differ)
        raise Usage(f"{store.url} holds a run with another config: {changes}; choose another --out")
    if config.steps > before["steps"]:
        store.delete([FINISHED])
        store.write(STARTED, to_indented_json({**found, "config": wanted["config"]}))
    return _split(found["split"]), store.exists(FINISHED)


def started_on(store: Store) -> str:
    """`catalog_sha256` of the archive when the run began; empty where nobody noted it."""
    return str((_read_json(store, STARTED) or {}).get("archive_sha256", ""))


def finish_run(
    store: Store,
    config: TrainConfig,
    split: Split,
    metrics: Mapping[str, Any],
    *,
    steps: int | None = None,
    model_step: int | None = None,
) -> Run:
    """Write `run.json`. Safe to repeat.

    Args:
        store: the run's folder.
        config: what it was trained with.
        split: patients by part.
        metrics: what came of it.
        steps: how many were done; None: all.
        model_step: the checkpoint that is the model; None: the last.
    """
    steps = config.steps if steps is None else steps
    model_key = f"{CHECKPOINTS}/{checkpoint_name(steps if model_step is None else model_step)}/{MODEL}"
    facts = {
        "config": config.model_dump(mode="json"),
        "split": asdict(split),
        "steps": steps,
        "metrics": dict(metrics),
        "model_key": model_key,
        "model_sha256": hashlib.sha256(store.read(model_key)).hexdigest(),
        "archive_sha256": started_on(store),
        "cost": cost_so_far(store, config),
        **_versions(),
    }
    store.write(FINISHED, to_indented_json(facts))
    return open_run(store.url)


def read_history(store: Store) -> list[dict[str, Any]]:
    """The lines of `history.jsonl`, oldest first; none where nothing was trained yet."""
    try:
        return [json.loads(line) for line in store.read(HISTORY).splitlines()]
    except FileNotFoundError:
        return []


def cost_so_far(store: Store, config: TrainConfig) -> dict[str, Any]:
    """What training took, work that was lost and done again included.

    Returns:
        `attempts`; `worker_seconds`, wall time times workers, without the seconds in which a worker starts; and
        where `config.node` names a machine of the price table: `node`, `dollars` on demand by the share of its
        vCPUs that `config.cpus` asks for, and the table's `prices_date`.
    """
    attempts = [json.loads(store.read(info.key)) for info in store.list(ATTEMPTS)]
    worker_seconds = sum(attempt["seconds"] * attempt["workers"] for attempt in attempts)
    cost: dict[str, Any] = {"attempts": len(attempts), "worker_seconds": round(worker_seconds, 1)}
    if config.node is not None:
        prices = read_prices()
        node = prices.nodes[config.node]
        share = min(1.0, config.cpus / node.vcpus)
        dollars = worker_seconds / 3600 * share * node.on_demand
        cost |= {"node": config.node, "dollars": round(dollars, 4), "prices_date": prices.date}
    return cost


def catalog_sha256(rows: Iterable[Mapping[str, Any]]) -> str:
    """A digest of what scans an archive holds, of which input, with which labels; of any order."""
    facts = sorted([row["scan_id"], row["patient_id"], row["input_sha256"], sorted(row["labels"])] for row in rows)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def model_digest(runs: Sequence[Run]) -> str:
    """What names the model that several runs are together, in whatever order; of a single run its own digest."""
    if len(runs) == 1:
        return runs[0].model_sha256
    return hashlib.sha256("".join(sorted(run.model_sha256 for run in runs)).encode()).hexdigest()


def select_scans(
    runs: Run | Sequence[Run],
    archive_url: str,
    rows: Iterable[Mapping[str, Any]],
    part: Literal["test", "validation", "train", "all"],
) -> dict[str, str]:
    """Which stored scans of an archive to take, with their patients, so that nobody is tested on training data.

    An archive that is the run's own, or that shares a patient with it, gives the patients of `part` in the run's
    split ("all": everyone). Any other archive is taken whole. Of several runs, what each of them would take.

    Args:
        runs: the run whose model is asked, or those that are asked together; none: a model that is no run, which takes
            an archive whole.
        archive_url: the full URL of the archive.
        rows: its catalog.
        part: of each run's split.

    Raises:
        Fatal: that leaves no scan.
    """
    asked = [runs] if isinstance(runs, Run) else runs
    chosen = {str(row["scan_id"]): str(row["patient_id"]) for row in rows if row["status"] == "stored"}
    there = set(chosen.values())
    for run in asked:
        parts = asdict(run.split)
        known = {patient for of_part in parts.values() for patient in of_part}
        if part != "all" and (archive_url == run.config.archive or known & there):
            chosen = {scan_id: patient for scan_id, patient in chosen.items() if patient in parts[part]}
    if not chosen and not asked:
        raise Fatal(f"archive {archive_url} has no scan; tomoray info {archive_url} says what was refused")
    if not chosen:
        names = " and ".join(run.store.url for run in asked)
        raise Fatal(
            f"archive {archive_url} has no scan of part {part!r} of run {names}; choose another --part, or "
            f"train with a larger share in split"
        )
    return chosen


def _versions() -> dict[str, Any]:
    return {
        "code_version": __version__,
        "environment": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            **{name: version(name) for name in ("torch", "monai", "ray", "numpy", "tensorstore")},
        },
    }


def _split(parts: Mapping[str, Any]) -> Split:
    return Split(**{name: tuple(patients) for name, patients in parts.items()})


def _read_json(store: Store, key: str) -> dict[str, Any] | None:
    try:
        found = json.loads(store.read(key))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise Fatal(f"{store.url}/{key} is not valid JSON; delete it to start the run anew") from error
    if not isinstance(found, dict):
        raise Fatal(f"{store.url}/{key} holds no mapping; delete it to start the run anew")
    return found


def to_indented_json(values: Mapping[str, Any]) -> bytes:
    """For people to read: the same values give the same bytes."""
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()
