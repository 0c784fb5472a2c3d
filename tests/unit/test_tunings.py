"""What a tuning leaves behind, and what it says of it."""

import json
import re
from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from cluster import views
from tomoray.config import make_config
from tomoray.errors import Fatal, Usage
from tomoray.reports.tuning_charts import parameter_axis, score_axis
from tomoray.reports.tuning_report import render
from tomoray.runs import HISTORY
from tomoray.storage import open_store
from tomoray.training.config import TrainConfig
from tomoray.training.search import ParameterConfig, TuneConfig
from tomoray.tunings import BEST, STARTED, TRIALS, Tuning, begin_tuning, rank, read_standing, standing_of, write_ranking

SPACE = {
    "learning_rate": {"log_uniform": [1e-4, 1e-1]},
    "optimizer.weight_decay": {"uniform": [0.0, 0.5]},
    "batch_size": {"integers": [2, 5]},
    "network": {"choice": [{"name": "unet"}, {"name": "segresnet", "channels": [8, 16, 32]}]},
}


def tuning(tmp_path, *, higher_is_better=True, train=None, **changes):
    store = open_store(str(tmp_path / "tuning"))
    base = {"labels": ["lungs"], "archive": "a", "out": store.url, "steps": 100, "validate_every": 10, **(train or {})}
    config = make_config(TuneConfig, {"train": base, "space": SPACE, "trials": 4, **changes})
    return Tuning(store=store, config=config, monitor="dice", higher_is_better=higher_is_better)


def history(*scores):
    return [{"step": 10 * n, "loss": 0.5, "scores": {"dice": score}} for n, score in enumerate(scores, start=1)]


def standings_of(found):
    """A trial that is done, one that was stopped with the best score, one that failed, one that waits."""
    first, second, third, fourth = found.config.all_trials()
    curves = {0: history(*[0.5] * 9, 0.7), 1: history(0.6, 0.8), 2: history(0.9)}
    for number, lines in curves.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        found.store.child(f"trial-00{number}").write(HISTORY, text.encode())
    return [
        standing_of(found, first, curves[0], "done"),
        standing_of(found, second, curves[1], "stopped"),
        standing_of(found, third, curves[2], "failed", "the loss is no number"),
        standing_of(found, fourth, [], "waiting"),
    ]


def test_the_example_in_the_docs_is_a_tuning():
    text = (Path(__file__).parents[2] / "docs" / "tuning.md").read_text()
    fields = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL).group(1))
    assert fields["train"] == "my.yaml"
    train = {"labels": ["lungs"], "steps": 8000, "validate_every": 500}
    assert len(make_config(TuneConfig, {**fields, "train": train}).all_trials()) == 24


def test_finished_trials_are_ranked_by_their_best_score_before_all_others(tmp_path):
    found = tuning(tmp_path)
    ranking = rank(found, standings_of(found))
    assert [(each.name, each.score, each.best_step) for each in ranking] == [
        ("trial-001", 0.8, 20),
        ("trial-000", 0.7, 100),
        ("trial-002", 0.9, 10),
        ("trial-003", None, None),
    ]
    lower = tuning(tmp_path, higher_is_better=False)
    assert [(each.name, each.score) for each in rank(lower, standings_of(lower))][:2] == [
        ("trial-000", 0.5),
        ("trial-001", 0.6),
    ]


def test_the_best_config_is_what_a_user_would_write(tmp_path):
    found = tuning(tmp_path)
    ranking = rank(found, standings_of(found))
    write_ranking(found, ranking)
    text = found.store.read(BEST).decode()
    assert re.match(r"# trial-001 of .*: the best of 4, dice 0\.8 on validation patients after 20 steps\.\n", text)
    fields = yaml.safe_load(text)
    assert set(fields) == {
        "labels", "archive", "steps", "validate_every", "learning_rate", "optimizer", "batch_size", "network"
    }  # fmt: skip
    trial = found.config.all_trials()[1]
    ours = TrainConfig.model_validate({**fields, "out": f"{found.store.url}/trial-001"})
    assert ours == found.config.config_of(trial)
    assert [each["state"] for each in json.loads(found.store.read(TRIALS))["trials"]] == [
        "stopped", "done", "failed", "waiting"
    ]  # fmt: skip


def test_no_config_is_best_where_no_trial_came_to_its_end(tmp_path):
    found = tuning(tmp_path)
    write_ranking(found, rank(found, standings_of(found)[2:]))
    assert not found.store.exists(BEST)
    assert found.store.exists(TRIALS)


def test_more_trials_at_another_pace_are_the_same_tuning(tmp_path):
    store = tuning(tmp_path).store
    begin_tuning(store, tuning(tmp_path).config)
    first = store.read(STARTED)
    begin_tuning(store, tuning(tmp_path, trials=9, concurrent=3, train={"workers": 2, "keep": 5}).config)
    assert store.read(STARTED) == first


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 1}, r"with other seed \(seed there 0, wanted 1\); choose another --out"),
        ({"asha": None}, r"with other asha \(asha there {.*}, wanted None\)"),
        ({"train": {"steps": 200}}, r"with other train.steps \(train.steps there 100, wanted 200\)"),
        ({"train": {"validate_every": 20}}, r"with other train.validate_every"),
    ],
)
def test_another_tuning_is_refused(tmp_path, changes, told):
    store = tuning(tmp_path).store
    begin_tuning(store, tuning(tmp_path).config)
    with pytest.raises(Usage, match=told):
        begin_tuning(store, tuning(tmp_path, **changes).config)


def test_a_folder_of_something_else_is_refused(tmp_path):
    found = tuning(tmp_path)
    found.store.write("started.json", b"{}")
    with pytest.raises(Usage, match="holds a run, not a tuning; choose another --out"):
        begin_tuning(found.store, found.config)
    found.store.delete(["started.json"])
    found.store.write(STARTED, b"[]")
    with pytest.raises(Fatal, match=r"tuning.json is no tuning's; delete it to begin anew"):
        begin_tuning(found.store, found.config)


def test_a_run_without_its_last_file_is_not_finished(tmp_path):
    found = tuning(tmp_path)
    standings_of(found)
    trial = found.config.all_trials()[1]
    assert read_standing(found, trial).state == "waiting"
    found.run_store(trial).write("run.json", b"{}")
    assert read_standing(found, trial).state == "stopped"


def test_the_report_shows_trials_parameters_and_why_one_failed(tmp_path):
    found = tuning(tmp_path)
    page = render(found, rank(found, standings_of(found)))
    for heading in ("Trials", "dice by parameter", "All parameters", "dice over steps", "The best config"):
        assert f"<h2>{heading}</h2>" in page
    assert "the loss is no number" in page
    assert "segresnet, channels [8, 16, 32]" in page
    assert page.count('<figure class="trials">') == len(SPACE) + 2
    assert page.count('<circle class="best"') == len(SPACE) + 1
    assert "<script" not in page


def test_a_report_of_a_single_trial_without_scores_is_whole(tmp_path):
    found = tuning(tmp_path)
    assert "</html>" in render(found, standings_of(found)[3:])


def test_axes_place_values_between_their_bounds():
    log = parameter_axis("x", ParameterConfig(log_uniform=(0.01, 1.0)), [0.01, 0.1, 1.0])
    assert log.at == pytest.approx([0, 0.5, 1])
    assert [text for _, text in log.ticks] == ["0.01", "0.1", "1"]
    choice = parameter_axis("x", ParameterConfig(choice=["a", "b"]), ["b", "a", "b"])
    assert choice.at == [0.75, 0.25, 0.75]
    scores = score_axis("dice", [0.5, None, 0.9])
    assert 0 < scores.at[0] < scores.at[2] < 1
    assert scores.at[1] is None


def test_the_command_shows_trials_and_what_to_do_next(tmp_path):
    found = tuning(tmp_path)
    ranking = rank(found, standings_of(found))
    trials = [
        {name: getattr(each, name) for name in ("name", "values", "state", "steps", "score", "best_step", "message")}
        for each in ranking
    ]
    places = {"config": "t/best.yaml", "report": "t/report.html", "out": "t", "archive": "a", "best": "trial-001"}
    shown = StringIO()
    Console(file=shown, width=160).print(views.tune({"monitor": "dice", "steps": 100, "trials": trials, **places}))
    assert re.search(r"trial-001 +stopped +20/100 +0.800 +20 ", shown.getvalue())
    assert "trial-002: the loss is no number" in shown.getvalue()
    assert "Next: tomoray evaluate t/trial-001 a" in shown.getvalue()
