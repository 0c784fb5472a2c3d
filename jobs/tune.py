"""Archive -> a run for each of many configs, and which of them is best: Ray Tune, ASHA.

    trials (tomoray.training.search) -> Ray Tune places them -> each is a run (jobs.train) in OUT/trial-000 …
    a validation -> referee -> the trial's process -> Ray Tune -> ASHA -> referee -> the run goes on or ends

What is known of a tuning is in the folders of its runs. Run again, ASHA is first told what trials scored before, and
Ray Tune gets those that are not done; its own notes are thrown away.
"""

from __future__ import annotations

import io
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs import train
from jobs.main import main
from jobs.workers import MAX_FAILURES, Watcher, every, train_by_ray, train_here
from tomoray.errors import Fatal, Refused, Usage
from tomoray.lease import RUN_MARK, Lease, Progress
from tomoray.progress import console
from tomoray.reports.tuning_report import render
from tomoray.runs import read_history
from tomoray.storage import open_store
from tomoray.training.config import TrainConfig
from tomoray.training.loop import Line, Outcome
from tomoray.training.search import Standing, Trial, TuneConfig
from tomoray.training.terminal import show, trials_table
from tomoray.tunings import (
    BEST,
    REPORT,
    Tuning,
    begin_tuning,
    rank,
    read_standing,
    standing_of,
    write_ranking,
)

_SHOW_EVERY_S = 0.5
_ASK_EVERY_S = 0.2
_ROWS = 20  # of the table while trials run


def run(config: TuneConfig) -> dict[str, Any]:
    """Train all trials that are not done yet, and rank them.

    Returns:
        `out`, `archive`, `monitor` (the score that trials are compared by), `steps` (of a whole trial), `trials` (best
        first: `name`, `state`, `steps`, `score`, `best_step`, `values` by path, `message`), `best` (a name), `config`
        (where its config is), `report`, `trained` (trials of this call), `seconds`.

    Raises:
        Usage: no archive or folder named, or the folder holds another tuning.
        Fatal: the archive will not do for the config, or no trial came to its end.
    """
    began = time.monotonic()
    base = config.base
    if base.archive is None or base.out is None:
        raise Usage("tune wants an archive and a folder for the trials: tomoray tune … --archive ARCHIVE --out DIR")
    job = train.prepare(base)
    if not job.scans["validation"]:
        raise Fatal("no patient is left for validation, where trials are compared; raise train.split.validation")
    store = open_store(base.out)
    config = config.model_copy(update={"archive": job.archive.url, "out": store.url})  # trials live in other folders
    tuning = Tuning(store=store, config=config, monitor=job.task.monitor, higher_is_better=job.task.higher_is_better)
    with Lease(store, Progress(), mark=RUN_MARK, waits=True):
        begin_tuning(store, config)
        ranking, trained = _rank_trials(tuning, job.config)
    best = ranking[0]
    if not best.ended:
        raise Fatal(f"no trial of {len(ranking)} came to its end; {best.name}: {best.message}")
    return {
        "out": store.url,
        "archive": job.archive.url,
        "monitor": tuning.monitor,
        "steps": base.steps,
        "trials": [asdict(each) for each in ranking],
        "best": best.name,
        "config": store.child(BEST).url,
        "report": store.child(REPORT).url,
        "trained": trained,
        "seconds": round(time.monotonic() - began, 3),
    }


def _rank_trials(tuning: Tuning, base: TrainConfig) -> tuple[list[Standing], int]:
    """All trials, best first, and how many were trained for that."""
    trials = tuning.config.all_trials()
    unfinished = [trial for trial in trials if not read_standing(tuning, trial).ended]
    failed = _tune(tuning, trials, unfinished, base) if unfinished else {}
    ranking = rank(tuning, [_with_failure(read_standing(tuning, trial), failed) for trial in trials])
    write_ranking(tuning, ranking)
    tuning.store.write(REPORT, render(tuning, ranking).encode())
    return ranking, len(unfinished)


def _tune(tuning: Tuning, trials: Sequence[Trial], unfinished: Sequence[Trial], base: TrainConfig) -> dict[str, str]:
    """Train what is unfinished; messages of the trials that failed, by name."""
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    referee = _Referee.options(scheduling_strategy=here).remote()
    scheduler = _Judge(_asha(tuning), referee, tuning.higher_is_better)
    for trial in trials:
        for step, score in tuning.scores(read_history(tuning.run_store(trial))):
            scheduler.judge(trial.name, step, score)
    alone = {"cpu": base.cpus, "gpu": 1 if base.gpu else 0}
    starts_others = {"memory": 1}  # a byte: nothing at all is refused
    by_name = {trial.name: tuning.config.config_of(trial).model_dump(mode="json") for trial in unfinished}
    try_one = tune.with_parameters(_try, configs=by_name, monitor=tuning.monitor, referee=referee)
    with tempfile.TemporaryDirectory(prefix="tomoray-tune-") as notes:
        tuner = tune.Tuner(
            tune.with_resources(try_one, alone if _is_alone(base) else starts_others),
            param_space={"name": tune.grid_search([trial.name for trial in unfinished])},
            tune_config=tune.TuneConfig(
                scheduler=scheduler,
                max_concurrent_trials=tuning.config.concurrent or (None if _is_alone(base) else _room(base)),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tuning",
                storage_path=notes,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            ),
        )
        with _watched(tuning, trials, referee), redirect_stdout(io.StringIO()):
            results = tuner.fit()
    failed: dict[str, str] = ray.get(referee.failures.remote())
    for result in results:
        if result.error is not None:
            failed[result.config["name"]] = _one_line(result.error)
    if any(not read_standing(tuning, trial).ended and trial.name not in failed for trial in unfinished):
        raise KeyboardInterrupt  # Ray Tune takes the first Ctrl-C for itself, and ends
    return failed


def _try(point: Mapping[str, Any], *, configs: Mapping[str, Any], monitor: str, referee: Any) -> None:
    """One trial: a run that asks, after each validation, whether to go on."""
    name = point["name"]
    config = TrainConfig.model_validate(configs[name])

    def pass_on() -> None:
        line = ray.get(referee.question.remote(name))
        if line is not None:
            tune.report({"step": line["step"], "score": line["scores"][monitor]})

    try:
        with every(_ASK_EVERY_S, pass_on):
            train.run(config, fit=_fit_trial(name, referee), pictures=0)
    except (Fatal, Refused, Usage) as error:  # another attempt would end alike
        ray.get(referee.fail.remote(name, str(error)))


def _fit_trial(name: str, referee: Any) -> Callable[[train.Job], Outcome]:
    def goes_on(line: Line) -> bool:
        ray.get(referee.ask.remote(name, line))
        while (answer := ray.get(referee.answer_to.remote(name, line["step"]))) is None:
            time.sleep(_ASK_EVERY_S)
        return bool(answer)

    watcher = Watcher(post=lambda line: referee.post.remote(name, line), goes_on=goes_on)

    def fit(job: train.Job) -> Outcome:
        by = train_here if _is_alone(job.config) else train_by_ray
        return by(job.config, job.scans, watcher)

    return fit


class _Judge(FIFOScheduler):  # type: ignore[misc]
    """Says who ends, by ASHA, and lets the trial end by itself: so it leaves a whole run behind."""

    def __init__(self, asha: ASHAScheduler, referee: Any, higher_is_better: bool) -> None:
        super().__init__()
        self._asha, self._referee, self._sign = asha, referee, 1 if higher_is_better else -1
        self._known: dict[str, SimpleNamespace] = {}

    def judge(self, name: str, step: int, score: float) -> None:
        """Tell the referee whether a trial goes on after this score."""
        if name not in self._known:
            self._known[name] = SimpleNamespace(trial_id=name)
            self._asha.on_trial_add(None, self._known[name])
        result = {"step": step, "score": self._sign * score}
        goes_on = self._asha.on_trial_result(None, self._known[name], result) != TrialScheduler.STOP
        ray.get(self._referee.answer.remote(name, step, goes_on))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        """A validation: the answer goes to the trial by the referee."""
        self.judge(trial.config["name"], result["step"], result["score"])
        return str(TrialScheduler.CONTINUE)


@ray.remote(num_cpus=0)
class _Referee:
    """Between trials, ASHA and whoever watches: what was told, asked and answered, by the name of a trial."""

    def __init__(self) -> None:
        self._histories: dict[str, dict[int, Line]] = {}
        self._questions: dict[str, Line] = {}
        self._answers: dict[tuple[str, int], bool] = {}
        self._failures: dict[str, str] = {}

    def post(self, name: str, line: Line) -> None:
        """Of a history, only validations and the newest line are kept."""
        history = self._histories.setdefault(name, {})
        kept = {step: each for step, each in history.items() if step < line["step"] and each.get("scores")}
        self._histories[name] = {**kept, line["step"]: line}

    def histories(self) -> dict[str, list[Line]]:
        return {name: list(history.values()) for name, history in self._histories.items()}

    def ask(self, name: str, line: Line) -> None:
        if (name, line["step"]) not in self._answers:
            self._questions[name] = line

    def question(self, name: str) -> Line | None:
        return self._questions.pop(name, None)

    def answer(self, name: str, step: int, goes_on: bool) -> None:
        self._answers[name, step] = goes_on

    def answer_to(self, name: str, step: int) -> bool | None:
        return self._answers.get((name, step))

    def fail(self, name: str, message: str) -> None:
        self._failures[name] = message

    def failures(self) -> dict[str, str]:
        return self._failures


@contextmanager
def _watched(tuning: Tuning, trials: Sequence[Trial], referee: Any) -> Iterator[None]:
    """A table of trials on stderr while they run; where there is no terminal, a line for each that ends."""
    standings = {trial.name: read_standing(tuning, trial) for trial in trials}
    steps = tuning.config.base.steps

    def look() -> None:
        histories, failed = ray.get([referee.histories.remote(), referee.failures.remote()])
        for trial in trials:
            before = standings[trial.name]
            if before.ended or before.state == "failed" or trial.name not in histories | failed:
                continue
            now = standing_of(tuning, trial, histories.get(trial.name, []), "training")
            if trial.name in failed:
                now = _with_failure(now, failed)
            elif tuning.run_store(trial).exists("run.json"):
                now = read_standing(tuning, trial)
            standings[trial.name] = now
            if now.state != "training" and not console.is_terminal:
                score = "" if now.score is None else f", {tuning.monitor} {now.score:.3f} at step {now.best_step}"
                console.print(
                    f"{now.name} {now.state} after {now.steps} of {steps} steps{score}{now.message and ': '}"
                    f"{now.message}",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )

    def draw() -> Any:
        ranking = rank(tuning, list(standings.values()))
        order = ("training", "done", "stopped", "failed", "waiting")
        shown = sorted(ranking, key=lambda each: order.index(each.state))
        return trials_table(shown, tuning.monitor, steps, _ROWS)

    with show(draw), every(_SHOW_EVERY_S, look):
        yield


def _asha(tuning: Tuning) -> ASHAScheduler:
    config, steps = tuning.config, tuning.config.base.steps
    return ASHAScheduler(
        time_attr="step",
        metric="score",
        mode="max",
        max_t=steps,
        grace_period=config.grace_steps if config.asha is not None else steps,
        reduction_factor=config.asha.reduction_factor if config.asha is not None else 2,
    )


def _is_alone(config: TrainConfig) -> bool:
    """Whether a trial is one process, which Ray Tune starts; it cannot set what CUDA wants to be deterministic."""
    return config.most_workers == 1 and not (config.gpu and config.deterministic)


def _room(base: TrainConfig) -> int:
    """Trials of several workers that there is room for at once."""
    kind, each = ("GPU", 1) if base.gpu else ("CPU", base.cpus)
    return max(1, int(ray.cluster_resources().get(kind, 0) // (each * base.most_workers)))


def _with_failure(standing: Standing, failed: Mapping[str, str]) -> Standing:
    if standing.ended or standing.name not in failed:
        return standing
    return replace(standing, state="failed", message=failed[standing.name])


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[-300:]


if __name__ == "__main__":
    main(run, TuneConfig)
