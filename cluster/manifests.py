"""A submission as Kubernetes objects: a ConfigMap with its config, and a RayJob."""

from __future__ import annotations

import shlex
from typing import Any, Literal

from pydantic import ValidationError

from cluster.objects import ConfigMap, EnvSource, Metadata, Owner, VolumeMount, manifest
from cluster.pods import (
    CONFIG_FOLDER,
    Component,
    autoscaler_resources,
    head_pod,
    labels_of,
    secret_key,
    submitter_pod,
    worker_pod,
)
from cluster.ray_objects import (
    Autoscaler,
    DeletionCondition,
    DeletionRule,
    DeletionStrategy,
    GcsFaultTolerance,
    GcsStorage,
    HeadGroup,
    RayClusterSpec,
    RayJob,
    RayJobSpec,
    RedisPassword,
    SubmitterConfig,
    WorkerGroup,
)
from cluster.submission import Shape, Submission
from cluster.targets import KubernetesTarget
from tomoray.errors import Usage

LARGEST_CONFIG_BYTES = 1_000_000  # of a ConfigMap: a MiB with its metadata
SUBMITTER_RETRIES = 4  # it finds the Ray job that it started, and follows on
HOSTS, ZONES = "kubernetes.io/hostname", "topology.kubernetes.io/zone"

Manifest = dict[str, Any]


def job_manifests(submission: Submission, target: KubernetesTarget) -> list[Manifest]:
    """The ConfigMap and the RayJob of a submission, in the order in which they are applied.

    Raises:
        Usage: something that the target or the operator would refuse.
    """
    shape, document = submission.shape, submission.document
    if len(document) > LARGEST_CONFIG_BYTES:
        found = f"the config has {len(document) / 1e6:.1f} MB"
        raise Usage(
            f"{found} and a ConfigMap takes {LARGEST_CONFIG_BYTES / 1e6:g}; "
            "name sources by prefix or collection rather than one by one"
        )
    if submission.job == "preprocess" and not target.pseudonym_key:
        raise Usage(
            "preprocessing wants the key of its pseudonyms, or every start would make up another: "
            "put it in a Secret, and pseudonym_key: SECRET/key in the target"
        )
    if shape.spot and not target.spot.node_selector:
        raise Usage("the target does not say which nodes are spot nodes: spot.node_selector")
    if shape.queue and shape.autoscales:
        raise Usage("Kueue admits a fixed number of workers: --workers N, or --queue none")
    target = target.model_copy(update={"priority_class": shape.priority_class or target.priority_class})
    try:
        return [manifest(_config_map(submission, target, document)), manifest(_ray_job(submission, target))]
    except ValidationError as error:
        raise Usage("; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())) from error


def owned(config_map: Manifest, ray_job: Manifest) -> Manifest:
    """The ConfigMap, to be deleted with the RayJob as the API server knows it."""
    metadata = ray_job["metadata"]
    owner = Owner(api_version=ray_job["apiVersion"], kind=ray_job["kind"], name=metadata["name"], uid=metadata["uid"])
    references = [owner.model_dump(by_alias=True)]
    return {**config_map, "metadata": {**config_map["metadata"], "ownerReferences": references}}


def _config_map(submission: Submission, target: KubernetesTarget, document: str) -> ConfigMap:
    return ConfigMap(
        metadata=Metadata(
            name=submission.name,
            namespace=target.namespace,
            labels=labels_of(submission.name, submission.component),
        ),
        data={f"{submission.job}.yaml": document},
    )


def _ray_job(submission: Submission, target: KubernetesTarget) -> RayJob:
    shape = submission.shape
    labels = labels_of(submission.name, submission.component)
    queue = {"kueue.x-k8s.io/queue-name": shape.queue} if shape.queue else {}
    keeps_failed = shape.keep_failed_s is not None
    if keeps_failed and shape.queue:
        raise Usage("Kueue wants the cluster of a job to go as soon as it ends: --keep-failed wants --queue none")
    return RayJob(
        metadata=Metadata(
            name=submission.name,
            namespace=target.namespace,
            labels=labels | queue,
            annotations=_annotations(submission, target),
        ),
        spec=RayJobSpec(
            entrypoint=shlex.join(["python", "-m", submission.module, f"{CONFIG_FOLDER}/{submission.job}.yaml"]),
            submitter_config=SubmitterConfig(backoff_limit=SUBMITTER_RETRIES),
            submitter_pod_template=submitter_pod(target, labels),
            backoff_limit=shape.retries,
            active_deadline_seconds=shape.deadline_s,
            suspend=True if shape.queue else None,  # until Kueue has room for all of its pods at once
            shutdown_after_job_finishes=not keeps_failed,
            ttl_seconds_after_finished=None if keeps_failed else shape.keep_s,
            deletion_strategy=_deletion(shape) if keeps_failed else None,
            ray_cluster_spec=ray_cluster(
                target,
                submission.name,
                submission.component,
                workers=shape.workers or (1, 1),
                gpus=shape.gpus,
                spot=shape.spot,
                config_map=submission.name,
            ),
        ),
    )


def ray_cluster(
    target: KubernetesTarget,
    name: str,
    component: Component,
    *,
    workers: tuple[int, int],
    gpus: int,
    spot: bool,
    config_map: str | None = None,
) -> RayClusterSpec:
    """A head that does no work itself, and a group of workers between the fewest and the most."""
    labels = labels_of(name, component)
    fewest, most = workers
    autoscales = fewest != most
    worker = worker_pod(target, labels, gpus=gpus, spot=spot, spread_over=ZONES if component == "serving" else HOSTS)
    return RayClusterSpec(
        ray_version=target.ray_version,
        enable_in_tree_autoscaling=True if autoscales else None,
        autoscaler_options=Autoscaler(
            resources=autoscaler_resources(),
            volume_mounts=[VolumeMount(name="tmp", mount_path="/tmp")],  # noqa: S108
        )
        if autoscales
        else None,
        gcs_fault_tolerance_options=_fault_tolerance(target),
        head_group_spec=HeadGroup(
            ray_start_params={"num-cpus": "0", "num-gpus": "0"},
            template=head_pod(target, labels, config_map=config_map, autoscales=autoscales),
        ),
        worker_group_specs=[
            WorkerGroup(
                group_name=("gpu" if gpus else "cpu") + ("-spot" if spot else ""),
                replicas=fewest,
                min_replicas=fewest,
                max_replicas=most,
                template=worker,
            )
        ],
    )


def _annotations(submission: Submission, target: KubernetesTarget) -> dict[str, str]:
    """What `status` and `cost` want to know later, when pods and nodes are gone."""
    shape = submission.shape
    pool = target.pools.gpu if shape.gpus else target.pools.cpu
    return {
        "tomoray.io/job": submission.job,
        "tomoray.io/capacity": "spot" if shape.spot else "on-demand",
        **({"tomoray.io/head-node-type": target.pools.head.node_type} if target.pools.head.node_type else {}),
        **({"tomoray.io/worker-node-type": pool.node_type} if pool.node_type else {}),
    }


def _fault_tolerance(target: KubernetesTarget) -> GcsFaultTolerance | None:
    gcs = target.gcs
    if gcs.kind == "none":
        return None
    if gcs.kind == "rocksdb":
        return GcsFaultTolerance(
            backend="rocksdb",
            storage=GcsStorage(size=gcs.size, storage_class_name=gcs.storage_class or target.storage_class),
        )
    return GcsFaultTolerance(
        backend="redis",
        redis_address=gcs.address,
        redis_password=RedisPassword(value_from=EnvSource(secret_key_ref=secret_key(gcs.password)))
        if gcs.password
        else None,
    )


def _deletion(shape: Shape) -> DeletionStrategy:
    failed_s = shape.keep_failed_s or 0
    return DeletionStrategy(
        deletion_rules=[
            _rule("SUCCEEDED", shape.keep_s, "DeleteCluster"),
            _rule("SUCCEEDED", shape.keep_s + shape.forget_s, "DeleteSelf"),
            _rule("FAILED", failed_s, "DeleteCluster"),
            _rule("FAILED", failed_s + shape.forget_s, "DeleteSelf"),
        ]
    )


def _rule(
    status: Literal["SUCCEEDED", "FAILED"], after_s: int, policy: Literal["DeleteCluster", "DeleteSelf"]
) -> DeletionRule:
    return DeletionRule(condition=DeletionCondition(job_status=status, ttl_seconds=after_s), policy=policy)
