"""Augmentation: each patch of a batch varied at random, on the device where the batch is.

What happens to sample i is a pure function of (seed, i): neither how many workers there are nor which samples share a
batch changes it. Only samples that drew a transform pay for it. Mirroring is no part of it: the patch stream does it
for nothing (`tomoray.patches`).

The set and its order are nnU-Net's (Isensee et al., Nature Methods 2021; probabilities and ranges of `preset: standard`
are those of nnU-Net v2's default trainer). Three of the transforms are linear and act on each axis alone: scaling, blur
and low resolution are one small matrix an axis, thus three matrix products instead of a walk over voxels. Only a
rotation samples a grid.

Legend: (z, y, x) are voxels of a patch, image 0..1 with 0 = air, classes uint8 with 0 = background.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import grid_sample, pad

from tomoray.patches import Batch
from tomoray.training.sample_config import AugmentConfig

_COUNTER = (0, 0, 0, 1)  # the patch stream draws from counter 0 of the same key
_THIN = 3  # an axis this many times shorter than the longest is neither tilted nor scaled, as in nnU-Net
_CUBIC = -0.75  # Keys' kernel with the parameter that torch and OpenCV use
_TINY = 1e-7


def augment(batch: Batch, config: AugmentConfig, seed: int, *, spacing_zyx_mm: Sequence[float] | None = None) -> Batch:
    """The batch with its samples varied; the one given stays as it is.

    The parameters drawn are the same on every device. The voxels of the noise are not: CPU and CUDA have generators of
    their own.

    Args:
        batch: from the patch stream, on any device.
        config: how likely and how much.
        seed: of the run.
        spacing_zyx_mm: of the patches, so that a rotation is one in millimetres; None treats voxels as cubes.

    Returns:
        A batch of the same shapes on the same device. What a rotation or scaling brings in from outside the patch is
        air and background. Image values stay within 0..1, as those of a scan after its HU window. Classes are picked
        from the nearest voxel: so none is invented, whichever and however many lie side by side.
    """
    image, classes = batch.image, batch.classes
    sides = tuple(image.shape[2:])
    drawn = {row: _draw(config, seed, sample, sides) for row, sample in enumerate(batch.samples)}
    drawn = {row: draw for row, draw in drawn.items() if draw != _NOTHING}
    if not drawn:
        return batch
    image = image.clone()
    if any(draw.moves for draw in drawn.values()):
        classes = classes.clone()
    spacing = tuple(spacing_zyx_mm or (1.0, 1.0, 1.0))
    for row, draw in drawn.items():
        if draw.moves:
            image[row, 0], classes[row, 0] = _move(image[row, 0], classes[row, 0], draw, spacing)
        image[row, 0] = _shade(image[row, 0], draw)
    return replace(batch, image=image, classes=classes)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Draw:
    """What one sample drew; the values here change nothing.

    Attributes:
        angles: radians about z, y and x.
        noise: sigma, and the seed of its voxels.
    """

    angles: tuple[float, float, float] = (0.0, 0.0, 0.0)
    zoom_zyx: tuple[float, float, float] = (1.0, 1.0, 1.0)
    noise: tuple[float, int] | None = None
    blur: float | None = None
    brightness: float | None = None
    contrast: float | None = None
    resolution: float | None = None
    gamma_inverted: float | None = None
    gamma: float | None = None

    @property
    def moves(self) -> bool:
        return any(self.angles) or any(zoom != 1 for zoom in self.zoom_zyx)


_NOTHING = _Draw()


def _draw(config: AugmentConfig, seed: int, sample: int, shape_zyx: Sequence[int]) -> _Draw:
    """Each transform has its own place in the stream: switching one on changes none of the others."""
    rng = np.random.Generator(np.random.Philox(key=[seed % 2**64, sample], counter=_COUNTER))
    chances, values = rng.random(9), rng.random(9)
    turns = rng.uniform(-1, 1, 3)
    noise_seed = int(rng.integers(2**62))
    thin = [size * _THIN < max(shape_zyx) for size in shape_zyx]
    zoom = _factor(config.scale_range, values[1]) if chances[1] < config.scale else 1.0
    angles = [0.0, 0.0, 0.0]
    if chances[0] < config.rotate:
        # About an axis turn the other two; those must not be thin.
        turnable = [not any(thin[:axis] + thin[axis + 1 :]) for axis in range(3)]
        angles = [
            math.radians(most) * turn * allowed
            for most, turn, allowed in zip(config.rotate_degrees, turns, turnable, strict=True)
        ]
    inverted, gamma = (_factor(config.gamma_range, value) for value in values[7:])
    return _Draw(
        angles=(angles[0], angles[1], angles[2]),
        zoom_zyx=(1.0 if thin[0] else zoom, 1.0 if thin[1] else zoom, 1.0 if thin[2] else zoom),
        noise=(_between(config.noise_sigma, values[2]), noise_seed) if chances[2] < config.noise else None,
        blur=_between(config.blur_sigma, values[3]) if chances[3] < config.blur else None,
        brightness=_factor(config.brightness_range, values[4]) if chances[4] < config.brightness else None,
        contrast=_factor(config.contrast_range, values[5]) if chances[5] < config.contrast else None,
        resolution=_between(config.resolution_range, values[6]) if chances[6] < config.low_resolution else None,
        gamma_inverted=inverted if chances[7] < config.gamma_inverted else None,
        gamma=gamma if chances[8] < config.gamma else None,
    )


def _between(bounds: tuple[float, float], share: float) -> float:
    low, high = bounds
    return float(low + (high - low) * share)


def _factor(bounds: tuple[float, float], share: float) -> float:
    """Evenly below 1 in half the cases and evenly above in the others: 0.7..1.4 shrinks as often as it enlarges."""
    low, high = bounds
    if not low < 1 < high:
        return _between(bounds, share)
    return _between((low, 1.0), 2 * share) if share < 0.5 else _between((1.0, high), 2 * share - 1)


def _move(image: Tensor, classes: Tensor, draw: _Draw, spacing: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Rotated about the middle and scaled by `zoom_zyx`: linear for the image, the nearest voxel for the classes."""
    if not any(draw.angles):
        places = [_scaled_places(size, zoom) for size, zoom in zip(image.shape, draw.zoom_zyx, strict=True)]
        matrices = [_linear_matrix(place, size) for place, size in zip(places, image.shape, strict=True)]
        return _along_axes(image, matrices), _pick(classes, places)
    to_mm = np.diag(spacing)
    # Where each voxel of the result comes from, so the inverse of what happens to the content.
    origin = np.linalg.inv(to_mm) @ _rotation(draw.angles).T @ to_mm / np.array(draw.zoom_zyx)
    grid = _grid(origin, image.shape, image.device)
    moved = grid_sample(image[None, None], grid, mode="bilinear", align_corners=False)[0, 0]
    return moved, _nearest(classes, origin) if classes.any() else classes


def _rotation(angles: Sequence[float]) -> np.ndarray:
    """About z, then y, then x; a 3 x 3 matrix on (z, y, x) columns."""
    total = np.eye(3)
    for axis, angle in enumerate(angles):
        one, other = (other for other in range(3) if other != axis)
        turn = np.eye(3)
        turn[one, one] = turn[other, other] = math.cos(angle)
        turn[one, other], turn[other, one] = -math.sin(angle), math.sin(angle)
        total = turn @ total
    return total


def _grid(origin: np.ndarray, shape_zyx: Sequence[int], device: torch.device) -> Tensor:
    """`grid_sample`'s places (1, z, y, x, 3) in its own units and order, x first."""
    sizes = np.array(shape_zyx)
    origin = (2 * origin / sizes[:, None])[::-1].copy()  # rows in order x, y, z; -1..1 spans the patch's outer faces
    z, y, x = (
        torch.as_tensor(np.outer(np.arange(size) - (size - 1) / 2, origin[:, axis]), dtype=torch.float32, device=device)
        for axis, size in enumerate(shape_zyx)
    )
    return (z[:, None, None] + (y[:, None] + x))[None]


def _nearest(classes: Tensor, origin: np.ndarray) -> Tensor:
    """What `grid_sample` gives for the nearest voxel, in a third of the time; background outside."""
    framed = pad(classes, (1, 1) * 3)
    index = torch.full(classes.shape, sum(framed.stride()), dtype=torch.int32, device=classes.device)
    for axis, size in enumerate(classes.shape):
        z, y, x = (
            torch.as_tensor((np.arange(n) - (n - 1) / 2) * part, dtype=torch.float32, device=classes.device)
            for n, part in zip(classes.shape, origin[axis], strict=True)
        )
        place = (z[:, None, None] + (y[:, None] + (x + (size - 1) / 2))).round_().clamp_(-1, size)
        index.add_(place.to(torch.int32), alpha=framed.stride(axis))
    return framed.view(-1).index_select(0, index.view(-1)).view(classes.shape)


def _scaled_places(size: int, zoom: float) -> np.ndarray:
    """Where along an axis each voxel of the result comes from."""
    middle = (size - 1) / 2
    return (np.arange(size) - middle) / zoom + middle


def _pick(classes: Tensor, places_zyx: Sequence[np.ndarray]) -> Tensor:
    """The nearest voxel of each place; background outside."""
    for axis, places in enumerate(places_zyx):
        size = classes.shape[axis]
        nearest = np.floor(places + 0.5).astype(np.int64)
        outside = (nearest < 0) | (nearest >= size)
        classes = classes.index_select(axis, torch.as_tensor(nearest.clip(0, size - 1), device=classes.device))
        if outside.any():
            classes.index_fill_(axis, torch.as_tensor(np.flatnonzero(outside), device=classes.device), 0)
    return classes


def _shade(image: Tensor, draw: _Draw) -> Tensor:
    """Everything that leaves each structure where it is, in nnU-Net's order; (z, y, x)."""
    if draw.noise is not None:
        sigma, seed = draw.noise
        generator = torch.Generator(image.device).manual_seed(seed)
        image = image + sigma * torch.randn(image.shape, generator=generator, device=image.device)
    if draw.blur is not None:
        image = _along_axes(image, [_blur_matrix(size, draw.blur) for size in image.shape])
    if draw.brightness is not None:
        image = image * draw.brightness
    if draw.contrast is not None:
        low, high = image.aminmax()
        mean = image.mean()
        image = torch.clamp((image - mean) * draw.contrast + mean, low, high)
    if draw.resolution is not None:
        image = _along_axes(image, [_resolution_matrix(size, draw.resolution) for size in image.shape])
    if draw.gamma_inverted is not None:
        image = 1 - _gamma(1 - image, draw.gamma_inverted)
    if draw.gamma is not None:
        image = _gamma(image, draw.gamma)
    return image.clamp(0, 1)


def _gamma(image: Tensor, gamma: float) -> Tensor:
    """The exponent within the patch's own range; its mean and standard deviation stay."""
    low, high = image.aminmax()
    bent = (image - low).div_((high - low).clamp_min(_TINY)).log_().mul_(gamma).exp_()  # twice as fast as pow_
    mean = image.mean()
    spread = vector_norm(image - mean)  # as good as the standard deviation here, which torch takes 7 ms for
    bent -= bent.mean()
    return bent.mul_(spread / vector_norm(bent).clamp_min(_TINY)).add_(mean)


def _along_axes(image: Tensor, matrices_zyx: Sequence[np.ndarray]) -> Tensor:
    """Each axis times its own matrix (size, size)."""
    z, y, x = (torch.as_tensor(matrix, dtype=image.dtype, device=image.device) for matrix in matrices_zyx)
    image = image @ x.T
    image = y @ image
    return (z @ image.reshape(len(z), -1)).reshape(image.shape)


def _linear_matrix(places: np.ndarray, size: int) -> np.ndarray:
    """Linear interpolation at `places`; 0 outside."""
    return np.asarray(np.clip(1 - np.abs(places[:, None] - np.arange(size)), 0, None))


def _blur_matrix(size: int, sigma: float) -> np.ndarray:
    """A Gaussian of `sigma` voxels, the patch's faces continued."""
    reach = math.ceil(3 * sigma)
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2) if sigma else (offsets == 0).astype(float)
    matrix = np.zeros((size, size))
    rows = np.repeat(np.arange(size)[:, None], len(offsets), 1)
    np.add.at(matrix, (rows, np.clip(rows + offsets, 0, size - 1)), kernel / kernel.sum())
    return matrix


def _resolution_matrix(size: int, resolution: float) -> np.ndarray:
    """Fewer voxels, `resolution` times as many, picked from the nearest, and back by cubic interpolation."""
    n_coarse = max(1, round(size * resolution))
    picked = np.clip(np.floor((np.arange(n_coarse) + 0.5) * size / n_coarse).astype(int), 0, size - 1)
    places = (np.arange(size) + 0.5) * n_coarse / size - 0.5
    matrix = np.zeros((size, size))
    first = np.floor(places).astype(int)
    for offset in (-1, 0, 1, 2):
        weight = _cubic(np.abs(places - first - offset))
        np.add.at(matrix, (np.arange(size), picked[np.clip(first + offset, 0, n_coarse - 1)]), weight)
    return matrix


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel (IEEE TASSP 1981) at distances 0..2."""
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * _CUBIC - 4 * _CUBIC
    return np.asarray(np.where(distance <= 1, near, far))
