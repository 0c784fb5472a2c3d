"""A small API server of Kubernetes, over real HTTP: objects with uids and versions, server-side apply, watches, logs.

    with serving() as api:
        api.kubeconfig(path)
        api.put(pod)                           # as a controller would
        api.set_status("rayjobs", name, {...})
        api.fail("PATCH", "rayjobs", 409)      # the next such request

It knows what TomoRay's client needs and no more: labels and names as selectors, field ownership by leaf, lists in
pages, watches with bookmarks that end and that forget (410), logs that are followed, deletion of what is owned. What
the API server would refuse by schema, this one refuses with 422 (`tests/kubernetes_schemas.py`).
"""

from __future__ import annotations

import copy
import itertools
import json
import re
import runpy
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Object = dict[str, Any]

TOKEN = "a-token-of-tests"
_DOT = "\0"  # between the names of a path: names may hold dots
_schemas = runpy.run_path(str(Path(__file__).parents[1] / "kubernetes_schemas.py"))
_PATH = re.compile(
    r"^/(?:api|apis/(?P<group>[^/]+))/(?P<version>v[^/]+)(?:/namespaces/(?P<namespace>[^/]+)(?=/))?"
    r"/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>log))?$"
)


@dataclass
class Fault:
    """What goes wrong with one request: a status, or the connection that breaks after so many lines."""

    method: str
    plural: str
    status: int = 0
    cut_after: int | None = None
    message: str = "injected"


@dataclass
class Api:
    """The state of a cluster. Every method may be called while the server answers."""

    url: str = ""
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)  # (plural, name)
    history: list[tuple[int, str, str, Object]] = field(default_factory=list)  # version, plural, type, object
    logs: dict[str, list[str]] = field(default_factory=dict)
    services: dict[str, Any] = field(default_factory=dict)  # answers of proxied services, by path
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    denied: set[tuple[str, str]] = field(default_factory=set)  # (verb, plural)
    forgotten: int = 0  # versions up to this are gone
    page: int = 500

    def __post_init__(self) -> None:
        self._versions = itertools.count(1)
        self._changed = threading.Condition()
        self.version = 0
        self.closing = False

    def kubeconfig(self, path: Path, namespace: str = "tomoray") -> Path:
        """Write one for this server."""
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "test", "user": {"token": TOKEN}}],
        }
        path.write_text(json.dumps(document), encoding="utf-8")
        return path

    def put(self, plural: str, wanted: Object) -> Object:
        """Store an object as a controller does."""
        with self._changed:
            key = (plural, wanted["metadata"]["name"])
            kind = "MODIFIED" if key in self.objects else "ADDED"
            made = copy.deepcopy(wanted)
            before = self.objects.get(key, {"metadata": {}})["metadata"]
            made["metadata"].setdefault("uid", before.get("uid", str(uuid.uuid4())))
            made["metadata"].setdefault("creationTimestamp", before.get("creationTimestamp", now()))
            self._store(plural, kind, made)
            return made

    def get(self, plural: str, name: str) -> Object | None:
        """What is stored."""
        with self._changed:
            return copy.deepcopy(self.objects.get((plural, name)))

    def set_status(self, plural: str, name: str, status: Object) -> None:
        """Change some of an object's status, as its controller does."""
        with self._changed:
            made = copy.deepcopy(self.objects[plural, name])
            made["status"] = made.get("status", {}) | status
            self._store(plural, "MODIFIED", made)

    def delete(self, plural: str, name: str) -> Object | None:
        """Remove an object and all that it owns."""
        with self._changed:
            gone = self.objects.pop((plural, name), None)
            if gone is None:
                return None
            self._note(plural, "DELETED", gone)
            uid = gone["metadata"]["uid"]
            owned = [
                key
                for key, each in self.objects.items()
                if any(owner["uid"] == uid for owner in each["metadata"].get("ownerReferences", []))
            ]
        for key in owned:
            self.delete(*key)
        return gone

    def say(self, pod: str, *lines: str) -> None:
        """A container prints."""
        with self._changed:
            self.logs.setdefault(pod, []).extend(f"{now(precise=True)} {line}" for line in lines)
            self._changed.notify_all()

    def forget(self) -> None:
        """Versions until now are no more: watches from them end with 410."""
        with self._changed:
            self.forgotten = self.version
            self._changed.notify_all()

    def fail(self, method: str, plural: str, status: int = 0, *, cut_after: int | None = None, times: int = 1) -> None:
        """Let the next such requests go wrong."""
        self.faults += [Fault(method, plural, status, cut_after) for _ in range(times)]

    def asked(self, method: str, plural: str) -> int:
        """How many such requests came."""
        return sum(each.startswith(f"{method} ") and f"/{plural}" in each for each in self.requests)

    def take_fault(self, method: str, plural: str) -> Fault | None:
        """The fault of a request that came."""
        with self._changed:
            for fault in self.faults:
                if (fault.method, fault.plural) == (method, plural):
                    self.faults.remove(fault)
                    return fault
        return None

    def apply(self, plural: str, name: str, wanted: Object, manager: str, *, force: bool) -> Any:
        """Server-side apply: the status, and the object or a refusal."""
        with self._changed:
            found = self.objects.get((plural, name))
            made = (
                copy.deepcopy(found) if found else {"metadata": {"uid": str(uuid.uuid4()), "creationTimestamp": now()}}
            )
            owners: dict[str, str] = made.pop("_owners", {})
            leaves = dict(_leaves(wanted))
            taken = [
                path
                for path, value in leaves.items()
                if owners.get(path, manager) != manager and _at(made, path) != value
            ]
            if taken and not force:
                causes = [_conflict(path, owners[path]) for path in taken]
                return 409, {"message": "Apply failed", "reason": "Conflict", "details": {"causes": causes}}
            dropped = [path for path, owner in owners.items() if owner == manager and path not in leaves]
            for path in dropped:
                _drop(made, path)
                del owners[path]
            _merge(made, wanted)
            made["_owners"] = owners | dict.fromkeys(leaves, manager)
            if made != found:
                self._store(plural, "MODIFIED" if found else "ADDED", made)
            return (200 if found else 201), made

    def changes(self, version: int, plural: str, until: float) -> Iterator[tuple[int, str, Object] | None]:
        """Changes after a version as they come; None every now and then, for a bookmark."""
        while time.monotonic() < until and not self.closing:
            with self._changed:
                if version < self.forgotten:
                    raise LookupError
                new = [each for each in self.history if each[0] > version and each[1] == plural]
                if not new:
                    self._changed.wait(0.2)
            for number, _, kind, each in new:
                version = number
                yield number, kind, each
            if not new:
                yield None

    def lines(self, pod: str, number: int) -> list[str]:
        """Lines from this number on; waits a little where there is none."""
        with self._changed:
            if len(self.logs.get(pod, [])) <= number:
                self._changed.wait(0.1)
            return self.logs.get(pod, [])[number:]

    def _store(self, plural: str, kind: str, made: Object) -> None:
        self.objects[plural, made["metadata"]["name"]] = made
        self._note(plural, kind, made)

    def _note(self, plural: str, kind: str, each: Object) -> None:
        self.version = next(self._versions)
        each["metadata"]["resourceVersion"] = str(self.version)
        self.history.append((self.version, plural, kind, copy.deepcopy(each)))
        self._changed.notify_all()


@contextmanager
def serving() -> Iterator[Api]:
    """A server on a free port of this machine."""
    api = Api()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(api))
    server.daemon_threads = True
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield api
    finally:
        api.closing = True
        server.shutdown()
        thread.join()
        server.server_close()


def now(*, precise: bool = False) -> str:
    """The time as Kubernetes writes it: without zeros at the end of a fraction."""
    stamp = datetime.now(UTC)
    text = stamp.strftime("%Y-%m-%dT%H:%M:%S.%f")
    return (text.rstrip("0").rstrip(".") if precise else text[:19]) + "Z"


def _handler(api: Api) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.path == "/version":
                self._answer(200, {"gitVersion": "v1.37.0"})
            elif "/proxy/" in self.path:
                found = api.services.get(unquote(self.path).partition("/proxy/")[2])
                self._answer(404 if found is None else 200, found or {})
            elif (asked := self._asked("get")) is not None:
                self._get(*asked)

        def do_PATCH(self) -> None:
            body = self._body()
            if (asked := self._asked("patch")) is None:
                return
            match, query = asked
            plural, name = match["plural"], match["name"]
            if errors := self._errors(body):
                self._answer(422, {"message": "; ".join(errors), "reason": "Invalid"})
                return
            manager = query["fieldManager"][0]
            self._answer(*api.apply(plural, name, body, manager, force=query.get("force") == ["true"]))

        def do_POST(self) -> None:
            body = self._body()
            if self.path.endswith("selfsubjectaccessreviews"):
                asked = body["spec"]["resourceAttributes"]
                allowed = (asked["verb"], asked["resource"]) not in api.denied
                self._answer(201, body | {"status": {"allowed": allowed}})

        def do_DELETE(self) -> None:
            self._body()
            if (asked := self._asked("delete")) is not None:
                gone = api.delete(asked[0]["plural"], asked[0]["name"])
                self._answer(404 if gone is None else 200, gone or {"message": "not found"})

        def _asked(self, verb: str) -> tuple[re.Match[str], dict[str, list[str]]] | None:
            """What a request is about; None where it was answered already."""
            parts = urlsplit(self.path)
            match = _PATH.match(parts.path)
            assert match, self.path
            method = self.command
            api.requests.append(f"{method} {self.path}")
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._answer(401, {"message": "Unauthorized"})
                return None
            self.fault = api.take_fault(method, match["sub"] or match["plural"])
            if self.fault and self.fault.status:
                self._answer(self.fault.status, {"message": self.fault.message})
                return None
            if self.fault and self.fault.cut_after is None:
                self._break()
                return None
            if (verb, match["plural"]) in api.denied:
                self._answer(403, {"message": f'{match["plural"]} is forbidden: User "test" cannot {verb} it'})
                return None
            return match, parse_qs(parts.query)

        def _get(self, match: re.Match[str], query: dict[str, list[str]]) -> None:
            plural, name = match["plural"], match["name"]
            if match["sub"] == "log":
                self._log(name, query)
            elif name:
                found = api.get(plural, name)
                if found is None:
                    self._answer(404, {"message": f'{plural} "{name}" not found'})
                elif "PartialObjectMetadata" in self.headers["Accept"]:
                    self._answer(200, {"metadata": found["metadata"]})
                else:
                    self._answer(200, found)
            elif query.get("watch") == ["true"]:
                self._watch(plural, query)
            else:
                self._list(plural, query)

        def _list(self, plural: str, query: dict[str, list[str]]) -> None:
            found = [
                each for (kind, _), each in sorted(api.objects.items()) if kind == plural and _selected(each, query)
            ]
            start = int(query.get("continue", ["0"])[0])
            page = found[start : start + api.page]
            metadata = {"resourceVersion": str(api.version)}
            if start + api.page < len(found):
                metadata["continue"] = str(start + api.page)
            self._answer(200, {"items": page, "metadata": metadata})

        def _watch(self, plural: str, query: dict[str, list[str]]) -> None:
            self._begin_stream()
            until = time.monotonic() + float(query["timeoutSeconds"][0])
            version, sent = int(query["resourceVersion"][0]), 0
            try:
                for change in api.changes(version, plural, until):
                    if self.fault and self.fault.cut_after == sent:
                        self._break()
                        return
                    if change is None:
                        bookmark = {"kind": "Bookmark", "metadata": {"resourceVersion": str(api.version)}}
                        self._send({"type": "BOOKMARK", "object": bookmark})
                    elif _selected(change[2], query):
                        self._send({"type": change[1], "object": change[2]})
                        sent += 1
            except LookupError:
                self._send({"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}})
            except OSError:
                return
            self._end_stream()

        def _log(self, pod: str, query: dict[str, list[str]]) -> None:
            found = api.get("pods", pod)
            if found is None:
                self._answer(404, {"message": f'pods "{pod}" not found'})
                return
            if found["status"]["phase"] == "Pending":
                self._answer(400, {"message": f'container in pod "{pod}" is waiting to start: ContainerCreating'})
                return
            self._begin_stream()
            since, number, sent = query.get("sinceTime", [""])[0][:19], 0, 0
            with suppress(OSError):
                while not api.closing:
                    new = api.lines(pod, number)
                    for line in new:
                        if self.fault and self.fault.cut_after == sent:
                            self._break()
                            return
                        if line[:19] >= since:
                            self._chunk(line.encode() + b"\n")
                            sent += 1
                    number += len(new)
                    ended = (api.get("pods", pod) or {"status": {"phase": "Failed"}})["status"]["phase"] != "Running"
                    if not new and (ended or query.get("follow") != ["true"]):
                        break
                self._end_stream()

        def _errors(self, body: Object) -> list[str]:
            if body["apiVersion"] == "ray.io/v1" and not _schemas["has_kuberay_crds"]():
                return []
            return list(_schemas["errors_of"](body))

        def _body(self) -> Object:
            return json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")

        def _answer(self, status: int, document: Object) -> None:
            data = json.dumps(_shown(document)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _begin_stream(self) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()

        def _send(self, event: Object) -> None:
            self._chunk(json.dumps(event | {"object": _shown(event["object"])}).encode() + b"\n")

        def _chunk(self, data: bytes) -> None:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()

        def _end_stream(self) -> None:
            with suppress(OSError):
                self.wfile.write(b"0\r\n\r\n")

        def _break(self) -> None:
            """The connection is gone in the middle."""
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    return Handler


def _selected(each: Object, query: dict[str, list[str]]) -> bool:
    labels = each["metadata"].get("labels", {})
    for pair in filter(None, query.get("labelSelector", [""])[0].split(",")):
        key, _, value = pair.partition("=")
        if labels.get(key) != value:
            return False
    for pair in filter(None, query.get("fieldSelector", [""])[0].split(",")):
        path, _, value = pair.partition("=")
        if _at(each, path.replace(".", _DOT)) != value:
            return False
    return True


def _conflict(path: str, owner: str) -> Object:
    field = "." + path.replace(_DOT, ".")
    return {"reason": "FieldManagerConflict", "message": f'conflict with "{owner}"', "field": field}


def _shown(each: Object) -> Object:
    return {key: value for key, value in each.items() if key != "_owners"}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Values that are no mappings, by their paths; lists are one value."""
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from _leaves(each, f"{path}{_DOT}{name}" if path else name)
    else:
        yield path, value


def _at(value: Any, path: str) -> Any:
    for name in path.split(_DOT):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _drop(value: Object, path: str) -> None:
    *above, name = path.split(_DOT)
    for each in above:
        value = value.get(each, {})
    value.pop(name, None)


def _merge(value: Object, changes: Object) -> None:
    for name, each in changes.items():
        if each is None:
            value.pop(name, None)
        elif isinstance(each, dict) and isinstance(value.get(name), dict):
            _merge(value[name], each)
        else:
            value[name] = copy.deepcopy(each)
