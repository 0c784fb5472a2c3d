import json
import runpy
from pathlib import Path

import pytest

from jobs import cross_validate, evaluate, predict
from tomoray.config import EvaluateConfig, PredictConfig
from tomoray.errors import Fatal
from tomoray.training.config import CrossValidateConfig
from tomoray.training.tracking import EVENTS

pytestmark = pytest.mark.usefixtures("ray_local")
tiny = runpy.run_path(str(Path(__file__).with_name("test_train.py")))


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    url = str(tmp_path_factory.mktemp("folds") / "archive")
    return tiny["write_archive"](url, [tiny["tiny_volume"](n) for n in range(6)])


@pytest.fixture(scope="module")
def validated(archive, ray_local, tmp_path_factory):
    train = tiny["config"](archive, tmp_path_factory.mktemp("folds") / "cv", steps=1, workers=1)
    wanted = CrossValidateConfig(train=train, folds=2)
    return wanted, cross_validate.run(wanted)


def test_every_patient_is_tested_by_one_fold(archive, validated):
    wanted, result = validated
    assert result["done"] == [0, 1]
    assert sorted(result["dice"]["lungs"]) == ["p0", "p1", "p2", "p3", "p4"]
    of_fold = [evaluate.run(EvaluateConfig(run=url, archive=archive.url)) for url in result["runs"].values()]
    assert sum(found["predicted"] for found in of_fold) == 0
    for found in of_fold:
        assert found["dice"]["lungs"].items() <= result["dice"]["lungs"].items()
    dice = result["summary"]["lungs"]["dice"]
    assert dice["values"] == 5
    assert dice["low"] <= dice["mean"] <= dice["high"]
    written = json.loads(Path(wanted.train.out, cross_validate.SUMMARY).read_text())
    assert written["summary"] == result["summary"]


def test_folds_that_are_done_are_not_trained_again(validated):
    wanted, first = validated
    models = [Path(url, "run.json").read_bytes() for url in first["runs"].values()]
    again = cross_validate.run(wanted)
    assert [Path(url, "run.json").read_bytes() for url in again["runs"].values()] == models
    assert again["dice"] == first["dice"]


def test_folds_together_segment_another_archive(archive, validated, tmp_path):
    other = tiny["write_archive"](str(tmp_path / "other"), [tiny["tiny_volume"](n) for n in (10, 11)])
    run, more = validated[1]["runs"].values()
    together = PredictConfig(run=run, ensemble=[more], archive=other.url, out=str(tmp_path / "both"))
    assert predict.run(together)["predicted"] == 2
    assert predict.run(together.model_copy(update={"run": more, "ensemble": [run]}))["skipped"] == 2
    assert predict.run(together.model_copy(update={"ensemble": []}))["predicted"] == 2


def test_nobody_is_tested_by_a_fold_that_learned_from_them(archive, validated):
    run, more = validated[1]["runs"].values()
    with pytest.raises(Fatal, match=r"no scan of part 'test' of run .*fold-0 and .*fold-1; choose another --part"):
        evaluate.run(EvaluateConfig(run=run, ensemble=[more], archive=archive.url))


def test_a_run_leaves_its_report_and_what_tensorboard_reads(validated):
    for url in validated[1]["runs"].values():
        page = Path(url, "report.html").read_text()
        assert "Held-out scans: truth and prediction" in page
        assert Path(url, EVENTS).stat().st_size > 100
