import threading
from itertools import islice

import numpy as np
import pytest
import torch

from tomoray import read_ahead
from tomoray.archive import Archive
from tomoray.config import Layout
from tomoray.errors import Fatal
from tomoray.geometry import Geometry, from_canonical, to_canonical
from tomoray.patches import PatchStream, Sample, require_labels
from tomoray.training.config import TrainConfig
from tomoray.transforms import linear_taps, resample, scale_hu, target_grid
from tomoray.volume import AIR_HU, ScanInfo, ScanUids, Volume

TURNED = np.array([[0, 0, -1.5, 0], [1.0, 0, 0, 0], [0, -2.0, 0, 0], [0, 0, 0, 1]])  # x -> P, y -> I, z -> R


def volume(scan_id, geometry, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(-1000, 400, geometry.shape_zyx).astype(np.int16)
    lungs = np.zeros(geometry.shape_zyx, np.uint8)
    lungs[4:20, 4:20, 4:20] = 1
    nodules = np.zeros_like(lungs)
    nodules[8:11, 9:12, 16:24] = 1
    uids = ScanUids(study="2.25.1", series="2.25.2", frame_of_reference="2.25.3", instances=("2.25.4",))
    info = ScanInfo(
        scan_id=scan_id,
        series_id=f"series-{scan_id}",
        patient_id=f"patient-{scan_id}",
        source_uri="memory",
        n_instances=1,
        instances_sha256="0" * 64,
        input_sha256="0" * 64,
        uids=uids,
    )
    return Volume(image_zyx=image, geometry=geometry, info=info, labels={"lungs": lungs, "nodules": nodules})


def config(**changes):
    return TrainConfig.model_validate({"labels": ["lungs", "nodules"], "patch_zyx": (16, 16, 16), **changes})


@pytest.fixture
def archive(tmp_path):
    layout = Layout(chunk_zyx=(16, 16, 16), shard_zyx=(32, 32, 32), levels=1)
    archive = Archive.create(str(tmp_path / "archive"), layout)
    archive.write_scan(volume("a", Geometry.from_matrix((24, 30, 36), np.diag([1.0, 1.0, 1.5, 1]))))
    archive.write_scan(volume("b", Geometry.from_matrix((24, 30, 36), TURNED), seed=1))
    return archive


def images(stream, steps):
    return [batch.image for batch in islice(stream, steps)]


def test_order_of_samples_does_not_depend_on_the_number_of_workers(archive):
    alone = PatchStream(archive, ["a", "b"], config(batch_size=4))
    pair = [PatchStream(archive, ["a", "b"], config(batch_size=4), rank=r, world_size=2) for r in (0, 1)]
    together = zip(images(pair[0], 3), images(pair[1], 3), strict=True)
    assert torch.equal(
        torch.cat(images(alone, 3)), torch.cat([torch.stack(step, dim=1).flatten(0, 1) for step in together])
    )


def test_resuming_at_a_step_goes_on_with_the_same_patches(archive):
    whole = images(PatchStream(archive, ["a", "b"], config()), 5)
    rest = images(PatchStream(archive, ["a", "b"], config(), start_step=3), 2)
    assert torch.equal(torch.stack(whole[3:]), torch.stack(rest))


def rows(archive, rank, world_size, start_step, steps, **changes):
    stream = PatchStream(
        archive, ["a", "b"], config(batch_size=6, **changes), rank=rank, world_size=world_size, start_step=start_step
    )
    found = {}
    for batch in islice(stream, steps):
        found |= {
            i: (image, classes) for i, image, classes in zip(batch.samples, batch.image, batch.classes, strict=True)
        }
    return found


def test_resuming_amid_visits_with_other_workers_goes_on_with_the_same_patches(archive):
    whole = rows(archive, 0, 1, 0, 9)
    parts = {}
    for start_step, workers in ((0, 2), (3, 1), (5, 3), (7, 2)):
        for rank in range(workers):
            parts |= rows(archive, rank, workers, start_step, 2 if start_step else 3)
    assert sorted(parts) == sorted(whole) == list(range(54))
    assert all(torch.equal(a, b) for i in whole for a, b in zip(whole[i], parts[i], strict=True))


def test_a_patch_of_a_visit_is_what_cutting_it_alone_gives(archive):
    stream = PatchStream(archive, ["a", "b"], config(spacing_zyx_mm=(1.3, 1.1, 1.2)))
    for batch in islice(stream, 10):
        for n, i in enumerate(batch.samples):
            image, classes = stream.cut(stream.sample(i))
            assert torch.equal(batch.image[n, 0], image)
            assert torch.equal(batch.classes[n, 0], classes)


def test_memory_for_what_is_read_ahead_stays_under_the_limit_and_patches_the_same(archive):
    whole = rows(archive, 0, 1, 0, 6, patch_zyx=(24, 24, 24))
    patch_bytes = 5 * 24**3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_ahead, "MEGABYTE", 1000)  # so that 512 "megabytes" are half of one
        stream = PatchStream(archive, ["a", "b"], config(batch_size=6, patch_zyx=(24, 24, 24)))
        tight = {i: image for batch in islice(stream, 6) for i, image in zip(batch.samples, batch.image, strict=True)}
    assert all(torch.equal(whole[i][0], tight[i]) for i in whole)
    assert 6 * patch_bytes < stream.stats.peak_bytes
    assert stream.stats.peak_bytes <= 6 * patch_bytes + 6 * 4 * 24 * 30 * 36


def test_a_cache_on_local_disk_spares_the_archive(archive, tmp_path):
    changes = {"stream": {"cache_folder": str(tmp_path / "cache"), "cache_gb": 0.1}}
    first, second = (PatchStream(archive, ["a", "b"], config(**changes)) for _ in range(2))
    one, two = images(first, 8), images(second, 8)
    assert torch.equal(torch.stack(one), torch.stack(two))
    assert first.stats.fetched_bytes > 0
    assert second.stats.cached_bytes > 0
    assert second.stats.fetched_bytes < first.stats.fetched_bytes / 4  # it may look further ahead than the first did


def test_it_says_what_it_read_and_how_long_training_waited(archive):
    stream = PatchStream(archive, ["a", "b"], config())
    assert stream.stats.requests_per_patch == stream.stats.starvation == 0
    waited_s = sum(batch.waited_s for batch in islice(stream, 5))
    stats = stream.stats
    assert stats.patches == 10
    assert stats.requests_per_patch == stats.requests / 10 > 0
    assert stats.fetched_mb_per_patch == pytest.approx(stats.fetched_bytes / 1e7)
    assert stats.fetched_bytes > 0
    assert stats.waited_s == pytest.approx(waited_s)
    assert 0 < stats.starvation <= 1


def test_a_scan_that_lost_bytes_ends_the_stream_with_its_name(archive):
    archive.store.delete(["scans/a/0/c/0/0/0", "scans/b/0/c/0/0/0"])
    with pytest.raises(Fatal, match="missing or damaged"):
        images(PatchStream(archive, ["a", "b"], config()), 50)


def test_no_thread_outlives_the_stream(archive):
    before = set(threading.enumerate())
    stream = iter(PatchStream(archive, ["a", "b"], config()))
    next(stream)
    stream.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=30)
    assert set(threading.enumerate()) <= before


def test_another_seed_gives_other_patches(archive):
    one, two = (PatchStream(archive, ["a", "b"], config(seed=seed)).sample(0) for seed in (0, 1))
    assert one != two


@pytest.mark.parametrize("spacing", [None, (2.0, 2.0, 2.0), (1.2, 0.9, 0.7)])
@pytest.mark.parametrize("scan_id", ["a", "b"])
def test_patch_is_a_crop_of_the_grid_that_prediction_sees(archive, scan_id, spacing):
    scan = archive.scan(scan_id)
    canonical = torch.from_numpy(to_canonical(scan.read().image_zyx, scan.geometry).astype(np.float32))
    grid = target_grid(scan.geometry, spacing)
    taps = [linear_taps(-3, 20, *axis) for axis in zip(grid.step_zyx, grid.stored_shape_zyx, strict=True)]
    window = canonical[tuple(slice(tap.start, tap.stop) for tap in taps)]
    wanted = scale_hu(resample(window - AIR_HU, taps) + AIR_HU, (-1000, 400))[1:17, 2:18, 3:19]
    sample = Sample(scan_id=scan_id, corner_zyx=(-2, -1, 0), flips=(False, False, False))
    image, _ = PatchStream(archive, ["a", "b"], config(spacing_zyx_mm=spacing)).cut(sample)
    torch.testing.assert_close(image, wanted)


def test_storage_order_does_not_change_a_patch(archive):
    original = archive.scan("a").read()
    turned = Geometry.from_matrix((36, 24, 30), TURNED / np.array([1.0, 4 / 3, 1.5, 1]))
    labels = {name: np.ascontiguousarray(from_canonical(mask, turned)) for name, mask in original.labels.items()}
    image = np.ascontiguousarray(from_canonical(original.image_zyx, turned))
    info = volume("c", turned).info
    archive.write_scan(Volume(image_zyx=image, geometry=turned, info=info, labels=labels))
    stream = PatchStream(archive, ["a", "c"], config(spacing_zyx_mm=(2, 2, 2)))
    one, two = (stream.cut(Sample(scan_id=s, corner_zyx=(1, 2, 3), flips=(True, False, True))) for s in ("a", "c"))
    torch.testing.assert_close(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert one[1].any()


def test_foreground_patches_hold_their_label_at_the_centre_of_each_label_evenly(archive):
    stream = PatchStream(
        archive, ["a", "b"], config(foreground_fraction=1, augment={"mirror": False}, spacing_zyx_mm=(1, 1, 1))
    )
    centres = [int(stream.cut(stream.sample(i))[1][8, 8, 8]) for i in range(60)]
    assert min(centres) > 0
    assert 15 < sum(centre == 2 for centre in centres) < 45


def test_patches_stay_inside_where_the_scan_is_large_enough(archive):
    stream = PatchStream(archive, ["a"], config(foreground_fraction=0))
    corners = np.array([stream.sample(i).corner_zyx for i in range(200)])
    assert corners.min() == 0
    assert corners.max(axis=0).tolist() == [8, 14, 20]


def test_masks_are_not_shifted_against_the_image(archive):
    centred = Geometry.from_matrix((32, 32, 32), np.diag([1.0, 1.0, 1.0, 1]))
    lungs = np.zeros((32, 32, 32), np.uint8)
    lungs[9:23, 7:21, 5:19] = 1  # its faces lie in the middle of 2 mm voxels
    image = np.where(lungs, 400, -1000).astype(np.int16)
    archive.write_scan(
        Volume(image_zyx=image, geometry=centred, info=volume("d", centred).info, labels={"lungs": lungs})
    )
    stream = PatchStream(archive, ["d"], config(labels=["lungs"], spacing_zyx_mm=(2, 2, 2)))
    image, classes = stream.cut(Sample(scan_id="d", corner_zyx=(0, 0, 0), flips=(False, False, False)))
    centre = [np.argwhere(part).mean(axis=0) for part in (image.numpy() > 0.49, classes.numpy() > 0)]
    np.testing.assert_allclose(centre[0], [7.5, 6.5, 5.5])
    np.testing.assert_allclose(centre[1], centre[0])


def test_where_masks_overlap_the_later_label_wins(archive):
    whole = Sample(scan_id="a", corner_zyx=(4, 4, 16), flips=(False, False, False))
    classes = PatchStream(archive, ["a"], config()).cut(whole)[1]
    other = PatchStream(archive, ["a"], config(labels=["nodules", "lungs"])).cut(whole)[1]
    assert (int(classes[5, 6, 1]), int(other[5, 6, 1]), int(other[5, 6, 6])) == (2, 2, 1)
    assert (int(classes[0, 0, 0]), int(other[0, 0, 0])) == (1, 2)


def test_outside_the_scan_is_air_and_background(archive):
    outside = Sample(scan_id="a", corner_zyx=(-40, 0, 0), flips=(False, False, False))
    image, classes = PatchStream(archive, ["a"], config()).cut(outside)
    assert (float(image.max()), int(classes.max())) == (0, 0)


def test_scan_without_a_wanted_label_is_named_before_training():
    with pytest.raises(Fatal, match=r"scan b has no label 'nodules' \(it has: lungs\)"):
        require_labels({"a": ["lungs", "nodules"], "b": ["lungs"]}, ["lungs", "nodules"])


@pytest.mark.parametrize("window", [(-1000, 400), (-162.5, 250.25), (-40000, 40000)])
def test_hu_are_scaled_as_prediction_scales_them(archive, window):
    stored = torch.from_numpy(archive.scan("a").read().image_zyx[2:18, 3:19, 5:21].copy()).float()
    sample = Sample(scan_id="a", corner_zyx=(2, 3, 5), flips=(False, False, True))
    image, _ = PatchStream(archive, ["a"], config(hu_window=window)).cut(sample)
    torch.testing.assert_close(image.flip(2), scale_hu(stored, window), rtol=0, atol=3e-7)
    assert 0 <= image.min() <= image.max() <= 1
