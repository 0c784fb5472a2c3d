from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tomoray.config import load_config, make_config
from tomoray.errors import Fatal, Usage
from tomoray.networks import build_network
from tomoray.tasks.choice import make_task
from tomoray.training.config import TrainConfig, TransferConfig
from tomoray.training.network_config import NetworkConfig
from tomoray.training.transfer import start_from

UNET = NetworkConfig(channels=[4, 8, 16], residual_units=0, norm="batch")
SHAPE = (24, 32, 32)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny networks are faster so
    yield
    torch.set_num_threads(threads)


def unet(classes, seed):
    torch.manual_seed(seed)
    return build_network(UNET, classes)


def saved(network, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), path)
    return str(path)


def test_all_but_the_head_carries_over_to_other_classes(tmp_path):
    before, network = unet(1, seed=1), unet(3, seed=2)
    taken = start_from({"network": network}, TransferConfig(url=saved(before, tmp_path / "model.pt")))["network"]
    ours, theirs = network.state_dict(), before.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in taken.taken)
    assert taken.left
    assert all("there" in why for why in taken.left.values())
    assert taken.share > 0.9
    assert f"{len(taken.taken)} of {len(ours)} weights taken" in str(taken)


@pytest.mark.parametrize("packed", [False, True])
def test_a_monai_bundle_gives_its_weights(tmp_path, packed):
    before, network = unet(2, seed=1), unet(2, seed=2)
    saved(before, tmp_path / "bundle/models/model.pt")
    (tmp_path / "bundle/configs").mkdir()
    (tmp_path / "bundle/configs/metadata.json").write_text(json.dumps({"version": "0.1.0"}), encoding="utf-8")
    url = str(tmp_path / "bundle")
    if packed:
        url = str(tmp_path / "bundle.zip")
        with zipfile.ZipFile(url, "w") as file:
            file.write(tmp_path / "bundle/models/model.pt", "bundle/models/model.pt")
    taken = start_from({"network": network}, TransferConfig(url=url))["network"]
    assert (taken.share, dict(taken.left), taken.unused) == (1, {}, ())


def test_names_are_mapped(tmp_path):
    before, network = unet(2, seed=1), unet(2, seed=2)
    path = tmp_path / "model.pt"
    old = {f"module.{name.replace('model.0', 'first', 1)}": weight for name, weight in before.state_dict().items()}
    torch.save({"state_dict": old}, path)
    mapped = TransferConfig(url=str(path), prefix="module.", rename={"first": "model.0"})
    assert start_from({"network": network}, mapped)["network"].share == 1


def test_networks_are_matched_by_name_where_there_are_several(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"critic": unet(1, seed=1).state_dict(), "generator": unet(2, seed=2).state_dict()}, path)
    network = unet(2, seed=3)
    with pytest.raises(Usage, match=r"holds networks critic, generator and network are wanted"):
        start_from({"network": network}, TransferConfig(url=str(path)))
    with pytest.raises(Usage, match=r"has no 'judge'; it has: critic, generator"):
        start_from({"network": network}, TransferConfig(url=str(path), network="judge"))
    assert start_from({"network": network}, TransferConfig(url=str(path), network="generator"))["network"].share == 1


def test_frozen_stages_rest_while_the_others_learn(tmp_path):
    network = unet(2, seed=2)
    config = TransferConfig(url=saved(unet(2, seed=1), tmp_path / "model.pt"), freeze=["model.0"])
    taken = start_from({"network": network}, config)["network"]
    assert taken.frozen
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    optimizer = torch.optim.SGD([weight for weight in network.parameters() if weight.requires_grad], 0.1)
    network(torch.rand(2, 1, 16, 16, 16)).square().mean().backward()
    optimizer.step()
    for name, value in network.state_dict().items():
        if not name.endswith(".conv.bias"):  # the norm that follows takes away what a bias adds
            assert torch.equal(value, before[name]) == name.startswith("model.0"), name


def test_stages_left_out_stay_random(tmp_path):
    network = unet(2, seed=2)
    config = TransferConfig(url=saved(unet(2, seed=1), tmp_path / "model.pt"), leave=["model.2"])
    taken = start_from({"network": network}, config)["network"]
    assert set(taken.left.values()) == {"as asked"}
    assert all(name.startswith("model.2") for name in taken.left)


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        ({"freeze": ["encoder"]}, Usage, "no weight begins with 'encoder'"),
        ({"prefix": "module.", "at_least": 1.0}, Fatal, "wanted 100%"),
    ],
)
def test_names_that_fit_nothing_are_an_error(tmp_path, changes, error, complaint):
    url = saved(unet(3, seed=1), tmp_path / "model.pt")
    with pytest.raises(error, match=complaint):
        start_from({"network": unet(2, seed=2)}, TransferConfig(url=url, **changes))


def test_a_network_of_another_kind_is_one_clear_error(tmp_path):
    url = saved(torch.nn.Linear(3, 4), tmp_path / "model.pt")
    with pytest.raises(Fatal, match=r"0 fit.*there: weight, bias; here: model\.0") as caught:
        start_from({"network": unet(2, seed=2)}, TransferConfig(url=url))
    assert "\n" not in str(caught.value)


def test_what_is_no_file_of_weights_is_one_clear_error(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"no weights")
    with pytest.raises(Fatal, match="no file of weights"):
        start_from({"network": unet(2, seed=2)}, TransferConfig(url=str(tmp_path / "model.pt")))
    with pytest.raises(Usage, match="no file"):
        start_from({"network": unet(2, seed=2)}, TransferConfig(url=str(tmp_path / "none.pt")))
    with pytest.raises(Usage, match="no run, no checkpoint"):
        start_from({"network": unet(2, seed=2)}, TransferConfig(url=str(tmp_path)))


def test_code_in_a_file_of_weights_is_never_run(tmp_path):
    path, buffer = tmp_path / "model.pt", io.BytesIO()
    torch.save({"weight": Path("x")}, buffer)  # a class that is neither tensor nor plain value
    path.write_bytes(buffer.getvalue())
    with pytest.raises(Fatal, match="without running its code"):
        start_from({"network": unet(2, seed=2)}, TransferConfig(url=str(path)))


@pytest.fixture
def blobs(tiny_archive):
    """Six scans with a bright block in grey noise."""
    volumes = {}
    for number in range(6):
        rng = np.random.default_rng(number)
        z, y, x = rng.integers(2, 12, 3)
        block = np.zeros(SHAPE, np.uint8)
        block[z : z + 9, y : y + 12, x : x + 12] = 1
        volumes[f"{number:016x}"] = (rng.normal(-800, 40, SHAPE) + 700.0 * block, {"block": block})
    return tiny_archive(volumes)


def test_pretraining_recipe_fills_holes_better_than_their_mean_and_finetuning_builds_on_it(blobs, train_task, tmp_path):
    small = {"spacing_zyx_mm": None, "patch_zyx": [16, 16, 16], "network": UNET.model_dump(), "learning_rate": 0.01}
    scan_ids = blobs.scan_ids()
    first = load_config("pretraining", TrainConfig, {**small, "pretraining": {"block_zyx": [4, 4, 4], "hidden": 0.5}})
    task = make_task(first, [])
    networks, losses = train_task(task, first, blobs, scan_ids[:4], steps=60)
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    scores = task.score([task.examine(networks, blobs, scan_id) for scan_id in scan_ids[4:]])
    assert scores["masked_mse"] < 0.7 * scores["masked_mse/mean"]

    url = saved(networks["network"], tmp_path / "model.pt")
    second = load_config(
        "finetuning", TrainConfig, {**small, "labels": ["block"], "contains": {}, "start_from": {"url": url}}
    )
    task = make_task(second, [])
    networks, losses = train_task(task, second, blobs, scan_ids[:4], steps=60)
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    shares = [float(blobs.scan(scan_id).label("block").read().result().mean()) for scan_id in scan_ids[4:]]
    everything = np.mean([2 * share / (1 + share) for share in shares])  # Dice of calling every voxel a block
    scores = task.score([task.examine(networks, blobs, scan_id) for scan_id in scan_ids[4:]])
    assert scores["dice"] > everything + 0.2


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (
            {"task": "pretraining", "patch_zyx": [64, 64, 64], "pretraining": {"block_zyx": [8, 8, 12]}},
            "not a multiple",
        ),
        ({"task": "pretraining", "pretraining": {"hidden": 1.0}}, r"pretraining\.hidden"),
        ({"labels": ["block"], "start_from": {}}, r"start_from\.url"),
    ],
)
def test_settings_that_could_not_work_are_usage_errors(values, complaint):
    with pytest.raises(Usage, match=complaint):
        make_config(TrainConfig, values)
