import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import grid_sample

from tomoray.config import make_config
from tomoray.errors import Usage
from tomoray.patches import Batch
from tomoray.training.augment import _grid, _nearest, _rotation, augment
from tomoray.training.config import TrainConfig
from tomoray.training.sample_config import AugmentConfig

STANDARD = AugmentConfig(preset="standard")
SIDE = 24


@pytest.fixture(autouse=True)
def _one_thread():
    """Patches this small gain nothing from threads, and on a busy machine lose much."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def batch_of(image, classes=None, first=0):
    classes = torch.zeros(image.shape, dtype=torch.uint8) if classes is None else classes
    n = len(image)
    return Batch(
        image=image,
        classes=classes,
        samples=tuple(range(first, first + n)),
        scan_ids=("scan",) * n,
        waited_s=0.0,
    )


def smooth_batch(n=16, first=0, sides=(SIDE, SIDE, SIDE)):
    """Random blobs, as smooth as tissue, with three classes."""
    generator = torch.Generator().manual_seed(first)
    coarse = torch.rand((n, 1, *(max(2, side // 4) for side in sides)), generator=generator)
    image = torch.nn.functional.interpolate(coarse, size=sides, mode="trilinear")
    return batch_of(image, (image > 0.4).to(torch.uint8) + 2 * (image > 0.6).to(torch.uint8), first)


def only(name, **ranges):
    return AugmentConfig(**{name: 1.0}, **ranges)


def middle(mask):
    return torch.nonzero(mask).double().mean(0)


def test_does_nothing_unless_told_to():
    batch = smooth_batch()
    assert augment(batch, AugmentConfig(), seed=1) is batch


def test_leaves_the_given_batch_as_it_is():
    batch = smooth_batch()
    image, classes = batch.image.clone(), batch.classes.clone()
    augment(batch, STANDARD, seed=1)
    assert torch.equal(batch.image, image)
    assert torch.equal(batch.classes, classes)


def test_what_a_sample_becomes_does_not_depend_on_its_batch():
    batch = smooth_batch(12)
    whole = augment(batch, STANDARD, seed=5)
    for rows in ([0, 1, 2], [11, 4], [7], [3, 5, 6, 8, 9, 10]):
        part = replace(
            batch,
            image=batch.image[rows],
            classes=batch.classes[rows],
            samples=tuple(batch.samples[row] for row in rows),
        )
        part = augment(part, STANDARD, seed=5)
        assert torch.equal(part.image, whole.image[rows])
        assert torch.equal(part.classes, whole.classes[rows])


def test_other_seed_and_other_sample_vary_otherwise():
    image = smooth_batch(1).image.expand(2, -1, -1, -1, -1)
    config = only("noise", noise_sigma=(0.02, 0.02))
    first, second = augment(batch_of(image), config, seed=1).image
    again = augment(batch_of(image), config, seed=2).image[0]
    assert not torch.equal(first, second)
    assert not torch.equal(first, again)


def test_switching_one_transform_on_leaves_the_draws_of_others():
    batch = smooth_batch(40)
    turned = augment(batch, AugmentConfig(rotate=0.5), seed=3)
    blurred_too = augment(batch, AugmentConfig(rotate=0.5, blur=0.5), seed=3)
    assert torch.equal(turned.classes, blurred_too.classes)


@pytest.mark.parametrize("name", ["rotate", "scale", "noise", "blur", "brightness", "contrast"])
def test_each_happens_as_often_as_asked(name):
    batch = smooth_batch(200, sides=(4, 4, 4))
    image = augment(batch, AugmentConfig(**{name: 0.3}), seed=0).image
    changed = (image != batch.image).flatten(1).any(1).float().mean()
    assert changed == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 200))


@pytest.mark.parametrize("sides", [(SIDE, SIDE, SIDE), (5, 31, 18), (1, 32, 32)])
def test_standard_set_keeps_shapes_range_and_classes(sides):
    batch = smooth_batch(40, sides=sides)
    varied = augment(batch, STANDARD, seed=2)
    assert varied.image.shape == batch.image.shape
    assert varied.image.dtype == torch.float32
    assert varied.classes.shape == batch.classes.shape
    assert varied.classes.dtype == torch.uint8
    assert varied.image.isfinite().all()
    assert varied.image.min() >= 0
    assert varied.image.max() <= 1
    assert set(varied.classes.unique().tolist()) <= {0, 1, 3}


def test_air_alone_stays_finite():
    every = AugmentConfig(
        **dict.fromkeys(
            ["rotate", "scale", "noise", "blur", "brightness", "contrast", "low_resolution", "gamma", "gamma_inverted"],
            1.0,
        )
    )
    varied = augment(batch_of(torch.zeros(4, 1, 8, 8, 8)), every, seed=0)
    assert varied.image.isfinite().all()
    assert not varied.classes.any()


@pytest.mark.parametrize("config", [only("rotate"), only("scale"), AugmentConfig(rotate=1.0, scale=1.0)])
def test_classes_move_with_the_image(config):
    z, y, x = torch.meshgrid(*(torch.arange(33.0) for _ in range(3)), indexing="ij")
    far = torch.sqrt((z - 20) ** 2 + (y - 11) ** 2 + (x - 17) ** 2)
    image = torch.clamp(1 - far / 12, 0, 1).expand(8, 1, -1, -1, -1).contiguous()
    varied = augment(batch_of(image, (image > 0.5).to(torch.uint8)), config, seed=4)
    moved = 0.0
    for picture, classes in zip(varied.image[:, 0], varied.classes[:, 0], strict=True):
        found, labelled = middle(picture > 0.5), middle(classes == 1)
        assert torch.dist(found, labelled) < 0.4
        moved = max(moved, float(torch.dist(found, middle(image[0, 0] > 0.5))))
    assert moved > 1.2


def test_rotation_is_rigid_in_millimetres():
    spacing, shape = torch.tensor([3.0, 1.0, 1.0]), (11, 33, 33)
    z, y, x = torch.meshgrid(*(torch.arange(float(side)) for side in shape), indexing="ij")
    image = torch.empty(4, 1, *shape)
    for row, place in enumerate([(5, 16, 16), (5, 22, 16), (5, 16, 22), (7, 16, 16)]):
        mm = torch.stack([z, y, x], -1) * spacing - torch.tensor(place) * spacing
        image[row, 0] = torch.exp(-(mm**2).sum(-1) / 2 / 3**2)
    for turn in range(4):
        batch = replace(batch_of(image), samples=(turn,) * 4)  # one number, so one rotation
        varied = augment(batch, only("rotate"), seed=8, spacing_zyx_mm=spacing.tolist()).image[:, 0]
        weights = varied / varied.sum((1, 2, 3), keepdim=True)
        centre, *others = torch.stack([(axis * weights).sum((1, 2, 3)) for axis in (z, y, x)], -1) * spacing
        for other in others:
            assert torch.dist(centre, other) == pytest.approx(6, abs=0.25)


def test_thin_patches_turn_within_their_slices_only():
    batch = smooth_batch(8, sides=(4, 32, 32))
    slices = batch.image[:, :, 2:3].expand(-1, -1, 4, -1, -1).contiguous()
    varied = augment(batch_of(slices), AugmentConfig(rotate=1.0, scale=1.0), seed=0).image
    assert torch.allclose(varied, varied[:, :, :1].expand_as(varied), atol=1e-5)
    assert not torch.allclose(varied, slices, atol=0.1)


def test_scaling_is_what_a_rotation_by_nothing_would_give():
    batch = smooth_batch(6)
    separable = augment(batch, only("scale"), seed=1)
    tiny = AugmentConfig(scale=1.0, rotate=1.0, rotate_degrees=(1e-5, 1e-5, 1e-5))
    sampled = augment(batch, tiny, seed=1)
    assert torch.allclose(separable.image, sampled.image, atol=1e-4)
    assert (separable.classes != sampled.classes).float().mean() < 1e-3


def test_noise_has_the_sigma_asked_for():
    image = torch.full((4, 1, SIDE, SIDE, SIDE), 0.5)
    varied = augment(batch_of(image), only("noise", noise_sigma=(0.02, 0.02)), seed=0).image
    assert varied.std() == pytest.approx(0.02, rel=0.02)
    assert varied.mean() == pytest.approx(0.5, abs=1e-3)


def test_blur_is_a_gaussian():
    image = torch.zeros(1, 1, SIDE, SIDE, SIDE)
    image[0, 0, 12, 12, 12] = 1
    spread = augment(batch_of(image), only("blur", blur_sigma=(1.2, 1.2)), seed=0).image[0, 0]
    assert spread.sum() == pytest.approx(1, abs=1e-4)
    along = spread.sum((0, 1))
    assert ((torch.arange(SIDE) - 12) ** 2 * along).sum() == pytest.approx(1.44, rel=0.02)


def test_blur_and_low_resolution_keep_what_is_even():
    image = torch.full((2, 1, 12, 13, 14), 0.3)
    varied = augment(batch_of(image), AugmentConfig(blur=1.0, low_resolution=1.0), seed=0).image
    assert torch.allclose(varied, image, atol=1e-5)


def test_brightness_multiplies():
    batch = batch_of(torch.rand(1, 1, 8, 8, 8) / 2)
    varied = augment(batch, only("brightness", brightness_range=(1.2, 1.2)), seed=0).image
    assert torch.allclose(varied, 1.2 * batch.image)


def test_contrast_widens_about_the_mean_within_the_range():
    batch = batch_of(torch.rand(1, 1, SIDE, SIDE, SIDE) * 0.5 + 0.25)
    varied = augment(batch, only("contrast", contrast_range=(0.8, 0.8)), seed=0).image
    assert varied.std() / batch.image.std() == pytest.approx(0.8, rel=1e-3)
    assert varied.mean() == pytest.approx(float(batch.image.mean()), abs=1e-4)
    wider = augment(batch, only("contrast", contrast_range=(1.2, 1.2)), seed=0).image
    assert wider.min() == batch.image.min()
    assert wider.max() == batch.image.max()


def test_low_resolution_takes_fine_detail_and_leaves_coarse():
    ramp = torch.linspace(0.2, 0.8, 32).expand(1, 1, 32, 32, -1).contiguous()
    config = only("low_resolution", resolution_range=(0.5, 0.5))
    assert torch.allclose(augment(batch_of(ramp), config, seed=0).image, ramp, atol=0.03)
    stripes = (torch.arange(32) % 2).float().expand(1, 1, 32, 32, -1).contiguous()
    assert augment(batch_of(stripes), config, seed=0).image.std() < 0.1


@pytest.mark.parametrize("name", ["gamma", "gamma_inverted"])
def test_gamma_keeps_mean_and_deviation_and_bends_what_it_should(name):
    image = torch.linspace(0.2, 0.8, SIDE).expand(1, 1, SIDE, SIDE, -1).contiguous()
    varied = augment(batch_of(image), only(name, gamma_range=(1.5, 1.5)), seed=0).image
    assert varied.mean() == pytest.approx(float(image.mean()), abs=1e-3)
    assert varied.std() == pytest.approx(float(image.std()), rel=1e-2)
    slopes = varied[0, 0, 0, 0].diff()
    assert (slopes > 0).all()
    assert (slopes[0] < slopes[-1]) == (name == "gamma")


def test_preset_is_nnunets_and_single_fields_overrule_it():
    config = make_config(
        TrainConfig, {"labels": ["lungs"], "augment": {"preset": "standard", "noise": 0.5, "mirror": False}}
    ).augment
    assert (config.rotate, config.noise, config.mirror) == (0.2, 0.5, False)
    assert AugmentConfig(**config.model_dump()) == config


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"preset": "nnunet"}, "preset"),
        ({"noise": 1.5}, "noise"),
        ({"scale_range": [1.4, 0.7]}, "scale_range.*lower bound comes first"),
        ({"gamma_range": [0, 1]}, "gamma_range"),
        ({"elastic": 0.2}, "elastic"),
    ],
)
def test_wrong_augmentation_is_a_usage_error_that_names_it(fields, words):
    with pytest.raises(Usage, match=words):
        make_config(TrainConfig, {"labels": ["lungs"], "augment": fields})


@pytest.mark.parametrize("shape", [(20, 31, 40), (8, 40, 40)])
def test_classes_are_turned_as_grid_sample_turns_them(shape):
    classes = (5 * torch.rand(shape, generator=torch.Generator().manual_seed(1))).to(torch.uint8)
    origin = np.linalg.inv(_rotation((0.3, 0.4, -0.2))) / 0.8
    grid = _grid(origin, shape, classes.device)
    wanted = grid_sample(classes[None, None].float(), grid, mode="nearest", align_corners=False)[0, 0]
    differ = _nearest(classes, origin) != wanted.to(torch.uint8)
    assert differ.float().mean() < 1e-3  # halves are rounded where sums differ in their last bit
