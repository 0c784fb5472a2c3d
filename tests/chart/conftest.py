"""Helm itself, and what it renders."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "tomoray"
TOOLS = f"{ROOT / '.tools' / 'bin'}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture(scope="session")
def tool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`tool("helm", …)`: run one of the tools; the test is skipped where it is absent."""

    def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        program = shutil.which(name, path=TOOLS)
        if program is None:
            pytest.skip(f"no {name}: run make tools")
        return subprocess.run([program, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="session")
def render(tool: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., list[dict[str, Any]]]:
    """`render("a.yaml", "--set", "x=y")`: the objects of a release `tomoray`; files are the chart's or the tests'."""

    @lru_cache(maxsize=64)
    def objects(*arguments: str, chart: Path = CHART) -> list[dict[str, Any]]:
        files = {
            path.name: path for path in [*CHART.glob("values*.yaml"), *Path(__file__).parent.glob("values/*.yaml")]
        }
        flags = [part for each in arguments for part in (["--values", files[each]] if each in files else [each])]
        done = tool("helm", "template", "tomoray", chart, "--namespace", "tomoray", *flags)
        assert done.returncode == 0, done.stderr
        return [each for each in yaml.safe_load_all(done.stdout) if each]

    return objects
