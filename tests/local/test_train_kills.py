"""A training that loses its worker, its node or its driver goes on, and ends as if nothing had been."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from jobs import train
from tomoray.archive import Archive
from tomoray.runs import open_run, read_history
from tomoray.storage import open_store
from tomoray.tasks.segmentation import Segmentation
from tomoray.training.augment import augment
from tomoray.training.checkpoints import Checkpoints
from tomoray.training.loop import Loop, Worker

ROOT = Path(__file__).parents[2]
tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "test_train.py")))
once = SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "exactly_once.py")))
LOSE_TRAINING = Path(__file__).parent / "lose_training.py"


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Archive:
    url = str(tmp_path_factory.mktemp("tiny") / "archive")
    return tiny.write_archive(url, [tiny.tiny_volume(n) for n in range(6)])


def config(archive, out, **changes):
    return tiny.config(
        archive, out, **{"workers": 1, "steps": 300, "checkpoint_every": 30, "deterministic": True, **changes}
    )


def undisturbed(archive, wanted, tmp_path) -> str:
    """The digest of the model that one worker trains without Ray and without a break."""
    rows = [{"scan_id": f"{n:016x}", "patient_id": f"p{max(n - 1, 0)}", "labels": wanted.labels} for n in range(6)]
    split = train.split_by_patient({row["patient_id"] for row in rows}, wanted.split)
    scans = train._scans_by_part(rows, split, wanted.labels)
    parts = (scans["train"], scans["validation"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        store = open_store(str(tmp_path / "undisturbed"))
        Loop(wanted, Segmentation(wanted), archive, parts, store, Worker(), augment=augment).run()
        return Checkpoints(store.child("checkpoints")).describe(wanted.steps).files["model.pt"][1]
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)


def write_config(wanted, path):
    path.write_text(yaml.safe_dump(wanted.model_dump(mode="json")))
    return str(path)


def start(*command):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)


def attempts(run):
    found = [json.loads(path.read_text()) for path in sorted((run / "attempts").iterdir())]
    return [(attempt["first_step"], attempt["steps"]) for attempt in found]


def test_a_node_with_notice_loses_no_step_and_one_without_an_interval(archive, tmp_path):
    run = tmp_path / "run"
    wanted = config(archive, run)
    driver = start(str(LOSE_TRAINING), write_config(wanted, tmp_path / "config.yaml"))
    said, _ = driver.communicate()
    assert driver.returncode == 0
    result = json.loads(said.splitlines()[-1])
    (_, noticed), (second, _), *_, (last, done) = attempts(run)
    assert second == noticed
    assert 0 < second <= last < done == 300
    assert last % 30 == 0 or last == second
    assert result["model_sha256"] == undisturbed(archive, wanted, tmp_path)


def test_a_killed_driver_run_again_ends_with_the_same_bytes(archive, tmp_path, ray_local):
    run = tmp_path / "run"
    wanted = config(archive, run)
    driver = start("-m", "jobs.train", write_config(wanted, tmp_path / "config.yaml"))
    while not list(run.glob("checkpoints/*/checkpoint.json")):
        assert driver.poll() is None
        time.sleep(0.02)
    below = once.descendants(driver.pid)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    driver.stdout.close()
    once.wait_until_gone(below)
    result = train.run(wanted)
    assert 30 <= result["first_step"] < 300
    assert [line["step"] for line in read_history(open_store(str(run)))] == list(range(1, 301))
    assert open_run(str(run)).model_sha256 == undisturbed(archive, wanted, tmp_path)


def test_two_workers_then_one_then_two_see_each_sample_once(archive, tmp_path, ray_local):
    for steps, workers in ((2, 2), (4, 1), (6, 2)):
        result = train.run(config(archive, tmp_path / "run", steps=steps, workers=workers, batch_size=3))
        assert (result["first_step"], result["steps"]) == (steps - 2, steps)
    history = read_history(open_store(str(tmp_path / "run")))
    assert [(line["step"], line["samples"], line["workers"]) for line in history] == [
        (1, 3, 2), (2, 6, 2), (3, 9, 1), (4, 12, 1), (5, 15, 2), (6, 18, 2)
    ]  # fmt: skip


def test_as_many_workers_start_as_there_is_room_for(archive, tmp_path, ray_local):
    result = train.run(config(archive, tmp_path / "run", steps=2, workers=(1, 2)))
    assert result["steps"] == 2
    assert {line["workers"] for line in read_history(open_store(str(tmp_path / "run")))} <= {1, 2}
