"""What a target lacks for jobs of ours, in plain words, and how to mend it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kubernetes.utils.quantity import parse_quantity

from cluster.kube import Kube, Object, connect
from cluster.targets import Here, KubernetesTarget, Nodes, Pool, RayTarget, Target
from tomoray.errors import Forbidden, TomoRayError
from tomoray.storage import open_store

OPERATOR = "helm install kuberay-operator kuberay/kuberay-operator --version 1.7.0"
CRD_FIELDS = (  # that manifests of ours use and older operators do not know
    ("rayjobs", "spec.deletionStrategy.deletionRules", "1.5"),
    ("rayjobs", "spec.rayClusterSpec.authOptions.mode", "1.5"),
    ("rayjobs", "spec.rayClusterSpec.autoscalerOptions.version", "1.4"),
    ("rayjobs", "spec.preRunningDeadlineSeconds", "1.7"),
    ("rayservices", "spec.upgradeStrategy.clusterUpgradeOptions.stepSizePercent", "1.5"),
)
WANTED_RIGHTS = (
    ("create", "ray.io", "rayjobs", ""),
    ("patch", "ray.io", "rayjobs", ""),
    ("delete", "ray.io", "rayjobs", ""),
    ("watch", "ray.io", "rayjobs", ""),
    ("patch", "ray.io", "rayservices", ""),
    ("patch", "", "configmaps", ""),
    ("list", "", "pods", ""),
    ("get", "", "pods", "log"),
    ("list", "", "events", ""),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        state: `missing` where jobs will not run without it; `warning` where they may.
        fix: what to do; empty where all is well.
    """

    what: str
    state: Literal["ok", "warning", "missing"]
    found: str
    fix: str = ""


def check(target: Target) -> list[dict[str, Any]]:
    """Findings about a target, `what`, `state`, `found`, `fix`, in the order in which they matter.

    Nothing is changed there. Buckets are asked from this machine, with this machine's credentials.
    """
    if isinstance(target, KubernetesTarget):
        return [asdict(each) for each in _kubernetes(target)]
    if isinstance(target, RayTarget):
        return [asdict(each) for each in _ray(target)]
    return [asdict(each) for each in _here(target)]


def _kubernetes(target: KubernetesTarget) -> Iterator[Finding]:
    try:
        kube = connect(target, patience_s=5)
        yield Finding(what="API server", state="ok", found=f"{kube.server}, Kubernetes {kube.version()}")
    except TomoRayError as error:
        yield Finding(what="API server", state="missing", found=str(error), fix="check the context and its credentials")
        return
    steps: tuple[tuple[str, Callable[[Kube, KubernetesTarget], Iterator[Finding]]], ...] = (
        ("namespace", _namespace),
        ("operator", _operator),
        ("rights", _rights),
        ("service accounts", _service_accounts),
        ("secrets", _secrets),
        ("quota", _quota),
        ("queue", _queue),
        ("nodes", _nodes),
        ("storage class", _storage_classes),
        ("image", _image),
        ("buckets", _buckets),
    )
    for what, step in steps:
        try:
            yield from step(kube, target)
        except Forbidden as error:
            yield Finding(what=what, state="warning", found=f"cannot look: {error}", fix="ask somebody who may")


def _namespace(kube: Kube, target: KubernetesTarget) -> Iterator[Finding]:
    if kube.get("Namespace", target.namespace) is None:
        fix = f"kubectl create namespace {target.namespace}, or install the chart: helm install tomoray helm/tomoray"
        yield Finding(what="namespace", state="missing", found=f"no namespace {target.namespace}", fix=fix)
    else:
        yield Finding(what="namespace", state="ok", found=target.namespace)


def _operator(kube: Kube, target: KubernetesTarget) -> Iterator[Finding]:
    lacking = []
    crds = {plural: kube.get("CustomResourceDefinition", f"{plural}.ray.io") for plural in ("rayjobs", "rayservices")}
    for plural, crd in crds.items():
        if crd is None:
            yield Finding(what="KubeRay", state="missing", found=f"no {plural}.ray.io", fix=OPERATOR)
            return
        schema = _schema(crd)
        if schema is None:
            yield Finding(what="KubeRay", state="missing", found=f"{plural}.ray.io is not served as v1", fix=OPERATOR)
            return
        lacking += [(field, since) for name, field, since in CRD_FIELDS if name == plural and not _knows(schema, field)]
    if lacking:
        field, since = max(lacking, key=lambda each: each[1])
        fix = f"upgrade the operator and its CRDs: {OPERATOR.replace('install', 'upgrade')}"
        found = f"its CRDs do not know {field}: older than {since}"
        yield Finding(what="KubeRay", state="missing", found=found, fix=fix)
        return
    yield Finding(what="KubeRay", state="ok", found="its CRDs know every field that TomoRay writes")
    running = kube.list("Deployment", labels="app.kubernetes.io/name=kuberay-operator", everywhere=True)
    ready = [each for each in running if each.get("status", {}).get("readyReplicas")]
    if not ready:
        found = "no operator runs" if not running else "the operator is not ready"
        yield Finding(what="operator", state="missing", found=found, fix=f"{OPERATOR}; kubectl get pods -A")
    for each in ready:
        image = each["spec"]["template"]["spec"]["containers"][0]["image"]
        yield Finding(what="operator", state="ok", found=f"{image} in {each['metadata']['namespace']}")


def _schema(crd: Object) -> Object | None:
    served = (each for each in crd["spec"]["versions"] if each["name"] == "v1" and each["served"])
    return next((each["schema"]["openAPIV3Schema"] for each in served), None)


def _knows(schema: Object, field: str) -> bool:
    for name in field.split("."):
        properties = schema.get("properties") or schema.get("items", {}).get("properties") or {}
        if name not in properties:
            return False
        schema = properties[name]
    return True


def _rights(kube: Kube, target: KubernetesTarget) -> Iterator[Finding]:
    denied = []
    for verb, group, resource, subresource in WANTED_RIGHTS:
        asked = {"namespace": target.namespace, "verb": verb, "group": group, "resource": resource}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": asked | ({"subresource": subresource} if subresource else {})},
        }
        answer = kube.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
        if not answer["status"]["allowed"]:
            denied.append(f"{verb} {resource}" + f"/{subresource}" * bool(subresource))
    if denied:
        fix = f"a Role in namespace {target.namespace} that allows it, bound to you"
        yield Finding(what="rights", state="missing", found=f"you may not: {', '.join(denied)}", fix=fix)
    else:
        yield Finding(what="rights", state="ok", found="you may submit, follow and cancel")


def _service_accounts(kube: Kube, target: KubernetesTarget) -> Iterator[Finding]:
    wanted = sorted(set(target.service_accounts.model_dump().values()))
    absent = [name for name in wanted if kube.get("ServiceAccount", name) is None]
    if absent:
        fix = "helm install tomoray helm/tomoray makes them; or name others: service_accounts"
        yield Finding(what="service accounts", state="missing", found=f"none named {', '.join(absent)}", fix=fix)
    else:
        yield Finding(what="service accounts", state="ok", found=", ".join(wanted))


def _secrets(kube: Kube, target: KubernetesTarget) -> Iterator[Finding]:
    keys = [*target.secrets.values(), *filter(None, [target.pseudonym_key, target.gcs.password])]
    wanted = sorted({*target.image_pull_secrets, *target.env_from, *(key.partition("/")[0] for key in keys)})
    absent = [name for name in wanted if not kube.exists("Secret", name)]
    if absent:
        fix = f"kubectl create secret generic {absent[0]} --namespace {target.namespace} --from-file=key=FILE"
        yield Finding(what="secrets", state="missing", found=f"none named {', '.join(absent)}", fix=fix)
    elif wanted:
        yield Finding(what="secrets", state="ok", found=", ".join(wanted))
    if target.pseudonym_key is None:
        fix = "openssl rand -hex 32 > key, a Secret of it, and pseudonym_key: SECRET/key in the target"
        yield Finding(what="pseudonym key", state="warning", found="none: preprocessing is refused", fix=fix)


def _quota(kube: Kube, target: KubernetesTarget) -> Iterator[Finding]:
    for quota in kube.list("ResourceQuota"):
        status = quota.get("status", {})
        hard, used = status.get("hard", {}), status.get("used", {})
        full = [name for name, most in hard.items() if _number(used.get(name, "0")) >= _number(most)]
        name = f"quota {quota['metadata']['name']}"
        if full:
            found = ", ".join(f"{each} {used.get(each, 0)} of {hard[each]}" for each in full)
            fix = "wait for jobs that run (tomoray list), cancel one, or ask for more"
            yield Finding(what=name, state="missing", found=f"used up: {found}", fix=fix)
        else:
            found = ", ".join(f"{each} {used.get(each, 0)} of {most}" for each, most in sorted(hard.items()))
            yield Finding(what=name, state="ok", found=found)


def _queue(kube: Kube, target: KubernetesTarget) -> Iterator[Finding]:
    if target.queue is None:
        return
    if kube.get("LocalQueue", target.queue) is None:
        known = [each["metadata"]["name"] for each in kube.list("LocalQueue")]
        found = f"no LocalQueue {target.queue}" + (f"; there are {', '.join(known)}" if known else "")
        fix = "install Kueue and make the queue (the chart's kueue values), or set queue to none"
        yield Finding(what="queue", state="missing", found=found, fix=fix)
    else:
        yield Finding(what="queue", state="ok", found=target.queue)


def _nodes(kube: Kube, target: KubernetesTarget) -> Iterator[Finding]:
    nodes = [each for each in kube.list("Node") if not each["spec"].get("unschedulable")]
    for name, pool in (("head", target.pools.head), ("cpu", target.pools.cpu), ("gpu", target.pools.gpu)):
        mine = [each for each in nodes if _is_of(each, pool) and (not pool.gpus or _gpus(each, pool))]
        what = "GPU nodes" if pool.gpus else f"{name} nodes"
        if not mine:
            wanted = f"{pool.gpu_resource} on " * bool(pool.gpus) + _selector_text(pool)
            fix = "fine where an autoscaler brings them on demand; else add nodes, or change the target's pools"
            if pool.gpus:
                fix += "; GPUs show up once the device plugin of their maker runs"
            yield Finding(what=what, state="warning", found=f"none now: no {wanted}", fix=fix)
            continue
        cpus = max(_number(each["status"]["allocatable"]["cpu"]) for each in mine)
        memory_gb = max(_number(each["status"]["allocatable"]["memory"]) for each in mine) / 1e9
        gpus = max(_gpus(each, pool) for each in mine)
        if cpus < pool.cpus or memory_gb < pool.memory_gb or gpus < pool.gpus:
            found = f"the largest of {len(mine)} has {cpus:g} CPUs, {memory_gb:.1f} GB, {gpus} GPUs"
            fix = f"pools.{name} asks for {pool.cpus:g} CPUs, {pool.memory_gb:g} GB, {pool.gpus} GPUs: ask for less"
            yield Finding(what=what, state="missing", found=found, fix=fix)
        else:
            all_gpus = f" with {sum(_gpus(each, pool) for each in mine)} GPUs" if pool.gpus else ""
            yield Finding(what=what, state="ok", found=f"{len(mine)}{all_gpus}")


def _is_of(node: Object, wanted: Nodes) -> bool:
    labels = node["metadata"].get("labels", {})
    return all(labels.get(key) == value for key, value in wanted.node_selector.items())


def _gpus(node: Object, pool: Pool) -> int:
    return int(_number(node["status"]["allocatable"].get(pool.gpu_resource, "0")))


def _selector_text(pool: Pool) -> str:
    return (
        "nodes with " + ", ".join(f"{k}={v}" for k, v in pool.node_selector.items()) if pool.node_selector else "nodes"
    )


def _storage_classes(kube: Kube, target: KubernetesTarget) -> Iterator[Finding]:
    cache = target.cache.storage_class if target.cache else None
    gcs = target.gcs.storage_class if target.gcs.kind == "rocksdb" else None
    wanted = sorted({name for name in (target.storage_class, cache, gcs) if name})
    if not wanted:
        return
    there = [each["metadata"]["name"] for each in kube.list("StorageClass")]
    absent = [name for name in wanted if name not in there]
    if absent:
        found = f"none named {', '.join(absent)}; there are {', '.join(there) or 'none'}"
        fix = "name one of those in the target, or install its driver"
        yield Finding(what="storage class", state="missing", found=found, fix=fix)
    else:
        yield Finding(what="storage class", state="ok", found=", ".join(wanted))


def _image(kube: Kube, target: KubernetesTarget) -> Iterator[Finding]:
    if target.image.endswith(":latest"):
        fix = "name a version or a digest: nodes keep what they pulled first"
        yield Finding(what="image", state="warning", found=f"{target.image} changes under running jobs", fix=fix)
    holding = sum(any(target.image in kept.get("names", []) for kept in _images(node)) for node in kube.list("Node"))
    failures = [each for each in kube.list("Event", fields="reason=Failed") if target.image in each.get("message", "")]
    if holding:
        yield Finding(what="image", state="ok", found=f"on {holding} nodes: {target.image}")
    elif failures:
        fix = "check the name, and image_pull_secrets for a registry that asks who pulls"
        yield Finding(what="image", state="missing", found=failures[-1]["message"], fix=fix)
    else:
        found = f"{target.image} is on no node yet; the first pod pulls it"
        yield Finding(what="image", state="warning", found=found, fix="tomoray describe JOB tells where that fails")


def _images(node: Object) -> list[Object]:
    found: list[Object] = node["status"].get("images", [])
    return found


def _buckets(kube: Kube, target: KubernetesTarget) -> Iterator[Finding]:
    for url in target.buckets:
        try:
            open_store(url).check()
        except TomoRayError as error:
            fix = "from pods, the service account's role counts; from here, your AWS variables"
            yield Finding(what=f"bucket {url}", state="warning", found=f"not from here: {error}", fix=fix)
        else:
            yield Finding(what=f"bucket {url}", state="ok", found="answers from here")


def _ray(target: RayTarget) -> Iterator[Finding]:
    from cluster.ray_jobs import describe_cluster  # Ray takes seconds to import

    try:
        found = describe_cluster(target)
    except TomoRayError as error:
        yield Finding(
            what="Ray", state="missing", found=str(error), fix="ray start --head there, and its port 8265 open"
        )
        return
    mine, theirs = found["ray_version_here"], found["ray_version"]
    if mine != theirs:
        fix = f"the same Ray on both sides: pip install 'ray=={theirs}'"
        yield Finding(what="Ray", state="warning", found=f"{theirs} there, {mine} here", fix=fix)
    else:
        yield Finding(what="Ray", state="ok", found=theirs)
    total = f"{found['nodes']} nodes, {found['cpus']:g} CPUs, {found['gpus']:g} GPUs"
    yield Finding(what="nodes", state="ok", found=total)


def _here(target: Here) -> Iterator[Finding]:
    free_gb = shutil.disk_usage(".").free / 1e9
    yield Finding(what="CPUs", state="ok", found=str(os.cpu_count()))
    yield Finding(what="disk", state="ok" if free_gb > 5 else "warning", found=f"{free_gb:.0f} GB free in this folder")


def _number(quantity: object) -> float:
    return float(parse_quantity(str(quantity)))
