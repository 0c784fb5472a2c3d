"""Places where jobs and endpoints run, by name: this machine, a Ray cluster, a namespace of a Kubernetes cluster.

They stand in one YAML file of the user's (`~/.config/tomoray/targets.yaml`, or the one that `TOMORAY_TARGETS` names):

    gpus:
      kind: ray
      address: http://10.0.0.5:8265
    eks:
      kind: kubernetes
      context: research
      image: registry.example/tomoray:0.1.0

The target `here`, this machine, is always there.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, RootModel, ValidationError, model_validator

from tomoray import settings
from tomoray.config import Config, Url
from tomoray.errors import Usage

HERE = "here"
NAME = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"

LabelValue = Annotated[str, Field(max_length=63)]
SecretKey = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9._-]+$")]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|[kMGTPE]i?)?$")]


class Here(Config):
    """This machine: jobs run as `tomoray train` and the others run them."""

    kind: Literal["here"] = "here"


class RayTarget(Config):
    """A Ray cluster that runs already.

    Attributes:
        address: of its dashboard, `http://HOST:8265`, or of its Ray client, `ray://HOST:10001`; Ray's Jobs API is
            asked at port 8265 of the same host.
        node_type: the machines, as the price table names them; None: seconds are told, no dollars.
        prices: a file with a price table; None: TomoRay's own.
    """

    kind: Literal["ray"]
    address: Annotated[str, Field(pattern=r"^(ray|https?)://[^/\s]+/?$")]
    node_type: str | None = None
    prices: str | None = None


class Toleration(Config):
    """A taint of nodes that a pod does not mind."""

    key: str | None = None
    operator: Literal["Equal", "Exists"] = "Exists"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Nodes(Config):
    """Which nodes a pod may run on."""

    node_selector: dict[str, LabelValue] = {}
    tolerations: list[Toleration] = []


class Pool(Nodes):
    """What a pod of this kind asks for. A Ray node fills a machine, so ask for nearly all of it.

    Attributes:
        gpu_resource: what the cluster calls a GPU.
        node_type: the machine, as the price table (`tomoray/ingest/prices.yaml`) names it.
    """

    cpus: Annotated[float, Field(gt=0)] = 2
    memory_gb: Annotated[float, Field(gt=0)] = 8
    gpus: Annotated[int, Field(ge=0)] = 0
    gpu_resource: str = "nvidia.com/gpu"
    node_type: str | None = None


class Pools(Config):
    """The head of a Ray cluster, its workers without GPUs, and those with."""

    head: Pool = Pool(cpus=2, memory_gb=8)
    cpu: Pool = Pool(cpus=4, memory_gb=16)
    gpu: Pool = Pool(cpus=8, memory_gb=32, gpus=1)


class ServiceAccounts(Config):
    """Who pods are to Kubernetes and to S3; the chart makes these three."""

    preprocess: str = "tomoray-preprocess"
    train: str = "tomoray-train"
    serving: str = "tomoray-serving"


class Cache(Config):
    """A folder of each worker for what is read again and again: `/cache`.

    Attributes:
        kind: `node`: the node's own disk (its NVMe, where the kubelet lives there); `volume`: a volume of
            `storage_class` for each pod, gone with it; `claim`: a PersistentVolumeClaim that is there, shared by all.
    """

    kind: Literal["node", "volume", "claim"] = "node"
    size: Quantity = "100Gi"
    storage_class: str | None = None
    claim: str | None = None

    @model_validator(mode="after")
    def _names_what_it_needs(self) -> Cache:
        if (self.kind == "claim") != (self.claim is not None):
            raise ValueError("kind claim and the name of a claim go together")
        return self


class Gcs(Config):
    """What outlives the head of an endpoint's cluster, so that a new head takes over its workers.

    Attributes:
        kind: `redis`: a Redis server at `address`; `rocksdb`: a database on a volume of the head's own (the operator's
            feature gate must be on).
        password: a key of a Secret, as `name/key`.
    """

    kind: Literal["none", "redis", "rocksdb"] = "none"
    address: str | None = None
    password: SecretKey | None = None
    size: Quantity = "10Gi"
    storage_class: str | None = None

    @model_validator(mode="after")
    def _redis_has_an_address(self) -> Gcs:
        if (self.kind == "redis") != (self.address is not None):
            raise ValueError("kind redis and an address go together")
        return self


class KubernetesTarget(Config):
    """A namespace of a Kubernetes cluster with the KubeRay operator.

    Attributes:
        context: of the kubeconfig; None: the current one, or the pod's own inside a cluster.
        kubeconfig: a file; None: as kubectl finds it.
        image: with TomoRay in it, pinned by tag or digest.
        image_pull_secrets: names of Secrets.
        env: variables of every pod.
        secrets: variables from Secrets, as `NAME: secret/key`. Their values are never read here.
        env_from: Secrets all of whose keys become variables.
        pseudonym_key: where the key of the pseudonyms is, as `secret/key`; preprocessing wants it.
        queue: a LocalQueue of Kueue: pods of a job start together or not at all; None: no Kueue.
        priority_class: of every pod.
        spot, on_demand: how nodes are told apart that may be reclaimed at any time.
        runtime_class: of pods with GPUs.
        gateway_class: a GatewayClass, for upgrades of endpoints that move traffic step by step.
        volumes: PersistentVolumeClaims that every pod sees, by the folder where it does; configs may name paths there.
        user: the number of the image's user, and of its group.
        ray_version: of the image.
        prices: a file with a price table, for costs; None: TomoRay's own.
        buckets: that jobs read and write; `tomoray cluster check` looks whether they answer.
        storage_class: that volumes are made from, where nothing more special is named.
    """

    kind: Literal["kubernetes"]
    context: str | None = None
    kubeconfig: str | None = None
    namespace: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")] = "tomoray"
    image: Annotated[str, Field(pattern=r"^\S+[:@]\S+$")]
    image_pull_secrets: list[str] = []
    service_accounts: ServiceAccounts = ServiceAccounts()
    env: dict[str, str] = {}
    secrets: dict[str, SecretKey] = {}
    env_from: list[str] = []
    pseudonym_key: SecretKey | None = None
    buckets: list[Url] = []
    storage_class: str | None = None
    queue: str | None = None
    priority_class: str | None = None
    pools: Pools = Pools()
    spot: Nodes = Nodes()
    on_demand: Nodes = Nodes()
    cache: Cache | None = None
    gcs: Gcs = Gcs()
    runtime_class: str | None = None
    gateway_class: str | None = None
    volumes: dict[Annotated[str, Field(pattern="^/[a-z0-9/_-]+$")], str] = {}
    user: Annotated[int, Field(gt=0)] = 1000
    ray_version: str = "2.60.0"
    prices: str | None = None


Target = Here | RayTarget | KubernetesTarget
Name = Annotated[str, Field(pattern=NAME)]


class Targets(RootModel[dict[Name, Annotated[RayTarget | KubernetesTarget, Field(discriminator="kind")]]]):
    """The whole file."""


def read_targets() -> dict[str, Target]:
    """All targets by name, `here` first. Raises `Usage` where the file cannot be understood."""
    path = settings.targets_file()
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        found = None
    except yaml.YAMLError as error:
        raise Usage(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    return {HERE: Here(), **make_targets(found or {}, str(path))}


def read_target(name: str) -> Target:
    """The target of this name. Raises `Usage` where there is none."""
    targets = read_targets()
    if name not in targets:
        raise Usage(f"no target {name!r}; known: {', '.join(targets)}; add it with: tomoray cluster add {name}")
    return targets[name]


def make_targets(values: Any, source: str) -> dict[str, RayTarget | KubernetesTarget]:
    """Targets by name from what their YAML holds; the error names each wrong field in one line. Raises `Usage`."""
    try:
        return Targets.model_validate(values).root
    except ValidationError as error:
        raise Usage(f"{source}: " + "; ".join(_explain(dict(each)) for each in error.errors())) from error


def save_target(name: str, target: Target, *, replace: bool = False) -> Path:
    """Write a target down and return the file. Only what is not a default is written.

    Raises:
        Usage: a name that is taken (unless `replace`), or none that a target can have.
    """
    if name == HERE:
        raise Usage(f"{HERE!r} is this machine, always; choose another name")
    targets = read_targets()
    if name in targets and targets[name] != target and not replace:
        raise Usage(f"target {name!r} is there and differs; to overwrite it: tomoray cluster add {name} --replace")
    make_targets({name: dump_target(target)}, "command line")
    return _write(targets | {name: target})


def remove_target(name: str) -> Path:
    """Forget a target; nothing on a cluster changes. Raises `Usage` where there is none."""
    targets = read_targets()
    if name == HERE or name not in targets:
        raise Usage(f"no target {name!r} that could be removed; known: {', '.join(targets)}")
    return _write({other: target for other, target in targets.items() if other != name})


def dump_target(target: Target) -> dict[str, Any]:
    """What a target's YAML says: its kind and all that is not a default."""
    return {"kind": target.kind} | target.model_dump(mode="json", exclude_defaults=True)


def _explain(problem: dict[str, Any]) -> str:
    where = [str(part) for part in problem["loc"] if part not in {"ray", "kubernetes"}]
    name = ".".join(where)
    if problem["type"] == "extra_forbidden":
        return f"unknown key {name!r}; the known ones: tomoray schema targets"
    return f"{name}: {problem['msg'].removeprefix('Value error, ')}"


def _write(targets: Mapping[str, Target]) -> Path:
    """The whole file or none of it."""
    path = settings.targets_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {name: dump_target(target) for name, target in targets.items() if name != HERE}
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(yaml.safe_dump(document, sort_keys=False))
    os.replace(file.name, path)  # noqa: PTH105
    return path
