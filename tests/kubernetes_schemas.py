"""What a Kubernetes API server and the KubeRay operator would refuse, told without either.

    schemas = runpy.run_path("tests/kubernetes_schemas.py")
    schemas["errors_of"]({"apiVersion": "ray.io/v1", "kind": "RayJob", …})     [] where both would take it

Kubernetes' own kinds are checked against the schemas of each release in `KUBERNETES`, strictly. KubeRay's four kinds
are checked against the CRDs of release 1.7 as an API server does it (defaults, unknown fields, duplicate keys, CEL
rules), then by the rules that only the operator knows, which it would put into the status as `ValidationFailed`. The
CRDs are read from `../shared/kuberay-crds` beside the repository; see `has_kuberay_crds`.
"""

from __future__ import annotations

import copy
import json
import re
import zoneinfo
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import celpy
import jsonschema
import kubernetes_validate
import yaml

KUBERNETES = ("1.34", "1.37")
KUBERAY_CRDS = Path(__file__).resolve().parents[2] / "shared" / "kuberay-crds"
KUBERAY_KINDS = ("RayCluster", "RayJob", "RayService", "RayCronJob")
SKIPPED = f"no KubeRay CRDs at {KUBERAY_CRDS}: put the four of KubeRay 1.7 there, ray.io_rayclusters.yaml and so on"

Object = dict[str, Any]


def has_kuberay_crds() -> bool:
    """Whether KubeRay's kinds can be checked; else tests skip with `SKIPPED`."""
    return KUBERAY_CRDS.is_dir()


def errors_of(manifest: Object, gates: Collection[str] = ()) -> list[str]:
    """What is wrong with an object, a line each.

    Args:
        manifest: one object, as it would be sent to the API server.
        gates: feature gates of the operator that are on besides its defaults.

    Raises:
        LookupError: neither Kubernetes' nor KubeRay's kind.
    """
    if manifest["apiVersion"] == "ray.io/v1" and manifest["kind"] in KUBERAY_KINDS:
        return _kuberay_errors(manifest, gates)
    return [error for version in KUBERNETES for error in _kubernetes_errors(json.dumps(manifest), version)]


@lru_cache(maxsize=4096)
def _kubernetes_errors(manifest: str, version: str) -> tuple[str, ...]:
    try:
        kubernetes_validate.validate(json.loads(manifest), version, strict=True)
    except kubernetes_validate.SchemaNotFoundError as error:
        raise LookupError(error.message) from error
    except kubernetes_validate.ValidationError as error:
        return (f"Kubernetes {version}: {'.'.join(map(str, error.absolute_path))}: {error.message}",)
    return ()


def _kuberay_errors(manifest: Object, gates: Collection[str]) -> list[str]:
    schema, validator = _crd(manifest["kind"])
    stored = _without_nulls(copy.deepcopy(manifest))
    _put_defaults(schema, stored)
    errors = [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(stored)]
    return errors or [*_server_rules(schema, stored, ""), *_operator_rules(stored, frozenset(gates))]


# --- what the API server does with a CRD


@lru_cache(maxsize=4)
def _crd(kind: str) -> tuple[Object, Any]:
    """The schema of a kind as it stands in its CRD, and a strict validator made from it."""
    text = (KUBERAY_CRDS / f"ray.io_{kind.lower()}s.yaml").read_text(encoding="utf-8")
    versions = yaml.load(text, yaml.CSafeLoader)["spec"]["versions"]
    schema = next(version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1")
    strict = _as_json_schema(schema)
    strict["properties"]["metadata"] = {}  # the server knows it by itself
    return schema, jsonschema.Draft4Validator(strict)


def _as_json_schema(schema: Object) -> Object:
    """An OpenAPI schema as JSON Schema that refuses unknown fields, as `kubectl --validate=strict` does."""
    made: Object = {}
    for key, value in schema.items():
        if key == "properties":
            made[key] = {name: _as_json_schema(each) for name, each in value.items()}
        elif key in {"items", "additionalProperties", "not"} and isinstance(value, dict):
            made[key] = _as_json_schema(value)
        elif key in {"allOf", "anyOf", "oneOf"}:
            made[key] = [_as_json_schema(each) for each in value]
        elif not key.startswith("x-kubernetes") and key not in {"description", "default", "example", "nullable"}:
            made[key] = value
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("anyOf", None)
        made["type"] = ["integer", "string"]
    if schema.get("nullable") and "type" in made:
        made["type"] = [made["type"], "null"]
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def _put_defaults(schema: Object, value: Any) -> None:
    if isinstance(value, dict):
        for name, field in schema.get("properties", {}).items():
            if name not in value and "default" in field:
                value[name] = copy.deepcopy(field["default"])
    for _, field, each in _children(schema, value):
        _put_defaults(field, each)


def _children(schema: Object, value: Any) -> Iterator[tuple[str, Object, Any]]:
    """The values within a value, each with its path and its schema."""
    if isinstance(value, dict):
        rest = schema.get("additionalProperties")
        for name, each in value.items():
            field = schema.get("properties", {}).get(name, rest)
            if isinstance(field, dict):
                yield f".{name}", field, each
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield f"[{index}]", schema.get("items", {}), each


def _server_rules(schema: Object, value: Any, path: str) -> Iterator[str]:
    """CEL rules, and keys that stand twice in a list."""
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" not in rule["rule"] and not _holds(rule["rule"], value):
            yield f"{path}: {rule.get('message', rule['rule'])}"
    if isinstance(value, list):
        kind, names = schema.get("x-kubernetes-list-type"), schema.get("x-kubernetes-list-map-keys", [])
        keys = [str([each.get(name) for name in names]) if kind == "map" else str(each) for each in value]
        if kind in {"map", "set"} and len(set(keys)) < len(keys):
            yield f"{path}: twice in one list: {sorted({key for key in keys if keys.count(key) > 1})}"
    for name, field, each in _children(schema, value):
        yield from _server_rules(field, each, path + name)


def _holds(rule: str, value: Any) -> bool:
    return bool(_program(rule).evaluate({"self": celpy.json_to_cel(value)}))


@lru_cache(maxsize=64)
def _program(rule: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))


# --- what only the operator refuses

LONGEST_NAME = {"RayCluster": 53, "RayJob": 47, "RayService": 47, "RayCronJob": 36}
TLS_VARIABLES = {"RAY_USE_TLS", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT"}


def _operator_rules(manifest: Object, gates: frozenset[str]) -> Iterator[str]:
    kind, spec, metadata = manifest["kind"], manifest.get("spec", {}), manifest["metadata"]
    name, annotations = metadata.get("name", ""), metadata.get("annotations", {})
    if len(name) > LONGEST_NAME[kind]:
        yield f"metadata.name: {len(name)} characters; a {kind} may have {LONGEST_NAME[kind]}"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"metadata.name: {name!r} is not a DNS-1035 label"
    if kind == "RayCluster":
        yield from _cluster_rules(spec, annotations, gates)
    elif kind == "RayJob":
        yield from _job_rules(spec, annotations, gates)
    elif kind == "RayService":
        yield from _service_rules(spec, annotations, gates)
    else:
        yield from _cron_rules(spec, gates)


def _cluster_rules(spec: Object, annotations: Mapping[str, str], gates: frozenset[str]) -> Iterator[str]:
    head = spec["headGroupSpec"]
    groups = [{**head, "groupName": "head"}, *spec.get("workerGroupSpecs", [])]
    options, autoscaling = spec.get("autoscalerOptions", {}), spec.get("enableInTreeAutoscaling", False)
    v2 = options.get("version") == "v2"
    environment = _environment(head)
    for group in groups:
        yield from _group_rules(group, autoscaling=autoscaling, v2=v2)
    if not autoscaling and environment.get("RAY_enable_autoscaler_v2") in {"1", "true"}:
        yield "RAY_enable_autoscaler_v2 is set on the head and enableInTreeAutoscaling is not"
    if autoscaling and "version" in options and "RAY_enable_autoscaler_v2" in environment:
        yield "autoscalerOptions.version and RAY_enable_autoscaler_v2 are both set"
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield "autoscalerOptions.idleTimeoutSeconds: negative"
    yield from _fault_tolerance_rules(spec, annotations, gates)
    yield from _auth_rules(spec)
    for field, gate in (
        ("networkPolicy", "RayClusterNetworkPolicy"),
        ("tlsOptions", "RayClusterMTLS"),
        ("historyServerOptions", "RayClusterHistoryServer"),
    ):
        if field in spec and gate not in gates:
            yield f"{field}: the operator's feature gate {gate} is off"
    if spec.get("tlsOptions", {}).get("enabled"):
        for group in groups:
            for variable in sorted(TLS_VARIABLES & _environment(group).keys()):
                yield f"{group['groupName']}: {variable} is the operator's own where tlsOptions is set"


def _group_rules(group: Object, *, autoscaling: bool, v2: bool) -> Iterator[str]:
    name, pod, started = group["groupName"], group["template"]["spec"], group.get("rayStartParams", {})
    if not pod.get("containers"):
        yield f"{name}: no container"
    if group.get("resources") and started.keys() & {"num-cpus", "num-gpus", "memory", "resources"}:
        yield f"{name}: resources both in rayStartParams and in the group"
    if "labels" in started:
        yield f"{name}: rayStartParams.labels; labels belong to the group"
    if group.get("minReplicas", 0) > group.get("maxReplicas", 2**31 - 1):
        yield f"{name}: minReplicas is above maxReplicas"
    if min(group.get("minReplicas", 0), group.get("maxReplicas", 0), group.get("idleTimeoutSeconds", 0)) < 0:
        yield f"{name}: negative"
    if ("idleTimeoutSeconds" in group or group.get("priority")) and not v2:
        yield f"{name}: idleTimeoutSeconds and priority want autoscaler v2"
    if autoscaling and group.get("suspend"):
        yield f"{name}: suspended with autoscaling"
    if autoscaling and v2 and pod.get("restartPolicy", "Never") != "Never":
        yield f"{name}: autoscaler v2 wants restartPolicy Never"


def _fault_tolerance_rules(spec: Object, annotations: Mapping[str, str], gates: frozenset[str]) -> Iterator[str]:
    head = spec["headGroupSpec"]
    environment, started = _environment(head), head.get("rayStartParams", {})
    options = spec.get("gcsFaultToleranceOptions")
    if options is None:
        if "RAY_REDIS_ADDRESS" in environment and annotations.get("ray.io/ft-enabled") != "true":
            yield "RAY_REDIS_ADDRESS is set on the head and gcsFaultToleranceOptions is not"
        return
    for taken in sorted({"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"} & environment.keys()):
        yield f"{taken}: belongs to gcsFaultToleranceOptions"
    for taken in sorted({"redis-password", "redis-username"} & started.keys()):
        yield f"rayStartParams.{taken}: belongs to gcsFaultToleranceOptions"
    for taken in sorted({"ray.io/ft-enabled", "ray.io/external-storage-namespace"} & annotations.keys()):
        yield f"{taken}: belongs to gcsFaultToleranceOptions"
    if options.get("backend", "redis") == "redis":
        if "storage" in options:
            yield "gcsFaultToleranceOptions.storage is for the backend rocksdb"
        return
    if "GCSFaultToleranceEmbeddedStorage" not in gates:
        yield "gcsFaultToleranceOptions.backend: the operator's feature gate GCSFaultToleranceEmbeddedStorage is off"
    for field in sorted(options.keys() - {"backend", "storage"}):
        yield f"gcsFaultToleranceOptions.{field} is for the backend redis"
    storage = options.get("storage", {})
    if "claimName" in storage and len(storage) > 1:
        yield "gcsFaultToleranceOptions.storage.claimName goes with nothing else"


def _auth_rules(spec: Object) -> Iterator[str]:
    auth = spec.get("authOptions", {})
    version = tuple(int(part) for part in re.findall(r"\d+", spec.get("rayVersion", ""))[:2])
    if auth.get("mode") == "token" and version < (2, 52):
        yield f"authOptions.mode token wants rayVersion 2.52 or later, found {spec.get('rayVersion')!r}"
    if auth.get("enableK8sTokenAuth"):
        if auth.get("mode") != "token" or version < (2, 55):
            yield "authOptions.enableK8sTokenAuth wants mode token and rayVersion 2.55 or later"
        if auth.get("secretName"):
            yield "authOptions.enableK8sTokenAuth goes with no secretName"


def _job_rules(spec: Object, annotations: Mapping[str, str], gates: frozenset[str]) -> Iterator[str]:
    mode, cluster, selector = spec.get("submissionMode", "K8sJobMode"), spec.get("rayClusterSpec"), "clusterSelector"
    shuts_down, rules = spec.get("shutdownAfterJobFinishes"), spec.get("deletionStrategy", {}).get("deletionRules", [])
    if mode not in {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}:
        yield f"submissionMode: {mode!r}"
    if cluster is None and not spec.get(selector):
        yield "one of rayClusterSpec and clusterSelector is wanted"
    if spec.get(selector) and not spec[selector].get("ray.io/cluster"):
        yield "clusterSelector names no cluster under ray.io/cluster"
    if not shuts_down and (spec.get("suspend") or spec.get("ttlSecondsAfterFinished")):
        yield "suspend and ttlSecondsAfterFinished want shutdownAfterJobFinishes"
    if spec.get("suspend") and spec.get(selector):
        yield "suspend goes with no clusterSelector"
    if rules and shuts_down:
        yield "deletionRules go with no shutdownAfterJobFinishes"
    if any(rule["policy"] == "DeleteWorkers" for rule in rules) and (cluster or {}).get("enableInTreeAutoscaling"):
        yield "DeleteWorkers goes with no autoscaling"
    if spec.get("backoffLimit", 0) > 0 and (spec.get(selector) or mode == "InteractiveMode"):
        yield "backoffLimit goes with neither clusterSelector nor InteractiveMode"
    if mode == "SidecarMode":
        for field in sorted({"submitterPodTemplate", "submitterConfig", selector} & spec.keys()):
            yield f"SidecarMode goes with no {field}"
        if cluster and cluster["headGroupSpec"]["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield "SidecarMode wants restartPolicy Never on the head"
    if min(spec.get(field, 1) for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds")) <= 0:
        yield "a deadline is a positive number of seconds"
    if min(spec.get(field, 0) for field in ("backoffLimit", "ttlSecondsAfterFinished")) < 0:
        yield "backoffLimit and ttlSecondsAfterFinished are not negative"
    if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
        yield "runtimeEnvYAML is no mapping"
    if cluster:
        if cluster.get("authOptions", {}).get("enableK8sTokenAuth"):
            yield "authOptions.enableK8sTokenAuth: not with a RayJob"
        yield from _cluster_rules(cluster, annotations, gates)


def _service_rules(spec: Object, annotations: Mapping[str, str], gates: frozenset[str]) -> Iterator[str]:
    cluster, strategy = spec["rayClusterConfig"], spec.get("upgradeStrategy", {})
    if cluster.get("authOptions", {}).get("enableK8sTokenAuth"):
        yield "authOptions.enableK8sTokenAuth: not with a RayService"
    if cluster["headGroupSpec"].get("headService", {}).get("metadata", {}).get("name"):
        yield "headService.metadata.name is the operator's own"
    if strategy.get("type", "NewCluster") not in {"NewCluster", "NewClusterWithIncrementalUpgrade", "None"}:
        yield f"upgradeStrategy.type: {strategy['type']!r}"
    if spec.get("rayClusterDeletionDelaySeconds", 0) < 0:
        yield "rayClusterDeletionDelaySeconds: negative"
    if strategy.get("type") == "NewClusterWithIncrementalUpgrade":
        options = strategy.get("clusterUpgradeOptions", {})
        if not cluster.get("enableInTreeAutoscaling"):
            yield "NewClusterWithIncrementalUpgrade wants enableInTreeAutoscaling"
        if not 0 <= options.get("stepSizePercent", -1) <= options.get("maxSurgePercent", 100) <= 100:
            yield "clusterUpgradeOptions: 0 <= stepSizePercent <= maxSurgePercent <= 100"
        if options.get("intervalSeconds", 0) <= 0 or not options.get("gatewayClassName"):
            yield "clusterUpgradeOptions: a positive intervalSeconds and a gatewayClassName are wanted"
    if not isinstance(yaml.safe_load(spec.get("serveConfigV2", "{}")), dict):
        yield "serveConfigV2 is no mapping"
    yield from _cluster_rules(cluster, annotations, gates)


def _cron_rules(spec: Object, gates: frozenset[str]) -> Iterator[str]:
    field = r"(\*|[0-9A-Za-z]+(-[0-9A-Za-z]+)?)(/[0-9]+)?"
    if "RayCronJob" not in gates:
        yield "the operator's feature gate RayCronJob is off"
    if not re.fullmatch(rf"@\w+( \w+)?|{field}(,{field})*( {field}(,{field})*){{4}}", spec["schedule"]):
        yield f"schedule: {spec['schedule']!r} is no cron schedule of five fields"
    if "timeZone" in spec and spec["timeZone"] not in zoneinfo.available_timezones():
        yield f"timeZone: {spec['timeZone']!r}"
    yield from _job_rules(spec["jobTemplate"], {}, gates)


def _environment(group: Object) -> dict[str, str]:
    """The variables of a group's Ray container; those that come from elsewhere are empty."""
    containers = group["template"]["spec"].get("containers") or [{}]
    return {each["name"]: each.get("value", "") for each in containers[0].get("env", [])}
