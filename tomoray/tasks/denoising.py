"""Denoising: a patch at low dose -> the same at full dose, by a conditional GAN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tomoray.archive import Archive
from tomoray.generators import denoiser, patch_critic
from tomoray.patches import Batch
from tomoray.tasks.config import DenoisingConfig
from tomoray.tasks.low_dose import added_noise_hu, quantum_noise
from tomoray.tasks.randomness import seeded
from tomoray.tasks.scores import psnr, ssim
from tomoray.tasks.task import Networks
from tomoray.tasks.whole_scans import scan_windows
from tomoray.training.config import TrainConfig

CRITIC, GENERATOR = "critic", "generator"


class Denoising:
    """pix2pix (Isola et al., CVPR 2017) in 3-D: a U-Net cleans, a critic compares, and the difference is kept small.

    Args:
        config: with a section `denoising`, or with its defaults.
    """

    monitor = "psnr"
    higher_is_better = True

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._settings = config.denoising or DenoisingConfig()
        low, high = config.hu_window
        self._noise = added_noise_hu(self._settings) / (high - low)

    def build_networks(self) -> dict[str, nn.Module]:
        """The critic, who learns first in each step, and the generator."""
        critic = patch_critic(self._settings.channels, in_channels=2)
        return {CRITIC: critic, GENERATOR: denoiser(self._settings.generator)}

    def loss(self, networks: Networks, batch: Batch, training: str) -> Tensor:
        """Of the critic: hinge loss. Of the generator: what the critic says, and the mean absolute difference."""
        noisy = self._low_dose(batch.image, [("train", number) for number in batch.samples])
        if training == CRITIC:
            with torch.no_grad():
                clean = networks[GENERATOR](noisy)
            pairs = torch.cat([torch.cat([noisy, batch.image], dim=1), torch.cat([noisy, clean], dim=1)])
            real, made = networks[CRITIC](pairs).chunk(2)
            return critic_hinge(real, made)
        clean = networks[GENERATOR](noisy)
        verdict: Tensor = networks[CRITIC](torch.cat([noisy, clean], dim=1))
        return self._settings.l1_weight * functional.l1_loss(clean, batch.image) - verdict.mean()

    @torch.inference_mode()
    def examine(self, networks: Networks, archive: Archive, scan_id: str) -> dict[str, Any]:
        """`psnr` (dB) and `ssim` of cleaned patches against the scan's own, and `psnr_noisy`, `ssim_noisy` of noisy."""
        generator = networks[GENERATOR]
        device = next(generator.parameters()).device
        found: dict[str, list[float]] = {"psnr": [], "ssim": [], "psnr_noisy": [], "ssim_noisy": []}
        for windows in scan_windows(archive, scan_id, self._config, device, at_most=self._settings.windows):
            noisy = self._low_dose(windows.image, [(scan_id, corner) for corner in windows.corners_zyx])
            for name, images in (("", generator(noisy).clamp(0, 1)), ("_noisy", noisy)):
                for image, full_dose in zip(images[:, 0], windows.image[:, 0], strict=True):
                    found[f"psnr{name}"].append(psnr(image.cpu().numpy(), full_dose.cpu().numpy()))
                    found[f"ssim{name}"].append(ssim(image.cpu().numpy(), full_dose.cpu().numpy()))
        return {name: fmean(values) for name, values in found.items()}

    def score(self, found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Means over scans; `psnr/noisy` and `ssim/noisy` are those of doing nothing, the baseline."""
        if not found:
            return {}
        names = ("psnr", "ssim", "psnr_noisy", "ssim_noisy")
        return {name.replace("_", "/"): fmean(scan[name] for scan in found) for name in names}

    def _low_dose(self, image: Tensor, seeds: Sequence[Any]) -> Tensor:
        """Patches `(n, 1, z, y, x)` with noise, each its own, that depends on the run's seed and `seeds`."""
        shape_zyx = image.shape[2:]
        noise = torch.stack([quantum_noise(shape_zyx, seeded(self._config.seed, *seed)) for seed in seeds])
        return (image + self._noise * noise[:, None].to(image.device)).clamp(0, 1)


def critic_hinge(real: Tensor, made: Tensor) -> Tensor:
    """What a critic is to lessen: real ones below 1, made ones above -1 (Lim and Ye 2017; Miyato et al. 2018)."""
    return functional.relu(1 - real).mean() + functional.relu(1 + made).mean()
