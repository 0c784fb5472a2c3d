from __future__ import annotations

import pytest

from cluster.usage import NodeUse, cost_of, mean_gpu_use, units_of
from tomoray.ingest.estimate import NodePrice, Prices, StoragePrices

STORAGE = StoragePrices(per_gb_month=0, per_thousand_gets=0, per_thousand_puts=0)
PRICES = Prices(
    date="2026-01",
    region="here",
    nodes={"big": NodePrice(vcpus=16, memory_gb=64, on_demand=1.0, spot=0.25)},
    storage=STORAGE,
)


def use(*, spot: bool = False, hours: float = 1.0, node_type: str = "big", **held: float) -> NodeUse:
    return NodeUse(role="worker", node_type=node_type, spot=spot, seconds=3600 * hours, **held)


def test_spot_and_on_demand_are_told_apart() -> None:
    cost = cost_of([use(), use(spot=True, hours=2)], PRICES)
    assert cost["dollars_by"] == {"on_demand": 1.0, "spot": 0.5}
    assert cost["node_seconds"] == {"on_demand": 3600.0, "spot": 7200.0}
    assert cost["dollars"] == 1.5


@pytest.mark.parametrize(("cpus", "memory_gb", "dollars"), [(8, 8, 0.5), (4, 48, 0.75), (0, 0, 1.0), (32, 64, 1.0)])
def test_a_machine_held_in_part_counts_by_the_larger_share(cpus: float, memory_gb: float, dollars: float) -> None:
    assert cost_of([use(cpus=cpus, memory_gb=memory_gb)], PRICES)["dollars"] == dollars


def test_seconds_without_a_price_are_told_and_not_guessed() -> None:
    cost = cost_of([use(node_type="huge"), use(node_type="")], PRICES)
    assert cost["dollars"] == 0
    assert cost["unpriced"] == {"huge": 3600.0, "unknown": 3600.0}


def test_units_follow_from_what_jobs_print() -> None:
    assert units_of("preprocess", {"stored": 8, "refused": 2}, {}) == {"series": 10}
    trained = {"steps": 100, "first_step": 100, "scans": {"train": 20}}
    assert units_of("train", trained, {"batch_size": 4}) == {"epochs": 5.0}
    assert units_of("train", trained, {"batch_size": 4, "stream": {"patches_per_visit": 1}}) == {"epochs": 20.0}
    assert units_of("tune", {}, {}) == {}


def test_gpu_use_is_the_mean_of_all_gpus() -> None:
    nodes = [{"gpus": [{"utilizationGpu": 80}, {"utilizationGpu": 40}]}, {"gpus": []}, {"gpus": [{}]}]
    assert mean_gpu_use({"data": {"summary": nodes}}) == pytest.approx(0.6)
    assert mean_gpu_use({}) is None
