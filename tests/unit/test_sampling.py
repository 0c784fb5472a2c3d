import numpy as np
import pytest

from tomoray.geometry import Geometry
from tomoray.sampling import Corners, Order
from tomoray.transforms import target_grid

PINNED_SCANS = [4, 2, 0, 6, 1, 5, 3, 3, 4, 6, 0, 5, 2, 1]
PINNED_DRAWS = [0.5667602450961093, 0.9505385234472519, 0.8803263849623051]


def order(**changes):
    return Order(**{"seed": 7, "n_scans": 5, "patches_per_visit": 4, "visits_at_once": 8, **changes})


def corners(foreground_fraction=0.5, flips=(False, False, False), chunk_zyx=(16, 16, 16)):
    grid = target_grid(Geometry.from_matrix((40, 48, 56), np.diag([1.0, 1.0, 1.0, 1])), None)
    rng = np.random.default_rng(0)
    foreground = {"a": rng.integers(8, 30, (60, 3)), "b": rng.integers(20, 40, (7, 3))}
    return Corners(
        grid=grid,
        patch_zyx=(16, 16, 16),
        foreground=foreground,
        foreground_fraction=foreground_fraction,
        chunk_zyx=chunk_zyx,
        flips=flips,
    )


def test_every_sample_belongs_to_the_visit_that_lists_it():
    plan = order()
    listed = {i: visit for visit in range(200) for i in plan.samples(visit)}
    assert sorted(listed)[:700] == list(range(700))
    assert all(plan.visit(i) == visit for i, visit in listed.items())
    assert {len(plan.samples(visit)) for visit in range(8, 200)} == {4}


def test_an_epoch_visits_each_scan_once_and_the_next_one_in_another_order():
    plan = order(n_scans=50)
    first, second = ([plan.scan(epoch * 50 + place) for place in range(50)] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second


def test_neighbouring_samples_come_from_different_visits_that_do_not_end_together():
    plan = order()
    for i in range(100):
        assert len({plan.visit(j) for j in range(i, i + 8)}) == 8
    begun = [min(plan.samples(visit)) // 8 for visit in range(8, 40)]
    assert max(np.bincount(begun)) == 2


def test_the_order_never_changes_between_releases():
    plan = order(seed=1, n_scans=7)
    assert [plan.scan(visit) for visit in range(14)] == PINNED_SCANS
    np.testing.assert_allclose(plan.sample_draws(3, 3), PINNED_DRAWS, rtol=1e-15)


@pytest.mark.parametrize("flips", [(False, False, False), (True, False, True)])
def test_drawing_near_others_leaves_each_sample_the_plain_distribution(flips):
    plan, drawn = order(), corners(flips=flips)
    plain = np.array([drawn.draw(plan.sample_draws(i, 6)) for i in range(4000)])
    anchors = [drawn.draw(plan.visit_draws(i, 6)) for i in range(4000)]
    near = np.array([drawn.near(anchor).draw(plan.sample_draws(i, 6)) for i, anchor in enumerate(anchors)])
    for axis in range(3):
        one, two = (np.bincount(part[:, axis] + 8, minlength=64).cumsum() / 4000 for part in (plain, near))
        assert np.abs(one - two).max() < 0.045  # Kolmogorov-Smirnov, p about 0.0005


@pytest.mark.parametrize("flips", [(False, False, False), (True, True, True)])
def test_patches_of_a_visit_touch_few_chunks(flips):
    plan, drawn, sizes = order(), corners(flips=flips), np.array([40, 48, 56])
    for visit in range(50):
        nearby = drawn.near(drawn.draw(plan.visit_draws(visit, 6)))
        found = np.array([nearby.draw(plan.sample_draws(1000 * visit + n, 6)) for n in range(30)])
        low = sizes - found - 16 if flips[0] else found
        first, last = low.clip(0).min(axis=0) // 16, (low.clip(0) + 15).max(axis=0) // 16
        assert (last - first <= 1).all()  # two chunks: the cell's own, and the one that patches reach into


def test_without_foreground_patches_lie_anywhere():
    grid = target_grid(Geometry.from_matrix((40, 48, 56), np.diag([1.0, 1.0, 1.0, 1])), None)
    drawn = Corners(
        grid=grid,
        patch_zyx=(16, 16, 16),
        foreground={},
        foreground_fraction=1.0,
        chunk_zyx=(16, 16, 16),
        flips=(False, False, False),
    )
    found = np.array([drawn.draw(order().sample_draws(i, 6)) for i in range(3000)])
    assert found.min(axis=0).tolist() == [0, 0, 0]
    assert found.max(axis=0).tolist() == [24, 32, 40]
