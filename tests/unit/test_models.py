from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import pytest
import torch
from torch import nn

from tomoray.catalog import Split
from tomoray.errors import Fatal, Usage
from tomoray.export import export_run
from tomoray.geometry import Geometry
from tomoray.inference.backends import PARITY, compile_network
from tomoray.inference.models import compile_segmenter, open_model
from tomoray.networks import build_network
from tomoray.predict import Probabilities
from tomoray.runs import begin_run, finish_run
from tomoray.storage import open_store
from tomoray.training.config import TrainConfig


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TOMORAY_CACHE", str(tmp_path / "cache"))


def make_run(folder, seed=0):
    store, split = open_store(str(folder)), Split(train=("p1",), validation=(), test=())
    config = TrainConfig(
        archive="a",
        out=store.url,
        labels=["lungs", "nodules"],
        contains={"lungs": ["nodules"]},
        patch_zyx=(16, 16, 16),
        spacing_zyx_mm=(1.5, 1.5, 1.5),
        network={"channels": [4, 8]},
        steps=1,
    )
    torch.manual_seed(seed)
    begin_run(store, config, split)
    weights = io.BytesIO()
    torch.save(build_network(config.network, 3).state_dict(), weights)
    store.write("checkpoints/step-00000001/model.pt", weights.getvalue())
    return finish_run(store, config, split, {})


def scan():
    image = np.random.default_rng(0).integers(-900, 400, (20, 30, 25)).astype(np.int16)
    return image, Geometry.from_matrix(image.shape, np.diag([1.0, 1.0, 2.0, 1.0]))


def masks_of(url, backend="torch", **options):
    return compile_segmenter(open_model(str(url), **options), backend)[0].segment(*scan())


def share_alike(found, wanted):
    return min(float((found[label] == wanted[label]).mean()) for label in wanted)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("models") / "run")


@pytest.fixture(scope="module")
def exports(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    for form in ("onnx", "monai-bundle"):
        export_run(run, open_store(str(folder / form)), form)
    return folder


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_each_backend_gives_the_masks_of_pytorch(run, backend):
    segmenter, compiled = compile_segmenter(open_model(run.store.url), backend)
    assert compiled.backend == backend
    assert 0 < compiled.difference <= PARITY, "measured, and not with itself"
    assert share_alike(segmenter.segment(*scan()), masks_of(run.store.url)) > 0.999


def test_a_window_gets_the_same_whatever_is_beside_it(run):
    for backend in ("torch", "openvino", "onnxruntime"):
        forward = compile_segmenter(open_model(run.store.url), backend)[1].forward
        windows = torch.rand(5, 1, 16, 16, 16)
        with torch.inference_mode():
            together, alone = forward((windows,))[0], forward((windows[3:4],))[0]
        assert torch.equal(together[3:4], alone), backend


def test_a_second_load_takes_the_network_from_the_cache(run, tmp_path, monkeypatch):
    first = masks_of(run.store.url, "openvino")
    assert len(list((tmp_path / "cache" / "openvino").glob("*.xml"))) == 1
    monkeypatch.setattr("tomoray.inference.backends.traced", lambda *_, **__: pytest.fail("made anew"))
    assert share_alike(masks_of(run.store.url, "openvino"), first) == 1


class Wrong(nn.Module):
    """Says something else where nobody traces it."""

    def forward(self, image):
        return image if torch.compiler.is_compiling() else image + 0.01


def test_a_backend_that_disagrees_with_pytorch_is_refused_and_auto_takes_another():
    example = (torch.zeros(1, 1, 8, 8, 8),)
    with pytest.raises(Fatal, match=r"openvino differs from PyTorch by 0\.01 for this network; wanted 0\.001 at most"):
        compile_network(Wrong(), example, "openvino")
    assert compile_network(Wrong(), example, "auto").backend == "torch"


@pytest.mark.parametrize("form", ["onnx/model.onnx", "monai-bundle"])
def test_exports_give_the_masks_of_the_run(run, exports, form):
    model = open_model(str(exports / form))
    assert model.config.labels == ["lungs", "nodules"]
    assert share_alike(masks_of(exports / form, "openvino"), masks_of(run.store.url)) > 0.999


@pytest.mark.parametrize(("form", "file"), [("onnx/model.onnx", "model.onnx"), ("monai-bundle", "models/model.pt2")])
def test_a_changed_file_is_refused(run, tmp_path, form, file):
    folder = form.partition("/")[0]
    export_run(run, open_store(str(tmp_path / folder)), folder)
    with (tmp_path / folder / file).open("ab") as out:
        out.write(b"more")
    with pytest.raises(Fatal, match=r"has sha256 .*, wanted"):
        compile_segmenter(open_model(str(tmp_path / form)), "auto")


def test_another_digest_than_the_wanted_one_is_refused(run, exports):
    digest = hashlib.sha256((exports / "onnx" / "model.onnx").read_bytes()).hexdigest()
    assert open_model(str(exports / "onnx" / "model.onnx"), sha256=digest).sha256 == digest
    assert open_model(run.store.url, sha256=run.model_sha256).sha256 == run.model_sha256
    with pytest.raises(Fatal, match="it is another model"):
        open_model(run.store.url, sha256="0" * 64)


def test_runs_are_asked_together_and_files_are_not(run, exports, tmp_path):
    other = make_run(tmp_path / "other", seed=1)
    together = open_model(run.store.url, ensemble=[other.store.url])
    assert together.sha256 not in (run.model_sha256, other.model_sha256)
    windows = torch.rand(1, 1, 16, 16, 16)
    with torch.inference_mode():
        alone = [
            compile_segmenter(open_model(each.store.url), "torch")[1].forward((windows,))[0] for each in (run, other)
        ]
        both = compile_segmenter(together, "torch")[1].forward((windows,))[0]
    torch.testing.assert_close(both, sum(alone) / 2)
    with pytest.raises(Usage, match="only runs can be asked together"):
        open_model(str(exports / "monai-bundle"), ensemble=[run.store.url])


def test_an_onnx_file_without_its_facts_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(Fatal, match=r"has no tomoray\.json beside model\.onnx"):
        open_model(str(tmp_path / "model.onnx"))
    (tmp_path / "tomoray.json").write_text(json.dumps({}))
    with pytest.raises(Fatal, match=r"says nothing of model\.onnx"):
        open_model(str(tmp_path / "model.onnx"))


def test_pytorch_does_not_run_onnx(exports):
    with pytest.raises(Usage, match="PyTorch does not run ONNX files"):
        compile_segmenter(open_model(str(exports / "onnx" / "model.onnx")), "torch")


def test_probabilities_of_several_networks_are_their_mean():
    scores = nn.Conv3d(1, 3, 1)
    windows = torch.rand(2, 1, 4, 4, 4)
    torch.testing.assert_close(Probabilities([scores])(windows), Probabilities([scores, scores])(windows))
