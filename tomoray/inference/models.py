"""What can be asked: a finished run, several together, a MONAI bundle or an ONNX file, on a path or S3.

What goes in and comes out of a file that `tomoray export` wrote stands in its `tomoray.json`, with the digests of the
files beside it. A bundle made elsewhere says it in its own configs (`bundle_configs`), and names no digest.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from tomoray import settings
from tomoray.config import make_config
from tomoray.errors import Fatal, Usage
from tomoray.inference.backends import Compiled, compile_network, compile_onnx
from tomoray.inference.batcher import Tensors
from tomoray.inference.bundle_configs import METADATA, BundleFacts
from tomoray.inference.bundles import load_bundle, open_bundle
from tomoray.predict import Probabilities, Segmenter, check_alike, load_network
from tomoray.runs import FINISHED, STARTED, Run, model_digest, open_run
from tomoray.storage import Store, open_store
from tomoray.training.config import TrainConfig
from tomoray.training.transfer import BUNDLE_MODEL

ABOUT, PROGRAM = "tomoray.json", "models/model.pt2"
BackendName = Literal["auto", "torch", "openvino", "onnxruntime"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model by its facts; the weights are read when it is loaded.

    Attributes:
        url: where it was found.
        config: how it was trained, or as much of it as prediction needs.
        sha256: of its weights, or of all of them together.
        store: its folder; of several runs, the first one's.
        runs: whose weights it is; empty for a file.
        key: of the file in `store`, otherwise.
        bundle: what a bundle that was made elsewhere says of that file.
    """

    url: str
    config: TrainConfig
    sha256: str
    store: Store
    runs: tuple[Run, ...] = ()
    key: str = ""
    bundle: BundleFacts | None = None

    @property
    def urls(self) -> tuple[str, ...]:
        """What `open_model` takes, anywhere: the first as its source, the others as its ensemble."""
        return tuple(run.store.url for run in self.runs) or (self.url,)

    @property
    def config_sha256(self) -> str | None:
        """Of what stands beside the weights of a bundle or an ONNX file, where anybody may edit it; None for runs."""
        if self.runs:
            return None
        facts = json.dumps([self.config.model_dump(mode="json"), str(self.bundle)], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()

    @property
    def temperature(self) -> float | None:
        """What a classifier's probabilities are calibrated with; None where validation was too small for one."""
        if self.config.task != "classification" or not self.runs:
            return None
        found = (self.runs[0].metrics.get("validation") or {}).get("temperature")
        return None if found is None else float(found)

    def read(self) -> bytes:
        """The file of a bundle or ONNX model. Raises `Fatal` where it is not the one that `sha256` names."""
        try:
            data = self.store.read(self.key)
        except FileNotFoundError as error:
            raise Fatal(f"{self.url} has lost its model {self.key}; put it there again") from error
        found = hashlib.sha256(data).hexdigest()
        if found != self.sha256:
            raise Fatal(f"the model {self.key} of {self.url} has sha256 {found[:12]}…, wanted {self.sha256[:12]}…")
        return data


def open_model(source: str, *, sha256: str | None = None, ensemble: Sequence[str] = ()) -> Model:
    """The facts of a model, without its weights.

    Args:
        source: a run, a bundle's folder, or an `.onnx` file.
        sha256: of the weights that are wanted; None: those that the source itself names.
        ensemble: more runs, asked together with `source`.

    Raises:
        Fatal: there is no such thing, or its weights are others.
        Usage: an ensemble of other things than runs, or of runs that differ in what they find; or a bundle says what
            is not understood.
    """
    model = _open_file(source) or _open_runs([source, *ensemble])
    if ensemble and not model.runs:
        raise Usage(f"{source} is no run, and only runs can be asked together; leave ensemble out")
    if sha256 is not None and model.sha256 != sha256:
        raise Fatal(f"{source} has sha256 {model.sha256[:12]}…, wanted {sha256[:12]}…: it is another model")
    return model


def compile_segmenter(
    model: Model, backend: BackendName = "auto", *, device: str | torch.device = "cpu", threads: int | None = None
) -> tuple[Segmenter, Compiled]:
    """A segmenter that runs by the backend that is asked for, and what that is.

    Raises:
        Fatal: the weights are damaged or do not fit, or the backend disagrees with PyTorch.
        Usage: the model is of another task, or the backend is not installed.
    """
    if model.key.endswith(".onnx"):
        compiled = compile_onnx(model.read(), backend, threads or torch.get_num_threads())
        scores = compiled.forward

        def forward(inputs: Tensors) -> Tensors:
            return tuple(part.softmax(dim=1) for part in scores(inputs))

        return Segmenter(forward, model.config), compiled
    example = (torch.zeros(1, 1, *model.config.patch_zyx),)
    compiled = compile_network(
        _probabilities(model), example, backend, device=device, threads=threads, cache=_cache(model)
    )
    return Segmenter(compiled.forward, model.config), compiled


def read_weights(model: Model) -> dict[str, Any]:
    """The weights of a single run, by name. Raises `Usage` for anything else, and `Fatal` where they are damaged."""
    if len(model.runs) != 1:
        raise Usage(f"{model.url}: a model of {model.config.task} is one run, not an ensemble or a file")
    weights: dict[str, Any] = torch.load(io.BytesIO(model.runs[0].read_model()), map_location="cpu", weights_only=True)
    return weights


def _probabilities(model: Model) -> nn.Module:
    if model.runs:
        return Probabilities([load_network(run) for run in model.runs])
    if model.bundle is not None:
        return Probabilities([load_bundle(model.bundle, model.read())])
    program: Any = torch.export.load(io.BytesIO(model.read()))
    return Probabilities([_Program(program.module())])


class _Program(nn.Module):
    """A program of `torch.export`, which has no `eval` of its own: it is in that mode for good."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self._run = [program]  # in a list, so that `train` and `eval` do not reach it

    def forward(self, windows: torch.Tensor) -> Any:
        return self._run[0](windows)


def _open_runs(urls: Sequence[str]) -> Model:
    runs = tuple(open_run(url) for url in urls)
    check_alike(runs)
    store = runs[0].store
    return Model(url=store.url, config=runs[0].config, sha256=model_digest(runs), store=store, runs=runs)


def _open_file(source: str) -> Model | None:
    """A bundle or an ONNX file; None where `source` is neither."""
    folder, _, name = source.rstrip("/").rpartition("/")
    if name.endswith(".onnx"):
        store, key = open_store(folder or "."), name
    else:
        store, key = open_store(source), PROGRAM
        if store.exists(FINISHED) or store.exists(STARTED):
            return None
        if not store.exists(ABOUT):
            return _open_bundle(store) if store.exists(METADATA) else None
    store.check()
    try:
        about = json.loads(store.read(ABOUT))
    except FileNotFoundError as error:
        raise Fatal(f"{store.url} has no {ABOUT} beside {key}; export the run again: tomoray export RUN") from error
    digests = about.get("files", {})
    if key not in digests:
        raise Fatal(f"{store.url}/{ABOUT} says nothing of {key}; export the run again: tomoray export RUN")
    url = store.url if key == PROGRAM else f"{store.url}/{key}"
    config = _config(_values(about), f"{store.url}/{ABOUT}")
    return Model(url=url, config=config, sha256=digests[key], store=store, key=key)


def _open_bundle(store: Store) -> Model:
    """A bundle that was made elsewhere."""
    try:
        weights = store.read(BUNDLE_MODEL)
    except FileNotFoundError as error:
        raise Fatal(f"{store.url} has no {BUNDLE_MODEL}; a bundle's TorchScript is not run") from error
    bundle = open_bundle(store, weights)
    return Model(
        url=store.url,
        config=_config(bundle.values, store.url),
        sha256=hashlib.sha256(weights).hexdigest(),
        store=store,
        key=BUNDLE_MODEL,
        bundle=bundle,
    )


def _values(about: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a training config that prediction needs, from what `tomoray.export.describe` wrote."""
    into, out, windows = about["input"], about["output"], about["windows"]
    return {
        "labels": [name for _, name in sorted(out["labels"].items(), key=lambda item: int(item[0]))][1:],
        "contains": out["contains"],
        "spacing_zyx_mm": into["spacing_zyx_mm"],
        "patch_zyx": into["shape"][2:],
        "hu_window": into["hu_window"],
        "overlap": windows["overlap"],
        "mirror_when_predicting": windows["mirror"],
        "skip_air": windows["skip_air"],
    }


def _config(values: Mapping[str, Any], where: str) -> TrainConfig:
    network = {"channels": [1, 2], "norm": "batch"}  # not built: any that has no wishes of its own
    return make_config(TrainConfig, {**values, "network": network}, where)


def _cache(model: Model) -> Path | None:
    """Where this node keeps what OpenVINO makes of the model: another for other weights or releases."""
    releases = [version("torch")]
    try:
        releases.append(version("openvino"))
    except PackageNotFoundError:
        return None
    facts = json.dumps([model.sha256, model.config.patch_zyx, str(model.bundle), *releases])
    return settings.cache_folder() / "openvino" / f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.xml"
