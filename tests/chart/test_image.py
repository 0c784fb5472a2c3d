"""The Dockerfile, as far as it can be tested where nothing can build it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_hadolint_finds_nothing(tool: Callable[..., Any]) -> None:
    done = tool("hadolint", "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_has_a_target_for_cpus_and_one_for_cuda_and_both_run_as_nobody() -> None:
    parts = re.split(r"^FROM \S+ AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)
    stages = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert {"cpu", "cuda"} <= stages.keys()
    for name in ("cpu", "cuda"):
        assert re.search(r"^USER 1000$", stages[name], flags=re.MULTILINE)
        assert "pip install --constraint /requirements.lock" in stages[name]


def test_installs_extras_that_exist_and_everything_but_those_of_tests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = set(project["optional-dependencies"]) - {"dev"}
    assert [set(extras.split(",")) for extras in re.findall(r"\.whl\)\[([\w,]+)\]", DOCKERFILE)] == [wanted, wanted]
    python = tuple(map(int, re.findall(r"^FROM python:(\d+)\.(\d+)", DOCKERFILE, flags=re.MULTILINE)[0]))
    assert python >= tuple(map(int, project["requires-python"].removeprefix(">=").split(".")))


def test_the_chart_tells_kuberay_of_the_ray_that_is_in_the_lock() -> None:
    values = yaml.safe_load((ROOT / "helm" / "tomoray" / "values.yaml").read_text(encoding="utf-8"))
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert re.findall(r"^ray==(\S+)$", lock, flags=re.MULTILINE) == [values["ray"]["version"]] == [ray.__version__]


def test_the_context_without_what_is_ignored_makes_the_whole_wheel(tmp_path: Path) -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    left_out = [line.rpartition("/")[2] for line in ignored if "/" in line]
    for name in (line[1:] for line in ignored if line.startswith("!")):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / "context" / name, ignore=shutil.ignore_patterns(*left_out))
        else:
            (tmp_path / "context").mkdir(exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "context" / name)
    page = tmp_path / "context" / "serving" / "viewer" / "dist" / "index.html"  # that of the stage `page`
    page.parent.mkdir(exist_ok=True)
    page.write_text("<!doctype html>", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path]
    subprocess.run([*command, tmp_path / "context"], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "tomoray/recipes/phantom.yaml",
        "jobs/preprocess.py",
        "serving/viewer/dist/index.html",
        "cluster/cli.py",
    ):
        assert wanted in names
