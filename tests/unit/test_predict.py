import io

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from tomoray.catalog import Split
from tomoray.errors import Fatal, Usage
from tomoray.geometry import Geometry, from_canonical
from tomoray.inference.scan_input import window_starts
from tomoray.metrics import dice
from tomoray.networks import build_network
from tomoray.predict import Segmenter, load_segmenter
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
            (found,) = segmenter.forward((scaled[at][None, None],))
            sums[(slice(None), *at)] += found[0] * segmenter._blend
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


class Counting(Threshold):
    """Remembers how many windows it was shown."""

    def __init__(self):
        super().__init__()
        self.windows = 0

    def forward(self, image):
        self.windows += len(image)
        return super().forward(image)


def body_in_air(noise_hu=20):
    """A box of tissue with air enclosed, in noisy air."""
    image = np.random.default_rng(0).normal(-1000, noise_hu, (20, 96, 96))
    image[:, 32:64, 32:64] = 700
    image[4:16, 40:56, 40:56] = -1000
    return image.astype(np.int16)


def test_windows_of_air_are_left_out_and_nothing_else_changes():
    image, geometry = body_in_air(), Geometry.from_matrix((20, 96, 96), DIAGONAL)
    all_windows, some_windows = Counting(), Counting()
    wanted = Segmenter(all_windows, config(skip_air=False)).segment(image, geometry)
    found = Segmenter(some_windows, config()).segment(image, geometry)
    assert wanted["lungs"].any()
    assert {name: mask.tolist() for name, mask in found.items()} == {n: mask.tolist() for n, mask in wanted.items()}
    assert some_windows.windows < all_windows.windows / 2


def test_enclosed_air_is_shown_to_the_network():
    image, geometry = body_in_air(), Geometry.from_matrix((20, 96, 96), DIAGONAL)
    image[:, 32:64, 32:64] = -1000
    image[:, 24:72, 24:72][:, [0, -1]] = image[:, 24:72, 24:72][:, :, [0, -1]] = 100  # a shell, seen from the feet
    network = Counting()
    Segmenter(network, config(hu_window=(-1000, 0), patch_zyx=(16, 8, 8))).segment(image, geometry)
    inside = len(window_starts(20, 16, 0.25)) * len([n for n in window_starts(96, 8, 0.25) if 16 < n < 72]) ** 2
    assert network.windows >= inside


def test_uncertainty_is_high_where_classes_are_alike_and_low_where_one_is_sure():
    image, geometry = np.full((16, 16, 32), 100, np.int16), Geometry.from_matrix((16, 16, 32), DIAGONAL)
    image[:, :, 16:] = 500  # halfway between the first two classes
    found = Segmenter(Threshold(), config(hu_window=(0, 1000))).find(image, geometry, uncertainty=True)
    assert found.uncertainty_zyx.shape == image.shape
    assert found.uncertainty_zyx[:, :, :14].max() < 0.05
    assert found.uncertainty_zyx[:, :, 18:].min() > 0.5


def test_scans_are_read_in_pieces_and_give_the_same_masks():
    image, matrix = blobs(21, 80, 40), TILTED_ORDER
    geometry = Geometry.from_matrix(image.shape, matrix)

    class Pieces:
        largest = 0

        def __getitem__(self, where):
            Pieces.largest = max(Pieces.largest, image[where].size)
            return image[where]

    segmenter = Segmenter(Threshold(), config(spacing_zyx_mm=(1.3, 1.1, 0.9)))
    whole, pieces = segmenter.segment(image, geometry), segmenter.segment(Pieces(), geometry)
    np.testing.assert_array_equal(pieces["lungs"], whole["lungs"])
    assert Pieces.largest < image.size / 2


def test_packed_masks_are_the_masks():
    image, geometry = blobs(20, 21, 23), Geometry.from_matrix((20, 21, 23), DIAGONAL)
    segmenter = Segmenter(Threshold(), config(contains={"lungs": ["nodules"]}))
    classes = segmenter.find(image, geometry).classes_zyx
    for name, mask in segmenter.segment(image, geometry).items():
        np.testing.assert_array_equal(segmenter.packed(classes, name), np.packbits(mask))


def test_progress_counts_every_window_and_may_end_the_work():
    image, geometry = body_in_air(), Geometry.from_matrix((20, 96, 96), DIAGONAL)
    told, network = [], Counting()
    Segmenter(network, config()).find(image, geometry, advance=lambda done, of: told.append((done, of)))
    assert told[-1] == (128, 128)  # 2 x 8 x 8
    assert [done for done, _ in told] == sorted(done for done, _ in told)

    def stop(done, of):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        Segmenter(network, config()).find(image, geometry, advance=stop)


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
    """Says class 1 but at the beginning of all axes together, the more the further."""

    def forward(self, image):
        z, y, x = (torch.linspace(-1, 1, side) for side in image.shape[2:])
        score = (1 + z[:, None, None] + y[:, None] + x).expand(image.shape)
        return torch.cat([torch.zeros_like(score), score, score - 9], dim=1)


def test_several_networks_are_one_by_their_mean_probability():
    image, geometry = blobs(20, 20, 20), Geometry.from_matrix((20, 20, 20), DIAGONAL)
    sure, unsure = Threshold(), Threshold(sharpness=-0.1)
    alone, both = Segmenter(sure, config()), Segmenter([sure, unsure, unsure], config())
    windows = torch.rand(2, 1, 16, 16, 16)
    mean = (sure(windows).softmax(1) + 2 * unsure(windows).softmax(1)) / 3
    torch.testing.assert_close(both.forward((windows,))[0], mean)
    assert (
        dice(Segmenter([sure, sure], config()).segment(image, geometry)["lungs"], (image > 500).astype(np.uint8)) == 1
    )
    assert alone.segment(image, geometry)["lungs"].any()


def test_mirror_images_cancel_what_is_one_sided():
    image, geometry = blobs(16, 16, 16), Geometry.from_matrix((16, 16, 16), DIAGONAL)
    plain = Segmenter(OneSided(), config()).segment(image, geometry)["lungs"]
    mirrored = Segmenter(OneSided(), config(mirror_when_predicting=True)).segment(image, geometry)["lungs"]
    assert not plain[0, 0, 0]
    assert plain[-1, -1, -1]
    assert mirrored.all()


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
    alone = [load_segmenter(run).forward((windows,))[0] for run in runs]
    together = load_segmenter([runs[0], runs[1].store.url]).forward((windows,))[0]
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
