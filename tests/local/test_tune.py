"""Tuning on a tiny archive: who ends early, what is left behind, and what a second call does."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from jobs import tune
from tomoray.config import load_config, make_config
from tomoray.errors import Fatal, Usage
from tomoray.runs import open_run
from tomoray.training.config import TrainConfig
from tomoray.training.search import TuneConfig

pytestmark = pytest.mark.usefixtures("ray_local")
ROOT = Path(__file__).parents[2]
tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("test_train.py"))))
once = SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "exactly_once.py")))


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    url = str(tmp_path_factory.mktemp("tuning") / "archive")
    return tiny.write_archive(url, [tiny.tiny_volume(n) for n in range(6)])


def tuning(archive, out, *, space=None, train=None, **changes):
    fields = {"steps": 12, "workers": 1, "validate_every": 4, **(train or {})}
    base = tiny.config(archive, out, **fields).model_dump(mode="json", exclude_unset=True)
    rates = {"learning_rate": {"choice": [0.02, 1e-9, 0.01, 2e-9]}}
    values = {"train": base, "space": space or rates, "trials": 4, "concurrent": 1}
    return make_config(TuneConfig, {**values, "asha": {"grace_steps": 8, "reduction_factor": 2}, **changes})


@pytest.fixture(scope="module")
def tuned(archive, ray_local, tmp_path_factory):
    wanted = tuning(archive, tmp_path_factory.mktemp("tuning") / "tuning")
    return wanted, tune.run(wanted)


def test_trials_that_fall_behind_end_early_as_whole_runs(tuned):
    wanted, result = tuned
    assert [trial.values["learning_rate"] for trial in wanted.all_trials()] == [0.01, 0.02, 2e-9, 1e-9]
    found = {trial["name"]: trial for trial in result["trials"]}
    assert (found["trial-000"]["state"], found["trial-000"]["steps"]) == ("done", 12)
    for name in ("trial-002", "trial-003"):
        assert (found[name]["state"], found[name]["steps"]) == ("stopped", 8)
        run = open_run(f"{wanted.base.out}/{name}")
        assert (run.steps, run.metrics["validation"]["dice"]) == (8, found[name]["score"])
        assert Path(wanted.base.out, name, "report.html").is_file()
    assert result["trained"] == 4


def test_the_best_is_first_and_its_config_is_ready_to_train(tuned):
    wanted, result = tuned
    scores = [trial["score"] for trial in result["trials"]]
    assert scores == sorted(scores, reverse=True)
    assert result["best"] == result["trials"][0]["name"]
    best = load_config(result["config"], TrainConfig, {"out": f"{wanted.base.out}/{result['best']}"})
    trained = open_run(str(best.out)).config
    assert best == trained.model_copy(update={"archive": best.archive, "gpu": best.gpu})
    written = json.loads(Path(wanted.base.out, "trials.json").read_text())
    assert written["trials"] == json.loads(json.dumps(result["trials"]))


def test_the_report_stands_alone_and_shows_every_trial(tuned):
    page = Path(tuned[1]["report"]).read_text()
    for heading in ("Trials", "dice by parameter", "All parameters", "dice over steps", "The best config"):
        assert f"<h2>{heading}</h2>" in page
    assert all(page.count(f"trial-00{n}") >= 4 for n in range(4))
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_run_again_nothing_is_trained(tuned):
    wanted, first = tuned
    models = {trial["name"]: Path(wanted.base.out, trial["name"], "run.json").read_bytes() for trial in first["trials"]}
    again = tune.run(wanted)
    assert (again["trained"], again["trials"]) == (0, first["trials"])
    assert {name: Path(wanted.base.out, name, "run.json").read_bytes() for name in models} == models


def test_another_tuning_in_the_same_folder_is_refused(tuned, archive):
    other = tuning(archive, tuned[0].base.out, space={"learning_rate": {"choice": [0.02, 0.01]}}, trials=2)
    with pytest.raises(Usage, match=r"holds a tuning with other space .*choose another --out"):
        tune.run(other)


def test_a_killed_tuning_goes_on_from_the_trials_own_checkpoints(archive, tmp_path):
    rates = {"learning_rate": {"uniform": [0.001, 0.02]}}
    train = {"steps": 80, "validate_every": 20}
    wanted = tuning(archive, tmp_path / "tuning", space=rates, train=train, trials=2, concurrent=2, asha=None)
    (tmp_path / "tuning.yaml").write_text(yaml.safe_dump(wanted.model_dump(mode="json")))
    command = [sys.executable, "-m", "jobs.tune", str(tmp_path / "tuning.yaml")]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}) as driver:
        while not list((tmp_path / "tuning").glob("*/checkpoints/*/checkpoint.json")):
            assert driver.poll() is None
            time.sleep(0.02)
        below = once.descendants(driver.pid)
        os.kill(driver.pid, signal.SIGKILL)
    once.wait_until_gone(below)
    result = tune.run(wanted.model_copy(update={"trials": 3}))
    assert [trial["state"] for trial in result["trials"]] == ["done"] * 3
    firsts = []
    for name in ("trial-000", "trial-001"):
        attempts = sorted((tmp_path / "tuning" / name / "attempts").iterdir())
        firsts.append(json.loads(attempts[-1].read_text())["first_step"])
    assert max(firsts) >= 20


def test_a_trial_of_two_workers_is_judged_too(archive, tmp_path):
    wanted = tuning(archive, tmp_path / "tuning", train={"workers": 2, "steps": 8, "validate_every": 8}, trials=1)
    result = tune.run(wanted)
    assert [(trial["state"], trial["steps"]) for trial in result["trials"]] == [("done", 8)]
    assert open_run(f"{wanted.base.out}/trial-000").config.workers == 2


def test_a_trial_that_diverges_is_a_failed_one_and_the_others_go_on(archive, tmp_path):
    rates = {"learning_rate": {"choice": [1e30, 0.01]}}
    wanted = tuning(archive, tmp_path / "tuning", space=rates, trials=2, train={"steps": 8, "validate_every": 8})
    good, bad = tune.run(wanted)["trials"]
    assert (good["state"], good["values"]) == ("done", {"learning_rate": 0.01})
    assert (bad["state"], bad["values"]) == ("failed", {"learning_rate": 1e30})
    assert re.search(r"no number at step \d .*lower learning_rate", bad["message"])


def test_what_the_archive_lacks_is_told_before_any_trial(archive, tmp_path):
    train = {"labels": ["lungs", "liver"], "contains": {}}
    with pytest.raises(Fatal, match="has no label 'liver'"):
        tune.run(tuning(archive, tmp_path / "tuning", train=train))
    assert not (tmp_path / "tuning").exists()
