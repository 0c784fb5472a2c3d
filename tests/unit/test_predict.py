import io

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from tomoray.catalog import Split
from tomoray.errors import Fatal, Usage
from tomoray.geometry import Geometry, from_canonical
from tomoray.metrics import dice
from tomoray.networks import build_network
from tomoray.predict import Segmenter, load_segmenter, window_starts
from tomoray.runs import begin_run, finish_run
from tomoray.storage import open_store
from tomoray.training.config import TrainConfig
from tomoray.training.network_config import NetworkConfig

DIAGONAL = np.diag([1.0, 1.0, 1.0, 1.0])
TILTED_ORDER = np.array([[0, 0, -1.0, 0], [1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1]])  # x -> P, y -> I, z -> R


class Threshold(nn.Module):
    """Class 1 above 500 HU, class 2 above 900."""

    def __init__(self, sharpness=100):
        super().__init__()
        self.sharpness = sharpness

    def forward(self, image):
        return torch.cat([0.5 - image, (image - 0.5) * (image < 0.9), (image - 0.9) * 100], dim=1) * self.sharpness


def config(**changes):
    values = {"labels": ["lungs", "nodules"], "patch_zyx": (16, 16, 16), "hu_window": (0, 1001), **changes}
    return TrainConfig.model_validate(values)


def blobs(*shape):
    noise = gaussian_filter(np.random.default_rng(1).normal(size=shape), 4)
    return (500 + 400 * noise / np.abs(noise).max()).astype(np.int16)


@pytest.mark.parametrize("shape", [(21, 40, 33), (5, 50, 17)])
@pytest.mark.parametrize("matrix", [DIAGONAL, TILTED_ORDER])
def test_masks_lie_on_the_scans_own_grid_in_any_orientation(shape, matrix):
    image = blobs(*shape)
    image[2:5, 3:6, 4:8] = 1000
    masks = Segmenter(Threshold(), config()).segment(image, Geometry.from_matrix(shape, matrix))
    np.testing.assert_array_equal(masks["lungs"], ((image > 500) & (image <= 900)).astype(np.uint8))
    np.testing.assert_array_equal(masks["nodules"], (image > 900).astype(np.uint8))


def test_a_label_that_contains_another_holds_its_voxels():
    image = blobs(20, 20, 20)
    image[5:9, 5:9, 5:9] = 1000
    segmenter = Segmenter(Threshold(), config(contains={"lungs": ["nodules"]}))
    masks = segmenter.segment(image, Geometry.from_matrix(image.shape, DIAGONAL))
    np.testing.assert_array_equal(masks["lungs"], (image > 500).astype(np.uint8))


@pytest.mark.parametrize("spacing", [(2, 2, 2), (1, 1, 1), (0.7, 1.5, 0.9)])
def test_another_network_grid_comes_back_without_a_shift(spacing):
    z, y, x = np.indices((40, 60, 70))
    image = (1000 * (((z - 18) / 12) ** 2 + ((y - 31) / 20) ** 2 + ((x - 33) / 20) ** 2 < 1)).astype(np.int16)
    geometry = Geometry.from_matrix(image.shape, np.diag([0.8, 0.8, 1.3, 1]))
    masks = Segmenter(Threshold(sharpness=4), config(spacing_zyx_mm=spacing)).segment(image, geometry)
    found = masks["lungs"] | masks["nodules"]
    assert dice(found, (image > 0).astype(np.uint8)) > 0.96
    np.testing.assert_allclose(np.argwhere(found).mean(axis=0), np.argwhere(image > 0).mean(axis=0), atol=0.1)


def test_slab_by_slab_equals_blending_the_whole_scan_at_once():
    torch.manual_seed(0)
    wanted = config(network={"channels": [4, 8]}, overlap=0.5)
    segmenter = Segmenter(build_network(wanted.network, 3), wanted)
    image = blobs(37, 20, 30)
    scaled = torch.from_numpy(image.astype(np.float32) / 1001).clamp(0, 1)
    sums, weights = torch.zeros(3, *image.shape), torch.zeros(image.shape)
    with torch.inference_mode():
        for z, y, x in [(z, y, x) for z in (0, 7, 14, 21) for y in (0, 4) for x in (0, 7, 14)]:
            at = np.s_[z : z + 16, y : y + 16, x : x + 16]
            sums[(slice(None), *at)] += segmenter._networks[0](scaled[at][None, None]).softmax(1)[0] * segmenter._blend
            weights[at] += segmenter._blend
    masks = segmenter.segment(image, Geometry.from_matrix(image.shape, DIAGONAL))
    classes = (sums / weights).argmax(0).numpy()
    for number, name in enumerate(wanted.labels, start=1):
        assert dice(masks[name], (classes == number).astype(np.uint8)) > 0.9999


def test_orientation_of_storage_does_not_change_the_result():
    torch.manual_seed(0)
    wanted = config(network={"channels": [4, 8]}, spacing_zyx_mm=(1.5, 1.5, 1.5))
    segmenter = Segmenter(build_network(wanted.network, 3), wanted)
    image = blobs(24, 26, 28)
    turned = Geometry.from_matrix((28, 24, 26), TILTED_ORDER)
    plain = segmenter.segment(image, Geometry.from_matrix(image.shape, DIAGONAL))
    other = segmenter.segment(np.ascontiguousarray(from_canonical(image, turned)), turned)
    np.testing.assert_array_equal(other["lungs"], from_canonical(plain["lungs"], turned))


def test_weights_of_another_network_end_in_one_line(tmp_path):
    store = open_store(str(tmp_path / "run"))
    wanted = config(archive="a", out=store.url, network={"channels": [4, 8]}, steps=1)
    split = Split(train=("p1",), validation=(), test=())
    begin_run(store, wanted, split)
    other = io.BytesIO()
    torch.save(build_network(NetworkConfig(channels=[6, 12]), 3).state_dict(), other)
    store.write("checkpoints/step-00000001/model.pt", other.getvalue())
    finish_run(store, wanted, split, {})
    with pytest.raises(Fatal, match=r"do not fit the network 'unet' of this release.*train it again$"):
        load_segmenter(store.url)


class OneSided(nn.Module):
    """Says class 1 towards the end of each axis, the more the further."""

    def forward(self, image):
        z, y, x = (torch.linspace(-1, 1, side) for side in image.shape[2:])
        score = (z[:, None, None] + y[:, None] + x).expand(image.shape)
        return torch.cat([torch.zeros_like(score), score, score - 9], dim=1)


def test_several_networks_are_one_by_their_mean_probability():
    image, geometry = blobs(20, 20, 20), Geometry.from_matrix((20, 20, 20), DIAGONAL)
    sure, unsure = Threshold(), Threshold(sharpness=-0.1)
    alone, both = Segmenter(sure, config()), Segmenter([sure, unsure, unsure], config())
    windows = torch.rand(2, 1, 16, 16, 16)
    mean = (sure(windows).softmax(1) + 2 * unsure(windows).softmax(1)) / 3
    torch.testing.assert_close(both._probabilities(windows), mean)
    assert (
        dice(Segmenter([sure, sure], config()).segment(image, geometry)["lungs"], (image > 500).astype(np.uint8)) == 1
    )
    assert alone.segment(image, geometry)["lungs"].any()


def test_mirror_images_cancel_what_is_one_sided():
    windows = torch.rand(1, 1, 16, 16, 16)
    plain = Segmenter(OneSided(), config())._probabilities(windows)
    mirrored = Segmenter(OneSided(), config(mirror_when_predicting=True))._probabilities(windows)
    for axis in (2, 3, 4):
        assert not torch.allclose(plain, plain.flip(axis), atol=0.1)
        torch.testing.assert_close(mirrored, mirrored.flip(axis))


def make_run(folder, seed=0, **changes):
    torch.manual_seed(seed)
    store = open_store(str(folder))
    wanted = config(archive="a", out=store.url, network={"channels": [4, 8]}, steps=1, **changes)
    split = Split(train=("p1",), validation=(), test=())
    begin_run(store, wanted, split)
    weights = io.BytesIO()
    torch.save(build_network(wanted.network, len(wanted.labels) + 1).state_dict(), weights)
    store.write("checkpoints/step-00000001/model.pt", weights.getvalue())
    return finish_run(store, wanted, split, {})


def test_runs_are_loaded_together(tmp_path):
    runs = [make_run(tmp_path / name, seed) for seed, name in enumerate("ab")]
    windows = torch.rand(1, 1, 16, 16, 16)
    alone = [load_segmenter(run)._probabilities(windows) for run in runs]
    together = load_segmenter([runs[0], runs[1].store.url])._probabilities(windows)
    torch.testing.assert_close(together, sum(alone) / 2)


def test_a_run_of_another_task_makes_no_masks(tmp_path):
    run = make_run(tmp_path / "a", task="pretraining")
    with pytest.raises(Usage, match=r"run .*a learned pretraining; wanted one of task segmentation"):
        load_segmenter(run)


@pytest.mark.parametrize("change", [{"labels": ["lungs", "heart"]}, {"spacing_zyx_mm": (1, 1, 1)}])
def test_runs_that_differ_are_not_loaded_together(tmp_path, change):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", **change)]
    with pytest.raises(Usage, match=f"b has {next(iter(change))} .* and run .*a .*; wanted one"):
        load_segmenter(runs)


@pytest.mark.parametrize(("size", "side", "overlap"), [(10, 16, 0.5), (16, 16, 0.5), (17, 16, 0.25), (100, 16, 0.25)])
def test_windows_cover_every_voxel_and_stay_inside(size, side, overlap):
    starts = window_starts(size, side, overlap)
    covered = {voxel for start in starts for voxel in range(start, start + side)}
    assert covered >= set(range(size))
    assert starts == sorted(set(starts))
    assert size <= side or starts[-1] == size - side
