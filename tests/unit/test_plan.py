from __future__ import annotations

import pytest

from tomoray.errors import Usage
from tomoray.ingest.estimate import Size, estimate, read_prices
from tomoray.ingest.ingester import task_bytes

VOXELS = 100 * 512 * 512 * 2
SERIES = Size(n_instances=100, size_bytes=53_000_000, voxel_bytes=VOXELS, working_bytes=int(1.6 * VOXELS))


def plan(sizes, **wanted):
    return estimate(sizes, read_prices(), **({"node": "m7i.4xlarge", "n_nodes": 10} | wanted))


def test_work_grows_with_the_series_and_time_shrinks_with_the_nodes():
    one, ten = plan([SERIES]), plan([SERIES] * 10)
    assert (ten["series"], ten["instances"]) == (10, 1000)
    assert ten["voxel_gb"] == pytest.approx(10 * one["voxel_gb"], abs=0.01)
    many = [SERIES] * 10_000
    assert plan(many, n_nodes=5)["hours"] == pytest.approx(2 * plan(many)["hours"], rel=0.01)
    assert plan(many)["dollars"]["spot"] < plan(many)["dollars"]["on_demand"]


def test_compressed_series_take_more_cpu_than_native_ones():
    compressed = Size(n_instances=100, size_bytes=20_000_000, voxel_bytes=VOXELS, working_bytes=1)
    assert plan([compressed] * 1000)["cpu_hours"] > 2 * plan([SERIES] * 1000)["cpu_hours"]


def test_memory_of_a_task_is_that_which_the_task_asks_for():
    assert plan([SERIES])["memory_per_task_gb"]["largest"] == pytest.approx(
        task_bytes(SERIES.working_bytes) / 1e9, abs=0.01
    )


def test_a_node_too_small_for_the_largest_series_is_an_error_that_says_so():
    huge = Size(n_instances=1, size_bytes=1, voxel_bytes=40 * 10**9, working_bytes=64 * 10**9)
    with pytest.raises(Usage, match=r"wants 64\.4 GB, and m7i\.2xlarge has 32: name a larger --node"):
        plan([huge], node="m7i.2xlarge")


def test_an_unknown_node_is_named_with_those_that_are_known():
    with pytest.raises(Usage, match=r"no prices for node 'x1'.*c7i\.4xlarge"):
        plan([SERIES], node="x1")


def test_nothing_to_do_costs_nothing():
    assert plan([])["dollars"]["on_demand"] == 0


def test_prices_can_be_ones_own(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text(
        "date: 2026-01\nregion: cellar\nnodes: {box: {vcpus: 4, memory_gb: 16, on_demand: 1, spot: 0.5}}\n"
        "storage: {per_gb_month: 0, per_thousand_gets: 0, per_thousand_puts: 0}\n"
    )
    assert estimate([SERIES] * 1000, read_prices(str(path)), node="box", n_nodes=1)["dollars"]["requests"] == 0
    path.write_text("just text")
    with pytest.raises(Usage, match="no price table"):
        read_prices(str(path))
