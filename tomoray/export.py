"""A run's network for use elsewhere: as ONNX, as a PyTorch program, or as a MONAI bundle.

    torch-export     OUT/model.pt2, OUT/tomoray.json                PyTorch opens it, without TomoRay or MONAI
    onnx             OUT/model.onnx, OUT/tomoray.json               any ONNX runtime
    monai-bundle     OUT/configs, OUT/models, OUT/docs              `python -m monai.bundle run`

What is exported takes patches of the run's own size, as many at once as one likes, and gives scores. It is compared
with the checkpoint before anything is written. `tomoray.json` says what goes in and what comes out, which each of the
files holds as well, and the SHA-256 of every file beside it: serving checks them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tomoray import __version__
from tomoray.bundle import bundle_files
from tomoray.errors import Fatal, Usage
from tomoray.inference.backends import quiet, traced
from tomoray.predict import load_network
from tomoray.runs import Run
from tomoray.storage import Store

Format = Literal["torch-export", "onnx", "monai-bundle"]

PARITY = 1e-4  # of scores; what a network's own arithmetic in another order leaves is near 1e-6
ABOUT = "tomoray.json"
_BATCHES = (1, 2, 3)  # compared; the program is traced with two


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        files: SHA-256 of each, by its key below the folder.
        largest_difference: between scores of the export and of the checkpoint, over random patches.
        about: what `tomoray.json` says.
    """

    files: Mapping[str, str]
    largest_difference: float
    about: Mapping[str, Any]


def export_run(run: Run, out: Store, form: Format) -> Exported:
    """Write the network of a finished run to `out`. Safe to repeat.

    Raises:
        Usage: a package that the format wants is not installed.
        Fatal: the network cannot be exported, or what came out differs from the checkpoint by more than `PARITY`.
    """
    out.check()
    loaded: Any = load_network(run).eval()  # Module.to lacks memory_format in its types
    network: nn.Module = loaded.to(memory_format=torch.contiguous_format)  # as programs are stored
    about = describe(run)
    patches = [torch.rand(n, 1, *run.config.patch_zyx, generator=torch.Generator().manual_seed(n)) for n in _BATCHES]
    with torch.no_grad():
        wanted = [network(patch) for patch in patches]
    with tempfile.TemporaryDirectory(prefix="tomoray-") as folder:
        if form == "onnx":
            found = _write_onnx(network, patches, about, Path(folder, "model.onnx"))
        else:
            found = _write_program(network, patches, about, Path(folder, "model.pt2"))
        largest = max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))
        if not largest <= PARITY:  # NaN is no agreement
            raise Fatal(
                f"the {form} export of run {run.store.url} differs from its checkpoint by {largest:.2g}, more than "
                f"{PARITY:g}; nothing was written"
            )
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    if form == "monai-bundle":
        weights = io.BytesIO()
        torch.save(network.state_dict(), weights)
        files = bundle_files(run.config, about, program=files["model.pt2"], weights=weights.getvalue())
    digests = {key: hashlib.sha256(data).hexdigest() for key, data in files.items()}
    files[ABOUT] = _dump({**about, "files": digests})
    digests[ABOUT] = hashlib.sha256(files[ABOUT]).hexdigest()
    for key, data in files.items():
        out.write(key, data)
    return Exported(files=digests, largest_difference=largest, about=about)


def describe(run: Run) -> dict[str, Any]:
    """What a user of the network must know: its input, its output, and where it comes from. JSON."""
    config = run.config
    return {
        "input": {
            "name": "image",
            "axes": ["batch", "channel", "superior", "posterior", "left"],
            "shape": [None, 1, *config.patch_zyx],
            "spacing_zyx_mm": config.spacing_zyx_mm and list(config.spacing_zyx_mm),
            "hu_window": list(config.hu_window),
            "scale": "hu_window becomes 0 to 1, values outside are clipped; air outside of the scan",
        },
        "output": {
            "name": "scores",
            "axes": ["batch", "class", "superior", "posterior", "left"],
            "shape": [None, len(config.labels) + 1, *config.patch_zyx],
            "labels": {str(number): name for number, name in enumerate(["background", *config.labels])},
            "contains": config.contains,
            "scale": "softmax over classes gives probabilities",
        },
        "windows": {
            "overlap": config.overlap,
            "blend": "gaussian",
            "mirror": config.mirror_when_predicting,
            "skip_air": config.skip_air,
        },
        "model_sha256": run.model_sha256,
        "code_version": __version__,
    }


def _write_program(network: nn.Module, patches: list[Tensor], about: Mapping[str, Any], path: Path) -> list[Tensor]:
    """`torch.export`; the scores of the file read back."""
    program = traced(network, (patches[1],))
    torch.export.save(program, path, extra_files={ABOUT: _dump(about).decode()})
    reread: Any = torch.export.load(path).module()
    with torch.no_grad():
        return [reread(patch) for patch in patches]


def _write_onnx(network: nn.Module, patches: list[Tensor], about: Mapping[str, Any], path: Path) -> list[Tensor]:
    """ONNX, from the program of `torch.export`; the scores that ONNX Runtime finds."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise Usage(f"ONNX wants the package {package}; install it with: pip install 'tomoray[export]'")
    import onnxruntime  # an extra, and slow to load

    with quiet():
        program = torch.onnx.export(
            traced(network, (patches[1],)), dynamo=True, input_names=["image"], output_names=["scores"], verbose=False
        )
    assert program is not None  # it is None only where a file was named
    program.model.metadata_props["tomoray"] = json.dumps(about, sort_keys=True)
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(session.run(["scores"], {"image": patch.numpy()})[0]) for patch in patches]


def _dump(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()
