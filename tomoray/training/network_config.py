"""The parts of a training config that say what learns, and what it is trained to lessen (docs/networks.md)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tomoray.config import Config, Positive


class NetworkConfig(Config):
    """A network of `tomoray.networks` and its size (docs/networks.md).

    What is left out depends on the network: `segresnet` has group norm, `swin_unetr` channels 24, 48, 96, 192.

    Attributes:
        channels: of each level, finest first; each level halves the patch.
        residual_units: how deep each level is: convolutions of a residual unit (`unet`, `ra_unet`, `cab_unet`),
            residual blocks (`segresnet`), transformer blocks (`swin_unetr`); 0 for none (`unet`, `dynunet`).
        norm: `group` has 8 groups.
        dropout: share of features dropped in training.
        deep_supervision: coarser levels of the decoder are scored too.
        slicewise: kernels and halvings within axial slices only, for thin patches or `patch_zyx: [1, y, x]`.
    """

    name: Literal["unet", "attention_unet", "ra_unet", "cab_unet", "segresnet", "dynunet", "swin_unetr"] = "unet"
    channels: Annotated[list[Positive], Field(min_length=2)] = [16, 32, 64, 128]
    residual_units: Annotated[int, Field(ge=0)] = 1
    norm: Literal["instance", "batch", "group"] = "instance"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    deep_supervision: bool = False
    slicewise: bool = False

    @property
    def patch_multiple_zyx(self) -> tuple[int, int, int]:
        """What each side of a patch is a multiple of."""
        halvings = 5 if self.name == "swin_unetr" else len(self.channels) - 1
        return (1 if self.slicewise else 2**halvings, 2**halvings, 2**halvings)

    @model_validator(mode="before")
    @classmethod
    def _fills_in_what_suits_the_network(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and isinstance(fields.get("name"), str):
            return {**_SUITS.get(fields["name"], {}), **fields}
        return fields

    @model_validator(mode="after")
    def _network_has_what_is_asked(self) -> NetworkConfig:
        name, channels = self.name, self.channels
        if self.deep_supervision and name not in _DEEP:
            raise ValueError(f"{name} has no deep supervision; {', '.join(_DEEP)} have")
        if self.deep_supervision and len(channels) < 3:
            raise ValueError(f"channels {channels}: deep supervision wants three levels at least")
        if self.slicewise and name not in _SLICEWISE:
            raise ValueError(f"{name} cannot be slicewise; {', '.join(_SLICEWISE)} can")
        if self.norm == "group" and name == "unet":
            raise ValueError("unet has no norm group; instance and batch it has")
        if self.norm == "group" and any(n % 8 for n in channels):
            raise ValueError(f"channels {channels}: norm group wants multiples of 8")
        if name == "attention_unet" and self.residual_units:
            raise ValueError("attention_unet has no residual units: leave residual_units out")
        if name not in ("unet", "attention_unet", "dynunet") and not self.residual_units:
            raise ValueError(f"{name} wants residual_units of 1 at least")
        doubling = [channels[0] * 2**level for level in range(4 if name == "swin_unetr" else len(channels))]
        if name in ("segresnet", "swin_unetr") and channels != doubling:
            raise ValueError(f"channels {channels}: those of {name} double from level to level, as {doubling}")
        if name == "swin_unetr" and channels[0] % 12:
            raise ValueError(f"channels {channels}: swin_unetr wants a multiple of 12 first")
        return self


_SUITS: dict[str, dict[str, Any]] = {
    "attention_unet": {"residual_units": 0},
    "ra_unet": {"residual_units": 2},
    "cab_unet": {"residual_units": 2},
    "segresnet": {"residual_units": 2, "norm": "group"},
    "dynunet": {"residual_units": 0},
    "swin_unetr": {"residual_units": 2, "channels": [24, 48, 96, 192]},
}
_DEEP = ("ra_unet", "cab_unet", "dynunet")
_SLICEWISE = ("unet", "ra_unet", "cab_unet", "dynunet")


class LossConfig(Config):
    """What a segmentation is trained to lessen (docs/networks.md).

    Attributes:
        name: Dice and cross-entropy, Dice and focal, focal (Lin et al., ICCV 2017), Tversky (Salehi et al., MLMI 2017)
            or focal Tversky (Abraham and Khan, ISBI 2019).
        focal_gamma: how much easy voxels count less, in `focal` and `dice_focal`.
        tversky_alpha: weight of voxels wrongly found.
        tversky_beta: weight of voxels missed; the larger, the more is found of what is rare.
        tversky_gamma: exponent of `focal_tversky`; below 1 hard classes count more.
    """

    name: Literal["dice_ce", "dice_focal", "focal", "tversky", "focal_tversky"] = "dice_ce"
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    tversky_alpha: Annotated[float, Field(ge=0)] = 0.3
    tversky_beta: Annotated[float, Field(gt=0)] = 0.7
    tversky_gamma: Annotated[float, Field(gt=0)] = 0.75
