from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import typer

from cluster import cli, schemas
from cluster.answers import explain
from cluster.demo import DemoConfig
from tomoray import __version__
from tomoray.config import Config
from tomoray.errors import Fatal, Reason, Refused, Transient, Usage
from tomoray.training.config import TrainConfig


def every_command(group: Any, prefix: str = "") -> dict[str, Any]:
    """Commands by the words that call them: `train`, `cluster list`."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        inner = every_command(command, f"{prefix}{name} ") if hasattr(command, "commands") else {prefix + name: command}
        found |= inner
    return found


COMMANDS = every_command(typer.main.get_command(cli.app))
REFUSAL = {
    "series_id": "c0ffee",
    "part": "",
    "reason": "missing_slices",
    "evidence": "3 slices are missing; wanted none",
}
PREPROCESSED = {
    "stored": 2, "refused": 1, "skipped": 0, "refused_before": 0, "reasons": {"missing_slices": 1},
    "refusals": [REFUSAL], "failed": [],
    "voxel_mb": 10.0, "seconds": 1.0, "mb_per_s": 10.0,
}  # fmt: skip


@pytest.fixture
def jobs_run(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Config]]:
    """Jobs and configs that commands asked for; nothing runs."""
    asked: list[tuple[str, Config]] = []

    def run(job: str, config: Config, *, debug: bool) -> dict[str, Any]:
        asked.append((job, config))
        return PREPROCESSED

    monkeypatch.setattr(cli, "_run", run)
    return asked


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(job: str, config: Config, *, debug: bool) -> dict[str, Any]:
        raise error

    monkeypatch.setattr(cli, "_run", run)


def test_help_loads_nothing_that_takes_long() -> None:
    heavy = "{'torch', 'ray', 'kubernetes', 'monai', 'tensorstore', 'pydicom', 'numpy', 'tomoray.training.config'}"
    code = f"import sys; from cluster.cli import main; main(['--help']); print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "preprocess" in done.stdout
    assert done.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_shows_examples_that_parse(name: str) -> None:
    examples = re.findall(r"^tomoray .*$", COMMANDS[name].help, flags=re.MULTILINE)
    assert examples
    for example in examples:
        words = shlex.split(example.partition(" > ")[0])[1:]
        n_words = len(name.split())
        assert " ".join(words[:n_words]) == name
        COMMANDS[name].make_context(name, words[n_words:])


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_takes_json_and_debug(name: str) -> None:
    options = {flag for parameter in COMMANDS[name].params for flag in parameter.opts}
    assert {"--json", "--debug"} <= options


def test_defaults_in_help_are_those_of_the_configs() -> None:
    models = schemas.CONFIGS | {"demo": DemoConfig}
    shown = {
        (command, parameter.name): match[1]
        for command, model in models.items()
        if command in COMMANDS
        for parameter in COMMANDS[command].params
        if (match := re.search(r"Default: ([\w.]+)\[", parameter.help or ""))
    }
    assert len(shown) > 10
    for (command, field), default in shown.items():
        assert default == str(models[command].model_fields[field].default), (command, field)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"tomoray {__version__}\n"


def test_flags_become_the_fields_of_a_config(jobs_run: list[tuple[str, Config]], tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("sources: [elsewhere]\narchive: elsewhere\nmin_slices: 7\n", encoding="utf-8")
    assert cli.main(["preprocess", "a", "s3://b/c", "out", "--config", str(path), "--in-flight", "3"]) == 0
    job, config = jobs_run[0]
    assert job == "preprocess"
    assert config.model_dump(include={"sources", "archive", "min_slices", "in_flight"}) == {
        "sources": ["a", "s3://b/c"],
        "archive": "out",
        "min_slices": 7,
        "in_flight": 3,
    }


def test_json_is_the_only_thing_on_stdout(
    jobs_run: list[tuple[str, Config]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["preprocess", "a", "out", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == PREPROCESSED
    assert printed.out.count("\n") == 1
    assert printed.err == "refused c0ffee missing_slices: 3 slices are missing; wanted none\n"


def test_refusals_are_a_result_unless_strict(jobs_run: list[tuple[str, Config]]) -> None:
    assert cli.main(["preprocess", "a", "out"]) == 0
    assert cli.main(["preprocess", "a", "out", "--strict"]) == 1


def test_strict_counts_what_was_refused_before(monkeypatch: pytest.MonkeyPatch) -> None:
    again = {"stored": 0, "refused": 0, "skipped": 3, "refused_before": 1, "reasons": {}, "refusals": []}
    monkeypatch.setattr(cli, "_run", lambda *_, **__: PREPROCESSED | again)
    assert cli.main(["preprocess", "a", "out"]) == 0
    assert cli.main(["preprocess", "a", "out", "--strict"]) == 1


def test_series_that_failed_make_the_command_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = [{"series_id": "c0ffee", "error": "WorkerCrashedError"}]
    monkeypatch.setattr(cli, "_run", lambda *_, **__: PREPROCESSED | {"failed": failed})
    assert cli.main(["preprocess", "a", "out"]) == 1
    assert "failed c0ffee WorkerCrashedError: run the command again" in capsys.readouterr().err


def test_what_a_job_prints_goes_to_stderr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Noisy:
        check = staticmethod(lambda config: None)
        local_ray = staticmethod(lambda *, verbose: nullcontext())

        @staticmethod
        def run(config: Config) -> dict[str, Any]:
            print("chatter")
            return PREPROCESSED

    monkeypatch.setattr(cli.importlib, "import_module", lambda name: Noisy)
    assert cli.main(["preprocess", "a", "out", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == PREPROCESSED
    assert "chatter" in printed.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["preprocess", "nowhere", "out"], "no folder or file at nowhere"),
        (["train", "phantom", "--archive", "nowhere", "--out", "run"], "nowhere is not an archive"),
        (["predict", "nowhere", "archive"], "nowhere is not a run"),
        (["evaluate", "nowhere", "archive"], "nowhere is not a run"),
    ],
)
def test_what_is_not_there_is_told_before_ray_starts(
    arguments: list[str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "cluster.local", None)  # importing it would fail
    assert cli.main(arguments) == 1
    printed = capsys.readouterr()
    assert complaint in printed.err
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nope"], "No such command 'nope'; see: tomoray --help"),
        (["train"], "Missing argument 'CONFIG|RECIPE'; see: tomoray train --help"),
        (["phantom", "out", "--bogus"], "No such option: --bogus; see: tomoray phantom --help"),
        (["phantom", "out", "--patients", "0"], "patients: Input should be greater than 0, found 0"),
        (["train", "nowhere.yaml"], "no config file nowhere.yaml"),
        (["train", "phantom"], "phantom does not say it, so the command line must: --archive ARCHIVE"),
        (["train", "phantom", "--archive", "a"], "the command line must: --out RUN"),
        (["schema", "nope"], "no config 'nope'; known: phantom, preprocess"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("Error: ")
    assert printed.err.count("\n") == 1
    assert complaint in printed.err


def test_misspelt_key_is_named_with_the_nearest_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("labels: [lungs]\nstpes: 10\n", encoding="utf-8")
    assert cli.main(["train", str(path), "--archive", "a", "--out", "r"]) == 2
    assert capsys.readouterr().err == f"Error: {path}: unknown key 'stpes'; did you mean 'steps'?\n"


def test_failure_is_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(monkeypatch, Fatal("no files in empty; name a folder\nthat holds DICOM"))
    assert cli.main(["preprocess", "empty", "out"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "Error: no files in empty; name a folder that holds DICOM\n"


def test_failure_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(monkeypatch, Transient("s3://bucket did not answer in 30 s; try again"))
    assert cli.main(["preprocess", "s3://bucket", "out", "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error == {"type": "transient", "message": "s3://bucket did not answer in 30 s; try again"}


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(monkeypatch, KeyError("shape"))
    assert cli.main(["preprocess", "a", "out"]) == 1
    plain = capsys.readouterr().err
    assert plain == "Error: KeyError: 'shape'; this was not expected: run again with --debug for the traceback\n"
    assert cli.main(["preprocess", "a", "out", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(monkeypatch, KeyboardInterrupt())
    assert cli.main(["preprocess", "a", "out"]) == 130
    assert capsys.readouterr() == ("", "")


class Wrapped(Exception):
    """Like what Ray raises for a failed task: the task's own exception is its `cause`."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("Traceback of\nmany lines")
        self.cause = cause


@pytest.mark.parametrize(
    ("error", "kind", "exit_code"),
    [
        (Usage("wrong"), "usage", 2),
        (Fatal("broken"), "fatal", 1),
        (Transient("busy"), "transient", 1),
        (Refused(Reason.NOT_CT, "found MR; wanted CT"), "fatal", 1),
        (PermissionError(13, "Permission denied", "/root/x"), "fatal", 1),
        (ZeroDivisionError("division by zero"), "unexpected", 1),
    ],
)
def test_error_of_a_task_is_explained_like_our_own(error: Exception, kind: str, exit_code: int) -> None:
    failure = explain(Wrapped(Wrapped(error)))
    assert failure == explain(error)
    assert (failure.kind, failure.exit_code) == (kind, exit_code)
    assert "many lines" not in failure.message


def test_recipe_can_be_copied_into_a_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["recipes", "phantom"]) == 0
    copy = tmp_path / "my.yaml"
    copy.write_text(capsys.readouterr().out, encoding="utf-8")
    assert cli._config(TrainConfig, str(copy)) == cli._config(TrainConfig, "phantom")


def test_recipes_are_listed_with_their_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["recipes"]
    assert "phantom" in [recipe["name"] for recipe in found]
    assert all(recipe["about"] for recipe in found)


def test_shell_completes_commands_and_recipes() -> None:
    def complete(line: str, position: int) -> list[str]:
        environment = {"_TOMORAY_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(position)}
        command = [sys.executable, "-c", "from cluster.cli import main; main()"]
        return subprocess.run(command, env=environment, capture_output=True, text=True).stdout.split()

    assert complete("tomoray eva", 1) == ["evaluate"]
    assert "phantom" in complete("tomoray train ph", 2)
