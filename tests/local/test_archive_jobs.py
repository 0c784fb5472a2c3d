"""`fingerprint`, `qc` and `plan-training` on Ray, from DICOM to the answer of the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cluster import cli
from jobs import fingerprint, preprocess, qc, train
from tomoray import phantom
from tomoray.archive import Archive
from tomoray.config import FingerprintConfig, PhantomConfig, PreprocessConfig, QcConfig, load_config
from tomoray.errors import Fatal
from tomoray.statistics.fingerprint import take_fingerprint
from tomoray.training.config import TrainConfig

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("archive-jobs")
    phantom.write_cohort(PhantomConfig(out=str(folder / "cohort"), patients=4, seed=7, matrix=64))
    preprocess.run(PreprocessConfig(sources=[str(folder / "cohort")], archive=str(folder / "archive")))
    return folder / "archive"


def test_on_ray_the_fingerprint_is_that_of_threads(archive: Path) -> None:
    opened = Archive.open(str(archive))
    result = fingerprint.run(FingerprintConfig(archive=str(archive), in_flight=3))
    assert result == take_fingerprint(opened, opened.scan_ids()).model_dump(mode="json")
    assert not (archive / "fingerprint.json").exists()


def test_a_lost_shard_ends_the_job_in_one_line(archive: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(archive, tmp_path / "archive")
    next(path for path in sorted(damaged.glob("scans/*/0/c/**/*")) if path.is_file()).unlink()
    with pytest.raises(Fatal) as found:
        fingerprint.run(FingerprintConfig(archive=str(damaged)))
    assert "\n" not in str(found.value)


def test_report_uses_a_fingerprint_that_was_saved(archive: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(archive, tmp_path / "archive")
    taken = qc.run(QcConfig(archive=str(copy), out=str(tmp_path / "first.html"), montage=2))
    fingerprint.run(FingerprintConfig(archive=str(copy), save=True))
    saved = qc.run(QcConfig(archive=str(copy), out=str(tmp_path / "second.html"), montage=2))
    assert (taken["fingerprint"], saved["fingerprint"]) == ("taken now", "saved")
    assert taken["pictured"] == 2
    assert (tmp_path / "first.html").read_bytes() == (tmp_path / "second.html").read_bytes()


def test_from_the_command_line_to_a_training(archive: Path, tmp_path: Path, capsys) -> None:
    assert cli.main(["fingerprint", str(archive), "--json"]) == 0
    printed = tmp_path / "fingerprint.json"
    printed.write_text(capsys.readouterr().out, encoding="utf-8")
    plan = tmp_path / "train.yaml"
    for source in (str(printed), str(archive)):
        assert cli.main(["plan-training", source, "--memory-gb", "0.06", "--write", str(plan), "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["written"] == str(plan)
        assert document["step_bytes"] <= 0.06e9
    assert document["train"]["archive"] == str(archive)
    config = load_config(str(plan), TrainConfig, {"out": str(tmp_path / "run"), "steps": 1})
    assert train.run(config)["steps"] == 1


def test_qc_from_the_command_line(archive: Path, tmp_path: Path, capsys) -> None:
    assert cli.main(["qc", str(archive), "--out", str(tmp_path / "qc.html"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["stored"], document["refused"], document["pictured"]) == (4, 0, 4)
    assert Path(document["report"]).stat().st_size > 10_000


def test_says_what_is_missing(tmp_path: Path, capsys) -> None:
    assert cli.main(["plan-training", str(tmp_path / "none.json")]) == 1
    assert "tomoray fingerprint" in capsys.readouterr().err
    assert cli.main(["qc", str(tmp_path / "none")]) == 1
    assert "not an archive" in capsys.readouterr().err
