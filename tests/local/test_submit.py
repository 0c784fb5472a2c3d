"""The same commands as on Kubernetes, on a Ray cluster that runs already: Ray's Jobs API and Ray Serve's."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster import cli
from cluster.targets import RayTarget, save_target
from tomoray.archive import Archive
from tomoray.errors import Fatal

TRAINING = {
    "steps": 40,
    "checkpoint_every": 4,
    "batch_size": 2,
    "workers": 1,
    "network.channels": "[4, 8]",
    "split": "{validation: 0, test: 0.3}",
}


@dataclass(frozen=True)
class Lab:
    """A cluster of a head and two workers, which can be lost."""

    process: subprocess.Popen[str]
    url: str

    def tell(self, command: str) -> None:
        """`lose` or `add`; returns when it is done."""
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    command = [sys.executable, str(Path(__file__).with_name("nodes_to_lose.py"))]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # jobs begin with `python`
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with (
        subprocess.Popen(command, **streams, text=True, env=os.environ | {"PATH": path}) as process,
        pytest.MonkeyPatch.context() as patch,
    ):
        url = process.stdout.readline().strip()
        patch.setenv("TOMORAY_TARGETS", str(tmp_path_factory.mktemp("targets") / "targets.yaml"))
        save_target("lab", RayTarget(kind="ray", address=url, node_type="m7i.2xlarge"))
        yield Lab(process, url)
        process.stdin.close()


@pytest.fixture
def tomoray(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """`tomoray("submit", …)`: what it answers, as JSON."""

    def run(*arguments: object, codes: tuple[int, ...] = (0,)) -> dict[str, Any]:
        capsys.readouterr()
        assert cli.main([*map(str, arguments), "--json"]) in codes, capsys.readouterr()
        return dict(json.loads(capsys.readouterr().out))

    return run


def wait_for(condition: Callable[[], object], seconds: float = 600) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.1)


def scans(archive: Path) -> int:
    try:
        return len(Archive.open(str(archive)).scan_ids())
    except Fatal:
        return 0


def answer_of(tomoray: Callable[..., dict[str, Any]], name: str) -> dict[str, Any]:
    """The result of a job, as it ends."""
    lines = tomoray("logs", name, "-f")["lines"]
    assert tomoray("status", name, codes=(0, 1))["state"] == "succeeded", lines
    return dict(json.loads([line for line in lines if line.startswith("{")][-1]))  # Ray may say something after it


def test_preprocess_train_and_serve_each_with_a_node_lost(
    lab: Lab, tomoray: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    cohort, archive, run = tmp_path / "cohort", tmp_path / "archive", tmp_path / "run"
    (tmp_path / "cohort.yaml").write_text(f"out: {cohort}\npatients: 8\nmatrix: 96\n", "utf-8")
    made = answer_of(tomoray, tomoray("submit", tmp_path / "cohort.yaml")["name"])
    assert made["patients"] == 8

    (tmp_path / "p.yaml").write_text(f"sources: [{cohort}]\narchive: {archive}\nin_flight: 1\n", "utf-8")
    name = tomoray("submit", tmp_path / "p.yaml")["name"]
    wait_for(lambda: scans(archive) >= 2)
    lab.tell("lose")
    lab.tell("add")
    result = answer_of(tomoray, name)
    assert (result["stored"], result["failed"]) == (8, [])

    changes = [part for field, value in TRAINING.items() for part in ("--set", f"{field}={value}")]
    name = tomoray("submit", "phantom", *changes, "--set", f"archive={archive}", "--set", f"out={run}")["name"]
    for step in (4, 16):  # two losses meet the worker once at least, wherever it is
        wait_for(lambda step=step: steps(run) >= step)
        lab.tell("lose")
        lab.tell("add")
    result = answer_of(tomoray, name)
    assert result["steps"] == 40
    assert result["first_step"] > 0, "it went on from a checkpoint"
    cost = tomoray("cost", "show", name)
    assert cost["dollars_per"]["epochs"] > 0

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "lungs.yaml").write_text(f"run: {run}\nhost: 127.0.0.1\nport: {port}\n", "utf-8")
    assert tomoray("deploy", tmp_path / "lungs.yaml", "--wait")["state"] == "ready"
    ask(port, cohort)
    for _ in range(2):
        lab.tell("lose")
        lab.tell("add")
    wait_for(lambda: tomoray("rollout", "status", "lungs", codes=(0, 1))["state"] == "ready")
    ask(port, cohort)
    assert tomoray("undeploy", "lungs")["removed"] is True


def steps(run: Path) -> int:
    """Of the newest checkpoint."""
    found = [path.parent.name for path in run.glob("checkpoints/*/checkpoint.json")]
    return max((int(name.removeprefix("step-")) for name in found), default=0)


def ask(port: int, cohort: Path) -> None:
    """Send one patient's CT; patience for a replica that starts anew."""
    series = next(path for path in sorted(cohort.rglob("*.dcm")) if path.is_file()).parent
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as file:
        for path in series.iterdir():
            file.write(path, path.name)
    headers = {"Content-Type": "application/zip", "Accept": "application/json"}

    def answered() -> bool:
        try:
            url = f"http://127.0.0.1:{port}/v1/segment"
            return httpx.post(url, content=body.getvalue(), headers=headers, timeout=60).status_code == 200
        except httpx.HTTPError:
            return False

    wait_for(answered)


def test_a_job_that_fails_is_another_attempt_when_it_is_submitted_again(
    lab: Lab, tomoray: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "e.yaml").write_text(f"run: {tmp_path}/none\nto: {tmp_path}/out\n", "utf-8")
    first = tomoray("submit", tmp_path / "e.yaml")
    assert tomoray("status", first["name"], "-f", codes=(1,))["state"] == "failed"
    assert f"{tmp_path}/none is not a run" in " ".join(tomoray("logs", first["name"])["lines"])
    second = tomoray("submit", tmp_path / "e.yaml")
    assert (second["name"], second["created"], second["retries"]) == (first["name"], True, 1)
    assert tomoray("status", first["name"], "-f", codes=(1,))["retries"] == 1
    assert tomoray("describe", first["name"])["problems"][0]["fix"].startswith("read its last lines")


def test_a_job_that_runs_is_found_and_can_be_cancelled(
    lab: Lab, tomoray: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(f"out: {tmp_path}/cohort\npatients: 500\n", "utf-8")
    name = tomoray("submit", tmp_path / "c.yaml")["name"]
    assert tomoray("submit", tmp_path / "c.yaml")["created"] is False
    wait_for(lambda: tomoray("status", name)["state"] == "running")
    assert tomoray("cancel", name)["cancelled"] is True
    wait_for(lambda: tomoray("status", name)["state"] == "stopped")
    assert tomoray("cluster", "check", "lab")["ready"] is True
    assert name in [job["name"] for job in tomoray("list")["jobs"]]
