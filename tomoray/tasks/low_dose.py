"""What a scan would look like with less dose: quantum noise, made up in the image."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from tomoray.tasks.config import DenoisingConfig

_ROLL_OFF = 0.25  # cycles per voxel at which a smooth kernel has damped the ramp to 1 / e


def quantum_noise(shape_zyx: Sequence[int], generator: torch.Generator) -> Tensor:
    """Noise as photon counting leaves it in a reconstructed scan: float32 (z, y, x), mean 0, standard deviation 1.

    Counts are Poisson in each ray, so that after the logarithm rays are independent with equal spread where they pass
    alike; filtered back-projection then shapes their power as the ramp filter times the kernel, |f| exp(-(f / f0)^2)
    within a slice (Kijewski and Judy, Phys. Med. Biol. 32:565, 1987). Slices are independent. That the spread grows
    where rays pass more tissue (Zeng et al., IEEE Trans. Nucl. Sci. 62:2226, 2015) is left out.
    """
    _, height, width = shape_zyx
    white = torch.randn(tuple(shape_zyx), generator=generator)
    across, along = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    squared = across**2 + along**2
    power = squared.sqrt() * torch.exp(-squared / _ROLL_OFF**2)
    whole = torch.fft.fftfreq(width)[None] ** 2 + across**2
    spread = (whole.sqrt() * torch.exp(-whole / _ROLL_OFF**2)).mean().sqrt()
    noise: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) * power.sqrt(), s=(height, width)) / spread
    return noise


def added_noise_hu(config: DenoisingConfig) -> float:
    """Standard deviation to be added, HU: variance goes as one over dose, and the full dose's own is there already."""
    return config.noise_hu * sqrt(1 / config.dose - 1)
