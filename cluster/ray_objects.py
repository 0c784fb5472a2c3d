"""KubeRay's objects: RayCluster, RayJob and RayService of `ray.io/v1`, with the operator's own rules."""

from __future__ import annotations

from typing import Annotated, Literal

import yaml
from pydantic import Field, model_validator

from cluster.objects import (
    ContainerSecurity,
    EnvSource,
    Metadata,
    Part,
    PodTemplate,
    Resources,
    VolumeMount,
    dns_label,
)

Count = Annotated[int, Field(ge=0)]
MOST = 2**31 - 1


class RedisPassword(Part):
    """By reference only."""

    value_from: EnvSource


class GcsStorage(Part):
    """A volume of the head's own."""

    size: str
    storage_class_name: str | None = None
    deletion_policy: Literal["DeleteWithCluster", "Retain"] = "DeleteWithCluster"


class GcsFaultTolerance(Part):
    """What outlives the head."""

    backend: Literal["redis", "rocksdb"]
    redis_address: str | None = None
    redis_password: RedisPassword | None = None
    storage: GcsStorage | None = None

    @model_validator(mode="after")
    def _each_backend_has_its_own(self) -> GcsFaultTolerance:
        if self.backend == "redis" and (self.storage or not self.redis_address):
            raise ValueError("backend redis wants an address and has no storage")
        if self.backend == "rocksdb" and (self.redis_address or self.redis_password):
            raise ValueError("backend rocksdb has no address and no password")
        return self


class Auth(Part):
    """Who may talk to Ray: who knows the token, which the operator makes."""

    mode: Literal["token", "disabled"] = "token"


class Autoscaler(Part):
    """Ray's own, beside the head."""

    version: Literal["v2"] = "v2"
    idle_timeout_seconds: Count = 300
    resources: Resources
    security_context: ContainerSecurity = ContainerSecurity()
    volume_mounts: list[VolumeMount] | None = None


class HeadGroup(Part):
    """The pod that holds the cluster's memory, and the driver of a job."""

    ray_start_params: dict[str, str] = {}
    template: PodTemplate


class WorkerGroup(Part):
    """Pods that do the work."""

    group_name: str
    replicas: Count
    min_replicas: Count
    max_replicas: Annotated[int, Field(ge=0, le=MOST)]
    ray_start_params: dict[str, str] = {}
    template: PodTemplate

    @model_validator(mode="after")
    def _fewest_first(self) -> WorkerGroup:
        dns_label(self.group_name, 63)
        if not self.min_replicas <= self.replicas <= self.max_replicas:
            raise ValueError(
                f"{self.group_name}: {self.min_replicas} <= {self.replicas} <= {self.max_replicas} is wanted"
            )
        return self


class RayClusterSpec(Part):
    """A Ray cluster."""

    ray_version: str
    auth_options: Auth = Auth()
    enable_in_tree_autoscaling: bool | None = None
    autoscaler_options: Autoscaler | None = None
    gcs_fault_tolerance_options: GcsFaultTolerance | None = None
    head_group_spec: HeadGroup
    worker_group_specs: list[WorkerGroup] = []

    @model_validator(mode="after")
    def _operator_takes_it(self) -> RayClusterSpec:
        names = [group.group_name for group in self.worker_group_specs]
        if len(names) > len(set(names)):
            raise ValueError(f"a worker group twice: {', '.join(names)}")
        if bool(self.enable_in_tree_autoscaling) != (self.autoscaler_options is not None):
            raise ValueError("autoscaling and its options go together")
        templates = [self.head_group_spec.template, *(group.template for group in self.worker_group_specs)]
        if self.enable_in_tree_autoscaling and any(each.spec.restart_policy != "Never" for each in templates):
            raise ValueError("autoscaler v2 wants restartPolicy Never")
        return self


class DeletionCondition(Part):
    """When something is deleted: so many seconds after the job ended so."""

    job_status: Literal["SUCCEEDED", "FAILED"]
    ttl_seconds: Count


class DeletionRule(Part):
    """What is deleted then."""

    condition: DeletionCondition
    policy: Literal["DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone"]


class DeletionStrategy(Part):
    """How the cluster of a job ends."""

    deletion_rules: Annotated[list[DeletionRule], Field(min_length=1)]


class SubmitterConfig(Part):
    """The Kubernetes Job that hands the entry point to Ray."""

    backoff_limit: Count


class RayJobSpec(Part):
    """A job with a Ray cluster of its own."""

    entrypoint: str
    submission_mode: Literal["K8sJobMode"] = "K8sJobMode"
    submitter_config: SubmitterConfig
    submitter_pod_template: PodTemplate
    backoff_limit: Count
    active_deadline_seconds: Annotated[int, Field(gt=0)] | None = None
    suspend: bool | None = None
    shutdown_after_job_finishes: bool
    ttl_seconds_after_finished: Count | None = None
    deletion_strategy: DeletionStrategy | None = None
    ray_cluster_spec: RayClusterSpec

    @model_validator(mode="after")
    def _operator_takes_it(self) -> RayJobSpec:
        if not self.shutdown_after_job_finishes and (self.suspend or self.ttl_seconds_after_finished):
            raise ValueError("suspend and a time to live want shutdownAfterJobFinishes")
        if self.shutdown_after_job_finishes and self.deletion_strategy:
            raise ValueError("deletion rules exclude shutdownAfterJobFinishes")
        rules = self.deletion_strategy.deletion_rules if self.deletion_strategy else []
        if self.ray_cluster_spec.enable_in_tree_autoscaling and any(rule.policy == "DeleteWorkers" for rule in rules):
            raise ValueError("DeleteWorkers goes with no autoscaling")
        return self


class RayJob(Part):
    """What `tomoray submit` makes."""

    api_version: Literal["ray.io/v1"] = "ray.io/v1"
    kind: Literal["RayJob"] = "RayJob"
    metadata: Metadata
    spec: RayJobSpec

    @model_validator(mode="after")
    def _name_is_short(self) -> RayJob:
        dns_label(self.metadata.name, 47)
        return self


class UpgradeOptions(Part):
    """How traffic moves from the old cluster to the new one."""

    gateway_class_name: Annotated[str, Field(min_length=1)]
    max_surge_percent: Annotated[int, Field(ge=0, le=100)] = 100
    step_size_percent: Annotated[int, Field(ge=0, le=100)]
    interval_seconds: Annotated[int, Field(gt=0)]

    @model_validator(mode="after")
    def _steps_fit(self) -> UpgradeOptions:
        if self.step_size_percent > self.max_surge_percent:
            raise ValueError(f"steps of {self.step_size_percent} % are above a surge of {self.max_surge_percent} %")
        return self


class UpgradeStrategy(Part):
    """What happens when an endpoint's cluster changes."""

    type: Literal["NewCluster", "NewClusterWithIncrementalUpgrade", "None"]
    cluster_upgrade_options: UpgradeOptions | None = None


class RayServiceSpec(Part):
    """An endpoint with a Ray cluster of its own."""

    serve_config_v2: Annotated[str, Field(alias="serveConfigV2")]
    upgrade_strategy: UpgradeStrategy
    exclude_head_pod_from_serve_svc: Annotated[bool, Field(alias="excludeHeadPodFromServeSvc")] = True
    ray_cluster_deletion_delay_seconds: Count
    ray_cluster_config: RayClusterSpec

    @model_validator(mode="after")
    def _operator_takes_it(self) -> RayServiceSpec:
        incremental = self.upgrade_strategy.type == "NewClusterWithIncrementalUpgrade"
        if incremental != (self.upgrade_strategy.cluster_upgrade_options is not None):
            raise ValueError("an incremental upgrade and its options go together")
        if incremental and not self.ray_cluster_config.enable_in_tree_autoscaling:
            raise ValueError("an incremental upgrade wants autoscaling")
        if not isinstance(yaml.safe_load(self.serve_config_v2), dict):
            raise ValueError("serveConfigV2 is no mapping")
        return self


class RayService(Part):
    """What `tomoray deploy` makes."""

    api_version: Literal["ray.io/v1"] = "ray.io/v1"
    kind: Literal["RayService"] = "RayService"
    metadata: Metadata
    spec: RayServiceSpec

    @model_validator(mode="after")
    def _name_is_short(self) -> RayService:
        dns_label(self.metadata.name, 47)
        return self
