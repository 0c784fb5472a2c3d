import os
import subprocess
from pathlib import Path

import pytest
import torch

from tomoray.errors import Fatal
from tomoray.storage import open_store
from tomoray.training.checkpoints import Checkpoints, pack, unpack


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "checkpoints"))


def files(step):
    return {"model.pt": b"weights %d" % step, "state.pt": b"state %d" % step}


def checkpoints(store, **options):
    return Checkpoints(store, monitor="dice", **options)


def write(store, *steps, scores=(), **options):
    for step, score in zip(steps, [*scores, *[None] * len(steps)], strict=False):
        checkpoints(store, **options).write(step, files(step), {} if score is None else {"dice": score})


def test_newest_is_loaded_as_it_was_written(store):
    write(store, 10, 20)
    loaded, troubles = checkpoints(store).load()
    assert (loaded.checkpoint.step, loaded.files, troubles) == (20, files(20), [])


def test_nothing_is_loaded_where_there_is_nothing(store):
    assert checkpoints(store).load() == (None, [])


def test_killed_upload_is_no_checkpoint(store):
    write(store, 10)
    store.write("step-00000020/model.pt", b"half of it")
    loaded, troubles = checkpoints(store).load()
    assert (loaded.checkpoint.step, troubles) == (10, [])


@pytest.mark.parametrize("damage", [b"weights 2!", b"", None])
def test_damaged_one_is_named_and_the_one_before_taken(store, damage):
    write(store, 10, 20)
    store.delete(["step-00000020/model.pt"]) if damage is None else store.write("step-00000020/model.pt", damage)
    loaded, troubles = checkpoints(store).load()
    assert loaded.checkpoint.step == 10
    assert [("step-00000020" in trouble, "model.pt" in trouble) for trouble in troubles] == [(True, True)]


def test_mark_that_is_no_json_is_no_checkpoint(store):
    write(store, 10, 20)
    store.write("step-00000020/checkpoint.json", b'{"step": 20, "fil')
    assert checkpoints(store).load()[0].checkpoint.step == 10


def test_the_last_two_and_the_best_are_kept(store):
    write(store, 10, 20, 30, 40, 50, scores=[0.5, 0.9, 0.7, 0.6, 0.1])
    assert store.folders() == ["step-00000020", "step-00000040", "step-00000050"]
    assert checkpoints(store).best().step == 20


def test_top_k_of_a_score_that_is_better_when_lower(store):
    write(store, 10, 20, 30, 40, 50, 60, scores=[3, 1, 2, 9, 9, 9], keep=2, higher_is_better=False)
    assert store.folders() == [f"step-{step:08d}" for step in (20, 30, 50, 60)]
    assert checkpoints(store, higher_is_better=False).best().step == 20


def test_what_was_overtaken_after_a_fall_back_goes(store):
    write(store, 10, 20, 30)
    write(store, 15)
    assert checkpoints(store).load()[0].checkpoint.step == 15


def test_full_disk_keeps_what_there_was(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk wants root: sudo make test")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small disk is not allowed here: sudo make test, outside of containers")
    try:
        found = checkpoints(open_store(str(disk / "checkpoints")))
        found.write(10, files(10), {})
        with pytest.raises(Fatal, match=r"[Nn]o space"):
            found.write(20, {"model.pt": os.urandom(400_000)}, {})
        assert found.load()[0].checkpoint.step == 10
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("names", [("network",), ("generator", "discriminator")])
@pytest.mark.parametrize("averaged", [False, True])
def test_what_is_packed_is_unpacked(names, averaged):
    def weights(scale):
        return {name: {"weight": scale * torch.ones(2)} for name in names}

    state = {"step": 7, "networks": weights(1), "means": weights(2) if averaged else {}, "optimizers": {}, "scaler": {}}
    packed = pack(state, [{"step": 7, "loss": 0.5}])
    found, history = unpack(packed)
    assert history == [{"step": 7, "loss": 0.5}]
    assert found.keys() == state.keys()
    assert all(torch.equal(found["networks"][name]["weight"], torch.ones(2)) for name in names)
    assert set(found["means"]) == (set(names) if averaged else set())


def test_model_file_holds_the_weights_to_use(tmp_path):
    state = {"networks": {"network": {"w": torch.zeros(1)}}, "means": {"network": {"w": torch.ones(1)}}}
    path = Path(tmp_path, "model.pt")
    path.write_bytes(pack(state, [])["model.pt"])
    assert torch.load(path, weights_only=True) == {"w": torch.ones(1)}
