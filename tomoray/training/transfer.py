"""Start from weights that were trained before: those of a run, of a checkpoint, or of a MONAI bundle.

Weights are matched by name and shape. What has no match, such as the head of a network with other classes, keeps its
random weights, and it is said how many; nothing at all is an error. Frozen stages are not trained.
"""

from __future__ import annotations

import io
import logging
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from tomoray.errors import Fatal, Usage
from tomoray.runs import FINISHED, STARTED, open_run
from tomoray.storage import open_store
from tomoray.training.config import TransferConfig

BUNDLE_MODEL = "models/model.pt"

_log = logging.getLogger(__name__)
_WRAPPERS = ("state_dict", "model", "network", "net", "model_state_dict")  # keys under which others keep the weights
_SHOWN = 3

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """What a network took over.

    Attributes:
        taken: names of weights that it took; numbers, such as running means, included.
        left: names of its own that it did not, and why.
        unused: names there that fit nothing here.
        frozen: names of its own that will not be trained.
        share: of its numbers, those that were taken.
    """

    taken: tuple[str, ...]
    left: Mapping[str, str]
    unused: tuple[str, ...]
    frozen: tuple[str, ...]
    share: float

    def __str__(self) -> str:
        said = (
            f"{len(self.taken)} of {len(self.taken) + len(self.left)} weights taken ({self.share:.0%} of the numbers)"
        )
        for what, names in (
            ("left random", [f"{name} ({why})" for name, why in self.left.items()]),
            ("not used", list(self.unused)),
            ("frozen", list(self.frozen)),
        ):
            if names:
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                said += f"; {len(names)} {what}: {', '.join(names[:_SHOWN])}{more}"
        return said


def start_from(networks: Mapping[str, nn.Module], config: TransferConfig) -> dict[str, Taken]:
    """Put the weights that `config` names into `networks`, and freeze what it names. Safe to repeat.

    Call it before the optimizer is made and before networks are wrapped for several workers. Frozen modules stay in
    `eval` mode, so that their running statistics rest too.

    Returns:
        What each network took over; also logged, a line each. Networks for which there is nothing are absent.

    Raises:
        Usage: no such place, or names in the config that fit nothing.
        Fatal: nothing there fits, or less than `config.at_least`.
    """
    found = read_weights(config.url)
    taken = {}
    for name, network in networks.items():
        weights = _meant_for(name, len(networks), found, config)
        if weights is None:
            continue
        taken[name] = _take(network, weights, config)
        _log.warning("network %r starts from %s: %s", name, config.url, taken[name])
    if not taken:
        raise Usage(
            f"{config.url} holds networks {', '.join(found)} and {', '.join(networks)} are wanted; name one in "
            f"start_from.network"
        )
    return taken


def read_weights(url: str) -> dict[str, dict[str, Tensor]]:
    """The weights at `url`, on the CPU: of a network without a name as `""`.

    Args:
        url: a finished run, a file of PyTorch, or a MONAI bundle: a folder or zip with `models/model.pt`, where a zip
            may hold one folder around it.

    Raises:
        Usage: there is none of these.
        Fatal: what is there cannot be read as weights. Nothing but tensors is unpickled.
    """
    parent, _, name = url.rstrip("/").rpartition("/")
    if name.endswith((".pt", ".pth", ".zip")):
        try:
            data = open_store(parent or ".").read(name)
        except FileNotFoundError as error:
            raise Usage(f"start_from.url: no file {url}") from error
        return weights_in(_model_in_zip(data, url) if name.endswith(".zip") else data, url)
    store = open_store(url)
    if store.exists(FINISHED) or store.exists(STARTED):
        return weights_in(open_run(url).read_model(), url)
    try:
        return weights_in(store.read(BUNDLE_MODEL), url)
    except FileNotFoundError as error:
        raise Usage(
            f"start_from.url: {url} is no run, no checkpoint (.pt) and no MONAI bundle ({BUNDLE_MODEL} in a folder or "
            f"zip)"
        ) from error


def weights_in(data: bytes, url: str) -> dict[str, dict[str, Tensor]]:
    """Networks by name, from one file; one without a name is `""`. Raises `Fatal` where it holds none.

    Nothing but tensors is unpickled.
    """
    try:
        stored: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise Fatal(
            f"{url} is no file of weights that can be read without running its code; save a state_dict with torch.save"
        ) from error
    for key in _WRAPPERS:
        if isinstance(stored, dict) and isinstance(stored.get(key), dict):
            stored = stored[key]
    if isinstance(stored, dict) and stored and all(isinstance(value, dict) for value in stored.values()):
        return {str(name): _tensors(weights) for name, weights in stored.items()}
    weights = _tensors(stored) if isinstance(stored, dict) else {}
    if not weights:
        raise Fatal(f"{url} holds {type(stored).__name__} without weights; wanted a state_dict")
    return {"": weights}


def _tensors(stored: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(name): value for name, value in stored.items() if isinstance(value, Tensor)}


def _model_in_zip(data: bytes, url: str) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            inside = [name for name in packed.namelist() if PurePosixPath(name).match(BUNDLE_MODEL)]
            if inside:
                return packed.read(min(inside, key=len))
    except zipfile.BadZipFile as error:
        raise Fatal(f"{url} is no whole zip file; copy it again") from error
    raise Usage(f"start_from.url: {url} holds no {BUNDLE_MODEL}, which every MONAI bundle has")


def _meant_for(name: str, wanted: int, found: Mapping[str, Weights], config: TransferConfig) -> Weights | None:
    """Of the networks found, that which `name` starts from; None for none."""
    if config.network is not None:
        if config.network not in found:
            raise Usage(f"start_from.network: {config.url} has no {config.network!r}; it has: {', '.join(found)}")
        return found[config.network] if wanted == 1 or name == config.network else None
    if len(found) == 1 and wanted == 1:
        return next(iter(found.values()))
    return found.get(name)


def _take(network: nn.Module, weights: Weights, config: TransferConfig) -> Taken:
    own = network.state_dict()
    there = {_renamed(name, config): weight for name, weight in weights.items()}
    fitting, left = {}, {}
    for name, weight in own.items():
        if name.startswith(tuple(config.leave)):
            left[name] = "as asked"
        elif name not in there:
            left[name] = "not there"
        elif there[name].shape != weight.shape:
            left[name] = f"{tuple(there[name].shape)} there, {tuple(weight.shape)} here"
        else:
            fitting[name] = there[name]
    share = sum(weight.numel() for weight in fitting.values()) / max(1, sum(weight.numel() for weight in own.values()))
    if not fitting or share < config.at_least:
        raise Fatal(
            f"of the weights at {config.url} {len(fitting)} fit, {share:.0%} of the network's numbers (wanted "
            f"{config.at_least:.0%}); there: {_some(list(weights))}; here: {_some(list(own))}; map names with "
            f"start_from.prefix and rename, or train the same kind of network"
        )
    network.load_state_dict({**own, **fitting})
    return Taken(
        taken=tuple(fitting),
        left=left,
        unused=tuple(name for name in there if name not in own),
        frozen=_freeze(network, config),
        share=share,
    )


def _renamed(name: str, config: TransferConfig) -> str:
    name = name.removeprefix(config.prefix)
    for old, new in config.rename.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _freeze(network: nn.Module, config: TransferConfig) -> tuple[str, ...]:
    """Names of weights that are not trained from now on. Raises `Usage` for a beginning that none has."""
    names = [name for name, _ in network.named_parameters()]
    for beginning in config.freeze:
        if not any(name.startswith(beginning) for name in names):
            raise Usage(f"start_from.freeze: no weight begins with {beginning!r}; there are: {_some(names)}")
    beginnings = tuple(config.freeze)
    frozen = [name for name in names if name.startswith(beginnings)] if beginnings else []
    for name, weight in network.named_parameters():
        if name in frozen:
            weight.requires_grad_(False)
    for name, module in network.named_modules():
        if beginnings and f"{name}.".startswith(beginnings) and not list(module.children()):
            module.register_forward_pre_hook(_rest)
    return tuple(frozen)


def _rest(module: nn.Module, _inputs: Any) -> None:
    """Before a frozen module is called: `train()` on the whole network has woken it."""
    module.eval()


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
