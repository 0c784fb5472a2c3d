"""What runs a network: PyTorch, OpenVINO or ONNX Runtime, each checked against PyTorch before it is used.

On a CPU windows go through one at a time: a batch gains nothing there, takes its multiple of memory, and would let what
a window gets depend, in the last bits, on the windows beside it. On a GPU a batch goes through together.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tomoray.errors import Fatal, Usage
from tomoray.inference.batcher import Forward, Tensors

Backend = Literal["torch", "openvino", "onnxruntime"]

PARITY = 1e-3  # of class probabilities, between a backend and PyTorch
FASTEST_FIRST: tuple[Backend, ...] = ("openvino", "onnxruntime", "torch")  # on CPUs: docs/inference.md
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """A network that is ready to run.

    Attributes:
        forward: runs it.
        backend: what runs it.
        difference: between its outputs and PyTorch's, at most, for random input; 0 for PyTorch itself.
    """

    forward: Forward
    backend: Backend
    difference: float


def compile_network(
    network: nn.Module,
    example: Tensors,
    backend: Literal["auto", "torch", "openvino", "onnxruntime"],
    *,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    cache: Path | None = None,
) -> Compiled:
    """The network by the backend that is asked for, compared with PyTorch.

    Args:
        network: gives one output for each row of the inputs, in a tensor or a tuple of them.
        example: inputs of one row each.
        backend: `auto` takes the first of `FASTEST_FIRST` that is installed, can run the network and agrees; on a GPU
            PyTorch. Always the same on the same kind of machine, so that replicas answer alike.
        device: where it runs.
        threads: of the CPU; None: as many as PyTorch was told.
        cache: a file that keeps what OpenVINO makes of the network; None: it is made anew each time.

    Raises:
        Usage: the backend is not installed, or does not run where it is asked to.
        Fatal: it cannot run this network, or differs from PyTorch by more than `PARITY`.
    """
    on_gpu = torch.device(device).type != "cpu"
    if on_gpu and backend not in ("auto", "torch"):
        raise Usage(f"backend {backend} runs on CPUs here; for a GPU wanted torch or auto")
    wanted: Sequence[Backend] = FASTEST_FIRST if backend == "auto" else (backend,)
    if on_gpu or wanted == ("torch",):
        return Compiled(forward=eager(network, device), backend="torch", difference=0.0)
    reference = eager(network, device)
    for name in wanted:
        if name == "torch":
            return Compiled(forward=reference, backend="torch", difference=0.0)
        try:
            _require(name)
            compiled = _COMPILERS[name](network.eval(), example, threads or torch.get_num_threads(), cache)
            return Compiled(forward=compiled, backend=name, difference=_checked(name, compiled, reference, example))
        except Fatal as error:
            if backend != "auto":
                raise
            _log.warning("%s; trying the next backend", error)
    raise AssertionError("PyTorch runs every network")


def compile_onnx(model: bytes, backend: Literal["auto", "torch", "openvino", "onnxruntime"], threads: int) -> Compiled:
    """An ONNX file by the backend that is asked for; where both are installed, compared with ONNX Runtime.

    Raises:
        Usage: the backend is PyTorch, or not installed.
    """
    if backend == "torch":
        raise Usage("PyTorch does not run ONNX files; serve the run itself, or choose backend openvino or onnxruntime")
    there = [name for name in ("openvino", "onnxruntime") if importlib.util.find_spec(name) is not None]
    name: Any = there[0] if backend == "auto" and there else backend
    _require("onnxruntime" if name == "auto" else name)
    forward = _onnx_session(model, threads) if name == "onnxruntime" else _openvino_request(io.BytesIO(model), threads)
    return Compiled(forward=forward, backend=name, difference=0.0)


def eager(network: nn.Module, device: str | torch.device = "cpu") -> Forward:
    """A module as it is: row by row on a CPU, all rows together elsewhere."""
    placed = network.to(device).eval()
    on_cpu = torch.device(device).type == "cpu"

    def forward(inputs: Tensors) -> Tensors:
        if not on_cpu:
            return tuple(part.float().cpu() for part in _as_tuple(placed(*(part.to(device) for part in inputs))))
        return _by_row(lambda row: _as_tuple(placed(*row)), inputs)

    return forward


def traced(network: nn.Module, inputs: Tensors, *, any_batch: bool = True) -> ExportedProgram:
    """`torch.export`; for batches of any size, or of that of `inputs` only. Raises `Fatal` where it fails."""
    shapes = tuple({0: Dim("batch")} for _ in inputs) if any_batch else None
    try:
        with quiet():
            return torch.export.export(network, inputs, dynamic_shapes=shapes)
    except Exception as error:  # torch.export has many classes of its own for what it cannot trace
        line = " ".join(str(error).split())[:300]
        raise Fatal(f"torch.export cannot trace this network ({type(error).__name__}): {line}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch says of itself (parts deprecated, no torchvision) and of DynUNet's note of its deep heads."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", "The tensor attributes .* were assigned during export", UserWarning)
            yield
    finally:
        logger.setLevel(level)


def _checked(name: str, forward: Forward, reference: Forward, example: Tensors) -> float:
    """The largest difference for two random inputs, a bright and a dark one. Raises `Fatal` where it is too large.

    A constant input would not do: instance norm divides what rounding leaves of it by next to nothing.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = [tuple(torch.rand(part.shape, generator=generator) * top for part in example) for top in (1.0, 0.3)]
    with torch.inference_mode():
        pairs = [pair for each in inputs for pair in zip(forward(each), reference(each), strict=True)]
    largest = max(float((found - wanted).abs().max()) for found, wanted in pairs)
    if not largest <= PARITY:  # NaN is no agreement
        raise Fatal(f"{name} differs from PyTorch by {largest:.2g} for this network; wanted {PARITY:g} at most")
    return largest


def _openvino(network: nn.Module, example: Tensors, threads: int, cache: Path | None) -> Forward:
    import openvino  # an extra, and slow to load

    if cache is not None and cache.is_file():
        return _openvino_request(cache, threads)
    program = traced(network, example, any_batch=False)
    try:
        with quiet():
            model = openvino.convert_model(program)
    except Exception as error:  # its own, by operation
        raise Fatal(f"OpenVINO cannot convert this network ({type(error).__name__})") from error
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent) as folder:  # whole or not there: .xml comes last
            openvino.save_model(model, Path(folder, cache.name), compress_to_fp16=False)
            Path(folder, cache.with_suffix(".bin").name).rename(cache.with_suffix(".bin"))
            Path(folder, cache.name).rename(cache)
    return _openvino_request(model, threads)


def _openvino_request(model: Any, threads: int) -> Forward:
    import openvino

    core = openvino.Core()
    if isinstance(model, Path | io.BytesIO):
        model = core.read_model(model)
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def run(row: Tensors) -> Tensors:
        found = request.infer([part.contiguous().numpy() for part in row], share_inputs=True)
        return tuple(torch.from_numpy(found[n].copy()) for n in range(len(found)))

    return lambda inputs: _by_row(run, inputs)


def _onnxruntime(network: nn.Module, example: Tensors, threads: int, _: Path | None) -> Forward:
    program = traced(network, example, any_batch=False)
    with quiet():
        exported = torch.onnx.export(program, dynamo=True, verbose=False)
    assert exported is not None  # it is None only where a file was named
    return _onnx_session(exported.model_proto.SerializeToString(), threads)


def _onnx_session(model: bytes, threads: int) -> Forward:
    import onnxruntime  # an extra, and slow to load

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [wanted.name for wanted in session.get_inputs()]

    def run(row: Tensors) -> Tensors:
        fed = {name: part.contiguous().numpy() for name, part in zip(names, row, strict=True)}
        return tuple(torch.from_numpy(part) for part in session.run(None, fed))

    return lambda inputs: _by_row(run, inputs)


def _by_row(run: Callable[[Tensors], Tensors], inputs: Tensors) -> Tensors:
    rows = [run(tuple(part[n : n + 1] for part in inputs)) for n in range(len(inputs[0]))]
    return rows[0] if len(rows) == 1 else tuple(torch.cat(column) for column in zip(*rows, strict=True))


def _as_tuple(found: Tensor | Tensors) -> Tensors:
    return (found,) if isinstance(found, Tensor) else tuple(found)


def _require(name: str) -> None:
    wanted = {"openvino": ("openvino",), "onnxruntime": ("onnxruntime", "onnx", "onnxscript")}.get(name, ())
    for package in wanted:
        if importlib.util.find_spec(package) is None:
            raise Usage(f"backend {name} wants the package {package}; pip install 'tomoray[serving,export]'")


_COMPILERS: dict[str, Callable[[nn.Module, Tensors, int, Path | None], Forward]] = {
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
}
