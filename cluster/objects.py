"""Every field of Kubernetes' and KubeRay's objects that TomoRay writes, and no other.

Names are those of the API in snake case; `manifest` turns an object into what `kubectl apply` takes. What KubeRay's
CRDs let through and its operator refuses later (`ValidationFailed`) is refused here, before anything is submitted.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

Quantities = dict[str, str]


class Part(BaseModel):
    """Strict and frozen; an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, validate_by_name=True)


class Owner(Part):
    """What an object goes with."""

    api_version: str
    kind: str
    name: str
    uid: str


class Metadata(Part):
    """Who an object is."""

    name: str
    namespace: str
    labels: dict[str, str] = {}
    annotations: dict[str, str] | None = None
    owner_references: list[Owner] | None = None


class TemplateMetadata(Part):
    """What a pod is called by others."""

    labels: dict[str, str] = {}
    annotations: dict[str, str] | None = None


# --- pods


class SecretKeySelector(Part):
    """A key of a Secret."""

    name: str
    key: str


class EnvSource(Part):
    """Where a variable comes from."""

    secret_key_ref: SecretKeySelector


class EnvVar(Part):
    """A variable, by value or by reference."""

    name: str
    value: str | None = None
    value_from: EnvSource | None = None


class NamedReference(Part):
    """Something of the same namespace."""

    name: str


class EnvFrom(Part):
    """All keys of a Secret as variables."""

    secret_ref: NamedReference


class Resources(Part):
    """What a container gets."""

    requests: Quantities
    limits: Quantities


class Capabilities(Part):
    """What of root's power a process has: nothing."""

    drop: tuple[Literal["ALL"]] = ("ALL",)


class SeccompProfile(Part):
    """Which system calls a process may make."""

    type: Literal["RuntimeDefault"] = "RuntimeDefault"


class ContainerSecurity(Part):
    """As the Pod Security Standard `restricted` wants it, and a root filesystem that cannot be written."""

    allow_privilege_escalation: Literal[False] = False
    read_only_root_filesystem: Literal[True] = True
    capabilities: Capabilities = Capabilities()


class PodSecurity(Part):
    """As the Pod Security Standard `restricted` wants it."""

    run_as_non_root: Literal[True] = True
    run_as_user: int
    run_as_group: int
    fs_group: int
    fs_group_change_policy: Literal["OnRootMismatch"] = "OnRootMismatch"
    seccomp_profile: SeccompProfile = SeccompProfile()


class VolumeMount(Part):
    """Where a volume is seen."""

    name: str
    mount_path: str
    read_only: bool | None = None


class EmptyDir(Part):
    """A folder on the node's disk for as long as the pod lives."""

    size_limit: str | None = None


class ConfigMapSource(Part):
    """A ConfigMap as files."""

    name: str


class KeyToPath(Part):
    """A key as a file."""

    key: str
    path: str


class SecretSource(Part):
    """Keys of a Secret as files."""

    secret_name: str
    items: list[KeyToPath]
    default_mode: int = 0o440


class ClaimSource(Part):
    """A PersistentVolumeClaim that is there."""

    claim_name: str


class ClaimSpec(Part):
    """What volume is wanted."""

    access_modes: list[Literal["ReadWriteOnce"]] = ["ReadWriteOnce"]
    storage_class_name: str | None = None
    resources: dict[Literal["requests"], Quantities]


class ClaimTemplate(Part):
    """A claim that is made for each pod."""

    spec: ClaimSpec


class EphemeralSource(Part):
    """A volume made for a pod and gone with it."""

    volume_claim_template: ClaimTemplate


class Volume(Part):
    """One of the kinds of volumes that `restricted` pods may have."""

    name: str
    empty_dir: EmptyDir | None = None
    config_map: ConfigMapSource | None = None
    secret: SecretSource | None = None
    persistent_volume_claim: ClaimSource | None = None
    ephemeral: EphemeralSource | None = None


class Container(Part):
    """One process of ours."""

    name: str
    image: str
    image_pull_policy: Literal["IfNotPresent", "Always"] = "IfNotPresent"
    env: list[EnvVar] = []
    env_from: list[EnvFrom] | None = None
    resources: Resources
    security_context: ContainerSecurity = ContainerSecurity()
    volume_mounts: list[VolumeMount] = []


class PodToleration(Part):
    """A taint that a pod does not mind."""

    key: str | None = None
    operator: Literal["Equal", "Exists"] = "Exists"
    value: str | None = None
    effect: str | None = None


class LabelSelector(Part):
    """Objects by their labels."""

    match_labels: dict[str, str]


class TopologySpread(Part):
    """Pods are spread over the values of a label of nodes."""

    max_skew: int = 1
    topology_key: str
    when_unsatisfiable: Literal["ScheduleAnyway", "DoNotSchedule"] = "ScheduleAnyway"
    label_selector: LabelSelector


class PodSpec(Part):
    """A pod under the Pod Security Standard `restricted`."""

    service_account_name: str
    automount_service_account_token: bool = False
    enable_service_links: Literal[False] = False
    restart_policy: Literal["Never", "Always"] = "Never"
    termination_grace_period_seconds: int
    priority_class_name: str | None = None
    runtime_class_name: str | None = None
    image_pull_secrets: list[NamedReference] | None = None
    node_selector: dict[str, str] | None = None
    tolerations: list[PodToleration] | None = None
    topology_spread_constraints: list[TopologySpread] | None = None
    security_context: PodSecurity
    containers: Annotated[list[Container], Field(min_length=1)]
    volumes: list[Volume] = []

    @model_validator(mode="after")
    def _mounts_have_volumes(self) -> PodSpec:
        volumes = [volume.name for volume in self.volumes]
        mounted = {mount.name for container in self.containers for mount in container.volume_mounts}
        if missing := mounted - set(volumes):
            raise ValueError(f"no volume {', '.join(sorted(missing))}")
        if len(volumes) > len(set(volumes)):
            raise ValueError(f"a volume twice: {', '.join(volumes)}")
        return self


class PodTemplate(Part):
    """What pods are made from."""

    metadata: TemplateMetadata
    spec: PodSpec


class ConfigMap(Part):
    """A few files, not to be changed any more."""

    api_version: Literal["v1"] = "v1"
    kind: Literal["ConfigMap"] = "ConfigMap"
    metadata: Metadata
    immutable: Literal[True] = True
    data: dict[str, str]


def manifest(part: Part) -> dict[str, Any]:
    """An object as the API server takes it."""
    return part.model_dump(mode="json", by_alias=True, exclude_none=True)


def dns_label(name: str, longest: int) -> str:
    """The name itself. Raises `ValueError` where it is no DNS-1035 label of so many characters."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        raise ValueError(f"{name!r} begins with a letter, and holds lower-case letters, digits and dashes")
    if len(name) > longest:
        raise ValueError(f"{name!r} has {len(name)} characters; KubeRay takes {longest}")
    return name
