"""A tuning: what `tomoray tune` leaves behind, on a path or S3.

OUT/
  tuning.json               the config and versions, written first; the same command goes on, another is refused
  trial-000/                a run like any other (tomoray.runs)
  trials.json               how every trial stands, best first
  best.yaml                 the config of the best one
  report.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from tomoray import __version__
from tomoray.config import make_config
from tomoray.errors import Fatal, Usage
from tomoray.runs import FINISHED, read_history, to_indented_json
from tomoray.runs import STARTED as RUN_STARTED
from tomoray.storage import Store
from tomoray.training.config import HOW_IT_RUNS, TrainConfig
from tomoray.training.search import Standing, State, Trial, TuneConfig

STARTED, TRIALS, BEST, REPORT = "tuning.json", "trials.json", "best.yaml", "report.html"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """A tuning, and by which score its trials are compared."""

    store: Store
    config: TuneConfig
    monitor: str
    higher_is_better: bool

    def run_store(self, trial: Trial) -> Store:
        """The run's folder of a trial."""
        return self.store.child(trial.name)

    def scores(self, history: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
        """(step, score) of each validation of a run."""
        return [(line["step"], line["scores"][self.monitor]) for line in history if line.get("scores")]


def begin_tuning(store: Store, config: TuneConfig) -> None:
    """Mark a tuning as started, or agree to go on with the one that is there. `trials` and `concurrent` may change.

    Raises:
        Usage: the folder holds another tuning, or a run.
    """
    if store.exists(FINISHED) or store.exists(RUN_STARTED):
        raise Usage(f"{store.url} holds a run, not a tuning; choose another --out")
    wanted = {"config": config.model_dump(mode="json"), "code_version": __version__}
    if store.write_new(STARTED, to_indented_json(wanted)):
        return
    try:
        there = make_config(TuneConfig, json.loads(store.read(STARTED))["config"], f"{store.url}/{STARTED}")
    except (ValueError, KeyError, TypeError) as error:
        raise Fatal(f"{store.url}/{STARTED} is no tuning's; delete it to begin anew") from error
    before, now = _what_stays(there), _what_stays(config)
    differ = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if differ:
        first = differ[0]
        raise Usage(
            f"{store.url} holds a tuning with other {', '.join(differ)} ({first} there {before.get(first)!r}, wanted "
            f"{now.get(first)!r}); choose another --out"
        )


def standing_of(
    tuning: Tuning, trial: Trial, history: Sequence[Mapping[str, Any]], state: State, message: str = ""
) -> Standing:
    """How a trial stands by the history of its run."""
    scores = tuning.scores(history)
    sign = 1 if tuning.higher_is_better else -1
    step, score = max(scores, key=lambda each: sign * each[1], default=(None, None))
    return Standing(
        name=trial.name,
        values=dict(trial.values),
        state=state,
        steps=history[-1]["step"] if history else 0,
        score=score,
        best_step=step,
        message=message,
    )


def read_standing(tuning: Tuning, trial: Trial) -> Standing:
    """How a trial stands by its folder."""
    store = tuning.run_store(trial)
    history = read_history(store)
    found = standing_of(tuning, trial, history, "waiting")
    if not store.exists(FINISHED):
        return found
    state: State = "done" if found.steps >= tuning.config.base.steps else "stopped"
    return standing_of(tuning, trial, history, state)


def rank(tuning: Tuning, standings: Sequence[Standing]) -> list[Standing]:
    """The best first; finished runs before all others."""
    sign = 1 if tuning.higher_is_better else -1

    def place(each: Standing) -> tuple[bool, bool, float, str]:
        return (not each.ended, each.score is None, -sign * (each.score or 0.0), each.name)

    return sorted(standings, key=place)


def write_ranking(tuning: Tuning, ranking: Sequence[Standing]) -> None:
    """Write `trials.json`, and `best.yaml` where a trial came to its end. Safe to repeat."""
    tuning.store.write(
        TRIALS, to_indented_json({"monitor": tuning.monitor, "trials": [asdict(each) for each in ranking]})
    )
    best = ranking[0]
    if not best.ended or best.score is None:
        return
    about = (
        f"# {best.name} of {tuning.store.url}: the best of {len(ranking)}, {tuning.monitor} {best.score:.4g} on "
        f"validation patients after {best.best_step} steps.\n"
    )
    fields = tuning.config.fields_of(best.values)
    tuning.store.write(BEST, (about + yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)).encode())


def _what_stays(config: TuneConfig) -> dict[str, Any]:
    """What must be the same when a tuning goes on, by name."""
    base: TrainConfig = config.base
    kept = {*HOW_IT_RUNS, "out"}
    fields = {f"train.{name}": value for name, value in base.model_dump(mode="json").items() if name not in kept}
    return {**fields, **config.model_dump(mode="json", include={"space", "asha", "seed"})}
