"""A scan in memory or in an archive, and the class that a network gives it: `Classification` without an archive.

The windows are those of `tomoray.tasks.whole_scans`, cut from the scan itself, so that a scan that was sent is seen as
one of the archive is.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from math import ceil, nan
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.visualize.class_activation_maps import GradCAM
from torch import Tensor, nn
from torch.nn import functional

from tomoray.classifiers import Classifier
from tomoray.geometry import Geometry, Zyx, to_canonical
from tomoray.inference.backends import eager
from tomoray.inference.batcher import Infer
from tomoray.inference.scan_input import ScanInput, Voxels, window_corners
from tomoray.tasks.classification import SEXES, build_classifier, pooled
from tomoray.tasks.scores import with_temperature
from tomoray.training.config import TrainConfig
from tomoray.transforms import Grid, linear_taps, resample
from tomoray.volume import ScanInfo

_WINDOWS_AT_ONCE = 4
_SLICES_AT_ONCE = 8
_OCCLUDED_WINDOWS = 8
_BLOCKS = 4  # along each axis of a window
Advance = Callable[[int, int], None]


class ScanClassifier:
    """A trained network of task `classification`.

    Args:
        config: how it was trained.
        weights: of the network.
        device: where it runs.
        temperature: of the calibration, as validation found it; None: probabilities stay as the network gives them.
    """

    def __init__(
        self,
        config: TrainConfig,
        weights: dict[str, Tensor],
        device: str | torch.device = "cpu",
        *,
        temperature: float | None = None,
    ) -> None:
        assert config.classification is not None  # TrainConfig sees to it
        self.config, self._settings = config, config.classification
        self._temperature = temperature
        n = len(self._settings.clinical)
        network = build_classifier(config, [0.0] * n, [1.0] * n)  # the weights bring both with them
        network.load_state_dict(weights)
        self.forward = eager(_Softmax(network), device)
        self._explained, self._explaining = _without_inplace(copy.deepcopy(network).eval().cpu()), threading.Lock()
        label = self._settings.label
        self.classes: Sequence[str] = self._settings.classes if label is None else (f"no {label}", label)

    def working_bytes(self, geometry: Geometry) -> int:
        """Memory that a scan takes while it is worked on, without its voxels."""
        return 16 * int(np.prod(self.config.patch_zyx)) * _WINDOWS_AT_ONCE

    @torch.inference_mode()
    def find(
        self, image: Voxels, geometry: Geometry, infer: Infer, info: ScanInfo | None, advance: Advance | None = None
    ) -> dict[str, float]:
        """The probability of each class, by name.

        Args:
            image: HU.
            geometry: where it is.
            infer: windows and clinical numbers to probabilities.
            info: what is known of an archived scan; clinical numbers of one that was sent count as missing.
            advance: is told how many windows are done, and of how many.
        """
        found = []
        scan, told = ScanInput(image, geometry, self.config), self._told(geometry, info)
        corners = self._corners(scan.grid)
        for some in _few(corners):
            found.append(infer((self._cut(scan, some), told.expand(len(some), -1))).result()[0])
            if advance is not None:
                advance(sum(map(len, found)), len(corners))
        probabilities = pooled(torch.cat(found), self._settings.pool)[None].double().numpy()
        if self._temperature is not None:
            probabilities = with_temperature(probabilities, self._temperature)
        return dict(zip(self.classes, probabilities[0].tolist(), strict=True))

    def gradcam(self, image: Voxels, geometry: Geometry, info: ScanInfo | None, name: str) -> npt.NDArray[np.float16]:
        """Where the network looked for a class (Selvaraju et al., ICCV 2017), 0 to 1, on the scan's own grid."""
        scan, told = ScanInput(image, geometry, self.config), self._told(geometry, info)
        drawn = _Drawing(scan.grid, self.config.patch_zyx)
        with self._explaining, torch.inference_mode(False), torch.enable_grad():
            cam: Any = GradCAM(_Told(self._explained, told.clone()), "network.image.features")
            for corner in self._corners(scan.grid):
                window = self._cut(scan, [corner]).clone().requires_grad_()
                heat = cam.compute_map(window, class_idx=self.classes.index(name)).detach()
                drawn.add(corner, _resized(heat, self.config.patch_zyx))
        return drawn.on_scan(geometry)

    @torch.inference_mode()
    def occlusion(
        self, image: Voxels, geometry: Geometry, infer: Infer, info: ScanInfo | None, name: str
    ) -> npt.NDArray[np.float16]:
        """How much less probable a class is without a block (Zeiler and Fergus, ECCV 2014), 0 to 1, as air takes it.

        Of the windows, the eight that speak most for the class; blocks are a quarter of a window along each axis.
        """
        scan, told = ScanInput(image, geometry, self.config), self._told(geometry, info)
        number, corners = self.classes.index(name), self._corners(scan.grid)
        before = torch.cat(
            [
                infer((self._cut(scan, some), told.expand(len(some), -1))).result()[0][:, number]
                for some in _few(corners)
            ]
        )
        drawn = _Drawing(scan.grid, self.config.patch_zyx)
        for n in before.argsort(descending=True)[:_OCCLUDED_WINDOWS].tolist():
            window, heat = self._cut(scan, [corners[n]]), torch.zeros(1, 1, *self.config.patch_zyx)
            for block in _blocks(self.config.patch_zyx):
                hidden = window.clone()
                hidden[(slice(None), slice(None), *block)] = 0
                (found,) = infer((hidden, told)).result()
                heat[(slice(None), slice(None), *block)] = (before[n] - found[0, number]).clamp(min=0)
            drawn.add(corners[n], heat)
        return drawn.on_scan(geometry)

    def _corners(self, grid: Grid) -> list[Zyx]:
        """Evenly spread windows, as many as the task looks at."""
        corners, most = (
            window_corners(grid.shape_zyx, self.config.patch_zyx, self.config.overlap),
            self._settings.windows,
        )
        if len(corners) <= most:
            return corners
        return [corners[round(n * (len(corners) - 1) / max(1, most - 1))] for n in range(most)]

    def _cut(self, scan: ScanInput, corners: Sequence[Zyx]) -> Tensor:
        boxes = [scan.box(*zip(corner, self.config.patch_zyx, strict=True)) for corner in corners]
        return torch.stack(boxes)[:, None]

    def _told(self, geometry: Geometry, info: ScanInfo | None) -> Tensor:
        """Clinical numbers, float32 (1, numbers), NaN where missing."""
        numbers: dict[str, float | None] = {"spacing_z": geometry.spacing_zyx_mm[0]}
        if info is not None:
            numbers |= {"age_years": info.age_years, "kvp": info.kvp, "slice_thickness_mm": info.slice_thickness_mm}
            numbers["sex"] = SEXES.get(info.sex or "")
        told = [numbers.get(column) for column in self._settings.clinical]
        return torch.tensor([[nan if number is None else float(number) for number in told]])


class _Softmax(nn.Module):
    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, told: Tensor) -> Tensor:
        scores: Tensor = self.network(image, told)
        return scores.float().softmax(dim=1)


class _Told(nn.Module):
    """A classifier for one scan, of images alone."""

    def __init__(self, network: Classifier, told: Tensor) -> None:
        super().__init__()
        self.network, self.told = network, told

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.network(image, self.told.expand(len(image), -1))
        return scores


class _Drawing:
    """Heat of windows on a target grid: the mean where they overlap."""

    def __init__(self, grid: Grid, patch_zyx: Zyx) -> None:
        self._grid, self._patch = grid, patch_zyx
        self._heat, self._seen = torch.zeros(grid.shape_zyx), torch.zeros(grid.shape_zyx)

    def add(self, corner: Zyx, heat: Tensor) -> None:
        at = tuple(slice(first, first + side) for first, side in zip(corner, self._patch, strict=True))
        inside = self._heat[at].shape
        self._heat[at] += heat[0, 0, : inside[0], : inside[1], : inside[2]]
        self._seen[at] += 1

    def on_scan(self, geometry: Geometry) -> npt.NDArray[np.float16]:
        """On the scan's own grid, in its own order; the hottest is 1."""
        heat = self._heat / self._seen.clamp(min=1)
        heat /= heat.max().clamp(min=1e-9)
        drawn = np.empty(geometry.shape_zyx, np.float16)
        turned = to_canonical(drawn, geometry)
        grid = self._grid
        back_y, back_x = (
            linear_taps(0, size, 1 / step, of, outside="edge")
            for size, step, of in zip(turned.shape[1:], grid.step_zyx[1:], grid.shape_zyx[1:], strict=True)
        )
        for z in range(0, turned.shape[0], _SLICES_AT_ONCE):
            count = min(_SLICES_AT_ONCE, turned.shape[0] - z)
            back_z = linear_taps(z, count, 1 / grid.step_zyx[0], grid.shape_zyx[0], outside="edge")
            turned[z : z + count] = resample(heat[back_z.start : back_z.stop], (back_z, back_y, back_x)).half().numpy()
        return drawn


def _without_inplace(network: Classifier) -> Classifier:
    """Activations apart from what they are made of, which gradients at a layer want."""
    for module in network.modules():
        if "inplace" in vars(module):
            vars(module)["inplace"] = False
    return network


def _resized(heat: Tensor, patch_zyx: Zyx) -> Tensor:
    flat = heat[:, :, None] if heat.ndim == 4 else heat
    return functional.interpolate(flat, size=patch_zyx, mode="trilinear", align_corners=False)


def _few(corners: Sequence[Zyx]) -> Iterator[Sequence[Zyx]]:
    for n in range(0, len(corners), _WINDOWS_AT_ONCE):
        yield corners[n : n + _WINDOWS_AT_ONCE]


def _blocks(patch_zyx: Zyx) -> Iterator[tuple[slice, slice, slice]]:
    z, y, x = ([slice(n, n + ceil(side / _BLOCKS)) for n in range(0, side, ceil(side / _BLOCKS))] for side in patch_zyx)
    yield from ((k, j, i) for k in z for j in y for i in x)
