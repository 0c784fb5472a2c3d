import numpy as np
import torch
from torch.nn.functional import interpolate

from tomoray.geometry import Geometry
from tomoray.transforms import linear_taps, resample, scale_hu, target_grid


def ramp(*sizes):
    return torch.from_numpy(np.random.default_rng(0).normal(size=sizes).astype(np.float32))


def test_finer_grid_equals_pytorchs_trilinear_interpolation():
    volume = ramp(4, 5, 6)
    taps = [linear_taps(0, 2 * n, 0.5, n, outside="edge") for n in volume.shape]
    wanted = interpolate(volume[None, None], scale_factor=2, mode="trilinear", align_corners=False)[0, 0]
    torch.testing.assert_close(resample(volume, taps), wanted)


def test_coarser_grid_equals_pytorchs_antialiased_interpolation():
    image = ramp(1, 12, 15)
    taps = [linear_taps(0, 1, 1, 1), *(linear_taps(1, n // 3 - 2, 3.0, n) for n in image.shape[1:])]
    wanted = interpolate(image[None], size=(4, 5), mode="bilinear", antialias=True)[0, :, 1:-1, 1:-1]
    window = image[:, taps[1].start : taps[1].stop, taps[2].start : taps[2].stop]
    torch.testing.assert_close(resample(window, taps), wanted)


def test_own_spacing_gives_the_stored_voxels():
    volume = ramp(3, 4, 5)
    taps = [linear_taps(0, n, 1.0, n) for n in volume.shape]
    assert torch.equal(resample(volume, taps), volume)


def test_outside_is_zero_and_the_window_read_is_clipped():
    taps = linear_taps(-2, 4, 1.0, 3)
    assert (taps.start, taps.stop) == (0, 2)
    line = torch.ones(1, 1, taps.stop - taps.start)
    one = linear_taps(0, 1, 1.0, 1)
    assert resample(line, (one, one, taps)).flatten().tolist() == [0, 0, 1, 1]


def test_target_grid_covers_the_scan_in_canonical_order():
    sagittal = np.array([[0, 0, 5.0, 0], [-0.5, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 0, 1]])  # x -> A, y -> S, z -> L
    grid = target_grid(Geometry.from_matrix((10, 40, 60), sagittal), (2.0, 2.0, 2.0))
    assert grid.stored_shape_zyx == (40, 60, 10)
    np.testing.assert_allclose(grid.step_zyx, (4, 4, 0.4))
    assert grid.shape_zyx == (10, 15, 25)


def test_hu_window_is_scaled_and_clipped():
    assert scale_hu(torch.tensor([-2000.0, -1000.0, -300.0, 400.0, 3000.0]), (-1000, 400)).tolist() == [0, 0, 0.5, 1, 1]
