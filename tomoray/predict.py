"""A scan in, masks on its own grid out: the one path that `jobs.predict`, `jobs.evaluate` and serving share.

Windows overlap and are blended with a Gaussian (Isensee et al., Nature Methods 2021), row of windows by row of
windows from the feet up: finished slices of class probabilities go back to the scan's own grid at once, so that
memory grows with a slab as high as a patch, never with the scan. Windows of air are left out (`AIR_RULE`).

Who runs the network is left to the caller: `Segmenter.find` hands windows to an `Infer` and goes on while it works.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import combinations
from math import log, prod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tomoray.errors import Fatal, Usage
from tomoray.geometry import Geometry, to_canonical
from tomoray.inference.backends import eager
from tomoray.inference.batcher import Forward, Infer, Tensors, at_once
from tomoray.inference.scan_input import ScanInput, Voxels, window_starts
from tomoray.networks import build_network
from tomoray.runs import Run, open_run
from tomoray.training.config import TrainConfig
from tomoray.transforms import Taps, linear_taps, resample, target_grid
from tomoray.volume import Mask

_ALIKE = ("labels", "contains", "spacing_zyx_mm", "hu_window", "patch_zyx")  # of runs that are asked together
_WINDOWS_AT_ONCE = 4
_AHEAD = 2  # times so many windows are with the network
_SLICES_AT_ONCE = 8
_VOXELS_AT_ONCE = 1 << 23


@dataclass(frozen=True, kw_only=True, slots=True)
class Segmented:
    """What was found in a scan, on its own grid and in its own order.

    Attributes:
        classes_zyx: uint8, 0 for background, n for the n-th label.
        uncertainty_zyx: float16, 0 to 1: entropy of the class probabilities, 1 where all are alike; None: not asked
            for.
    """

    classes_zyx: npt.NDArray[np.uint8]
    uncertainty_zyx: npt.NDArray[np.float16] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Windows:
    """A few windows of one row, and where they are; `views` of them are on their way. The last of a row ends it."""

    at: Sequence[tuple[slice, slice, slice]]
    views: Sequence[tuple[tuple[int, ...], Future[Tensors]]]
    air: bool = False
    ends_row: bool = False


class Segmenter:
    """Trained networks and what they need to know about their input. Deterministic on CPU.

    Args:
        network: gives `len(config.labels) + 1` scores per voxel; of several, the class probabilities are averaged. Or
            a `Forward` that gives class probabilities itself.
        config: how it was trained; `mirror_when_predicting` averages over mirror images too.
        device: where modules run.
    """

    def __init__(
        self,
        network: nn.Module | Sequence[nn.Module] | Forward,
        config: TrainConfig,
        device: str | torch.device = "cpu",
    ) -> None:
        self.config = config
        if isinstance(network, nn.Module):
            network = [network]
        self.forward = eager(Probabilities(network), device) if isinstance(network, Sequence) else network
        sides = [torch.arange(side) - (side - 1) / 2 for side in config.patch_zyx]
        z, y, x = (torch.exp(-0.5 * (side / (len(side) / 8)) ** 2).clamp_(min=1e-2) for side in sides)
        self._blend = z[:, None, None] * y[:, None] * x

    def segment(self, image_zyx: Voxels, geometry: Geometry) -> dict[str, Mask]:
        """Segment one scan.

        Args:
            image_zyx: HU, int16, in the order in which `geometry` describes it.
            geometry: where its voxels are.

        Returns:
            One mask per label of the config, uint8, 0 or 1, of the shape of the scan.
        """
        classes_zyx = self.find(image_zyx, geometry).classes_zyx
        return {name: self.mask(classes_zyx, name) for name in self.config.labels}

    @torch.inference_mode()
    def find(
        self,
        image_zyx: Voxels,
        geometry: Geometry,
        infer: Infer | None = None,
        *,
        advance: Callable[[int, int], None] | None = None,
        uncertainty: bool = False,
    ) -> Segmented:
        """The class of every voxel, as a network elsewhere says.

        Args:
            image_zyx: HU, int16, in the order in which `geometry` describes it.
            geometry: where its voxels are.
            infer: takes windows to class probabilities; None: `forward`, here and now.
            advance: is told how many windows are done, and of how many. What it raises ends the work.
            uncertainty: draw the map too, over the mirror images of every window, at eight times the work.
        """
        scan = ScanInput(image_zyx, geometry, self.config)
        grid = scan.grid
        classes = np.empty(geometry.shape_zyx, dtype=np.uint8)
        unsure = np.empty(geometry.shape_zyx, dtype=np.float16) if uncertainty else None
        turned = to_canonical(classes, geometry)
        turned_unsure = to_canonical(unsure, geometry) if unsure is not None else None
        depth = turned.shape[0]
        back_y, back_x = (
            linear_taps(0, size, 1 / step, of, outside="edge")
            for size, step, of in zip(turned.shape[1:], grid.step_zyx[1:], grid.shape_zyx[1:], strict=True)
        )

        def back_z(z: int, count: int) -> Taps:
            return linear_taps(z, count, 1 / grid.step_zyx[0], grid.shape_zyx[0], outside="edge")

        last = back_z(0, depth).last_input().numpy()
        z, first, kept = 0, 0, torch.empty(0)
        mirrored = self.config.mirror_when_predicting or uncertainty
        for probabilities in self._finished_slices(scan, infer or at_once(self.forward), mirrored, advance):
            kept = torch.cat([kept, probabilities], dim=1) if kept.numel() else probabilities
            ready = int(np.searchsorted(last, first + kept.shape[1], side="left"))
            while z < ready:
                count = min(_SLICES_AT_ONCE, ready - z)
                taps = back_z(z, count)
                slab = resample(kept[:, taps.start - first : taps.stop - first], (taps, back_y, back_x))
                turned[z : z + count] = _best(slab).numpy()
                if turned_unsure is not None:
                    turned_unsure[z : z + count] = _entropy(slab).numpy()
                z += count
            if z < depth:
                needed = back_z(z, 1).start
                kept, first = kept[:, needed - first :].clone(), needed
        return Segmented(classes_zyx=classes, uncertainty_zyx=unsure)

    def working_bytes(self, geometry: Geometry) -> int:
        """Memory that `find` takes for a scan, without its voxels and the network: a slab, and a byte a voxel."""
        grid, patch = target_grid(geometry, self.config.spacing_zyx_mm), self.config.patch_zyx
        plane = max(grid.shape_zyx[1], patch[1]) * max(grid.shape_zyx[2], patch[2])
        stored = int(prod(grid.stored_shape_zyx[1:]) * (patch[0] + 1) * max(1.0, grid.step_zyx[0]) * 2)
        slabs = 4 * (2 * len(self.config.labels) + 5) * plane * patch[0]
        return prod(geometry.shape_zyx) + stored + slabs

    def mask(self, classes_zyx: npt.NDArray[np.uint8], name: str) -> Mask:
        """The mask of a label, with those that it contains: uint8, 0 or 1, of the shape of `classes_zyx`."""
        return self._inside(name)[classes_zyx]

    def packed(self, classes_zyx: npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.uint8]:
        """The same as `np.packbits` gives it, without the whole mask in memory."""
        inside, flat = self._inside(name), classes_zyx.ravel()
        parts = [np.packbits(inside[flat[n : n + _VOXELS_AT_ONCE]]) for n in range(0, len(flat), _VOXELS_AT_ONCE)]
        return np.concatenate(parts)

    def _inside(self, name: str) -> npt.NDArray[np.uint8]:
        """1 for each class whose voxels belong to the label."""
        number = {label: n for n, label in enumerate(self.config.labels, start=1)}
        inside = np.zeros(256, np.uint8)
        inside[[number[name], *(number[inner] for inner in self.config.contains.get(name, []))]] = 1
        return inside

    def _finished_slices(
        self, scan: ScanInput, infer: Infer, mirrored: bool, advance: Callable[[int, int], None] | None
    ) -> Iterator[Tensor]:
        """Class probabilities `(class, slices, y, x)` on the target grid, a few slices at a time, in order."""
        shape, (depth, *_) = scan.grid.shape_zyx, self.config.patch_zyx
        height, width = (max(n, side) for n, side in zip(shape[1:], self.config.patch_zyx[1:], strict=True))
        starts_zyx = [
            window_starts(n, side, self.config.overlap) for n, side in zip(shape, self.config.patch_zyx, strict=True)
        ]
        starts, total = starts_zyx[0], len(starts_zyx[0]) * len(starts_zyx[1]) * len(starts_zyx[2])
        scores = torch.zeros(len(self.config.labels) + 1, depth, height, width)
        weights = torch.zeros(depth, height, width)
        row, done = 0, 0
        for windows in _ahead(self._windows(scan, starts_zyx, (height, width), infer, mirrored)):
            self._blend_in(windows, scores, weights)
            done += len(windows.at)
            if advance is not None:
                advance(done, total)
            if windows.ends_row:
                finished = (starts[row + 1] if row + 1 < len(starts) else shape[0]) - starts[row]
                for z in range(0, finished, _SLICES_AT_ONCE):
                    part = slice(z, min(z + _SLICES_AT_ONCE, finished))
                    yield (scores[:, part] / weights[part])[:, :, : shape[1], : shape[2]]
                _move_up(scores, finished, axis=1)
                _move_up(weights, finished, axis=0)
                row += 1

    def _windows(
        self,
        scan: ScanInput,
        starts_zyx: Sequence[Sequence[int]],
        plane: tuple[int, int],
        infer: Infer,
        mirrored: bool,
    ) -> Iterator[_Windows]:
        """Hands windows in, row by row."""
        depth, side_y, side_x = self.config.patch_zyx
        mirrors: list[tuple[int, ...]] = [()]
        if mirrored:
            mirrors += [axes for count in (1, 2, 3) for axes in combinations((2, 3, 4), count)]
        corners = [(y, x) for y in starts_zyx[1] for x in starts_zyx[2]]
        for start_z in starts_zyx[0]:
            slab, body = scan.box_and_body((start_z, depth), (0, plane[0]), (0, plane[1]))
            inside: list[tuple[slice, slice, slice]] = []
            air: list[tuple[slice, slice, slice]] = []
            for y, x in corners:
                filled = not self.config.skip_air or body.touches((y, side_y), (x, side_x))
                (inside if filled else air).append(np.s_[:, y : y + side_y, x : x + side_x])
            if air:
                yield _Windows(at=air, views=[], air=True, ends_row=not inside)
            for n in range(0, len(inside), _WINDOWS_AT_ONCE):
                at = inside[n : n + _WINDOWS_AT_ONCE]
                windows = torch.stack([slab[where] for where in at])[:, None]
                views = [(axes, infer((windows.flip(axes) if axes else windows,))) for axes in mirrors]
                yield _Windows(at=at, views=views, ends_row=n + _WINDOWS_AT_ONCE >= len(inside))

    def _blend_in(self, windows: _Windows, scores: Tensor, weights: Tensor) -> None:
        for where in windows.at:
            weights[where] += self._blend
            if windows.air:
                scores[0][where] += self._blend
        for axes, answer in windows.views:
            (found,) = answer.result()
            for where, window in zip(windows.at, found.flip(axes) if axes else found, strict=True):
                scores[(slice(None), *where)].addcmul_(window, self._blend, value=1 / len(windows.views))


class Probabilities(nn.Module):
    """Class probabilities by networks that give scores: their mean, float32."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, windows: Tensor) -> Tensor:
        """`(n, 1, z, y, x)` to `(n, classes, z, y, x)`."""
        found = [network(windows).float().softmax(dim=1) for network in self.networks]
        return found[0] if len(found) == 1 else torch.stack(found).mean(dim=0)


def load_segmenter(runs: Run | str | Sequence[Run | str], device: str | torch.device = "cpu") -> Segmenter:
    """The segmenter of a finished run, or of several together, each a run or its URL.

    Raises:
        Fatal: as `open_run` does, or another release's weights do not fit this one's network.
        Usage: the runs differ in what they find or on which grid they find it.
    """
    of = [runs] if isinstance(runs, Run | str) else runs
    opened = [open_run(run) if isinstance(run, str) else run for run in of]
    check_alike(opened)
    return Segmenter([load_network(run) for run in opened], opened[0].config, device)


def check_alike(runs: Sequence[Run]) -> None:
    """Raise `Usage` for the first run whose probabilities cannot be averaged with those of the first one."""
    first = runs[0]
    for run in runs[1:]:
        for name in _ALIKE:
            here, there = getattr(run.config, name), getattr(first.config, name)
            if here != there:
                raise Usage(f"run {run.store.url} has {name} {here} and run {first.store.url} {there}; wanted one")


def load_network(run: Run) -> nn.Module:
    """The network of a finished run with its weights.

    Raises:
        Usage: it is of another task than segmentation.
        Fatal: the weights do not fit.
    """
    if run.config.task != "segmentation":
        raise Usage(
            f"run {run.store.url} learned {run.config.task}; wanted one of task segmentation, which makes masks"
        )
    network = build_network(run.config.network, out_channels=len(run.config.labels) + 1)
    weights = torch.load(io.BytesIO(run.read_model()), map_location="cpu", weights_only=True)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:  # many lines: every weight that has no place, or the wrong shape
        raise Fatal(
            f"the weights of run {run.store.url} do not fit the network {run.config.network.name!r} of this release; "
            f"use the release that trained it (code_version in run.json), or train it again"
        ) from error
    return network


def _ahead(windows: Iterator[_Windows]) -> Iterator[_Windows]:
    """The same, some of them begun before the first is asked for."""
    begun: deque[_Windows] = deque()
    for some in windows:
        begun.append(some)
        if len(begun) > _AHEAD:
            yield begun.popleft()
    yield from begun


def _move_up(slab: Tensor, by: int, axis: int) -> None:
    """What lies `by` further comes first, the rest is zero; without a second slab in memory."""
    size = slab.shape[axis]
    for z in range(0, size - by, by):
        count = min(by, size - by - z)
        slab.narrow(axis, z, count).copy_(slab.narrow(axis, z + by, count))
    slab.narrow(axis, size - by, by).zero_()


def _best(probabilities: Tensor) -> Tensor:
    """Which of `(class, …)` is largest, uint8; the first where they tie. Ten times as fast as `argmax` on a CPU."""
    best, classes = probabilities[0], torch.zeros(probabilities.shape[1:], dtype=torch.uint8)
    for number in range(1, len(probabilities)):
        classes.masked_fill_(probabilities[number] > best, number)
        best = torch.maximum(best, probabilities[number])
    return classes


def _entropy(probabilities: Tensor) -> Tensor:
    """Of `(class, …)`, as a share of what it is where all classes are alike: float16 0 to 1."""
    entropy = -(probabilities * probabilities.clamp(min=1e-12).log()).sum(dim=0) / log(len(probabilities))
    return entropy.clamp_(0, 1).half()
