"""What the configs of a MONAI bundle say, taken as data: nothing that stands in them is run.

`@names` are looked up in the config. Behind a `$` stands Python: a name or a literal there is read, anything else is
left alone, and refused where its value is needed. Transforms are told apart by name and set TomoRay's own grid, scale
and windows; a transform or an argument that these cannot express is refused (docs/inference.md).

Legend: each letter of `axcodes` is where an axis of the network grows to: Right or Left, Anterior or Posterior,
Superior or Inferior. Canonical axes grow to Superior, Posterior, Left.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from tomoray.config import Config, make_config
from tomoray.errors import Fatal, Usage
from tomoray.storage import Store

METADATA = "configs/metadata.json"
_INFERENCE = ("configs/inference.json", "configs/inference.yaml")
_ENDS = ("SI", "PA", "LR")  # of canonical axes, that which they grow to first
_READING = {f"{name}d" for name in ("LoadImage", "EnsureChannelFirst", "EnsureType", "CastToType", "ToDevice")}
_BEFORE = {*_READING, "CropForegroundd"}  # windows cover the whole scan here: a crop saves time, and changes no value
_AFTER = {*_READING, "Invertd", "SaveImaged", "DeleteItemsd"}
_SILENT = {  # arguments that change no value, or only what lies beyond the scan
    *("_desc_", "_disabled_", "_mode_", "_requires_", "_target_", "allow_missing_keys", "dtype", "keys", "lazy"),
    *("align_corners", "padding_mode", "recompute_affine", "scale_extent", "to_onehot"),  # of transforms
    *("buffer_dim", "buffer_steps", "cache_roi_weight_map", "cpu_thresh", "cval", "device", "progress"),  # of inferers
    *("sigma_scale", "sw_batch_size", "sw_device"),
}
_OPTIONAL = {"Spacingd", "Activationsd"}


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleFacts:
    """A network and its input, as a bundle describes them.

    Attributes:
        url: of the bundle.
        network: a class of `monai.networks.nets`.
        arguments: of that class.
        axcodes: axes of its windows, such as "RAS".
        value_range: what `hu_window` becomes.
        values: fields of `TrainConfig`: labels, grid, scale and windows.
    """

    url: str
    network: str
    arguments: Mapping[str, Any]
    axcodes: str
    value_range: tuple[float, float]
    values: Mapping[str, Any]


def read_facts(store: Store, weights: str, networks: Collection[str]) -> BundleFacts:
    """What the bundle in `store` says.

    Args:
        store: its folder.
        weights: the key under which its weights are read.
        networks: classes of `monai.networks.nets` that it may name.

    Raises:
        Fatal: it lacks a config, or one is damaged.
        Usage: it says what is not understood here: what that is, and what would be.
    """
    key = next((key for key in _INFERENCE if store.exists(key)), None)
    if key is None:
        raise Fatal(f"{store.url} has {METADATA}, but neither {' nor '.join(_INFERENCE)}")
    says = _Says(_parse(store, key), f"{store.url}/{key}")
    network, arguments = says.network(networks)
    says.loads(weights)
    before = says.transforms(
        "preprocessing", {"Orientationd": _Axes, "Spacingd": _Grid, "ScaleIntensityRanged": _Scale}, _BEFORE
    )
    says.transforms("postprocessing", {"Activationsd": _Scores, "AsDiscreted": _Classes}, _AFTER)
    windows = says.part("inferer", says.values.get("inferer"), {"SlidingWindowInferer": _Windows})
    axes, scale, grid = before["Orientationd"], before["ScaleIntensityRanged"], before.get("Spacingd")
    steps = list(before)
    if grid and steps.index("Spacingd") < steps.index("Orientationd") and len(set(grid.pixdim)) > 1:
        raise Usage(f"{says.where}: Spacingd comes before Orientationd; wanted after, or one pixdim for all axes")
    order, _ = turn(axes.axcodes)
    places = [order.index(axis) for axis in range(3)]
    return BundleFacts(
        url=store.url,
        network=network,
        arguments=arguments,
        axcodes=axes.axcodes,
        value_range=(scale.b_min, scale.b_max),
        values={
            "labels": _labels(_parse(store, METADATA), f"{store.url}/{METADATA}"),
            "spacing_zyx_mm": grid and [grid.pixdim[place] for place in places],
            "patch_zyx": [windows.roi_size[place] for place in places],
            "hu_window": (scale.a_min, scale.a_max),
            "overlap": windows.overlap,
        },
    )


def turn(axcodes: str) -> tuple[list[int], list[int]]:
    """From canonical axes to those of `axcodes`: which of them each one is, and which ones are reversed.

    Example:
        >>> turn("RAS")
        ([2, 1, 0], [0, 1])
    """
    order = [next(axis for axis, ends in enumerate(_ENDS) if code in ends) for code in axcodes]
    return order, [place for place, code in enumerate(axcodes) if code not in "SPL"]


def _three(value: object) -> object:
    """One number stands for each axis."""
    return [value] * 3 if isinstance(value, int | float) else value


def _one_class_a_voxel(value: object) -> object:
    if value:
        raise ValueError("labels that overlap are not understood; wanted softmax and argmax")
    return value


Finite = Annotated[float, Field(allow_inf_nan=False)]
Length = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Side = Annotated[int, Field(gt=0, multiple_of=2)]  # as of every window (`tomoray.training.config`)


class _Axes(Config):
    axcodes: str
    labels: None = None
    as_closest_canonical: Literal[False] = False

    @field_validator("axcodes", mode="before")
    @classmethod
    def _has_each_axis(cls, axcodes: Any) -> str:
        codes = "".join(map(str, axcodes)) if isinstance(axcodes, list) else str(axcodes)
        if len(codes) != 3 or any(sum(code in ends for code in codes) != 1 for ends in _ENDS):
            raise ValueError("wanted one end of each axis, such as RAS")
        return codes


class _Grid(Config):
    pixdim: Annotated[tuple[Length, Length, Length], BeforeValidator(_three)]
    mode: Literal["bilinear"] = "bilinear"
    diagonal: Literal[False] = False


class _Scale(Config):
    a_min: Finite
    a_max: Finite
    b_min: Finite
    b_max: Finite
    clip: Literal[True]

    @field_validator("a_max", "b_max")
    @classmethod
    def _lies_above(cls, high: float, info: ValidationInfo) -> float:
        low = info.data.get(str(info.field_name).replace("max", "min"), -inf)
        if high <= low:
            raise ValueError(f"wanted more than {low:g}")
        return high


class _Windows(Config):
    roi_size: Annotated[tuple[Side, Side, Side], BeforeValidator(_three)]
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.25
    mode: Literal["constant", "gaussian"] = "constant"  # blended with a Gaussian in any case


class _Scores(Config):
    softmax: bool = False  # with or without it, the same class scores highest
    sigmoid: Annotated[bool, AfterValidator(_one_class_a_voxel)] = False
    other: None = None


class _Classes(Config):
    threshold: Annotated[Any, AfterValidator(_one_class_a_voxel)] = None
    rounding: None = None
    argmax: Literal[True]


class _Says:
    """A config by what it says.

    Args:
        values: of the file.
        where: the file, for messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def network(self, understood: Collection[str]) -> tuple[str, dict[str, Any]]:
        """Which of those that are understood `network_def` names, and its arguments."""
        said = self._value(self.values.get("network_def", self.values.get("network")))
        found = _class_name(said, "monai.networks.nets").lower()  # MONAI knows some by several spellings
        name = next((name for name in understood if name.lower() == found), None)
        if name is None:
            known = ", ".join(understood)
            raise Usage(f"{self.where}: network_def is {_told(said)}; understood are {known} of monai.networks.nets")
        arguments = {key: value for key, value in said.items() if not key.startswith("_")}
        for key, value in arguments.items():
            self._refuse_code(value, f"network_def: {key}")
        return name, arguments

    def loads(self, weights: str) -> None:
        """Raise `Usage` where it names another file of weights than that."""
        handlers = self._value(self.values.get("handlers"))
        for said in [
            self._value(self.values.get("checkpointloader")),
            *(handlers if isinstance(handlers, list) else []),
        ]:
            path = str(said.get("load_path")) if _class_name(said, "monai.handlers") == "CheckpointLoader" else ""
            named = re.findall(r"[\w.-]+\.pt\b", path)
            if named and not weights.endswith(f"/{named[-1]}"):
                raise Usage(f"{self.where}: its weights are {_told(path)}; wanted {weights}")

    def transforms(
        self, section: str, understood: Mapping[str, type[Config]], silent: Collection[str]
    ) -> dict[str, Any]:
        """Those of a section that say something, by name and in their order."""
        said = self._value(self.values.get(section))
        listed = said.get("transforms") if isinstance(said, dict) else said
        if not isinstance(listed, list):
            raise Usage(f"{self.where}: {section} is {_told(said)}; wanted a Compose of transforms")
        found: dict[str, Any] = {}
        for step in listed:
            name = _class_name(step, "monai.transforms")
            if name in silent or (isinstance(step, dict) and step.get("_disabled_") is True):
                continue
            if name in found:
                raise Usage(f"{self.where}: {section} has {name} twice; wanted it once")
            found[name] = self.part(section, step, understood)
        missing = [name for name in understood if name not in found and name not in _OPTIONAL]
        if missing:
            raise Usage(f"{self.where}: {section} has no {' and no '.join(missing)}; wanted one")
        return found

    def part(self, section: str, said: Any, understood: Mapping[str, type[Config]]) -> Any:
        """The arguments of something that is understood."""
        said = self._value(said)
        name = _class_name(said, "monai")
        if name not in understood:
            raise Usage(f"{self.where}: {section} has {_told(said)}; understood are {', '.join(understood)}")
        arguments = {key: _alone(value) for key, value in said.items() if key not in _SILENT}
        for key, value in arguments.items():
            self._refuse_code(value, f"{name}: {key}")
        return make_config(understood[name], arguments, f"{self.where}: {name}")

    def _value(self, said: Any, within: tuple[str, ...] = ()) -> Any:
        """What is said, with the values of `@names` put in, and of literals behind a `$`."""
        if isinstance(said, dict):
            return {key: self._value(value, within) for key, value in said.items()}
        if isinstance(said, list):
            return [self._value(value, within) for value in said]
        if not isinstance(said, str):
            return said
        name = said.removeprefix("$").strip()
        if re.fullmatch(r"@\w+((#|::)\w+)*", name):
            if name in within:
                raise Usage(f"{self.where}: {name} stands for itself")
            return self._value(self._look_up(name), (*within, name))
        if said.startswith("$"):
            with suppress(ValueError, SyntaxError):
                return ast.literal_eval(name)  # numbers, text and lists of them; calls and names are errors
        return said

    def _look_up(self, name: str) -> Any:
        found: Any = self.values
        for part in re.split("#|::", name.removeprefix("@")):
            try:
                found = found[int(part)] if isinstance(found, list) else found[part]
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise Usage(f"{self.where}: {name} stands for nothing there") from error
        return found

    def _refuse_code(self, value: Any, what: str) -> None:
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
            self._refuse_code(part, what)
        if isinstance(value, str) and value.startswith(("$", "%")):
            raise Usage(f"{self.where}: {what} is {_told(value)}, and no code of a bundle is run; wanted its value")
        if isinstance(value, dict) and "_target_" in value:
            raise Usage(f"{self.where}: {what} is {_told(value)}, which is not built; wanted a plain value")


def _class_name(said: Any, package: str) -> str:
    """Of a `_target_`, without its package; empty where it is none, or of another package."""
    target = said.get("_target_") if isinstance(said, dict) else None
    of, _, name = str(target or "").rpartition(".")
    if of and not f"{of}.".startswith(f"{package}."):
        return ""
    return re.sub("(D|Dict)$", "d", name)  # MONAI's other spellings of `…d`


def _told(said: Any) -> str:
    told = str(said["_target_"]) if isinstance(said, dict) and "_target_" in said else repr(said)
    return told if len(told) <= 100 else f"{told[:99]}…"


def _alone(value: Any) -> Any:
    """A list of one, an entry for each of `keys`, as that one."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _labels(metadata: Mapping[str, Any], where: str) -> list[str]:
    """Names of the classes from 1 on, each fit to be a folder's."""
    wanted = "network_data_format.outputs.pred.channel_def"
    try:
        data = metadata["network_data_format"]
        modality, names = data["inputs"]["image"].get("modality", "CT"), data["outputs"]["pred"]["channel_def"]
        background, *labels = [str(names[str(number)]) for number in range(len(names))]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Usage(f'{where}: wanted {wanted}: {{"0": "background", "1": …}}, and inputs.image') from error
    if str(modality).upper() != "CT":
        raise Usage(f"{where}: the modality of the image is {_told(modality)}; wanted CT")
    if background.lower() != "background":
        raise Usage(f"{where}: {wanted} begins with {_told(background)}; wanted background")
    plain = [re.sub(r"[^A-Za-z0-9._-]+", "_", label).strip("._-")[:128] for label in labels]
    return [label or f"class_{number}" for number, label in enumerate(plain, start=1)]


def _parse(store: Store, key: str) -> Mapping[str, Any]:
    try:
        data = store.read(key)
        found = json.loads(data) if key.endswith(".json") else yaml.safe_load(data)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise Fatal(f"{store.url}/{key} is damaged: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(found, dict):
        raise Fatal(f"{store.url}/{key} holds {type(found).__name__}; wanted a mapping")
    return found
