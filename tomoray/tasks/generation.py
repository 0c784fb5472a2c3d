"""Generation: noise -> a CT patch, by a GAN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tomoray.archive import Archive
from tomoray.generators import patch_critic, patch_generator
from tomoray.patches import Batch
from tomoray.tasks.config import GenerationConfig
from tomoray.tasks.denoising import CRITIC, GENERATOR, critic_hinge
from tomoray.tasks.randomness import seeded
from tomoray.tasks.scores import frechet_distance
from tomoray.tasks.task import Networks
from tomoray.tasks.whole_scans import scan_windows
from tomoray.training.config import TrainConfig

_BINS = 128
_LEAST_SPREAD = 0.02  # of a texture number over real patches, so that one that never changes does not rule the score


class Generation:
    """A generator and a critic with spectral norm against each other, by hinge loss (Miyato et al., ICLR 2018).

    Args:
        config: with a section `generation`, or with its defaults.
    """

    monitor = "texture_distance"
    higher_is_better = False

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._settings = config.generation or GenerationConfig()

    def build_networks(self) -> dict[str, nn.Module]:
        """The critic, who learns first in each step, and the generator."""
        channels = self._settings.channels
        generator = patch_generator(self._settings.noise, channels, self._config.patch_zyx)
        return {CRITIC: patch_critic(2 * channels, in_channels=1), GENERATOR: generator}

    def loss(self, networks: Networks, batch: Batch, training: str) -> Tensor:
        """Of the critic: hinge loss. Of the generator: what the critic says of its patches, negated."""
        noise = self._noise([(training, number) for number in batch.samples], batch.image.device)
        if training == CRITIC:
            with torch.no_grad():
                made = networks[GENERATOR](noise)
            said_of_real, said_of_made = networks[CRITIC](torch.cat([batch.image, made])).chunk(2)
            return critic_hinge(said_of_real, said_of_made)
        verdict: Tensor = networks[CRITIC](networks[GENERATOR](noise))
        return -verdict.mean()

    @torch.inference_mode()
    def examine(self, networks: Networks, archive: Archive, scan_id: str) -> dict[str, Any]:
        """Patches of the scan, as many made ones, and as many of plain noise with the scan's mean and spread.

        Returns:
            For `real`, `made` and `noise`: `histogram`, voxels in 128 equal steps of the HU window, and `texture`, for
            each patch its mean, spread, 5th, 50th and 95th percentile and mean step between neighbours along z, y, x.
        """
        generator = networks[GENERATOR]
        device = next(generator.parameters()).device
        windows = scan_windows(archive, scan_id, self._config, device, at_most=self._settings.windows)
        real = torch.cat([some.image for some in windows])
        made = generator(self._noise([(scan_id, n) for n in range(len(real))], device))
        plain = torch.randn(real.shape, generator=seeded(self._config.seed, "plain", scan_id)).to(device)
        plain = (real.mean() + real.std() * plain).clamp(0, 1)
        patches = {"real": real, "made": made, "noise": plain}
        return {name: _described(images.float().cpu()) for name, images in patches.items()}

    def score(self, found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """How far made patches are from real ones, over all scans; `…/noise` of plain noise, the baseline.

        Returns:
            `texture_distance`: Fréchet distance between the patches' textures, each number divided by its spread over
            real patches (the formula of Heusel et al., NeurIPS 2017, without their network). `hu_distance_hu`: mean
            shift of a voxel's HU that would turn one histogram into the other (Wasserstein distance).
        """
        if not found:
            return {}
        texture = {
            name: np.concatenate([scan[name]["texture"] for scan in found]) for name in ("real", "made", "noise")
        }
        spread = np.maximum(texture["real"].std(axis=0), _LEAST_SPREAD)
        low, high = self._config.hu_window
        share = {name: np.sum([scan[name]["histogram"] for scan in found], axis=0) for name in texture}
        below = {name: np.cumsum(counts / counts.sum()) for name, counts in share.items()}
        scores = {}
        for name, ending in (("made", ""), ("noise", "/noise")):
            scores[f"texture_distance{ending}"] = frechet_distance(texture["real"] / spread, texture[name] / spread)
            apart = np.abs(below[name] - below["real"]).mean()
            scores[f"hu_distance_hu{ending}"] = float(apart * (high - low))
        return scores

    def _noise(self, seeds: Sequence[Any], device: torch.device) -> Tensor:
        """What each patch is made from, `(n, noise)`: depends on the run's seed and `seeds`."""
        drawn = [torch.randn(self._settings.noise, generator=seeded(self._config.seed, *seed)) for seed in seeds]
        return torch.stack(drawn).to(device)


def _described(patches: Tensor) -> dict[str, list[Any]]:
    """Histogram and textures of `(n, 1, z, y, x)`, 0..1."""
    flat = patches.flatten(1)
    steps = [patches.diff(dim=axis).abs().flatten(1).mean(dim=1) for axis in (2, 3, 4)]
    percentiles = flat.quantile(torch.tensor([0.05, 0.5, 0.95]), dim=1)
    texture = torch.stack([flat.mean(dim=1), flat.std(dim=1), *percentiles, *steps], dim=1)
    return {"histogram": torch.histc(flat, _BINS, 0, 1).long().tolist(), "texture": texture.tolist()}
