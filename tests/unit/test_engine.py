import copy
import shutil
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn

from tomoray.errors import Fatal, Usage
from tomoray.patches import Batch
from tomoray.training.config import TrainConfig
from tomoray.training.engine import Engine, seed_of


class Fit:
    """The mean squared distance of a small network's output from a known one: a mean over samples."""

    monitor, higher_is_better = "loss", False

    def __init__(self, channels=2, noise=0.0):
        self.channels, self.noise = channels, noise

    def build_networks(self):
        return {"network": nn.Sequential(nn.Conv3d(1, self.channels, 3, padding=1), nn.Conv3d(self.channels, 1, 1))}

    def loss(self, networks, batch, training):
        noise = self.noise * torch.randn_like(batch.image)
        return ((networks[training](batch.image + noise) - 2 * batch.image) ** 2).mean()


class Normed(Fit):
    """Keeps running statistics."""

    def build_networks(self):
        return {"network": nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))}


class Duel(Fit):
    """Two networks, each with a loss that the other takes part in."""

    def build_networks(self):
        return {"generator": nn.Conv3d(1, 1, 1), "critic": nn.Conv3d(1, 1, 1)}

    def loss(self, networks, batch, training):
        if training == "critic":
            made = networks["generator"](batch.image).detach()
            return networks["critic"](torch.cat([batch.image, made])).mean() ** 2
        return networks["critic"](networks["generator"](batch.image)).mean() ** 2


class Greedy(Fit):
    """Wants a petabyte."""

    def loss(self, networks, batch, training):
        return networks[training](batch.image).mean() + torch.zeros(1 << 50).mean()


def config(**changes):
    changes["optimizer"] = {"name": "sgd", **changes.get("optimizer", {})}
    values = {
        "labels": ["a"],
        "patch_zyx": (8, 8, 8),
        "network": {"channels": [4, 8]},
        "batch_size": 3,
        "steps": 50,
        "learning_rate": 0.001,
    }
    return TrainConfig.model_validate({**values, **changes})


def batch_of(step, rank=0, world_size=1, size=3):
    samples = tuple(range(step * size + rank, (step + 1) * size, world_size))
    image = torch.stack([torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(i)) for i in samples])
    scan_ids = tuple(f"scan-{i}" for i in samples)
    return Batch(image=image, classes=image > 0, samples=samples, scan_ids=scan_ids, waited_s=0.0)


def weights_after(steps, task=None, **changes):
    engine = Engine(task or Fit(), config(**changes))
    for step in range(steps):
        engine.step(batch_of(step))
    return engine.state()["networks"]["network"]


def assert_close(one, two):
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name])


@pytest.mark.skipif(shutil.which("g++") is None, reason="wants a C++ compiler: apt install g++")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # PyTorch 2.13, of itself
def test_a_compiled_network_learns_the_same():
    assert_close(weights_after(3, compile=True), weights_after(3))


def test_a_step_is_the_step_of_a_bare_loop():
    engine = Engine(Fit(), config(optimizer={"name": "adamw"}))
    network = copy.deepcopy(engine._networks["network"])
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.001, weight_decay=0.01)
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 0.001 * (1 - step / 50) ** 0.9
        image = batch_of(step).image
        loss = ((network(image) - 2 * image) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        assert engine.step(batch_of(step)) == float(loss.detach())
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), engine._learning["network"], strict=True))


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_a_batch_in_parts_gives_the_gradient_of_the_whole(parts):
    assert_close(weights_after(3), weights_after(3, optimizer={"accumulate": parts}))


def test_long_gradients_are_shortened():
    engine = Engine(Fit(), config(optimizer={"clip_norm": 1e-3}))
    engine.step(batch_of(0))
    norms = torch.stack([weight.grad.norm() for weight in engine._learning["network"]])
    assert float(norms.norm()) <= 1e-3 * 1.01


def test_each_of_several_networks_learns_while_the_others_are_held_still():
    task = Duel()
    engine = Engine(task, config())
    seen = []
    inner = task.loss
    task.loss = lambda networks, batch, training: (
        seen.append((training, {name: next(net.parameters()).requires_grad for name, net in networks.items()}))
        or inner(networks, batch, training)
    )
    before = copy.deepcopy(engine.state()["networks"])
    engine.step(batch_of(0))
    assert seen == [
        ("generator", {"generator": True, "critic": False}),
        ("critic", {"generator": False, "critic": True}),
    ]
    after = engine.state()["networks"]
    assert not torch.equal(before["critic"]["weight"], after["critic"]["weight"])
    assert not torch.equal(before["generator"]["weight"], after["generator"]["weight"])
    assert set(engine.losses) == {"generator", "critic"}


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}, {"optimizer": {"name": "adamw", "ema_decay": 0.9}}])
def test_state_goes_on_to_the_last_bit_random_draws_included(changes, tmp_path):
    whole, first = (Engine(Fit(noise=0.1), config(**changes)) for _ in range(2))
    for step in range(6):
        whole.step(batch_of(step))
    for step in range(3):
        first.step(batch_of(step))
    torch.save(first.state(), tmp_path / "state")
    torch.manual_seed(99)
    rest = Engine(Fit(noise=0.1), config(**changes, seed=7))
    rest._config = whole._config
    rest.load_state(torch.load(tmp_path / "state", weights_only=True))
    for step in range(3, 6):
        rest.step(batch_of(step))
    for one, two in zip(whole.networks_for_use().values(), rest.networks_for_use().values(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_running_means_are_what_is_used():
    engine = Engine(Fit(), config(optimizer={"ema_decay": 0.9}))
    for step in range(3):
        engine.step(batch_of(step))
    state, used = engine.state(), engine.networks_for_use()["network"]
    assert torch.equal(used.state_dict()["0.weight"], state["means"]["network"]["0.weight"])
    assert not torch.equal(used.state_dict()["0.weight"], state["networks"]["network"]["0.weight"])


def test_augmentation_comes_before_the_loss():
    engine = Engine(
        Fit(),
        config(),
        augment=lambda batch, config, seed: Batch(
            image=0 * batch.image, classes=batch.classes, samples=batch.samples, scan_ids=batch.scan_ids, waited_s=0.0
        ),
    )
    plain = Engine(Fit(), config())
    assert engine.step(batch_of(0)) != plain.step(batch_of(0))


def test_loss_that_is_no_number_names_step_samples_and_scans_and_changes_nothing():
    engine = Engine(Fit(), config())
    engine.step(batch_of(0))
    before = copy.deepcopy(engine.state()["networks"]["network"])
    bad = batch_of(1)
    bad.image[1] = float("nan")
    with pytest.raises(Fatal, match=r"no number at step 1 \(samples 3, 4, 5 of scans scan-3, scan-4, scan-5\)"):
        engine.step(bad)
    assert all(torch.equal(value, before[name]) for name, value in engine.state()["networks"]["network"].items())


def test_weights_that_are_no_numbers_are_not_saved():
    engine = Engine(Fit(), config())
    with torch.no_grad():
        engine._learning["network"][0].fill_(float("inf"))
    with pytest.raises(Fatal, match="weights are no numbers after step 0; lower learning_rate"):
        engine.state()


def test_samples_of_another_step_are_noticed():
    with pytest.raises(AssertionError, match="not the samples of this step"):
        Engine(Fit(), config()).step(batch_of(4))


def test_too_large_a_step_says_what_to_lower():
    with pytest.raises(Fatal, match=r"more memory than there is; lower patch_zyx \(8, 8, 8\) or batch_size \(3\)"):
        Engine(Greedy(), config()).step(batch_of(0))


def test_checkpoint_of_another_network_is_refused_in_one_line():
    state = Engine(Fit(channels=4), config()).state()
    with pytest.raises(
        Fatal, match=r"another network: 3 of 4 weights of 'network' differ, such as 0\.bias \(\(4,\)"
    ) as e:
        Engine(Fit(), config()).load_state(state)
    assert "\n" not in str(e.value)


def test_half_precision_on_a_cpu_is_a_usage_error():
    with pytest.raises(Usage, match="fp16 wants a GPU"):
        Engine(Fit(), config(precision="fp16"))


def test_seeds_differ_between_steps_and_workers():
    assert len({seed_of(0, step, rank) for step in range(50) for rank in range(4)}) == 200


@pytest.fixture(autouse=True)
def _nothing_stays_deterministic():
    yield
    torch.use_deterministic_algorithms(False)


def test_two_workers_with_uneven_shares_learn_what_one_does(tmp_path):
    multiprocessing.spawn(work, (2, str(tmp_path)), nprocs=2)
    alone = weights_after(3)
    for kind in ("ddp", "ddp-exact", "ddp-parts", "fsdp"):
        together = torch.load(Path(tmp_path, kind), weights_only=True)
        assert_close(alone, together)


def work(rank, world_size, folder):
    """Each way of sharing out a batch of three among two; rank 0 leaves the weights behind."""
    torch.set_num_threads(1)
    rendezvous = Path(folder, "rendezvous").as_uri()
    distributed.init_process_group("gloo", rendezvous, rank=rank, world_size=world_size)
    kinds = {
        "ddp": {},
        "ddp-exact": {"deterministic": True},
        "ddp-parts": {"optimizer": {"accumulate": 2}},
        "fsdp": {"distribute": "fsdp", "optimizer": {"accumulate": 2, "ema_decay": 0.9}},
    }
    for kind, changes in kinds.items():
        engine = Engine(Fit(), config(**changes, workers=2), rank=rank, world_size=world_size)
        for step in range(2):
            engine.step(batch_of(step, rank, world_size), asks=rank == 1)
        assert engine.asked
        path = Path(folder, f"{kind}-state")
        state = engine.state()
        if rank == 0:
            torch.save(state, path)
        distributed.barrier()
        rest = Engine(Fit(), config(**changes, workers=2), rank=rank, world_size=world_size)
        rest.load_state(torch.load(path, weights_only=True))
        used = []
        for each in (engine, rest):
            each.step(batch_of(2, rank, world_size))
            used.append(each.networks_for_use()["network"].state_dict())
        assert all(torch.equal(value, used[1][name]) for name, value in used[0].items())
        state = rest.state()
        if rank == 0:
            torch.save(state["networks"]["network"], Path(folder, kind))
        bad = batch_of(3, rank, world_size)
        bad.image[:] = float("nan") if rank == 1 else 0.0
        with pytest.raises(Fatal, match=r"samples 10 of scans scan-10\)"):
            rest.step(bad)
    distributed.destroy_process_group()


@pytest.mark.parametrize("optimizer", [{}, {"ema_decay": 0.9}])
def test_statistics_of_batch_norm_are_those_of_the_first_worker(tmp_path, optimizer):
    multiprocessing.spawn(work_on_norms, (2, str(tmp_path), optimizer), nprocs=2)
    first, second = (torch.load(Path(tmp_path, str(rank)), weights_only=True) for rank in range(2))
    name = "1.running_mean"
    assert not torch.equal(first["learned"][name], second["learned"][name]), "each saw samples of its own"
    for used in (first["used"], second["used"]):
        assert torch.equal(used[name], first["learned"][name])


def work_on_norms(rank, world_size, folder, optimizer):
    torch.set_num_threads(1)
    rendezvous = Path(folder, "rendezvous").as_uri()
    distributed.init_process_group("gloo", rendezvous, rank=rank, world_size=world_size)
    engine = Engine(Normed(), config(workers=2, optimizer=optimizer), rank=rank, world_size=world_size)
    for step in range(3):
        engine.step(batch_of(step, rank, world_size))
    kind = "means" if optimizer else "networks"
    learned = {name: value.clone() for name, value in engine.state()[kind]["network"].items()}
    used = engine.networks_for_use()["network"].state_dict()
    torch.save({"learned": learned, "used": used}, Path(folder, str(rank)))
    distributed.destroy_process_group()
