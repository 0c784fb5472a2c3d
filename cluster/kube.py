"""The API server of a Kubernetes cluster: apply, get, list, watch, delete, logs.

A thin layer on the official client, which brings authentication and TLS. Objects are plain dicts, as in YAML. What we
write is applied by the server, with `tomoray` as the manager of its fields, so that a second submission changes nothing
and a field that somebody else has set is told of. Every call is tried again where the server is busy, or gone.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import urllib3
from kubernetes import config as kube_config
from kubernetes.client import ApiClient, Configuration
from kubernetes.client.exceptions import ApiException
from kubernetes.client.rest import RESTResponse
from kubernetes.config.config_exception import ConfigException

from cluster.targets import KubernetesTarget
from tomoray.errors import Fatal, Forbidden, TomoRayError, Transient

MANAGER = "tomoray"
PATIENCE_S = 60.0
WATCH_S = 300  # after which the server ends a watch, and the next one begins

Object = dict[str, Any]

_RAY, _CORE = "apis/ray.io/v1", "api/v1"
NAMESPACED = {
    "ConfigMap": (_CORE, "configmaps"),
    "Event": (_CORE, "events"),
    "PersistentVolumeClaim": (_CORE, "persistentvolumeclaims"),
    "Pod": (_CORE, "pods"),
    "ResourceQuota": (_CORE, "resourcequotas"),
    "Secret": (_CORE, "secrets"),
    "Service": (_CORE, "services"),
    "ServiceAccount": (_CORE, "serviceaccounts"),
    "Deployment": ("apis/apps/v1", "deployments"),
    "ControllerRevision": ("apis/apps/v1", "controllerrevisions"),
    "Job": ("apis/batch/v1", "jobs"),
    "LocalQueue": ("apis/kueue.x-k8s.io/v1beta1", "localqueues"),
    "Workload": ("apis/kueue.x-k8s.io/v1beta1", "workloads"),
    "RayCluster": (_RAY, "rayclusters"),
    "RayJob": (_RAY, "rayjobs"),
    "RayService": (_RAY, "rayservices"),
}
CLUSTER_WIDE = {
    "CustomResourceDefinition": ("apis/apiextensions.k8s.io/v1", "customresourcedefinitions"),
    "GatewayClass": ("apis/gateway.networking.k8s.io/v1", "gatewayclasses"),
    "Namespace": (_CORE, "namespaces"),
    "Node": (_CORE, "nodes"),
    "PriorityClass": ("apis/scheduling.k8s.io/v1", "priorityclasses"),
    "StorageClass": ("apis/storage.k8s.io/v1", "storageclasses"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """What a watch tells: `ADDED`, `MODIFIED` or `DELETED`, and the object."""

    type: str
    object: Object


def connect(target: KubernetesTarget, *, patience_s: float = PATIENCE_S) -> Kube:
    """The API server of a target, by the kubeconfig, or by the pod's own account inside a cluster.

    Raises:
        Fatal: neither is there, or the kubeconfig has no such context.
    """
    settings = Configuration()
    settings.retries = False  # urllib3's would hide what is tried again here
    try:
        kube_config.load_kube_config(target.kubeconfig, context=target.context, client_configuration=settings)
    except ConfigException as error:
        if target.context or target.kubeconfig:
            raise Fatal(f"{_line(error)}; contexts there are: kubectl config get-contexts") from error
        try:
            kube_config.load_incluster_config(settings)
        except ConfigException:
            raise Fatal("no kubeconfig was found (KUBECONFIG, ~/.kube/config), and this is no pod") from error
    return Kube(ApiClient(settings), target.namespace, patience_s=patience_s)


class Kube:
    """One namespace of a cluster.

    Every method raises `Fatal` where the server refuses, `Forbidden` where the user may not, and `Transient` where it
    does not answer for a minute.
    """

    def __init__(self, client: ApiClient, namespace: str, *, patience_s: float = PATIENCE_S) -> None:
        self._client, self.namespace, self._patience_s = client, namespace, patience_s

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return str(self._client.configuration.host)

    def version(self) -> str:
        """Of Kubernetes, `v1.37.0`."""
        return str(self._json("GET", "/version")["gitVersion"])

    def apply(self, wanted: Mapping[str, Any], *, force: bool = False) -> Object:
        """The object as it is after its fields were set (server-side apply). Safe to repeat.

        Args:
            wanted: the fields that are TomoRay's to set, and no others.
            force: take over fields that others have set.

        Raises:
            Fatal: the server refuses it, or a field belongs to another manager, who is named.
        """
        query = [("fieldManager", MANAGER), ("force", str(force).lower()), ("fieldValidation", "Strict")]
        path = self._path(wanted["kind"], wanted["metadata"]["name"])
        return self._json("PATCH", path, query, dict(wanted), "application/apply-patch+yaml")

    def create(self, path: str, body: Mapping[str, Any]) -> Object:
        """What the server answers to a POST, a review of access rights say."""
        return self._json("POST", path, body=dict(body))

    def get(self, kind: str, name: str) -> Object | None:
        """An object; None where there is none, or no such kind."""
        try:
            return self._json("GET", self._path(kind, name), expecting=404)
        except ApiException:
            return None

    def exists(self, kind: str, name: str) -> bool:
        """Whether an object is there; its content is not asked for, so that Secrets stay secret."""
        accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
        try:
            self._json("GET", self._path(kind, name), accept=accept, expecting=404)
        except ApiException:
            return False
        return True

    def list(self, kind: str, *, labels: str = "", fields: str = "", everywhere: bool = False) -> list[Object]:
        """Objects by a label selector and a field selector; of a kind that the cluster does not know, none."""
        return self._list(kind, labels, fields, everywhere)[0]

    def delete(self, kind: str, name: str) -> bool:
        """Whether there was anything to delete. What it owns goes with it."""
        body = {"propagationPolicy": "Background"}
        try:
            self._json("DELETE", self._path(kind, name), body=body, expecting=404)
        except ApiException:
            return False
        return True

    def watch(self, kind: str, *, labels: str = "", fields: str = "", until_s: float | None = None) -> Iterator[Event]:
        """Every object that is there, as `ADDED`, then every change, for ever or until `time.monotonic()` is `until_s`.

        A watch that the server ends, or whose connection breaks, goes on from the last version that was seen. Where the
        server has forgotten that version (410 Gone), all objects come again, and those that went meanwhile come as
        `DELETED`: no change is lost, though the steps between may be.
        """
        seen: dict[str, Object] = {}
        version: str | None = None
        while until_s is None or time.monotonic() < until_s:
            if version is None:
                found, version = self._list(kind, labels, fields, everywhere=False)
                there = {each["metadata"]["uid"]: each for each in found}
                for uid in [uid for uid in seen if uid not in there]:
                    yield Event(type="DELETED", object=seen.pop(uid))
                for uid, each in there.items():
                    changed = seen.get(uid, {}).get("metadata") != each["metadata"]
                    known, seen[uid] = uid in seen, each
                    if changed:
                        yield Event(type="MODIFIED" if known else "ADDED", object=each)
            try:
                for raw in self._stream(kind, labels, fields, version, until_s):
                    each = raw["object"]
                    if raw["type"] == "ERROR":  # 410 as a rule
                        raise ApiException(status=each.get("code"), reason=each.get("message"))
                    version = each["metadata"]["resourceVersion"]
                    if raw["type"] == "BOOKMARK":
                        continue
                    if raw["type"] == "DELETED":
                        seen.pop(each["metadata"]["uid"], None)
                    else:
                        seen[each["metadata"]["uid"]] = each
                    yield Event(type=raw["type"], object=each)
            except ApiException:
                version = None
            except (urllib3.exceptions.HTTPError, json.JSONDecodeError):
                time.sleep(0.2)  # broken, or idle for too long: go on from `version`

    def logs(self, pod: str, *, container: str | None = None, follow: bool = False, since: str = "") -> Iterator[str]:
        """Lines that a pod's container printed, each with its time before it (RFC 3339).

        Args:
            pod: its name.
            container: of pods with several.
            follow: until the container ends.
            since: a time as it stands before a line; only later lines come. So a broken stream goes on.

        Raises:
            Fatal: no such pod, or its container has not begun.
        """
        query = [("timestamps", "true"), ("follow", str(follow).lower())]
        query += [("container", container)] if container else []
        query += [("sinceTime", since)] if since else []
        response = self._call("GET", f"{self._path('Pod', pod)}/log", query, timeout_s=(10, WATCH_S))
        buffer = b""
        for piece in response.stream(2**16, decode_content=True):
            *lines, buffer = (buffer + piece).split(b"\n")
            yield from (line for line in map(_text, lines) if _moment(line) > _moment(since))
        if buffer:
            yield _text(buffer)

    def proxy(self, service: str, port: int, path: str, *, token: str = "") -> Any:
        """What a service of the namespace answers to a GET, as JSON; None where it does not.

        The API server stands in between, so that no port needs to be opened. `token` is one of Ray.
        """
        url = f"{self._path('Service', service)}:{port}/proxy/{path}"
        headers = {"x-ray-authorization": f"Bearer {token}"} if token else {}
        try:
            answer = self._once("GET", url, (), None, headers, (5, 10))
            return json.loads(answer.read()) if answer.status == 200 else None
        except (ValueError, urllib3.exceptions.HTTPError):
            return None

    def _list(self, kind: str, labels: str, fields: str, everywhere: bool) -> tuple[list[Object], str]:
        query = [*_selectors(labels, fields), ("limit", "500")]
        found: list[Object] = []
        more = ""
        while True:
            try:
                path, page_query = self._path(kind, everywhere=everywhere), [*query, *_continue(more)]
                page = self._json("GET", path, page_query, expecting=410 if more else 404)
            except ApiException as error:
                if error.status == 404:  # no such kind
                    return [], "0"
                found, more = [], ""  # the list has changed too much since its first page
                continue
            found += page.get("items", [])
            more = page["metadata"].get("continue", "")
            if not more:
                return found, page["metadata"]["resourceVersion"]

    def _stream(self, kind: str, labels: str, fields: str, version: str, until_s: float | None) -> Iterator[Object]:
        left = WATCH_S if until_s is None else max(1, min(WATCH_S, int(until_s - time.monotonic()) + 1))
        query = [*_selectors(labels, fields), ("watch", "true"), ("allowWatchBookmarks", "true")]
        query += [("resourceVersion", version), ("timeoutSeconds", str(left))]
        response = self._call("GET", self._path(kind), query, timeout_s=(10, left + 5), expecting=410)
        try:
            buffer = b""
            for piece in response.stream(2**16, decode_content=True):
                *lines, buffer = (buffer + piece).split(b"\n")
                yield from (json.loads(line) for line in lines if line)
        finally:
            response.close()

    def _path(self, kind: str, name: str = "", *, everywhere: bool = False) -> str:
        if kind in CLUSTER_WIDE or everywhere:
            prefix, plural = CLUSTER_WIDE.get(kind) or NAMESPACED[kind]
            return f"/{prefix}/{plural}" + f"/{name}" * bool(name)
        prefix, plural = NAMESPACED[kind]
        return f"/{prefix}/namespaces/{self.namespace}/{plural}" + f"/{name}" * bool(name)

    def _json(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        body: Object | None = None,
        content_type: str = "application/json",
        **options: Any,
    ) -> Object:
        answer: Object = json.loads(self._call(method, path, query, body, content_type, **options).data)
        return answer

    def _call(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]],
        body: Object | None = None,
        content_type: str = "application/json",
        *,
        accept: str = "application/json",
        timeout_s: tuple[float, float] = (10, 30),
        expecting: int | None = None,
    ) -> urllib3.HTTPResponse:
        """An answer that is no error, tried for as long as patience lasts; `ApiException` for the status expected."""
        give_up = time.monotonic() + self._patience_s
        headers = {"Accept": accept, "Content-Type": content_type}
        for attempt in range(1_000):
            wait_s = min(8.0, 0.1 * 2**attempt) * random.uniform(0.5, 1.0)  # noqa: S311
            try:
                answer = self._once(method, path, query, body, headers, timeout_s)
                if 200 <= answer.status < 300:
                    return answer.response
                if answer.status == expecting:
                    raise ApiException(http_resp=answer)
                refusal = _refusal(answer.status, _status(answer.read()))
                if refusal is not None:
                    raise refusal
                trouble = f"HTTP {answer.status}"
                with suppress(TypeError, ValueError):
                    wait_s = max(wait_s, float(answer.getheader("Retry-After")))
            except urllib3.exceptions.HTTPError as error:
                trouble = type(error).__name__
            if time.monotonic() + wait_s > give_up:
                break
            time.sleep(wait_s)
        raise Transient(f"the API server at {self.server} did not answer {method} {path} ({trouble}); try again")

    def _once(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]],
        body: Object | None,
        headers: Mapping[str, str],
        timeout_s: tuple[float, float],
    ) -> RESTResponse:
        request = self._client.param_serialize(
            method,
            path,
            query_params=list(query),
            header_params=dict(headers),
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            return self._client.call_api(*request, _request_timeout=timeout_s)
        except ApiException as error:  # a certificate
            raise Fatal(f"cannot talk to {self.server}: {_line(error.reason)}") from error


def _refusal(code: int, status: Mapping[str, Any]) -> TomoRayError | None:
    """What an answer that is an error means; None where the server wants to be asked again."""
    message = _line(status.get("message") or f"HTTP {code}")
    causes = status.get("details", {}).get("causes", [])
    owned = [each for each in causes if each.get("reason") == "FieldManagerConflict"]
    if code == 409 and owned:
        fields = "; ".join(f"{each.get('field', '?')} ({_line(each.get('message', ''))})" for each in owned)
        return Fatal(f"others have set what TomoRay would set: {fields}; take it over with --force")
    if code in {409, 429} or (code >= 500 and code != 501):
        return None
    if code == 401:
        return Forbidden("the cluster does not know who asks (401); log in again, or choose another context")
    if code == 403:
        return Forbidden(f"{message}; ask the cluster's owner for a Role that may")
    return Fatal(f"the cluster refuses it ({code}): {message}")


def _status(data: bytes) -> Mapping[str, Any]:
    with suppress(ValueError):
        found = json.loads(data)
        if isinstance(found, dict):
            return found
    return {"message": data[:200].decode("utf-8", "replace")}


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace")


def _moment(line: str) -> str:
    """The time before a line as it can be compared: the server leaves out zeros at the end of a fraction."""
    whole, _, fraction = line.partition(" ")[0].rstrip("Z").partition(".")
    return f"{whole}.{fraction:0<9}" if whole else ""


def _selectors(labels: str, fields: str) -> list[tuple[str, str]]:
    return [("labelSelector", labels)] * bool(labels) + [("fieldSelector", fields)] * bool(fields)


def _continue(token: str) -> list[tuple[str, str]]:
    return [("continue", token)] * bool(token)


def _line(text: object) -> str:
    return " ".join(str(text).split())
