import dataclasses
import json
import os
import subprocess
from contextlib import suppress

import pytest
import torch

from tomoray.archive import Archive
from tomoray.config import Layout
from tomoray.errors import Transient
from tomoray.lease import RUN_MARK, Lease, Progress
from tomoray.runs import cost_so_far, read_history
from tomoray.storage import open_store
from tomoray.tasks.segmentation import Segmentation
from tomoray.training import loop
from tomoray.training.checkpoints import Checkpoints
from tomoray.training.config import TrainConfig
from tomoray.training.loop import Loop, Worker, loss_curve

SCANS = ["a", "b"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return Archive.create(
        str(tmp_path_factory.mktemp("loop") / "archive"),
        Layout(chunk_zyx=(16, 16, 16), shard_zyx=(32, 32, 32), levels=1),
    )


@pytest.fixture(autouse=True)
def _nothing_stays_deterministic():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _two_scans(archive, make_volume):
    for seed, scan_id in enumerate(SCANS):
        if scan_id not in archive.scan_ids():
            archive.write_scan(make_volume((16, 18, 20), scan_id=scan_id, seed=seed))


def config(**changes):
    values = {
        "labels": ["lungs", "nodules"],
        "patch_zyx": (8, 8, 8),
        "network": {"channels": [2, 4], "norm": "batch"},
        "steps": 8,
        "checkpoint_every": 3,
        "deterministic": True,
    }
    return TrainConfig.model_validate({**values, **changes})


def train(archive, out, task=None, augment=None, worker=None, validation=(), **changes):
    wanted = config(**changes)
    scans = (SCANS, validation)
    worker = worker or Worker()
    return Loop(
        wanted, task or Segmentation(wanted), archive, scans, open_store(str(out)), worker, augment=augment
    ).run()


def model_of(out, step=8):
    return Checkpoints(open_store(str(out / "checkpoints"))).describe(step).files["model.pt"]


class Killed(BaseException):
    """What no code expects."""


def killed_at(step):
    def post(line):
        if line["step"] == step:
            raise Killed

    return Worker(post=post)


@pytest.fixture(scope="module")
def whole(archive, tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def undisturbed(archive, whole):
    if not (whole / "history.jsonl").exists():
        train(archive, whole)
    return model_of(whole)


def test_killed_and_resumed_run_ends_with_the_same_bytes(archive, undisturbed, tmp_path):
    with pytest.raises(Killed):
        train(archive, tmp_path, worker=killed_at(5))
    outcome = train(archive, tmp_path)
    assert (outcome.status, outcome.first_step, outcome.steps) == ("done", 3, 8)
    assert model_of(tmp_path) == undisturbed


def test_history_has_each_step_once_after_a_resume(archive, tmp_path):
    with pytest.raises(Killed):
        train(archive, tmp_path, worker=killed_at(5))
    train(archive, tmp_path)
    history = read_history(open_store(str(tmp_path)))
    assert [line["step"] for line in history] == list(range(1, 9))
    assert [line["samples"] for line in history] == [2 * step for step in range(1, 9)]
    assert {"loss", "learning_rate", "samples_per_s", "waited_share", "workers"} <= history[0].keys()


def test_each_attempt_is_noted_and_counted(archive, tmp_path):
    with pytest.raises(Killed):
        train(archive, tmp_path, worker=killed_at(5))
    train(archive, tmp_path)
    attempts = [json.loads(path.read_text()) for path in sorted((tmp_path / "attempts").iterdir())]
    assert [(attempt["first_step"], attempt["steps"]) for attempt in attempts] == [(0, 3), (3, 8)]
    cost = cost_so_far(open_store(str(tmp_path)), config(node="m7i.2xlarge"))
    assert (cost["attempts"], cost["node"]) == (2, "m7i.2xlarge")
    assert cost["dollars"] == pytest.approx(cost["worker_seconds"] / 3600 / 8 * 0.4032, abs=1e-4)


def test_damaged_checkpoint_costs_an_interval(archive, undisturbed, tmp_path):
    with pytest.raises(Killed):
        train(archive, tmp_path, worker=killed_at(7))
    (tmp_path / "checkpoints" / "step-00000006" / "state.pt").write_bytes(b"half")
    outcome = train(archive, tmp_path)
    assert outcome.first_step == 3
    assert "state.pt of checkpoint step-00000006 is not the file that was written" in outcome.troubles[0]
    assert model_of(tmp_path) == undisturbed


def test_notice_saves_the_step_it_came_in(archive, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_ASK_EVERY_S", -1.0)
    asked = []
    noticed = Worker(noticed=lambda: asked.append(1) or len(asked) == 5)
    outcome = train(archive, tmp_path, worker=noticed)
    assert (outcome.status, outcome.steps) == ("preempted", 5)
    outcome = train(archive, tmp_path)
    assert (outcome.status, outcome.first_step) == ("done", 5)
    assert model_of(tmp_path) == undisturbed


def test_a_run_that_was_taken_over_writes_no_more_checkpoints(archive, tmp_path):
    store = open_store(str(tmp_path))

    def take_over(line=None):
        if line is None or line["step"] == 4:  # the driver did not renew its lease for a minute
            store.write(RUN_MARK, Lease(store, Progress(), mark=RUN_MARK)._mark())

    take_over()
    outcome = train(archive, tmp_path, worker=Worker(post=take_over))
    assert outcome.status == "fatal"
    assert "no checkpoint after step 6" in outcome.message
    assert "trains in" in outcome.message
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*")) == ["step-00000003"]


def test_store_that_stalls_is_waited_for(archive, undisturbed, tmp_path, monkeypatch):
    stalls = [3, 3, 6]

    class Stalling(loop.PatchStream):
        def __iter__(self):
            for batch in super().__iter__():
                if stalls and batch.samples[0] == 2 * stalls[0]:
                    stalls.pop(0)
                    raise Transient("the server is busy")
                yield batch

    monkeypatch.setattr(loop, "PatchStream", Stalling)
    assert train(archive, tmp_path).status == "done"
    assert not stalls
    assert model_of(tmp_path) == undisturbed


def test_loss_that_is_no_number_keeps_the_last_good_checkpoint(archive, tmp_path):
    def poison(batch, config, seed, **_):
        bad = batch.samples[0] == 2 * 7
        return dataclasses.replace(batch, image=batch.image * float("nan")) if bad else batch

    outcome = train(archive, tmp_path, augment=poison)
    assert outcome.status == "fatal"
    assert "no number at step 7 (samples 14, 15 of scans" in outcome.message
    assert Checkpoints(open_store(str(tmp_path / "checkpoints"))).load()[0].checkpoint.step == 6
    assert train(archive, tmp_path).first_step == 6


def test_full_disk_stops_with_the_last_checkpoint_whole(archive, undisturbed, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk wants root: sudo make test")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small disk is not allowed here: sudo make test, outside of containers")

    def fill(line):
        if line["step"] == 5:
            with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

    try:
        outcome = train(archive, disk, worker=Worker(post=fill))
        assert outcome.status == "fatal"
        assert "no checkpoint after step 6" in outcome.message
        assert "space" in outcome.message
        (disk / "filler").unlink()
        assert train(archive, disk).first_step == 3
        assert model_of(disk) == undisturbed
    finally:
        subprocess.run(["umount", disk], check=True)


class Scripted(Segmentation):
    """Scores as they are told."""

    def __init__(self, config, scores):
        super().__init__(config)
        self._scores = iter(scores)

    def examine(self, networks, archive, scan_id):
        return {}

    def score(self, found):
        return {"dice": next(self._scores)}


def test_patience_ends_it_and_the_best_is_kept(archive, tmp_path):
    changes = {"steps": 40, "validate_every": 2, "patience": 2, "checkpoint_every": 40}
    task = Scripted(config(**changes), [0.1, 0.5, 0.4, 0.5, 0.9])
    outcome = train(archive, tmp_path, task=task, validation=["a"], **changes)
    assert (outcome.status, outcome.steps) == ("done", 8)
    assert [line["scores"]["dice"] for line in outcome.history if "scores" in line] == [0.1, 0.5, 0.4, 0.5]
    checkpoints = Checkpoints(open_store(str(tmp_path / "checkpoints")), monitor="dice")
    assert checkpoints.best().step == 4


def test_validation_scores_whole_scans(archive, tmp_path):
    outcome = train(archive, tmp_path, steps=2, validation=SCANS)
    assert set(outcome.history[-1]["scores"]) == {"dice", "dice/threshold", "dice/lungs", "dice/nodules"}


def test_loss_curve_is_a_hundred_points_at_most():
    history = [{"step": step, "loss": float(step)} for step in range(1, 251)]
    curve = loss_curve(history)
    assert len(curve) <= 100
    assert curve[0] == (3, 2.0)
    assert loss_curve([]) == []
