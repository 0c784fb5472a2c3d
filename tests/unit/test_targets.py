from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster import cli
from cluster.targets import KubernetesTarget, read_target, read_targets, save_target
from tomoray.errors import Usage


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOMORAY_TARGETS", str(tmp_path / "config" / "targets.yaml"))
    return tmp_path / "config" / "targets.yaml"


def test_this_machine_is_always_a_target() -> None:
    assert {name: target.kind for name, target in read_targets().items()} == {"here": "here"}


def test_a_target_comes_back_as_it_was_saved() -> None:
    target = KubernetesTarget(kind="kubernetes", image="r/tomoray:1", queue="ct", secrets={"TOKEN": "api/token"})
    save_target("eks", target)
    assert read_target("eks") == target


def test_only_what_is_no_default_is_written(file: Path) -> None:
    save_target("eks", KubernetesTarget(kind="kubernetes", image="r/tomoray:1"))
    assert file.read_text("utf-8") == "eks:\n  kind: kubernetes\n  image: r/tomoray:1\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("eks: {kind: kubernetes}", "eks.image: Field required"),
        ("eks: {kind: kubernetes, image: 'r/t:1', imgae: x}", "unknown key 'eks.imgae'"),
        ("eks: {kind: kubernetes, image: r/t}", "eks.image: String should match pattern"),
        ("lab: {kind: ray, address: '10.0.0.5'}", "lab.address: String should match pattern"),
        ("lab: {address: 'http://x:1'}", "lab: Unable to extract tag using discriminator 'kind'"),
        ("Lab: {kind: ray, address: 'http://x:1'}", "Lab.[key]: String should match pattern"),
        ("eks: {kind: kubernetes, image: 'r/t:1', gcs: {kind: redis}}", "kind redis and an address go together"),
        ("- eks", "Input should be a valid dictionary"),
        ("eks: {", "is not valid YAML"),
    ],
)
def test_a_wrong_file_is_told_of_in_one_line(text: str, complaint: str, file: Path) -> None:
    file.parent.mkdir()
    file.write_text(text, "utf-8")
    with pytest.raises(Usage, match=r"targets\.yaml") as refused:
        read_targets()
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_name_is_not_overwritten_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cluster", "add", "lab", "--ray", "http://a:8265"]) == 0
    assert cli.main(["cluster", "add", "lab", "--ray", "http://a:8265"]) == 0, "the same again is no change"
    assert cli.main(["cluster", "add", "lab", "--ray", "http://b:8265"]) == 2
    assert "tomoray cluster add lab --replace" in capsys.readouterr().err
    assert cli.main(["cluster", "add", "lab", "--ray", "http://b:8265", "--replace"]) == 0
    assert read_target("lab").address == "http://b:8265"


def test_flags_win_over_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.yaml").write_text("image: r/t:1\nnamespace: one\npools: {gpu: {gpus: 8}}\n", "utf-8")
    assert cli.main(["cluster", "add", "eks", "--file", str(tmp_path / "t.yaml"), "--namespace", "two", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["namespace"], said["pools"]["gpu"]["gpus"], said["kind"]) == ("two", 8, "kubernetes")


def test_a_removed_target_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cluster", "add", "lab", "--ray", "ray://a:10001"]) == 0
    assert cli.main(["cluster", "remove", "lab"]) == 0
    assert cli.main(["cluster", "show", "lab"]) == 2
    assert "no target 'lab'; known: here" in capsys.readouterr().err


def test_a_ray_cluster_that_is_not_there_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cluster", "add", "lab", "--ray", "http://127.0.0.1:1"]) == 0
    capsys.readouterr()
    assert cli.main(["cluster", "check", "lab", "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["what"], finding["state"]) == ("Ray", "missing")
    assert "no Ray answers at http://127.0.0.1:1" in finding["found"]
