"""`tomoray cluster check` against an API server of our own."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import cli
from cluster.checks import CRD_FIELDS
from cluster.targets import KubernetesTarget, Pool, Pools, save_target

_api: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("kube_api.py")))
CRDS = Path(__file__).parents[2] / "shared" / "kuberay-crds"


def put(api: Any, plural: str, name: str, **fields: Any) -> None:
    metadata = {"name": name, **fields.pop("metadata", {})}
    api.put(plural, {"metadata": metadata, **fields})


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster that has everything, and a target on it."""
    monkeypatch.setenv("TOMORAY_TARGETS", str(tmp_path / "targets.yaml"))
    with _api["serving"]() as api:
        target = KubernetesTarget(
            kind="kubernetes",
            image="r/tomoray:1",
            kubeconfig=str(api.kubeconfig(tmp_path / "kubeconfig")),
            pseudonym_key="pseudonyms/key",
            queue="tomoray",
            storage_class="gp3",
            pools=Pools(gpu=Pool(cpus=4, memory_gb=16, gpus=1)),
        )
        save_target("eks", target)
        put(api, "namespaces", "tomoray")
        for plural in ("rayjobs", "rayservices"):
            put(api, "customresourcedefinitions", f"{plural}.ray.io", spec={"versions": versions(plural)})
        operator = {"spec": {"containers": [{"image": "kuberay/operator:v1.7.0"}]}}
        labels = {"labels": {"app.kubernetes.io/name": "kuberay-operator"}, "namespace": "kuberay"}
        deployment = {"spec": {"template": operator}, "status": {"readyReplicas": 1}}
        put(api, "deployments", "kuberay-operator", metadata=labels, **deployment)
        for account in ("preprocess", "train", "serving"):
            put(api, "serviceaccounts", f"tomoray-{account}")
        put(api, "secrets", "pseudonyms", data={"key": "c2VjcmV0"})
        put(api, "localqueues", "tomoray")
        put(api, "storageclasses", "gp3")
        allocatable = {"cpu": "7910m", "memory": "30Gi", "nvidia.com/gpu": "1"}
        images = [{"names": ["r/tomoray:1"]}]
        put(api, "nodes", "n", spec={}, status={"allocatable": allocatable, "images": images})
        yield api


def versions(plural: str) -> list[dict[str, Any]]:
    """Of a CRD, with the fields that are looked at; the real one where it is there."""
    if CRDS.is_dir():
        text = (CRDS / f"ray.io_{plural}.yaml").read_text("utf-8")
        return list(yaml.load(text, yaml.CSafeLoader)["spec"]["versions"])
    schema: dict[str, Any] = {}
    for name, field, _ in CRD_FIELDS:
        inner = schema
        for part in field.split(".") if name == plural else []:
            inner = inner.setdefault("properties", {}).setdefault(part, {})
    return [{"name": "v1", "served": True, "schema": {"openAPIV3Schema": schema}}]


def findings(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, str]]]:
    code = cli.main(["cluster", "check", "eks", "--json"])
    return code, {each["what"]: each for each in json.loads(capsys.readouterr().out)["findings"]}


def test_a_cluster_with_everything_is_ready(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = findings(capsys)
    assert {what: each["state"] for what, each in found.items() if each["state"] != "ok"} == {}
    assert code == 0
    assert found["operator"]["found"] == "kuberay/operator:v1.7.0 in kuberay"
    assert found["GPU nodes"]["found"] == "1 with 1 GPUs"
    assert not any("/secrets/pseudonyms" in each and "GET" not in each for each in api.requests)


LACKING = {
    "namespace": ("namespaces", "tomoray", "namespace", "kubectl create namespace tomoray"),
    "operator": ("deployments", "kuberay-operator", "operator", "helm install kuberay-operator"),
    "CRDs": ("customresourcedefinitions", "rayjobs.ray.io", "KubeRay", "helm install kuberay-operator"),
    "account": ("serviceaccounts", "tomoray-train", "service accounts", "helm install tomoray"),
    "secret": ("secrets", "pseudonyms", "secrets", "kubectl create secret generic pseudonyms"),
    "queue": ("localqueues", "tomoray", "queue", "install Kueue"),
    "storage class": ("storageclasses", "gp3", "storage class", "name one of those"),
}


@pytest.mark.parametrize(("plural", "name", "what", "fix"), LACKING.values(), ids=LACKING.keys())
def test_what_is_missing_is_named_with_its_remedy(
    plural: str, name: str, what: str, fix: str, api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    api.delete(plural, name)
    code, found = findings(capsys)
    assert (code, found[what]["state"]) == (1, "missing")
    assert fix in found[what]["fix"]


def test_an_old_operator_is_told_by_what_its_crds_do_not_know(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    crd = api.get("customresourcedefinitions", "rayjobs.ray.io")
    old = {"name": "v1", "served": True, "schema": {"openAPIV3Schema": {"properties": {"spec": {"properties": {}}}}}}
    api.put("customresourcedefinitions", crd | {"spec": {"versions": [old]}})
    _, found = findings(capsys)
    assert found["KubeRay"]["found"] == "its CRDs do not know spec.preRunningDeadlineSeconds: older than 1.7"
    assert "helm upgrade kuberay-operator" in found["KubeRay"]["fix"]


def test_a_quota_that_is_used_up_is_missing(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    status = {"hard": {"requests.cpu": "64", "pods": "10"}, "used": {"requests.cpu": "12500m", "pods": "10"}}
    put(api, "resourcequotas", "team", status=status)
    _, found = findings(capsys)
    assert found["quota team"]["found"] == "used up: pods 10 of 10"


def test_nodes_that_are_too_small_are_missing(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    put(api, "nodes", "n", spec={}, status={"allocatable": {"cpu": "2", "memory": "4Gi", "nvidia.com/gpu": "1"}})
    _, found = findings(capsys)
    assert found["GPU nodes"]["found"] == "the largest of 1 has 2 CPUs, 4.3 GB, 1 GPUs"
    assert "pools.gpu asks for 4 CPUs, 16 GB, 1 GPUs" in found["GPU nodes"]["fix"]


def test_no_gpu_node_now_is_a_warning_as_one_may_come(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    put(api, "nodes", "n", spec={}, status={"allocatable": {"cpu": "8", "memory": "32Gi"}})
    code, found = findings(capsys)
    assert (code, found["GPU nodes"]["state"]) == (0, "warning")


def test_rights_that_are_missing_are_listed(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.denied |= {("create", "rayjobs"), ("list", "events")}
    code, found = findings(capsys)
    assert code == 1
    assert found["rights"]["found"] == "you may not: create rayjobs, list events"


def test_what_one_may_not_look_at_is_no_reason_to_stop(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.denied.add(("get", "nodes"))
    _, found = findings(capsys)
    assert found["nodes"]["found"].startswith("cannot look: ")
    assert found["storage class"]["state"] == "ok"
