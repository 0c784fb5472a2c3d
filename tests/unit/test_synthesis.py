from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from tomoray.config import load_config, make_config
from tomoray.errors import Usage
from tomoray.patches import PatchStream
from tomoray.tasks.choice import make_task
from tomoray.tasks.config import DenoisingConfig
from tomoray.tasks.low_dose import added_noise_hu, quantum_noise
from tomoray.tasks.randomness import seeded
from tomoray.tasks.scores import frechet_distance, psnr, ssim
from tomoray.training.config import TrainConfig

SHAPE = (24, 32, 32)
SMALL = {"spacing_zyx_mm": None, "patch_zyx": [16, 16, 16], "foreground_fraction": 0}


@pytest.fixture
def bodies(tiny_archive):
    """Six scans of air around a grey body with a dark lung."""
    volumes = {}
    for number in range(6):
        rng = np.random.default_rng(number)
        image = np.full(SHAPE, -1000.0)
        image[2:22, 4:28, 3:29] = 30 + rng.normal(0, 10)
        z, y, x = rng.integers(4, 8, 3)
        image[z : z + 12, y : y + 14, x : x + 14] = -850
        volumes[f"{number:016x}"] = (image + rng.normal(0, 5, SHAPE), {})
    return tiny_archive(volumes)


def trained(name, archive, train_task, steps, **changes):
    """The recipe in small, and what it is worth on scans that it has not seen."""
    config = load_config(name, TrainConfig, {**SMALL, **changes})
    task = make_task(config, [])
    scan_ids = archive.scan_ids()
    networks, losses = train_task(task, config, archive, scan_ids[:4], steps)
    return task.score([task.examine(networks, archive, scan_id) for scan_id in scan_ids[4:]]), losses


def test_denoising_recipe_beats_the_noisy_image(bodies, train_task):
    small = {"denoising": {"generator": [8, 8, 16]}, "learning_rate": 0.005}
    scores, losses = trained("denoising", bodies, train_task, 80, **small)
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    assert scores["psnr"] > scores["psnr/noisy"] + 0.3


def test_generation_recipe_comes_closer_than_noise(bodies, train_task):
    scores, _ = trained("generation", bodies, train_task, 200, batch_size=4, learning_rate=0.001)
    assert scores["texture_distance"] < 0.7 * scores["texture_distance/noise"]


def test_critic_learns_to_tell_patches_from_what_an_untrained_generator_makes(bodies, train_task):
    config = load_config("generation", TrainConfig, SMALL)
    task = make_task(config, [])
    torch.manual_seed(0)
    networks = task.build_networks()
    optimizer = torch.optim.Adam(networks["critic"].parameters(), 1e-3)
    losses = []
    for batch in islice(PatchStream(bodies, bodies.scan_ids(), config), 40):
        optimizer.zero_grad()
        loss = task.loss(networks, batch, "critic")
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_noise_has_unit_spread_no_mean_and_no_slow_waves():
    noise = quantum_noise((8, 64, 96), seeded("a"))
    assert noise.std().item() == pytest.approx(1, rel=0.05)
    assert abs(noise.mean().item()) < 1e-3
    power = (torch.fft.fft2(noise).abs() ** 2).mean(dim=0)
    slow, middle, fast = power[1, 1], power[10, 15], power[30, 45]
    assert slow < 0.3 * middle
    assert fast < 0.3 * middle


def test_noise_depends_on_its_seed_alone():
    assert torch.equal(quantum_noise((4, 8, 8), seeded(1, "b")), quantum_noise((4, 8, 8), seeded(1, "b")))
    assert not torch.equal(quantum_noise((4, 8, 8), seeded(1, "b")), quantum_noise((4, 8, 8), seeded(2, "b")))


def test_noise_is_added_in_squares():
    quarter = added_noise_hu(DenoisingConfig(dose=0.25, noise_hu=10))
    assert 10**2 + quarter**2 == pytest.approx(10**2 / 0.25)


def test_frechet_distance_of_normal_samples_is_that_of_their_distributions():
    rng = np.random.default_rng(0)
    one, other = rng.normal(0, 1, (20000, 3)), rng.normal(0, 1, (20000, 3)) * 2 + 1
    assert frechet_distance(one, other) == pytest.approx(3 * 1 + 3 * (1 - 2) ** 2, rel=0.03)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)


def test_scores_of_images_are_those_of_their_formulas():
    truth = np.random.default_rng(0).random((8, 8, 8))
    assert psnr(truth + 0.1, truth) == pytest.approx(20)
    assert psnr(truth, truth) == 100
    assert ssim(truth, truth) == pytest.approx(1)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"task": "generation", "patch_zyx": [12, 16, 16]}, "generation wants multiples of 8"),
        ({"task": "denoising", "denoising": {"dose": 1.0}}, r"denoising\.dose"),
        ({"task": "denoising", "generation": {}}, "settings of generation, but the task is denoising"),
    ],
)
def test_settings_that_could_not_work_are_usage_errors(values, complaint):
    with pytest.raises(Usage, match=complaint):
        make_config(TrainConfig, values)
