"""Augmented patches a second: nnU-Net's default set by us, by MONAI and by batchgeneratorsv2, the same patches.

    .venv/bin/python benchmarks/augment.py [--side 96] [--patches 60] [--rounds 3] [--threads 2] [--json]

All get float32 patches of blobs with two classes in memory, already cut, and mirror nothing: rotation, scaling, noise,
blur, brightness, contrast, low resolution, gamma and inverted gamma with the same probabilities and ranges, nearest
interpolation of classes. One Python process, torch with `--threads`. Rounds are interleaved; medians. CPU
seconds say more than seconds on a busy machine.
`pip install --no-deps --target DIR batchgeneratorsv2` and PYTHONPATH=DIR bring nnU-Net's own; else the row says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

warnings.simplefilter("ignore")

import numpy as np
import torch
from monai import transforms
from torch import Tensor

from tomoray.patches import Batch
from tomoray.training.augment import augment
from tomoray.training.sample_config import AugmentConfig

STANDARD = AugmentConfig(preset="standard")
Peer = Callable[[Tensor, Tensor, int], Any]


def main() -> None:
    """Print patches a second of each and what ours is by them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--patches", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peers: dict[str, Peer | None] = {"tomoray": ours, "monai": monai(), "batchgeneratorsv2": batchgenerators()}
    image, classes = patches(8, options.side)
    rates: dict[str, list[float]] = {name: [] for name, peer in peers.items() if peer}
    cpu_rates: dict[str, list[float]] = {name: [] for name in rates}
    for _ in range(options.rounds):
        for name in rates:
            peer = peers[name]
            assert peer is not None
            since, cpu_since = time.perf_counter(), time.process_time()
            for number in range(options.patches):
                row = number % len(image)
                peer(image[row], classes[row], number)
            rates[name].append(options.patches / (time.perf_counter() - since))
            cpu_rates[name].append(options.patches / (time.process_time() - cpu_since))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    cpu_medians = {name: statistics.median(found) for name, found in cpu_rates.items()}
    if options.json:
        print(json.dumps({"patches_per_s": medians, "patches_per_cpu_s": cpu_medians, "rounds": rates}))
        return
    print(f"{options.side}^3 patches, {options.threads} threads of torch, medians of {options.rounds} rounds")
    print(f"{'':20}{'a second':>10}{'ours by it':>12}{'a CPU second':>14}{'ours by it':>12}")
    for name in peers:
        if name not in medians:
            print(f"{name:20}  not installed")
            continue
        rate, cpu_rate = medians[name], cpu_medians[name]
        ratio, cpu_ratio = medians["tomoray"] / rate, cpu_medians["tomoray"] / cpu_rate
        print(f"{name:20}{rate:10.1f}{ratio:10.1f} x{cpu_rate:14.1f}{cpu_ratio:10.1f} x")


def patches(n: int, side: int) -> tuple[Tensor, Tensor]:
    """Smooth blobs 0..1 (n, 1, z, y, x) and two classes of them."""
    coarse = torch.rand((n, 1, *[side // 8] * 3), generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(coarse, size=(side,) * 3, mode="trilinear")
    return image, (image > 0.5).to(torch.uint8) + (image > 0.7).to(torch.uint8)


def ours(image: Tensor, classes: Tensor, number: int) -> Batch:
    """As the training calls it, a batch of one."""
    batch = Batch(image=image[None], classes=classes[None], samples=(number,), scan_ids=("",), waited_s=0.0)
    return augment(batch, STANDARD, seed=0)


def monai() -> Peer:
    """The dictionary transforms nearest to nnU-Net's."""
    both, turn = ("image", "classes"), float(np.pi / 6)
    chain = transforms.Compose(
        [
            transforms.RandAffined(
                keys=both,
                prob=0.36,  # rotation 0.2 or scaling 0.2
                rotate_range=(turn, turn, turn),
                scale_range=(0.3, 0.3, 0.3),
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            transforms.RandGaussianNoised(keys="image", prob=0.1, std=0.03),
            transforms.RandGaussianSmoothd(
                keys="image", prob=0.2, sigma_x=(0.5, 1.0), sigma_y=(0.5, 1.0), sigma_z=(0.5, 1.0)
            ),
            transforms.RandScaleIntensityd(keys="image", prob=0.15, factors=0.25),
            transforms.RandScaleIntensityFixedMeand(keys="image", prob=0.15, factors=0.25, preserve_range=True),
            transforms.RandSimulateLowResolutiond(keys="image", prob=0.25, zoom_range=(0.5, 1.0)),
            transforms.RandAdjustContrastd(
                keys="image", prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True
            ),
            transforms.RandAdjustContrastd(keys="image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
        ]
    ).set_random_state(0)
    return lambda image, classes, _: chain({"image": image, "classes": classes})


def batchgenerators() -> Peer | None:
    """What nnU-Net v2's default trainer builds, without mirroring; None where it is not installed."""
    try:
        from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
        from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
        from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
        from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
        from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
        from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
        from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
        from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
        from batchgeneratorsv2.transforms.utils.random import RandomTransform
    except ImportError as error:
        print(f"batchgeneratorsv2: {error}")
        return None
    turn = (-float(np.pi / 6), float(np.pi / 6))
    chains: dict[tuple[int, ...], Any] = {}

    def build(shape_zyx: tuple[int, ...]) -> Any:
        return ComposeTransforms(
            [
                SpatialTransform(
                    shape_zyx,
                    patch_center_dist_from_border=0,
                    random_crop=False,
                    p_elastic_deform=0,
                    p_rotation=0.2,
                    rotation=turn,
                    p_scaling=0.2,
                    scaling=(0.7, 1.4),
                    p_synchronize_scaling_across_axes=1,
                    bg_style_seg_sampling=False,
                    mode_seg="nearest",
                ),
                RandomTransform(
                    GaussianNoiseTransform(noise_variance=(0, 0.03), p_per_channel=1, synchronize_channels=True), 0.1
                ),
                RandomTransform(
                    GaussianBlurTransform(
                        blur_sigma=(0.5, 1.0),
                        synchronize_channels=False,
                        synchronize_axes=False,
                        p_per_channel=1,
                        benchmark=True,
                    ),
                    0.2,
                ),
                RandomTransform(
                    MultiplicativeBrightnessTransform(
                        multiplier_range=BGContrast((0.75, 1.25)), synchronize_channels=False, p_per_channel=1
                    ),
                    0.15,
                ),
                RandomTransform(
                    ContrastTransform(
                        contrast_range=BGContrast((0.75, 1.25)),
                        preserve_range=True,
                        synchronize_channels=False,
                        p_per_channel=1,
                    ),
                    0.15,
                ),
                RandomTransform(
                    SimulateLowResolutionTransform(
                        scale=(0.5, 1),
                        synchronize_channels=False,
                        synchronize_axes=True,
                        ignore_axes=None,
                        allowed_channels=None,
                        p_per_channel=1,
                    ),
                    0.25,
                ),
                RandomTransform(
                    GammaTransform(
                        gamma=BGContrast((0.7, 1.5)),
                        p_invert_image=1,
                        synchronize_channels=False,
                        p_per_channel=1,
                        p_retain_stats=1,
                    ),
                    0.1,
                ),
                RandomTransform(
                    GammaTransform(
                        gamma=BGContrast((0.7, 1.5)),
                        p_invert_image=0,
                        synchronize_channels=False,
                        p_per_channel=1,
                        p_retain_stats=1,
                    ),
                    0.3,
                ),
            ]
        )

    def peer(image: Tensor, classes: Tensor, _: int) -> Any:
        shape = tuple(image.shape[1:])
        if shape not in chains:
            chains[shape] = build(shape)
        return chains[shape](image=image.clone(), segmentation=classes.to(torch.int16))

    return peer


if __name__ == "__main__":
    main()
