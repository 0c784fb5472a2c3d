"""The validator of the other tests here refuses what an API server and the operator refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

Edit = Callable[[dict[str, Any]], object]
POD = {"spec": {"containers": [{"name": "ray", "image": "ray"}]}}
GROUP = {"groupName": "cpu", "minReplicas": 0, "maxReplicas": 4, "template": POD}
CLUSTER = {"rayVersion": "2.60.0", "headGroupSpec": {"template": POD}, "workerGroupSpecs": [GROUP]}
SPECS: dict[str, dict[str, Any]] = {
    "RayCluster": CLUSTER,
    "RayJob": {"entrypoint": "true", "shutdownAfterJobFinishes": True, "rayClusterSpec": CLUSTER},
    "RayService": {"serveConfigV2": "applications: []", "rayClusterConfig": CLUSTER},
    "RayCronJob": {"schedule": "30 2 * * 1-5", "jobTemplate": {"entrypoint": "true", "rayClusterSpec": CLUSTER}},
}
DELETION = {"deletionRules": [{"policy": "DeleteWorkers", "condition": {"jobStatus": "FAILED"}}]}
UPGRADE = {
    "type": "NewClusterWithIncrementalUpgrade",
    "clusterUpgradeOptions": {"gatewayClassName": "x", "stepSizePercent": 5, "intervalSeconds": 5},
}


def manifest(kind: str) -> dict[str, Any]:
    return {
        "apiVersion": "ray.io/v1",
        "kind": kind,
        "metadata": {"name": "x"},
        "spec": json.loads(json.dumps(SPECS[kind])),
    }


@pytest.mark.parametrize("kind", sorted(SPECS))
def test_takes_a_plain_object(kind: str, kubernetes_errors: Callable[..., list[str]]) -> None:
    assert kubernetes_errors(manifest(kind), gates=["RayCronJob"]) == []


@pytest.mark.parametrize(
    ("kind", "edit", "told"),
    [
        ("RayCluster", lambda spec: spec.update(headGroup={}), "'headGroup' was unexpected"),
        ("RayCluster", lambda spec: spec.update(rayVersion=2.6), "is not of type 'string'"),
        ("RayCluster", lambda spec: spec.update(authOptions={"mode": "password"}), "is not one of"),
        ("RayCluster", lambda spec: spec.update(managedBy="someone"), "the managedBy field value must be either"),
        ("RayCluster", lambda spec: spec["workerGroupSpecs"][0].update(minReplicas=5), "minReplicas is above"),
        ("RayCluster", lambda spec: spec.update(tlsOptions={"enabled": True}), "feature gate RayClusterMTLS is off"),
        ("RayCluster", lambda spec: spec.update(authOptions={"mode": "token"}, rayVersion="2.9.3"), "wants rayVersion"),
        ("RayJob", lambda spec: spec.update(submissionMode="HttpMode"), "submissionMode: 'HttpMode'"),
        ("RayJob", lambda spec: spec.update(shutdownAfterJobFinishes=False, suspend=True), "suspend and ttlSeconds"),
        ("RayJob", lambda spec: spec.update(deletionStrategy=DELETION), "go with no shutdownAfterJobFinishes"),
        ("RayJob", lambda spec: spec.update(submissionMode="InteractiveMode", backoffLimit=2), "backoffLimit goes"),
        ("RayService", lambda spec: spec.update(upgradeStrategy=UPGRADE), "wants enableInTreeAutoscaling"),
        ("RayService", lambda spec: spec.update(upgradeStrategy={"type": "Recreate"}), "upgradeStrategy.type"),
        ("RayCronJob", lambda spec: spec.update(schedule="nightly"), "no cron schedule"),
        ("RayCronJob", lambda spec: spec.update(timeZone="Europe/Nowhere"), "timeZone"),
    ],
)  # fmt: skip
def test_refuses(kind: str, edit: Edit, told: str, kubernetes_errors: Callable[..., list[str]]) -> None:
    wrong = manifest(kind)
    edit(wrong["spec"])
    assert any(told in error for error in kubernetes_errors(wrong, gates=["RayCronJob"]))


def test_autoscaler_v2_wants_pods_that_never_restart(kubernetes_errors: Callable[..., list[str]]) -> None:
    wrong = manifest("RayCluster")
    wrong["spec"].update(enableInTreeAutoscaling=True, autoscalerOptions={"version": "v2"})
    assert kubernetes_errors(wrong) == []
    wrong["spec"]["headGroupSpec"]["template"]["spec"]["restartPolicy"] = "Always"
    assert kubernetes_errors(wrong) == ["head: autoscaler v2 wants restartPolicy Never"]


def test_names_are_short_enough_for_what_the_operator_derives_from_them(
    kubernetes_errors: Callable[..., list[str]],
) -> None:
    long = manifest("RayJob")
    long["metadata"]["name"] = "x" * 48
    assert kubernetes_errors(long) == ["metadata.name: 48 characters; a RayJob may have 47"]


def test_kubernetes_own_kinds_are_checked_for_both_releases(kubernetes_errors: Callable[..., list[str]]) -> None:
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"a": "b"}}
    assert kubernetes_errors(config) == []
    errors = kubernetes_errors({**config, "date": {}})
    assert [error.partition(":")[0] for error in errors] == ["Kubernetes 1.34", "Kubernetes 1.37"]


def test_an_unknown_kind_is_never_taken_for_valid(kubernetes_errors: Callable[..., list[str]]) -> None:
    with pytest.raises(LookupError, match="Couldn't find schema for kind Widget"):
        kubernetes_errors({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "x"}})
