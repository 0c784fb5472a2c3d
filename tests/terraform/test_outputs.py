"""What Terraform puts out goes into targets, charts and bills."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from cluster import cli
from cluster.terraform_outputs import chart_values, read_outputs
from tomoray.costs.monthly import estimate_month
from tomoray.costs.provisioned import read_plan
from tomoray.costs.workload import Workload
from tomoray.ingest.estimate import read_prices

ROOT = Path(__file__).parents[2]
PRICES = read_prices()


@pytest.fixture
def outputs(everything, tmp_path):
    path = tmp_path / "outputs.json"
    path.write_text(json.dumps(everything.outputs()))
    return path


def test_outputs_become_a_target(outputs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TOMORAY_TARGETS", str(tmp_path / "targets.yaml"))
    values = tmp_path / "values.yaml"
    assert cli.main(["cluster", "import-terraform", str(outputs), "--name", "eks", "--values", str(values)]) == 0
    assert "aws eks update-kubeconfig --region us-east-1 --name ctlab" in " ".join(capsys.readouterr().out.split())
    target = yaml.safe_load((tmp_path / "targets.yaml").read_text())["eks"]
    assert target["buckets"][1] == "s3://ctlab-123456789012-archive"
    assert target["pools"]["cpu"] == {"cpus": 15, "memory_gb": 54, "node_type": "m7i.4xlarge"}
    assert target["pools"]["gpu"]["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert yaml.safe_load(values.read_text())["image"]["digest"].startswith("sha256:")


def test_values_are_ones_that_the_chart_takes(outputs, everything):
    schema = json.loads((ROOT / "helm/tomoray/values.schema.json").read_text())
    ours = chart_values(read_outputs(outputs))
    (terraforms,) = everything.state()["helm_release.tomoray[0]"]["values"]
    assert yaml.safe_load(terraforms) == ours, "terraform and the command line say the same"
    defaults = yaml.safe_load((ROOT / "helm/tomoray/values.yaml").read_text())
    jsonschema.validate(_over(defaults, ours), schema)


def _over(under, values):
    if not isinstance(values, dict):
        return values
    return under | {key: _over(under.get(key, {}), value) for key, value in values.items()}


def test_a_folder_is_asked_itself(everything, monkeypatch):
    for name, value in everything.env.items():
        monkeypatch.setenv(name, value)
    assert read_outputs(everything.folder)["cluster"]["name"] == "ctlab"


@pytest.mark.parametrize(
    ("text", "said"),
    [("[]", "is not what"), ("{}", "lacks the outputs cluster, namespace"), ('{"cluster": 3}', "is not what")],
)
def test_what_are_no_outputs_is_refused(tmp_path, capsys, text, said):
    path = tmp_path / "outputs.json"
    path.write_text(text)
    assert cli.main(["cluster", "import-terraform", str(path)]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_plan_has_a_price(everything):
    plan = read_plan(str(everything.folder / "plan.json"))
    assert set(plan.groups) == {"system", "cpu-spot", "gpu-training", "gpu-training-spot", "gpu-serving"}
    assert (plan.counts["aws_nat_gateway"], plan.endpoint_zones, plan.cache_gb, plan.disk_gb) == (3, 12, 1200, 200)
    work = Workload(series=20000, source_tb=1.1, epochs=50, studies_per_day=200)
    found = estimate_month(plan, work, PRICES, node="m7i.4xlarge", n_nodes=10)
    lines = {each["name"]: each["spot"] for each in found["components"]}
    assert lines["EKS control plane"] == 73
    assert lines["nodes system"] == pytest.approx(2 * 730 * 0.2016, abs=0.01)
    assert lines["interface endpoints"] == pytest.approx(12 * 730 * 0.01, abs=0.01)
    assert lines["FSx cache"] == pytest.approx(1200 * 0.21, abs=0.01)
    assert found["machines"]["training"] == "g6e.4xlarge"


def test_a_second_apply_would_change_nothing(everything):
    changes = json.loads((everything.folder / "again.json").read_text())["resource_changes"]
    assert len(changes) > 150
    assert {tuple(each["change"]["actions"]) for each in changes} == {("no-op",)}


def test_every_ready_machine_has_a_price(everything):
    groups = read_plan(str(everything.folder / "plan.json")).groups.values()
    assert {group.name for group in groups if group.instance_types[0] not in PRICES.nodes} == set()


def test_the_pools_of_karpenter_are_whole(everything, tmp_path):
    helm = shutil.which("helm", path=f"{ROOT / '.tools' / 'bin'}{os.pathsep}{os.environ['PATH']}")
    if helm is None:
        pytest.skip("no helm; install it: make tools")
    values = tmp_path / "values.yaml"
    values.write_text(everything.state()["helm_release.node_pools[0]"]["values"][0])
    command = [helm, "template", "node-pools", everything.folder / "charts/node-pools", "--values", values]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    objects = [each for each in yaml.safe_load_all(rendered) if each]
    pools = {each["metadata"]["name"]: each["spec"] for each in objects if each["kind"] == "NodePool"}
    assert set(pools) == {"cpu-spot", "gpu-training", "gpu-training-spot", "gpu-serving"}
    taints = {name: "taints" in pool["template"]["spec"] for name, pool in pools.items()}
    assert taints == {name: name.startswith("gpu") for name in pools}
    classes = [each["spec"] for each in objects if each["kind"] == "EC2NodeClass"]
    assert all(each["metadataOptions"]["httpTokens"] == "required" for each in classes)
    assert all(each["blockDeviceMappings"][0]["ebs"]["encrypted"] for each in classes)
