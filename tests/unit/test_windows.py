from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts

from tomoray.archive import Archive, Scan
from tomoray.config import Layout
from tomoray.errors import Fatal
from tomoray.geometry import Geometry
from tomoray.windows import Window, axial_windows

LAYOUT = Layout(chunk_zyx=(8, 16, 16), shard_zyx=(16, 32, 32), levels=2)


@pytest.fixture
def volume(make_volume):
    return make_volume((37, 50, 41))


@pytest.fixture
def scan(tmp_path: Path, volume) -> Scan:
    archive = Archive.create(str(tmp_path / "archive"), LAYOUT)
    archive.write_scan(volume)
    return archive.scan(volume.info.scan_id)


def bytes_read(action) -> int:
    """Bytes that TensorStore reads from disk meanwhile."""
    name = "/tensorstore/kvstore/file/bytes_read"

    def total() -> int:
        return sum(value["value"] for m in ts.experimental_collect_matching_metrics(name) for value in m["values"])

    before = total()
    action()
    return total() - before


@pytest.mark.parametrize("size", [(16, 16), (20, 30), (50, 41), (1, 41)])
@pytest.mark.parametrize("halved", [False, True])
def test_windows_cover_every_voxel_and_equal_plain_slices(scan, volume, size, halved) -> None:
    stride = (max(1, size[0] // 2), max(1, size[1] // 2)) if halved else None
    windows = axial_windows(scan, size, stride)
    seen = np.zeros(volume.image_zyx.shape, dtype=bool)
    wanted = []
    for window in windows:
        at = np.s_[window.z, window.y0 : window.y0 + size[0], window.x0 : window.x0 + size[1]]
        seen[at] = True
        wanted.append(volume.image_zyx[at])
    batch = windows.read(list(windows))
    assert seen.all()
    assert batch.dtype == np.int16
    np.testing.assert_array_equal(batch, np.stack(wanted))


def test_index_counts_and_picks_as_it_iterates(scan) -> None:
    windows = axial_windows(scan, (16, 16))
    listed = list(windows)
    assert len(windows) == len(listed) == 37 * 4 * 3
    assert [windows[n] for n in range(len(windows))] == listed
    assert windows[-1] == Window(z=36, y0=34, x0=25)
    assert windows[5:8] == listed[5:8]
    with pytest.raises(IndexError):
        windows[len(windows)]


def test_a_batch_keeps_its_order_and_may_repeat(scan, volume) -> None:
    windows = axial_windows(scan, (50, 41))
    chosen = [windows[n] for n in (30, 2, 30, 11, 3)]
    np.testing.assert_array_equal(windows.read(chosen), volume.image_zyx[[30, 2, 30, 11, 3]])
    assert windows.read([]).shape == (0, 50, 41)


def test_smaller_slices_are_padded_with_air_and_masks_with_nothing(scan, volume) -> None:
    windows = axial_windows(scan)
    assert len(windows) == 37
    batch, mask = windows.read(windows[4:6]), windows.read_label("lungs", windows[4:6])
    assert batch.shape == mask.shape == (2, 512, 512)
    np.testing.assert_array_equal(batch[:, :50, :41], volume.image_zyx[4:6])
    np.testing.assert_array_equal(mask[:, :50, :41], volume.labels["lungs"][4:6])
    assert (batch[:, 50:] == -1024).all()
    assert (batch[:, :, 41:] == -1024).all()
    assert not mask[:, 50:].any()


def test_coarser_levels(scan) -> None:
    windows = axial_windows(scan, (25, 21), level=1)
    np.testing.assert_array_equal(windows.read(list(windows)), scan.image(1).read().result())


def test_no_chunk_is_read_twice(scan) -> None:
    windows = axial_windows(scan, (20, 20), (10, 10))
    whole = bytes_read(lambda: scan.image().read().result())
    assert whole > 0
    assert bytes_read(lambda: windows.read(list(windows))) <= 1.1 * whole


def test_far_windows_do_not_read_what_lies_between(scan) -> None:
    windows = axial_windows(scan, (16, 16), (8, 8))
    near, far = Window(z=0, y0=16, x0=0), Window(z=5, y0=32, x0=25)
    alone = [bytes_read(lambda w=w: windows.read([w])) for w in (near, far)]
    assert min(alone) > 0
    assert bytes_read(lambda: windows.read([near, far])) <= sum(alone)


def test_pickles_with_its_scan(scan, volume) -> None:
    windows = pickle.loads(pickle.dumps(axial_windows(scan, (50, 41))))
    np.testing.assert_array_equal(windows.read(windows[:2]), volume.image_zyx[:2])


def test_refuses_what_cannot_cover_or_is_not_there(scan) -> None:
    with pytest.raises(ValueError, match="do not cover"):
        axial_windows(scan, (16, 16), (17, 16))
    with pytest.raises(ValueError, match="does not lie"):
        axial_windows(scan, (16, 16)).read([Window(z=37, y0=0, x0=0)])


def test_refuses_a_scan_whose_planes_are_not_axial(tmp_path: Path, volume) -> None:
    coronal = volume.geometry.matrix[:, [0, 2, 1, 3]]
    archive = Archive.create(str(tmp_path / "coronal"), LAYOUT)
    archive.write_scan(replace(volume, geometry=Geometry.from_matrix(volume.image_zyx.shape, coronal)))
    with pytest.raises(ValueError, match="not axial"):
        axial_windows(archive.scan(volume.info.scan_id))


def test_a_lost_shard_is_an_error_and_never_air(scan) -> None:
    windows = axial_windows(scan, (50, 41))
    Path(scan.url, "0", "c", "1", "0", "1").unlink()
    windows.read(windows[:4])
    with pytest.raises(Fatal):
        windows.read(windows[20:21])
