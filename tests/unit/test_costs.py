from __future__ import annotations

import json

import pytest

from cluster import cli
from tomoray.costs.monthly import estimate_month, preprocessing_hours
from tomoray.costs.provisioned import Group, Provisioned, provisioned, read_plan
from tomoray.costs.workload import Workload
from tomoray.errors import Usage
from tomoray.ingest.estimate import read_prices

PRICES = read_prices()
SYSTEM = Group(name="system", spot=False, instance_types=("m7i.xlarge",), smallest=2, largest=6, gpu=False)
CPU = Group(name="cpu-spot", spot=True, instance_types=("x9.huge", "m7i.4xlarge"), smallest=0, largest=5, gpu=False)


def estimate(plan=None, prices=PRICES, **work):
    return estimate_month(plan, Workload(**work), prices, node="m7i.4xlarge", n_nodes=10)


def named(result):
    return {each["name"]: each for each in result["components"]}


def test_nothing_costs_nothing():
    assert estimate()["dollars"] == {"on_demand": 0, "spot": 0, "standing": 0}


def test_preprocessing_costs_what_its_vcpu_hours_cost():
    found = estimate(series=1000, source_tb=0.5)
    hours = 0.5e6 / (130 * 0.73) / 3600 / 16
    assert hours / 10 > 1000 / 150 / 3600, "the machines are slower than the driver"
    assert named(found)["preprocessing, machines"]["on_demand"] == pytest.approx(hours * 0.8064, abs=0.005)
    assert found["per_unit"]["series"]["spot"] < found["per_unit"]["series"]["on_demand"]


def test_the_driver_bounds_a_large_fleet():
    work = Workload(series=203111, source_tb=11.14)
    assert preprocessing_hours(work, 16) == pytest.approx(work.preprocessing_vcpu_hours() / 16)
    assert preprocessing_hours(work, 16000) == pytest.approx(203111 / 150 / 3600)


def test_twice_the_epochs_cost_twice_the_training():
    once, twice = (named(estimate(series=1000, source_tb=0.1, epochs=n))["training, machines"] for n in (10, 20))
    assert twice["on_demand"] == pytest.approx(2 * once["on_demand"], abs=0.02)


def test_a_served_model_is_paid_for_while_it_waits():
    waiting, busy = (named(estimate(studies_per_day=n))["serving, machines"]["spot"] for n in (1, 100000))
    assert waiting == pytest.approx(730 * 0.8048, abs=0.01)
    assert busy > waiting


def test_what_stands_there_is_told_apart():
    plan = Provisioned(counts={"aws_eks_cluster": 1, "aws_nat_gateway": 1}, groups={"system": SYSTEM, "cpu-spot": CPU})
    found = estimate(plan, series=10, source_tb=0.01)
    assert found["dollars"]["standing"] == pytest.approx(73 + 730 * 0.05 + 2 * 730 * 0.2016, abs=0.02)
    assert found["machines"]["preprocessing"] == "m7i.4xlarge", "the first of the group that has a price"
    assert found["machines"]["nodes"] == 5, "no more than the group may have"


def test_the_bill_is_the_sum_of_its_lines():
    found = estimate(Provisioned(counts={"aws_kms_key": 9}), series=5000, source_tb=1, epochs=5, studies_per_day=50)
    for kind in ("on_demand", "spot"):
        assert found["dollars"][kind] == pytest.approx(sum(each[kind] for each in found["components"]), abs=0.1)


def test_a_group_without_a_price_is_named():
    odd = Group(name="odd", spot=True, instance_types=("x9.huge",), smallest=1, largest=2, gpu=False)
    with pytest.raises(Usage, match=r"group 'odd' \(x9\.huge\); add one to --prices"):
        estimate(Provisioned(groups={"odd": odd}))


def test_a_table_without_services_serves_no_plan():
    with pytest.raises(Usage, match="no `services`"):
        estimate(Provisioned(), prices=PRICES.model_copy(update={"services": None}))


def test_a_plan_is_read_as_terraform_writes_it():
    subnet = {"type": "aws_subnet", "values": {"tags": {"kubernetes.io/role/internal-elb": "1"}}}
    endpoint = {"type": "aws_vpc_endpoint", "values": {"vpc_endpoint_type": "Interface"}}
    ebs = {
        "type": "aws_launch_template",
        "values": {"name": "ct-system", "block_device_mappings": [{"ebs": [{"volume_size": 100}]}]},
    }
    group = {
        "node_group_name": "system",
        "capacity_type": "ON_DEMAND",
        "instance_types": ["m7i.xlarge"],
        "ami_type": "AL2023",
    }
    nodes = {"type": "aws_eks_node_group", "values": {**group, "scaling_config": [{"min_size": 2, "max_size": 6}]}}
    found = provisioned([subnet, subnet, endpoint, endpoint, ebs, nodes], {})
    assert (found.endpoint_zones, found.disk_gb, found.groups) == (4, 200, {"system": SYSTEM})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"planned_values": 3}'])
def test_what_is_no_plan_says_how_to_make_one(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(Usage, match="terraform show -json"):
        read_plan(str(path))


def test_the_command_says_what_it_assumed(capsys):
    assert cli.main(["cost", "estimate", "--series", "203111", "--tb", "11.14", "--nodes", "20", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["assumes"]["prices"].endswith(PRICES.date)
    assert found["assumes"]["spot_prices"] == "assumed at 40 % of on demand"
    assert "gpu_patches_per_s" in found["assumes"]["rates_not_measured"]
    assert cli.main(["cost", "estimate", "--series", "10", "--tb", "1"]) == 0
    assert "Assumed, not measured" in capsys.readouterr().out
