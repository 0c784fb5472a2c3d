"""A step that does not fit says what to lower before the machine kills it."""

import numpy as np
import pytest
import torch
from torch import nn

from tomoray.errors import Fatal, Shortage
from tomoray.patches import Batch, PatchStream
from tomoray.tasks.choice import make_task
from tomoray.training import engine as engines
from tomoray.training import memory
from tomoray.training.config import TrainConfig
from tomoray.training.engine import Engine
from tomoray.training.memory import bounded, free_memory

CONFIG = TrainConfig(labels=["a"], batch_size=4, optimizer={"name": "sgd"}, steps=9)
SIDE = 16


class Task:
    """Keeps the inputs of the second convolution and of a square: 8 numbers and 1 a voxel."""

    def build_networks(self):
        return {"network": nn.Sequential(nn.Conv3d(1, 8, 1), nn.Conv3d(8, 1, 1))}

    def loss(self, networks, batch, training):
        return networks[training](batch.image).square().mean()


KEPT_BYTES = 4 * SIDE**3 * (8 + 1)  # of a sample


def batch_of(step):
    samples = tuple(range(4 * step, 4 * step + 4))
    image = torch.randn(4, 1, SIDE, SIDE, SIDE)
    return Batch(image=image, classes=image > 0, samples=samples, scan_ids=("s",) * 4, waited_s=0.0)


@pytest.mark.parametrize(("accumulate", "at_once"), [(1, 4), (2, 2), (4, 1)])
def test_a_step_is_stopped_exactly_where_it_cannot_fit(monkeypatch, accumulate, at_once):
    config = CONFIG.model_copy(update={"optimizer": CONFIG.optimizer.model_copy(update={"accumulate": accumulate})})
    least = 1.3 * KEPT_BYTES * at_once
    monkeypatch.setattr(engines, "free_memory", lambda: int(least * 1.001))
    Engine(Task(), config).step(batch_of(0))
    monkeypatch.setattr(engines, "free_memory", lambda: int(least * 0.999))
    told = rf"wants more than 0.0 GB of memory and 0.0 GB are free for it; lower patch_zyx .*\({accumulate}\)"
    with pytest.raises(Shortage, match=told):
        Engine(Task(), config).step(batch_of(0))


def test_workers_of_one_machine_share_its_memory(monkeypatch):
    monkeypatch.setattr(engines, "free_memory", lambda: int(6 * KEPT_BYTES))
    Engine(Task(), CONFIG).step(batch_of(0))
    with pytest.raises(Shortage, match="batch_size"):
        Engine(Task(), CONFIG, neighbours=2).step(batch_of(0))


def test_steps_after_the_first_are_not_watched(monkeypatch):
    engine = Engine(Task(), CONFIG)
    engine.step(batch_of(0))
    monkeypatch.setattr(engines, "free_memory", lambda: 1)
    engine.step(batch_of(1))
    assert engine.steps_done == 2


def test_watching_changes_no_gradient():
    torch.manual_seed(0)
    network, image = Task().build_networks()["network"], torch.randn(2, 1, 8, 8, 8)
    gradients = []
    for free_bytes in (None, 1 << 40):
        network.zero_grad()
        if free_bytes is None:
            loss = network(image).square().mean()
        else:
            with bounded(free_bytes, network.parameters(), CONFIG):
                loss = network(image).square().mean()
        loss.backward()
        gradients.append([weight.grad.clone() for weight in network.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "cgroup")
    write(tmp_path / "proc" / "meminfo", "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:    8000 kB\n")
    return tmp_path


def test_without_limits_the_machine_says_what_is_free(machine):
    assert free_memory() == 8000 * 1024
    write(machine / "proc" / "self" / "cgroup", "0::/\n")
    write(machine / "cgroup" / "memory.max", "max\n")
    assert free_memory() == 8000 * 1024


def test_the_tightest_control_group_counts_and_what_it_cached_is_free(machine):
    write(machine / "proc" / "self" / "cgroup", "0::/pods/one\n")
    for group, limit, used in (("pods", 700_000, 500_000), ("pods/one", 600_000, 450_000)):
        write(machine / "cgroup" / group / "memory.max", f"{limit}\n")
        write(machine / "cgroup" / group / "memory.current", f"{used}\n")
    assert free_memory() == 150_000
    write(machine / "cgroup" / "pods/one" / "memory.stat", "anon 9\nactive_file 20000\ninactive_file 10000\n")
    assert free_memory() == 180_000


def test_control_groups_of_the_first_version_count_too(machine):
    write(machine / "proc" / "self" / "cgroup", "5:cpu:/a\n4:memory:/docker/a\n0::/\n")
    write(machine / "cgroup" / "memory" / "memory.limit_in_bytes", "5000000\n")
    write(machine / "cgroup" / "memory" / "memory.usage_in_bytes", "2000000\n")
    assert free_memory() == 3_000_000


def test_where_nobody_says_what_is_free_nothing_is_stopped(machine, monkeypatch):
    (machine / "proc" / "meminfo").unlink()
    assert free_memory() is None
    monkeypatch.setattr(engines, "free_memory", free_memory)
    Engine(Task(), CONFIG).step(batch_of(0))


def test_this_machine_has_memory():
    assert free_memory() > 1 << 20


def test_a_shortage_ends_training_and_is_no_refusal():
    assert issubclass(Shortage, Fatal)


TASKS = {
    "segmentation": {"labels": ["lungs"], "network": {"channels": [4, 8]}, "precision": "bf16"},
    "deep": {"labels": ["lungs"], "network": {"name": "dynunet", "channels": [4, 8, 8], "deep_supervision": True}},
    "detection": {"labels": ["lungs"], "detection": {"anchors_zyx": [[8, 8, 8]], "levels": 1, "channels": 8}},
    "classification": {"labels": ["lungs"], "classification": {"label": "lungs", "network": "small"}},
    "denoising": {"denoising": {"generator": [4, 8, 8]}},
    "generation": {},
    "pretraining": {"network": {"channels": [4, 8]}, "pretraining": {"block_zyx": [8, 8, 8]}},
}


@pytest.mark.parametrize("name", TASKS)
def test_the_first_step_of_every_task_can_be_watched(tiny_archive, monkeypatch, name):
    image, mask = np.zeros((32, 32, 32)), np.zeros((32, 32, 32), np.uint8)
    mask[8:20, 8:20, 8:20] = 1
    archive = tiny_archive({"a": (image, {"lungs": mask}), "b": (image, {"lungs": mask})})
    task_name = "segmentation" if name == "deep" else name
    values = {"task": task_name, "patch_zyx": [32, 32, 32], "steps": 2, "split": {"validation": 0, "test": 0}}
    config = TrainConfig.model_validate({**values, **TASKS[name]})
    rows = [
        {"scan_id": scan_id, "patient_id": scan_id, "labels": ["lungs"], "status": "stored"} for scan_id in ("a", "b")
    ]
    batches = iter(PatchStream(archive, ["a", "b"], config))
    first, second = next(batches), next(batches)
    monkeypatch.setattr(engines, "free_memory", lambda: 1 << 40)
    engine = Engine(make_task(config, rows), config)
    engine.step(first)
    engine.step(second)
    assert engine.steps_done == 2
    monkeypatch.setattr(engines, "free_memory", lambda: 1 << 10)
    with pytest.raises(Shortage, match="batch_size"):
        Engine(make_task(config, rows), config).step(first)
