import io
import json
from typing import get_args

import nibabel
import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle import ConfigParser
from monai.bundle import load as load_bundle

from tomoray.catalog import Split
from tomoray.errors import Fatal, Usage
from tomoray.export import PARITY, describe, export_run
from tomoray.geometry import Geometry
from tomoray.metrics import dice
from tomoray.networks import build_network
from tomoray.predict import load_network, load_segmenter
from tomoray.runs import begin_run, finish_run
from tomoray.storage import open_store
from tomoray.training.config import TrainConfig
from tomoray.training.network_config import NetworkConfig

NETWORKS = {
    "unet": {"channels": [4, 8]},
    "attention_unet": {"channels": [4, 8]},
    "ra_unet": {"channels": [4, 8, 16], "deep_supervision": True},
    "cab_unet": {"channels": [4, 8, 16]},
    "segresnet": {"channels": [8, 16]},
    "dynunet": {"channels": [4, 8, 16], "deep_supervision": True},
    "swin_unetr": {"channels": [12, 24, 48, 96], "residual_units": 1},
}


def make_run(folder, name="unet"):
    torch.manual_seed(0)
    network = NetworkConfig(name=name, **NETWORKS[name])
    store = open_store(str(folder))
    config = TrainConfig(
        archive="a",
        out=store.url,
        labels=["lungs", "nodules"],
        patch_zyx=patch_of(name),
        hu_window=(-500, 500),
        network=network,
        steps=1,
    )
    split = Split(train=("p1",), validation=(), test=())
    begin_run(store, config, split)
    weights = io.BytesIO()
    torch.save(build_network(config.network, 3).state_dict(), weights)
    store.write("checkpoints/step-00000001/model.pt", weights.getvalue())
    return finish_run(store, config, split, {})


def patch_of(name):
    return (64, 32, 32) if name == "swin_unetr" else (16, 16, 16)


def scores_of(run, patches):
    with torch.no_grad():
        return load_network(run).eval()(patches).numpy()


def patches_for(name):
    return torch.rand(4, 1, *patch_of(name), generator=torch.Generator().manual_seed(7))


def test_every_network_is_tried():
    assert set(NETWORKS) == set(get_args(NetworkConfig.model_fields["name"].annotation))


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_gives_the_scores_of_the_checkpoint_for_any_batch(name, tmp_path):
    run, patches = make_run(tmp_path / "run", name), patches_for(name)
    exported = export_run(run, open_store(str(tmp_path / "out")), "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    found = session.run(["scores"], {"image": patches.numpy()})[0]
    np.testing.assert_allclose(found, scores_of(run, patches), atol=PARITY, rtol=0)
    assert exported.largest_difference <= PARITY
    within = json.loads(session.get_modelmeta().custom_metadata_map["tomoray"])
    beside = json.loads((tmp_path / "out" / "tomoray.json").read_text())
    assert beside == within | {"files": {"model.onnx": exported.files["model.onnx"]}}
    assert within == describe(run)
    assert within["output"]["labels"] == {"0": "background", "1": "lungs", "2": "nodules"}
    assert (within["input"]["hu_window"], within["model_sha256"]) == ([-500, 500], run.model_sha256)


@pytest.mark.parametrize("name", NETWORKS)
def test_program_gives_the_scores_of_the_checkpoint_for_any_batch(name, tmp_path):
    run, patches = make_run(tmp_path / "run", name), patches_for(name)
    export_run(run, open_store(str(tmp_path / "out")), "torch-export")
    extra = {"tomoray.json": ""}
    program = torch.export.load(tmp_path / "out" / "model.pt2", extra_files=extra)
    with torch.no_grad():
        found = program.module()(patches).numpy()
    np.testing.assert_allclose(found, scores_of(run, patches), atol=PARITY, rtol=0)
    assert json.loads(extra["tomoray.json"]) == describe(run)


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")  # MONAI tries every reader it has
@pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")  # MONAI: any bundle may run any code
def test_monai_loads_and_runs_the_bundle(tmp_path, monkeypatch):
    run, patches = make_run(tmp_path / "run"), patches_for("unet")
    export_run(run, open_store(str(tmp_path / "bundles" / "lungs")), "monai-bundle")
    root, scans, out = tmp_path / "bundles" / "lungs", tmp_path / "scans", tmp_path / "masks"
    monkeypatch.chdir(root)
    network = load_bundle("lungs", bundle_dir=str(tmp_path / "bundles"), workflow_type="inference")
    with torch.no_grad():
        np.testing.assert_allclose(network(patches).numpy(), scores_of(run, patches), atol=PARITY, rtol=0)
    image = (
        np.random.default_rng(0).normal(0, 300, (28, 16, 40)).astype(np.int16)
    )  # x, y, z; MONAI cuts the same windows
    scans.mkdir()
    nibabel.save(nibabel.Nifti1Image(image, np.diag([-2.0, -2, 3, 1])), scans / "one.nii.gz")
    parser = ConfigParser()
    parser.read_config(root / "configs" / "inference.json")
    parser.update({"bundle_root": str(root), "dataset_dir": str(scans), "output_dir": str(out)})
    parser.get_parsed_content("run")
    (written,) = out.rglob("*.nii.gz")
    found = np.asarray(nibabel.load(written).dataobj)
    geometry = Geometry.from_matrix((40, 16, 28), np.diag([2.0, 2, 3, 1]))
    masks = load_segmenter(run).segment(np.ascontiguousarray(image.T), geometry)
    for number, label in enumerate(run.config.labels, start=1):
        assert dice((found == number).astype(np.uint8), np.ascontiguousarray(masks[label].T)) > 0.95  # of noise


def test_an_export_that_differs_is_not_written(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    monkeypatch.setattr("tomoray.export.PARITY", -1.0)
    with pytest.raises(Fatal, match=r"differs from its checkpoint by .*; nothing was written"):
        export_run(run, open_store(str(tmp_path / "out")), "torch-export")
    assert not list((tmp_path / "out").glob("*"))


def test_onnx_without_its_extra_says_what_to_install(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Usage, match=r"wants the package onnx; install it with: pip install 'tomoray\[export\]'"):
        export_run(run, open_store(str(tmp_path / "out")), "onnx")
