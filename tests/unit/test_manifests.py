from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.manifests import job_manifests
from cluster.objects import Container, PodSecurity, PodSpec, Resources, VolumeMount
from cluster.ray_objects import Autoscaler, RayClusterSpec, RayJobSpec, UpgradeOptions
from cluster.submission import Shape, parse_changes, parse_workers, prepare
from cluster.targets import Cache, Gcs, KubernetesTarget, Nodes, Pool, Pools, RayTarget, Toleration
from tomoray.errors import Usage

_schemas: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[1] / "kubernetes_schemas.py"))
needs_crds = pytest.mark.skipif(not _schemas["has_kuberay_crds"](), reason=_schemas["SKIPPED"])

PLAIN = KubernetesTarget(kind="kubernetes", image="r/tomoray:1", pseudonym_key="pseudonyms/key")
FULL = KubernetesTarget(
    kind="kubernetes",
    image="r/tomoray@sha256:" + "0" * 64,
    image_pull_secrets=["registry"],
    env={"AWS_REGION": "eu-central-1"},
    secrets={"TOKEN": "dicomweb/token"},
    env_from=["aws"],
    pseudonym_key="pseudonyms/key",
    priority_class="batch",
    pools=Pools(
        head=Pool(node_type="m7i.2xlarge"),
        gpu=Pool(gpus=1, node_selector={"pool": "gpu"}, tolerations=[Toleration(key="nvidia.com/gpu")]),
    ),
    spot=Nodes(node_selector={"capacity": "spot"}, tolerations=[Toleration(key="spot")]),
    on_demand=Nodes(node_selector={"capacity": "on-demand"}),
    cache=Cache(kind="volume", size="1Ti", storage_class="nvme"),
    gcs=Gcs(kind="redis", address="redis:6379", password="redis/password"),
    volumes={"/data": "shared"},
    runtime_class="nvidia",
)
SHAPES = {
    "one worker": Shape(),
    "64 GPUs in a queue": Shape(workers=(8, 8), gpus=8, queue="tomoray"),
    "autoscaling": Shape(workers=(2, 16)),
    "kept when it fails": Shape(keep_failed_s=3600, deadline_s=86400, priority_class="urgent", retries=0),
}
TRAINING = {"archive": "s3://ct/archive", "out": "s3://ct/run", "batch_size": 128}


def ray_job(target: KubernetesTarget = PLAIN, shape: Shape | None = None, **changes: Any) -> dict[str, Any]:
    return job_manifests(prepare("phantom", TRAINING | changes, target, shape or Shape()), target)[1]


def pods(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [("head", cluster["headGroupSpec"]["template"]), ("submitter", job["spec"]["submitterPodTemplate"])]
    groups += [(group["groupName"], group["template"]) for group in cluster["workerGroupSpecs"]]
    return {name: template["spec"] for name, template in groups}


@needs_crds
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("target", [PLAIN, FULL], ids=["plain", "full"])
def test_no_cluster_would_refuse_a_manifest(target: KubernetesTarget, shape: Shape) -> None:
    for manifest in job_manifests(prepare("phantom", TRAINING, target, shape), target):
        assert _schemas["errors_of"](manifest) == []


@needs_crds
def test_gcs_on_a_volume_wants_the_operators_gate() -> None:
    job = ray_job(PLAIN.model_copy(update={"gcs": Gcs(kind="rocksdb", storage_class="gp3")}))
    assert _schemas["errors_of"](job, gates=["GCSFaultToleranceEmbeddedStorage"]) == []


@pytest.mark.parametrize("pod", ["head", "submitter", "gpu-spot"])
def test_every_pod_is_one_that_restricted_namespaces_admit(pod: str) -> None:
    spec = pods(ray_job(FULL, Shape(spot=True, gpus=1)))[pod]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"configMap", "emptyDir", "ephemeral", "persistentVolumeClaim", "secret"}


def test_workers_are_on_spot_nodes_and_the_head_never_is() -> None:
    found = pods(ray_job(FULL, Shape(spot=True, gpus=1)))
    assert found["head"]["nodeSelector"] == {"capacity": "on-demand"}
    assert found["gpu-spot"]["nodeSelector"] == {"pool": "gpu", "capacity": "spot"}
    assert [each["key"] for each in found["gpu-spot"]["tolerations"]] == ["nvidia.com/gpu", "spot"]


def test_pods_get_more_time_to_end_than_ray_takes_to_drain_them() -> None:
    for spec in pods(ray_job()).values():
        environment = {each["name"]: each.get("value") for each in spec["containers"][0]["env"]}
        drain_s = int(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert spec["terminationGracePeriodSeconds"] > drain_s


def test_a_queue_holds_the_job_until_all_pods_fit() -> None:
    job = ray_job(shape=Shape(queue="ct"))
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "ct"
    assert job["spec"]["suspend"] is True
    assert job["spec"]["shutdownAfterJobFinishes"] is True


def test_secrets_are_named_and_never_read() -> None:
    text = json.dumps(ray_job(FULL))
    assert '"valueFrom": {"secretKeyRef": {"name": "dicomweb", "key": "token"}}' in text
    assert '"secretRef": {"name": "aws"}' in text


def test_only_who_reads_dicom_gets_the_key_of_the_pseudonyms(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("sources: [s3://ct/dicom]\narchive: s3://ct/archive\n", "utf-8")
    preprocessing = prepare(str(tmp_path / "c.yaml"), {}, PLAIN, Shape(), job="preprocess")
    assert "TOMORAY_KEY_FILE" in json.dumps(job_manifests(preprocessing, PLAIN))
    assert "TOMORAY_KEY_FILE" not in json.dumps(ray_job())
    with pytest.raises(Usage, match="wants the key of its pseudonyms"):
        job_manifests(preprocessing, PLAIN.model_copy(update={"pseudonym_key": None}))


@pytest.mark.parametrize(
    ("shape", "workers"),
    [
        (Shape(workers=(8, 8), gpus=8), 64),
        (Shape(workers=(3, 3)), 3),
        (Shape(workers=(2, 16), gpus=2), (4, 32)),
        (Shape(), 2),
    ],
)
def test_a_training_uses_the_workers_that_it_gets(shape: Shape, workers: Any) -> None:
    submission = prepare("phantom", TRAINING, PLAIN, shape)
    assert submission.config.model_dump()["workers"] == workers


def test_a_training_gets_the_workers_that_it_wants() -> None:
    assert prepare("phantom", TRAINING | {"workers": 16}, PLAIN, Shape(gpus=8)).shape.workers == (2, 2)
    assert prepare("phantom", TRAINING | {"workers": [4, 8]}, PLAIN, Shape()).shape.workers == (4, 8)


def test_the_config_in_the_config_map_is_the_one_that_was_validated() -> None:
    submission = prepare("phantom", TRAINING | {"optimizer.warmup_steps": 7}, FULL, Shape(gpus=1))
    data = job_manifests(submission, FULL)[0]["data"]["train.yaml"]
    assert type(submission.config).model_validate(yaml.safe_load(data)) == submission.config
    assert submission.config.model_dump()["stream"]["cache_folder"] == "/cache"
    assert submission.config.model_dump()["gpu"] is True


@pytest.mark.parametrize(
    ("text", "job"),
    [
        ("# yaml-language-server: $schema=docs/schemas/evaluate.json\nrun: s3://r\narchive: s3://a\n", "evaluate"),
        ("sources: [s3://s]\narchive: s3://a\nmin_slices: 9\n", "preprocess"),
        ("run: s3://r\nto: s3://x\n", "export"),
    ],
)
def test_a_config_tells_which_job_it_is_for(text: str, job: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text, "utf-8")
    assert prepare(str(path), {}, PLAIN, Shape()).job == job


@pytest.mark.parametrize(
    ("text", "target", "shape", "complaint"),
    [
        ("run: s3://r\narchive: s3://a\n", PLAIN, Shape(), "may be the config of predict, evaluate; say which: --job"),
        ("nonsense: 1\n", PLAIN, Shape(), "is the config of no job as it stands"),
        ("run: /here\nto: s3://x\n", PLAIN, Shape(), "run: no pod sees /here; name s3://bucket/prefix"),
        ("run: /here\nto: s3://x\n", FULL, Shape(), "run: no pod sees /here; name below /data"),
        ("run: run\nto: /x\n", RayTarget(kind="ray", address="http://x:1"), Shape(), "run: run depends on the folder"),
        ("run: s3://r\nto: s3://x\n", PLAIN, Shape(spot=True), "which nodes are spot nodes"),
        ("run: s3://r\nto: s3://x\n", PLAIN, Shape(queue="q", workers=(1, 2)), "Kueue admits a fixed number"),
        ("run: s3://r\nto: s3://x\n", PLAIN, Shape(queue="q", keep_failed_s=1), "--keep-failed wants --queue none"),
    ],
)
def test_what_would_go_wrong_there_is_told_here(
    text: str, target: Any, shape: Shape, complaint: str, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(text, "utf-8")
    with pytest.raises(Usage) as refused:
        job_manifests(prepare(str(tmp_path / "c.yaml"), {}, target, shape), target)
    assert complaint in str(refused.value)


def test_a_config_too_large_for_a_config_map_is_told_of(tmp_path: Path) -> None:
    sources = "\n".join(f"- s3://ct/{number:064}" for number in range(20_000))
    (tmp_path / "c.yaml").write_text(f"archive: s3://ct/a\nmin_slices: 3\nsources:\n{sources}\n", "utf-8")
    with pytest.raises(Usage, match="by prefix or collection"):
        job_manifests(prepare(str(tmp_path / "c.yaml"), {}, PLAIN, Shape()), PLAIN)


@pytest.mark.parametrize("text", ["0", "3:2", "x", "1:2:3", "-1"])
def test_a_wrong_number_of_workers_is_refused(text: str) -> None:
    with pytest.raises(Usage, match="wanted a number, or the fewest and the most"):
        parse_workers(text)


def test_changes_are_yaml() -> None:
    assert parse_changes(["steps=10", "labels=[a, b]", "optimizer.name=sgd"]) == {
        "steps": 10,
        "labels": ["a", "b"],
        "optimizer.name": "sgd",
    }
    with pytest.raises(Usage, match="wanted FIELD=VALUE"):
        parse_changes(["steps"])


NOTHING = Resources(requests={"cpu": "1"}, limits={"cpu": "1"})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"suspend": True, "shutdown_after_job_finishes": False}, "want shutdownAfterJobFinishes"),
        ({"shutdown_after_job_finishes": True, "deletion_strategy": "keep"}, "exclude shutdownAfterJobFinishes"),
        ({"backoff_limit": -1}, "greater than or equal to 0"),
        ({"active_deadline_seconds": 0}, "greater than 0"),
    ],
)
def test_the_operators_rules_for_jobs_are_known_here(change: dict[str, Any], complaint: str) -> None:
    job = ray_job(shape=Shape(keep_failed_s=1 if "deletion_strategy" in change else None))
    spec = RayJobSpec.model_validate(job["spec"], by_alias=True).model_dump()
    change = {name: value for name, value in change.items() if value != "keep"}
    with pytest.raises(ValueError, match=complaint):
        RayJobSpec.model_validate(spec | change, by_name=True)


def test_the_operators_rules_for_clusters_are_known_here() -> None:
    cluster = RayClusterSpec.model_validate(ray_job()["spec"]["rayClusterSpec"], by_alias=True)
    values = cluster.model_dump()
    with pytest.raises(ValueError, match="autoscaling and its options go together"):
        RayClusterSpec.model_validate(values | {"enable_in_tree_autoscaling": True}, by_name=True)
    with pytest.raises(ValueError, match="a worker group twice"):
        RayClusterSpec.model_validate(values | {"worker_group_specs": values["worker_group_specs"] * 2}, by_name=True)
    head = values["head_group_spec"]
    head["template"]["spec"]["restart_policy"] = "Always"
    scaled = {"enable_in_tree_autoscaling": True, "autoscaler_options": Autoscaler(resources=NOTHING)}
    with pytest.raises(ValueError, match="autoscaler v2 wants restartPolicy Never"):
        RayClusterSpec.model_validate(values | scaled, by_name=True)


def test_an_upgrade_takes_no_step_above_its_surge() -> None:
    with pytest.raises(ValueError, match="above a surge of 20 %"):
        UpgradeOptions(gateway_class_name="g", max_surge_percent=20, step_size_percent=30, interval_seconds=10)


def test_a_mount_without_a_volume_is_refused() -> None:
    container = Container(
        name="c", image="i:1", resources=NOTHING, volume_mounts=[VolumeMount(name="gone", mount_path="/x")]
    )
    with pytest.raises(ValueError, match="no volume gone"):
        PodSpec(
            service_account_name="a",
            termination_grace_period_seconds=1,
            security_context=PodSecurity(run_as_user=1, run_as_group=1, fs_group=1),
            containers=[container],
        )


def test_dry_run_prints_what_kubectl_takes_and_asks_no_cluster(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(yaml.safe_dump({"eks": {"kind": "kubernetes", "image": "r/t:1"}}), "utf-8")
    command = [sys.executable, "-m", "cluster.cli", "submit", "phantom", "--dry-run", "-o", "yaml"]
    command += ["--set", "archive=s3://a/b", "--set", "out=s3://a/r"]
    environment = {"TOMORAY_TARGETS": str(tmp_path / "t.yaml"), "KUBECONFIG": "/nowhere", "COLUMNS": "40"}
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    config_map, job = yaml.safe_load_all(done.stdout)
    assert (config_map["kind"], job["kind"]) == ("ConfigMap", "RayJob")
    assert yaml.safe_load(config_map["data"]["train.yaml"])["archive"] == "s3://a/b"
