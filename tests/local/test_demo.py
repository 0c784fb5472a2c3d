from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster import cli, demo
from tomoray.errors import Usage

pytestmark = pytest.mark.usefixtures("ray_local")

FLAGS = ["--patients", "4", "--matrix", "64", "--steps", "4", "--seed", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "out"


@pytest.fixture(scope="module")
def answer(ray_local: None, folder: Path) -> dict[str, Any]:
    config = demo.DemoConfig(out=str(folder), patients=4, matrix=64, steps=4, seed=3)
    return demo.run(config)


def test_goes_the_whole_way(answer: dict[str, Any]) -> None:
    stages = ["phantom", "preprocess", "train", "predict", "evaluate", "serve", "report"]
    assert list(answer["stages"]) == stages
    assert all(stage["seconds"] > 0 for stage in answer["stages"].values())
    assert [name for name, stage in answer["stages"].items() if stage["mb_per_s"] is None] == ["report"]


def test_dice_has_one_value_per_label_and_held_out_patient(answer: dict[str, Any]) -> None:
    assert set(answer["dice"]) == {"lungs", "nodules"}
    assert all(len(values) == 1 for values in answer["dice"].values())
    assert all(0 <= value <= 1 for values in answer["dice"].values() for value in values)


def test_report_holds_the_dice_and_nothing_from_elsewhere(answer: dict[str, Any]) -> None:
    page = Path(answer["report"]).read_text(encoding="utf-8")
    assert f"{answer['dice']['lungs'][0]:.3f}" in page
    assert "http://" not in page
    assert "https://" not in page
    assert "TOMORAY-" not in page


def test_served_study_scores_what_was_predicted(answer: dict[str, Any], folder: Path) -> None:
    record = json.loads((folder / demo.RECORD).read_text(encoding="utf-8"))["stages"]
    served = record["serve"]["result"]["dice"]
    assert {label: [score] for label, score in served.items()} == answer["dice"]


def test_second_run_takes_over_what_is_done(
    answer: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.dcm")}
    assert cli.main(["demo", "--out", str(folder), *FLAGS, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == answer
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.dcm")} == before


def test_demo_of_other_settings_is_refused(answer: dict[str, Any], folder: Path) -> None:
    with pytest.raises(Usage, match="other settings; choose another --out, or add --fresh"):
        demo.run(demo.DemoConfig(out=str(folder), patients=5))


@pytest.mark.parametrize("fresh", [False, True])
def test_folder_that_is_no_demo_is_left_alone(tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(Usage, match="no demo"):
        demo.run(demo.DemoConfig(out=str(tmp_path)), fresh=fresh)
    assert (tmp_path / "thesis.txt").exists()
