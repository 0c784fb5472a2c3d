import json
import re

import pytest

from jobs import report
from tomoray.catalog import Split
from tomoray.config import ReportConfig
from tomoray.errors import Fatal
from tomoray.reports.charts import curves
from tomoray.runs import HISTORY, begin_run
from tomoray.storage import open_store
from tomoray.training.config import TrainConfig


@pytest.fixture
def store(tmp_path):
    store = open_store(str(tmp_path / "run"))
    config = TrainConfig.model_validate({"labels": ["lungs"], "archive": "a", "out": store.url, "steps": 300})
    begin_run(store, config, Split(train=("p1", "p2"), validation=("p3",), test=()))
    return store


def write_history(store):
    lines = [
        {
            "step": step,
            "samples": 2 * step,
            "loss": 1 / step,
            "learning_rate": 0.01,
            "samples_per_s": 4.0,
            "waited_share": 0.02,
            "workers": 1,
            **({"scores": {"dice": step / 400, "dice/lungs": step / 400}} if step % 50 == 0 else {}),
        }
        for step in range(1, 201)
    ]
    store.write(HISTORY, "".join(json.dumps(line) + "\n" for line in lines).encode())


def test_a_run_that_still_trains_has_a_report(store):
    write_history(store)
    result = report.run(ReportConfig(run=store.url))
    page = store.read("report.html").decode()
    assert (result["steps"], result["report"]) == (200, store.child("report.html").url)
    for heading in ("Loss", "Validation: dice", "Learning rate", "Waiting for data", "Config", "Environment"):
        assert f"<h2>{heading}</h2>" in page
    assert "200 of 300 steps. Patients: 2 train, 1 validation, 0 test." in page
    assert "best dice, at step 200" in page
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_a_report_before_the_first_step_says_so(store, tmp_path):
    report.run(ReportConfig(run=store.url, out=str(tmp_path / "here.html")))
    assert "No step is done yet." in (tmp_path / "here.html").read_text()


def test_no_run_is_one_line(tmp_path):
    with pytest.raises(Fatal, match="is not a run; make one with"):
        report.run(ReportConfig(run=str(tmp_path)))


def test_curves_span_the_chart_and_stay_inside():
    chart = curves("loss", {"loss": [(1, 5.0), (101, 0.0)], "other": [(51, 2.5)]})
    lines = [line.split() for line in re.findall(r'points="([^"]*)"', chart)]
    assert [point.split(",") for point in lines[0]] == [["62.0", "8.0"], ["552.0", "216.0"]]
    assert lines[1] == ["307.0,112.0"]
    assert "other" in chart
