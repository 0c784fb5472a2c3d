"""Endpoints on Kubernetes: RayServices, with the revisions before them in ConfigMaps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import ValidationError

from cluster import kube_usage
from cluster.deployment import PORT, Deployment, EndpointState, config_of, scaled, serve_config
from cluster.kube import Kube, Object, connect
from cluster.manifests import owned, ray_cluster
from cluster.objects import ConfigMap, Metadata, manifest
from cluster.pods import labels_of
from cluster.ray_objects import RayService, RayServiceSpec, UpgradeOptions, UpgradeStrategy
from cluster.targets import KubernetesTarget
from cluster.usage import NodeUse
from tomoray.errors import Fatal, Usage

KEPT = 10  # revisions
_UPGRADES = {"new-cluster": "NewCluster", "incremental": "NewClusterWithIncrementalUpgrade", "none": "None"}


def service_manifest(deployment: Deployment, target: KubernetesTarget) -> Object:
    """The RayService of an endpoint. Raises `Usage`: something that the operator would refuse."""
    shape = deployment.shape
    options = None
    if shape.upgrade == "incremental":
        options = UpgradeOptions(
            gateway_class_name=target.gateway_class or "",
            step_size_percent=shape.step_percent,
            interval_seconds=shape.every_s,
            max_surge_percent=shape.surge_percent,
        )
    try:
        cluster = ray_cluster(
            target, deployment.name, "serving", workers=shape.workers, gpus=shape.gpus, spot=shape.spot
        )
        return manifest(
            RayService(
                metadata=Metadata(
                    name=deployment.name,
                    namespace=target.namespace,
                    labels=labels_of(deployment.name, "serving"),
                    annotations=_annotations(deployment, target),
                ),
                spec=RayServiceSpec(
                    serve_config_v2=yaml.safe_dump(serve_config(deployment.config), sort_keys=False),
                    upgrade_strategy=UpgradeStrategy.model_validate(
                        {"type": _UPGRADES[shape.upgrade], "cluster_upgrade_options": options}
                    ),
                    ray_cluster_deletion_delay_seconds=shape.keep_old_s,
                    ray_cluster_config=cluster,
                ),
            )
        )
    except ValidationError as error:
        raise Usage("; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())) from error


class KubeEndpoints:
    """The RayServices of a namespace that TomoRay made; see `cluster.deployment.Endpoints`."""

    def __init__(self, target: KubernetesTarget, kube: Kube | None = None) -> None:
        self._target, self._kube = target, kube or connect(target)

    def deploy(self, deployment: Deployment, *, force: bool = False) -> tuple[EndpointState, bool]:
        """See `Endpoints`. Every change is kept as a revision, so that it can be undone."""
        found = self._kube.get("RayService", deployment.name)
        wanted = _as_revision(service_manifest(deployment, self._target), _revision(found) + 1)
        if found is not None and _annotation(found, "content") == _annotation(wanted, "content"):
            return self._state(found), False
        return self._apply(wanted, force=force), True

    def state(self, name: str) -> EndpointState:
        """See `Endpoints`."""
        return self._state(self._get(name))

    def follow(self, name: str) -> Iterator[EndpointState]:
        """How it stands, now and whenever that changes, until what was deployed last answers or cannot."""
        self._get(name)
        last = None
        for event in self._kube.watch("RayService", fields=f"metadata.name={name}"):
            if event.type == "DELETED":
                yield EndpointState(name=name, state="gone")
                return
            state = self._state(event.object)
            if state != last:
                yield state
            if state.state in {"ready", "unhealthy"}:
                return
            last = state

    def scale(
        self, name: str, changes: dict[str, Any], model: str | None, workers: tuple[int, int] | None
    ) -> EndpointState:
        """See `Endpoints`."""
        revision = _revision(self._get(name))
        wanted = self.revisions(name).get(revision)
        if wanted is None:
            raise Usage(
                f"{name} was not made by tomoray deploy; who made it can change it (helm upgrade, kubectl edit)"
            )
        served = yaml.safe_load(wanted["spec"]["serveConfigV2"])
        if changes:
            config = scaled(config_of(served), changes, model)
            served["applications"] = serve_config(config)["applications"]
            wanted["spec"]["serveConfigV2"] = yaml.safe_dump(served, sort_keys=False)
        if workers is not None:
            (group,) = wanted["spec"]["rayClusterConfig"]["workerGroupSpecs"]
            if (workers[0] == workers[1]) != (group["minReplicas"] == group["maxReplicas"]):
                raise Usage("whether pods scale is decided when it is deployed: tomoray deploy … --workers MIN:MAX")
            group |= {"replicas": workers[0], "minReplicas": workers[0], "maxReplicas": workers[1]}
        return self._apply(_as_revision(wanted, revision + 1))

    def revisions(self, name: str) -> dict[int, Object]:
        """What was deployed, by number, the oldest first."""
        labels = f"app.kubernetes.io/instance={name},tomoray.io/revision-of={name}"
        found = {}
        for each in self._kube.list("ConfigMap", labels=labels):
            kept = json.loads(each["data"]["service.json"])
            found[_revision(kept)] = kept
        return dict(sorted(found.items()))

    def undo(self, name: str, revision: int | None = None) -> EndpointState:
        """Deploy an earlier revision anew: the one before the last, or that of a number. Raises `Usage`: none there."""
        now, kept = self._get(name), self.revisions(name)
        earlier = [each for each in kept if each < _revision(now)]
        wanted = revision if revision is not None else max(earlier, default=None)
        if wanted is None or wanted not in kept:
            known = ", ".join(map(str, kept)) or "none"
            raise Usage(f"{name} has no revision {wanted or 'before this one'}; kept are: {known}")
        return self._apply(_as_revision(kept[wanted], _revision(now) + 1))

    def remove(self, name: str) -> bool:
        """See `Endpoints`."""
        return self._kube.delete("RayService", name)

    def usage(self, name: str) -> list[NodeUse]:
        """The machines that it has now, by its pods."""
        found = self._get(name)
        annotations = found["metadata"].get("annotations", {})
        status = found.get("status", {})
        names = [status.get(key, {}).get("rayClusterName") for key in ("activeServiceStatus", "pendingServiceStatus")]
        return [use for each in names if each for use in kube_usage.of_cluster(self._kube, each, annotations)]

    def _apply(self, wanted: Object, *, force: bool = False) -> EndpointState:
        """The RayService, then its revision, then the oldest ones away."""
        made = self._kube.apply(wanted, force=force)
        name, revision = wanted["metadata"]["name"], _revision(wanted)
        kept = ConfigMap(
            metadata=Metadata(
                name=f"{name}-r{revision}",
                namespace=self._target.namespace,
                labels=labels_of(name, "serving") | {"tomoray.io/revision-of": name},
            ),
            data={"service.json": json.dumps(wanted, sort_keys=True)},
        )
        self._kube.apply(owned(manifest(kept), made), force=force)
        for old in list(self.revisions(name))[:-KEPT]:
            self._kube.delete("ConfigMap", f"{name}-r{old}")
        return self._state(made)

    def _get(self, name: str) -> Object:
        found = self._kube.get("RayService", name)
        if found is None:
            raise Fatal(f"no endpoint {name} in namespace {self._target.namespace}; make it with: tomoray deploy")
        return found

    def _state(self, service: Object) -> EndpointState:
        status, metadata = service.get("status", {}), service["metadata"]
        conditions = {each["type"]: each["status"] == "True" for each in status.get("conditions", [])}
        active, pending = status.get("activeServiceStatus", {}), status.get("pendingServiceStatus", {})
        applications = (active or pending).get("applicationStatuses", {})
        unwell = [each for each in applications.values() if each.get("status") in {"UNHEALTHY", "DEPLOY_FAILED"}]
        deploying = any(each.get("status") in {"DEPLOYING", "NOT_STARTED"} for each in applications.values())
        current = status.get("observedGeneration", 0) >= metadata.get("generation", 0)
        state: Any
        if unwell:
            state = "unhealthy"
        elif conditions.get("Ready"):
            changing = conditions.get("UpgradeInProgress") or pending.get("rayClusterName") or deploying or not current
            state = "changing" if changing else "ready"
        else:
            state = "starting"
        return EndpointState(
            name=metadata["name"],
            state=state,
            message="; ".join(filter(None, (each.get("message", "") for each in unwell))),
            revision=_revision(service),
            traffic=pending.get("trafficRoutedPercent"),
            deployments={
                name: each.get("status", "")
                for application in applications.values()
                for name, each in (application.get("serveDeploymentStatuses") or {}).items()
            },
            url=f"http://{metadata['name']}-serve-svc.{metadata['namespace']}:{PORT}",
        )


def _annotations(deployment: Deployment, target: KubernetesTarget) -> dict[str, str]:
    shape = deployment.shape
    pool = target.pools.gpu if shape.gpus else target.pools.cpu
    return {
        "tomoray.io/capacity": "spot" if shape.spot else "on-demand",
        **({"tomoray.io/head-node-type": target.pools.head.node_type} if target.pools.head.node_type else {}),
        **({"tomoray.io/worker-node-type": pool.node_type} if pool.node_type else {}),
    }


def _annotation(service: Object | None, name: str) -> str:
    return str(((service or {}).get("metadata", {}).get("annotations") or {}).get(f"tomoray.io/{name}", ""))


def _revision(service: Object | None) -> int:
    return int(_annotation(service, "revision") or "0")


def _as_revision(service: Object, revision: int) -> Object:
    """With its number, and a digest of what it deploys: the server adds defaults, so that specs do not compare."""
    content = hashlib.sha256(json.dumps(service["spec"], sort_keys=True).encode()).hexdigest()[:16]
    marks = {"tomoray.io/revision": str(revision), "tomoray.io/content": content}
    annotations = service["metadata"]["annotations"] | marks
    return {**service, "metadata": {**service["metadata"], "annotations": annotations}}
