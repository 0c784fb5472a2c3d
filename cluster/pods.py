"""The pods of our Ray clusters, by what a target says of its nodes.

Every pod is one that the Pod Security Standard `restricted` admits: no root, a root filesystem that cannot be written,
no capabilities. What is written goes to `/tmp`, or to `/cache`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from cluster import PROXY
from cluster.objects import (
    ClaimSource,
    ClaimSpec,
    ClaimTemplate,
    ConfigMapSource,
    Container,
    EmptyDir,
    EnvFrom,
    EnvSource,
    EnvVar,
    EphemeralSource,
    KeyToPath,
    LabelSelector,
    NamedReference,
    PodSecurity,
    PodSpec,
    PodTemplate,
    PodToleration,
    Resources,
    SecretKeySelector,
    SecretSource,
    TemplateMetadata,
    TopologySpread,
    Volume,
    VolumeMount,
)
from cluster.targets import KubernetesTarget, Pool

CONFIG_FOLDER, CACHE_FOLDER, KEY_FOLDER = "/etc/tomoray/config", "/cache", "/etc/tomoray/key"
DRAIN_S = 60  # that Ray takes to move work off a node that is told to go; spot nodes get two minutes' notice
GRACE_S = DRAIN_S + 30

Component = Literal["preprocess", "train", "serving", "interactive"]


def labels_of(name: str, component: Component) -> dict[str, str]:
    """What every object and pod of ours is called."""
    return {
        "app.kubernetes.io/name": "tomoray",
        "app.kubernetes.io/part-of": "tomoray",
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/managed-by": "tomoray",
    }


def head_pod(
    target: KubernetesTarget, labels: Mapping[str, str], *, config_map: str | None = None, autoscales: bool = False
) -> PodTemplate:
    """The head, always on nodes that stay; the driver of a job runs here and reads its config from `config_map`."""
    volumes = _volumes(target, labels)
    mounts = _mounts(target, labels)
    if config_map:
        volumes.append(Volume(name="config", config_map=ConfigMapSource(name=config_map)))
        mounts.append(VolumeMount(name="config", mount_path=CONFIG_FOLDER, read_only=True))
    return _pod(
        target,
        labels,
        target.pools.head,
        container="ray-head",
        volumes=volumes,
        mounts=mounts,
        token=autoscales,  # the autoscaler beside it asks for workers
    )


def worker_pod(
    target: KubernetesTarget, labels: Mapping[str, str], *, gpus: int = 0, spot: bool = False, spread_over: str
) -> PodTemplate:
    """A worker with so many GPUs. `spread_over` is a label of nodes whose values share the workers out."""
    pool = target.pools.gpu.model_copy(update={"gpus": gpus}) if gpus else target.pools.cpu
    volumes, mounts = _volumes(target, labels), _mounts(target, labels)
    if target.cache:
        volumes.append(_cache(target))
        mounts.append(VolumeMount(name="cache", mount_path=CACHE_FOLDER))
    return _pod(
        target, labels, pool, container="ray-worker", volumes=volumes, mounts=mounts, spot=spot, spread_over=spread_over
    )


def submitter_pod(target: KubernetesTarget, labels: Mapping[str, str]) -> PodTemplate:
    """What hands a job's entry point to Ray, and prints what it prints."""
    small = target.pools.head.model_copy(update={"cpus": 0.5, "memory_gb": 1})
    return _pod(target, labels, small, container="ray-job-submitter", volumes=[_tmp()], mounts=[_tmp_mount()])


def autoscaler_resources() -> Resources:
    """Of the container beside the head."""
    return _quantities({"cpu": "500m", "memory": "1Gi"})


def _pod(
    target: KubernetesTarget,
    labels: Mapping[str, str],
    pool: Pool,
    *,
    container: str,
    volumes: list[Volume],
    mounts: list[VolumeMount],
    spot: bool = False,
    spread_over: str | None = None,
    token: bool = False,
) -> PodTemplate:
    nodes = target.spot if spot else target.on_demand
    tolerations = [PodToleration(**each.model_dump()) for each in (*pool.tolerations, *nodes.tolerations)]
    serving = labels["app.kubernetes.io/component"] == "serving"
    accounts = target.service_accounts.model_dump()
    return PodTemplate(
        metadata=TemplateMetadata(labels=dict(labels)),
        spec=PodSpec(
            service_account_name=accounts[labels["app.kubernetes.io/component"]],
            automount_service_account_token=token,
            termination_grace_period_seconds=GRACE_S * (2 if serving else 1),
            priority_class_name=target.priority_class,
            runtime_class_name=target.runtime_class if pool.gpus else None,
            image_pull_secrets=[NamedReference(name=name) for name in target.image_pull_secrets] or None,
            node_selector={**pool.node_selector, **nodes.node_selector} or None,
            tolerations=tolerations or None,
            topology_spread_constraints=_spread(labels, spread_over) if spread_over else None,
            security_context=PodSecurity(run_as_user=target.user, run_as_group=target.user, fs_group=target.user),
            containers=[
                Container(
                    name=container,
                    image=target.image,
                    env=_variables(target, labels),
                    env_from=[EnvFrom(secret_ref=NamedReference(name=name)) for name in target.env_from] or None,
                    resources=_resources(pool),
                    volume_mounts=mounts,
                )
            ],
            volumes=volumes,
        ),
    )


def _variables(target: KubernetesTarget, labels: Mapping[str, str]) -> list[EnvVar]:
    values = {
        "HOME": "/tmp",  # noqa: S108
        "PYTHONUNBUFFERED": "1",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN_S),
        **PROXY,
    }
    if _key_of(target, labels):
        values["TOMORAY_KEY_FILE"] = f"{KEY_FOLDER}/pseudonym.key"
    by_value = [EnvVar(name=name, value=value) for name, value in (values | target.env).items()]
    return by_value + [
        EnvVar(name=name, value_from=EnvSource(secret_key_ref=secret_key(key))) for name, key in target.secrets.items()
    ]


def secret_key(reference: str) -> SecretKeySelector:
    """`name/key` as Kubernetes says it."""
    name, _, key = reference.partition("/")
    return SecretKeySelector(name=name, key=key)


def _resources(pool: Pool) -> Resources:
    quantities = {"cpu": f"{pool.cpus:g}", "memory": f"{round(pool.memory_gb * 1000)}M"}
    return _quantities(quantities | ({pool.gpu_resource: str(pool.gpus)} if pool.gpus else {}))


def _quantities(quantities: dict[str, str]) -> Resources:
    """Requests equal to limits: a pod that keeps to them is the last to be evicted."""
    return Resources(requests=quantities, limits=quantities)


def _spread(labels: Mapping[str, str], label: str) -> list[TopologySpread]:
    mine = {"app.kubernetes.io/instance": labels["app.kubernetes.io/instance"], "ray.io/node-type": "worker"}
    return [TopologySpread(topology_key=label, label_selector=LabelSelector(match_labels=mine))]


def _volumes(target: KubernetesTarget, labels: Mapping[str, str]) -> list[Volume]:
    volumes = [_tmp()]
    for number, claim in enumerate(target.volumes.values()):
        volumes.append(Volume(name=f"data-{number}", persistent_volume_claim=ClaimSource(claim_name=claim)))
    if key := _key_of(target, labels):
        source = SecretSource(secret_name=key.name, items=[KeyToPath(key=key.key, path="pseudonym.key")])
        volumes.append(Volume(name="key", secret=source))
    return volumes


def _mounts(target: KubernetesTarget, labels: Mapping[str, str]) -> list[VolumeMount]:
    mounts = [_tmp_mount()]
    mounts += [VolumeMount(name=f"data-{number}", mount_path=path) for number, path in enumerate(target.volumes)]
    if _key_of(target, labels):
        mounts.append(VolumeMount(name="key", mount_path=KEY_FOLDER, read_only=True))
    return mounts


def _key_of(target: KubernetesTarget, labels: Mapping[str, str]) -> SecretKeySelector | None:
    """The key of the pseudonyms, for pods that read DICOM."""
    reads_dicom = labels["app.kubernetes.io/component"] in {"preprocess", "serving"}
    return secret_key(target.pseudonym_key) if target.pseudonym_key and reads_dicom else None


def _tmp() -> Volume:
    return Volume(name="tmp", empty_dir=EmptyDir())


def _tmp_mount() -> VolumeMount:
    return VolumeMount(name="tmp", mount_path="/tmp")  # noqa: S108


def _cache(target: KubernetesTarget) -> Volume:
    cache = target.cache
    assert cache is not None
    if cache.claim:
        return Volume(name="cache", persistent_volume_claim=ClaimSource(claim_name=cache.claim))
    if cache.kind == "node":
        return Volume(name="cache", empty_dir=EmptyDir(size_limit=cache.size))
    storage_class = cache.storage_class or target.storage_class
    spec = ClaimSpec(storage_class_name=storage_class, resources={"requests": {"storage": cache.size}})
    return Volume(name="cache", ephemeral=EphemeralSource(volume_claim_template=ClaimTemplate(spec=spec)))
