"""Endpoints on Kubernetes against an API server of our own: deploy, scale, roll out, undo."""

from __future__ import annotations

import json
import runpy
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import cli
from cluster.deployment import Deployment, EndpointShape
from cluster.kube_endpoints import KubeEndpoints, service_manifest
from cluster.targets import KubernetesTarget, Pool, Pools, save_target
from tomoray.serving_config import ModelConfig, ServeConfig

_api: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("kube_api.py")))
_schemas: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[1] / "kubernetes_schemas.py"))
CONFIG = ServeConfig(models=[ModelConfig(source="s3://ct/lungs"), ModelConfig(source="s3://ct/nodules", name="n")])


@pytest.fixture
def api() -> Iterator[Any]:
    with _api["serving"]() as api:
        yield api


@pytest.fixture
def target(api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KubernetesTarget:
    monkeypatch.setenv("TOMORAY_TARGETS", str(tmp_path / "targets.yaml"))
    target = KubernetesTarget(
        kind="kubernetes",
        image="r/tomoray:1",
        kubeconfig=str(api.kubeconfig(tmp_path / "kubeconfig")),
        gateway_class="envoy",
        pools=Pools(cpu=Pool(node_type="m7i.4xlarge")),
    )
    save_target("eks", target)
    (tmp_path / "lungs.yaml").write_text("models: [{source: s3://ct/lungs}]\n", "utf-8")
    return target


@pytest.fixture
def config(tmp_path: Path) -> str:
    return str(tmp_path / "lungs.yaml")


def served(api: Any) -> dict[str, Any]:
    """The arguments of the application that is deployed."""
    (application,) = yaml.safe_load(api.get("rayservices", "lungs")["spec"]["serveConfigV2"])["applications"]
    return dict(application["args"])


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return dict(json.loads(capsys.readouterr().out))


@pytest.mark.skipif(not _schemas["has_kuberay_crds"](), reason=_schemas["SKIPPED"])
@pytest.mark.parametrize("upgrade", ["new-cluster", "incremental", "none"])
def test_no_cluster_would_refuse_an_endpoint(target: KubernetesTarget, upgrade: Any) -> None:
    shape = EndpointShape(upgrade=upgrade, gpus=1)
    assert _schemas["errors_of"](service_manifest(Deployment(name="ct", config=CONFIG, shape=shape), target)) == []


def test_an_endpoint_is_deployed_once(
    api: Any, target: KubernetesTarget, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["deploy", config, "--json"]) == 0
    first = said(capsys)
    assert (first["changed"], first["revision"], first["name"]) == (True, 1, "lungs")
    assert served(api) == {"models": [{"source": "s3://ct/lungs"}]}
    strategy = api.get("rayservices", "lungs")["spec"]["upgradeStrategy"]
    assert strategy["type"] == "NewClusterWithIncrementalUpgrade", "the target has a Gateway"
    assert cli.main(["deploy", config, "--json"]) == 0
    assert said(capsys)["changed"] is False


def test_scaling_changes_the_config_in_place_and_nothing_else(
    api: Any, target: KubernetesTarget, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["deploy", config]) == 0
    before = api.get("rayservices", "lungs")["spec"]["rayClusterConfig"]
    assert cli.main(["scale", "lungs", "--min", "2", "--max", "16", "--target", "3"]) == 0
    assert served(api)["models"] == [
        {"source": "s3://ct/lungs", "min_replicas": 2, "max_replicas": 16, "target_ongoing_requests": 3.0}
    ]
    assert api.get("rayservices", "lungs")["spec"]["rayClusterConfig"] == before
    assert cli.main(["scale", "lungs", "--workers", "2:8"]) == 0
    (group,) = api.get("rayservices", "lungs")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (2, 8)


def test_a_change_can_be_undone(
    api: Any, target: KubernetesTarget, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["deploy", config]) == 0
    assert cli.main(["scale", "lungs", "--max", "4"]) == 0
    capsys.readouterr()
    assert cli.main(["rollout", "undo", "lungs", "--json"]) == 0
    assert said(capsys)["revision"] == 3
    assert served(api)["models"] == [{"source": "s3://ct/lungs"}]
    assert cli.main(["rollout", "undo", "lungs", "--to", "2"]) == 0
    assert served(api)["models"][0]["max_replicas"] == 4
    assert cli.main(["rollout", "undo", "lungs", "--to", "9"]) == 2
    assert "has no revision 9; kept are: 1, 2, 3, 4" in capsys.readouterr().err


def test_ten_revisions_are_kept_and_go_with_the_endpoint(api: Any, target: KubernetesTarget) -> None:
    endpoints = KubeEndpoints(target)
    for most in range(2, 15):
        model = ModelConfig(source="s3://ct/lungs", max_replicas=most)
        endpoints.deploy(Deployment(name="lungs", config=ServeConfig(models=[model]), shape=EndpointShape()))
    assert list(endpoints.revisions("lungs")) == list(range(4, 14))
    assert endpoints.remove("lungs")
    assert endpoints.revisions("lungs") == {}


def test_a_rollout_is_followed_until_the_new_cluster_answers(
    api: Any, target: KubernetesTarget, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["deploy", config]) == 0
    running = {"applicationStatuses": {"tomoray": {"status": "RUNNING", "serveDeploymentStatuses": {}}}}
    upgrading = [{"type": "Ready", "status": "True"}, {"type": "UpgradeInProgress", "status": "True"}]
    pending = {"rayClusterName": "new", "trafficRoutedPercent": 40}
    status = {"conditions": upgrading, "activeServiceStatus": running, "pendingServiceStatus": pending}
    api.set_status("rayservices", "lungs", status)
    capsys.readouterr()
    assert cli.main(["rollout", "status", "lungs", "--json"]) == 0
    now = said(capsys)
    assert (now["state"], now["traffic"]) == ("changing", 40)
    done = {"conditions": upgrading[:1], "pendingServiceStatus": {}}
    timer = threading.Timer(1.0, api.set_status, ("rayservices", "lungs", done))
    timer.start()
    assert cli.main(["rollout", "status", "lungs", "-f", "--json"]) == 0
    assert said(capsys)["state"] == "ready"
    timer.join()


def test_an_application_that_does_not_start_is_told_with_its_reason(
    api: Any, target: KubernetesTarget, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["deploy", config]) == 0
    failed = {"tomoray": {"status": "DEPLOY_FAILED", "message": "s3://ct/lungs is not a run"}}
    api.set_status("rayservices", "lungs", {"activeServiceStatus": {"applicationStatuses": failed}})
    capsys.readouterr()
    assert cli.main(["rollout", "status", "lungs", "-f", "--json"]) == 1
    assert said(capsys)["message"] == "s3://ct/lungs is not a run"


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["scale", "gone", "--min", "1"], "no endpoint gone in namespace tomoray"),
        (["scale", "lungs"], "say what to change"),
        (["scale", "lungs", "--min", "3", "--max", "2"], "max_replicas 2 is less than min_replicas 3"),
        (["scale", "lungs", "--min", "1", "--model", "x"], "no model 'x'; there are lungs"),
        (["scale", "lungs", "--workers", "3"], "whether pods scale is decided when it is deployed"),
        (["rollout", "undo", "lungs"], "has no revision before this one"),
        (["deploy", "CONFIG", "--upgrade", "incremental", "--workers", "2"], "wants pods that scale"),
        (["deploy", "CONFIG", "--spot"], "which nodes are spot nodes"),
    ],
)
def test_what_cannot_be_done_is_told(
    command: list[str], complaint: str, target: KubernetesTarget, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["deploy", config]) == 0
    assert cli.main([config if word == "CONFIG" else word for word in command]) in {1, 2}
    assert complaint in capsys.readouterr().err


def test_of_several_models_one_is_named(target: KubernetesTarget, api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    KubeEndpoints(target).deploy(Deployment(name="lungs", config=CONFIG, shape=EndpointShape()))
    assert cli.main(["scale", "lungs", "--max", "3"]) == 2
    assert "--model, one of lungs, n" in capsys.readouterr().err
    assert cli.main(["scale", "lungs", "--max", "3", "--model", "n"]) == 0
    assert [model.get("max_replicas") for model in served(api)["models"]] == [None, 3]
