"""The HTTP side: requests in, results out. On CPU; DICOM headers stay in this process and the runner's.

Bytes are unpacked, decoded and encoded in threads, so that the event loop always answers.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError
from ray.serve import get_replica_context
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from serving.asks import Accepted, Ask, JobAsk, Operation, Sent
from serving.bodies import Bodies, Body
from serving.documents import document
from serving.door import Caller, Door
from serving.examiner import Examiner
from serving.failures import HttpError, explain
from serving.jobs import Jobs
from serving.messages import Explanation
from serving.page import add_page
from serving.replies import choose_kind, encode
from serving.runner import Desk
from serving.schemas import Health, ServedModels
from serving.watch import Audit, Numbers
from tomoray import __version__, settings
from tomoray.privacy.pseudonyms import Pseudonyms
from tomoray.serving_config import AuditConfig, ServeConfig

logger = logging.getLogger("ray.serve")

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

_OPEN = ("/", "/page/{name}", "/healthz", "/readyz")  # whoever asks; they tell nothing of anybody

ModelName = Annotated[str | None, Query(description="a name of /v1/models; the first by default")]
Explain = Annotated[Explanation | None, Query(description="a map of what the finding rests on")]
Destination = Annotated[str | None, Query(description="where the server also stores the result")]
JobId = Annotated[str, PathParameter(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
IdempotencyKey = Annotated[
    str | None, Header(max_length=256, description="a second request with the same key gets the job of the first")
]


class Gateway:
    """Routes. A plain class: `serving.app` makes it a deployment.

    Args:
        examiner: what is served; its first model is the default.
        desk: where jobs go.
        runner: who works on them.
        config: who may ask, and what is too much.
    """

    def __init__(self, examiner: Examiner, desk: Desk, runner: DeploymentHandle[Any], config: ServeConfig) -> None:
        self._examiner = examiner
        self._jobs = Jobs(desk, runner)
        self._bodies = Bodies(config.limits)
        self._door = Door(config.auth, config.limits)
        self._audit = Audit(_audit_file(config.audit))
        self._numbers = Numbers(_replica())
        self._pseudonyms = Pseudonyms(_audit_key())

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The HTTP application; Ray Serve asks for it once in each replica."""
        api = FastAPI(
            title="TomoRay",
            version=__version__,
            summary="CT in; DICOM SEG and SR, NIfTI or numbers out.",
            docs_url=None,  # their pages load scripts from other hosts
            redoc_url=None,
            exception_handlers={HTTPException: _no_such_route},
        )
        api.router.route_class = _Route
        add_page(api)
        api.state.gateway = self
        api.get("/healthz", summary="Whether the gateway answers")(self.healthz)
        api.get("/readyz", **document("ready"))(self.readyz)
        api.get("/metrics", **document("metrics"))(self.metrics)
        api.get("/v1/models", summary="What is served")(self.models)
        for operation in ("segment", "classify", "detect"):
            api.post(f"/v1/{operation}", **document(operation))(self._examining(operation))
        api.post("/v1/jobs", **document("accept"))(self.accept)
        api.get("/v1/jobs/{job_id}", **document("show"))(self.show)
        api.delete("/v1/jobs/{job_id}", **document("cancel"))(self.cancel)
        api.get("/v1/jobs/{job_id}/events", **document("events"))(self.events)
        api.get("/v1/jobs/{job_id}/result", **document("result"))(self.result)
        api.get("/v1/jobs/{job_id}/image", **document("image"))(self.image)
        return api

    async def healthz(self) -> Health:
        """Always `{"status": "ok"}`."""
        return Health()

    async def readyz(self) -> Health:
        """`{"status": "ok"}` where the queue answers, else 503."""
        await self._jobs.counts()
        return Health()

    async def metrics(self, request: Request) -> Response:
        """Of this gateway, and of the queue."""
        request.state.caller.require("metrics")
        return Response(self._numbers.text(await self._jobs.counts()), media_type=CONTENT_TYPE_LATEST)

    async def models(self, request: Request) -> ServedModels:
        """Every model that the caller may ask, with its labels, its grid and the digest of its weights."""
        caller: Caller = request.state.caller
        return ServedModels(models=[model for model in self._examiner.models.values() if caller.may_use(model.name)])

    async def answer(self, request: Request, route: str, handle: Handler) -> Response:
        """A route's reply, or one line of JSON whatever happens; counted, and written down where it is of `/v1`."""
        start = time.perf_counter()
        request.state.said = {}
        try:
            if route not in _OPEN:
                request.state.caller = await self._door.admit(request)
            reply = await handle(request)
        except RequestValidationError as error:
            reply = explain(HttpError(400, "bad_request", _where(error)))
        except asyncio.CancelledError:  # the client has gone
            self._write_down(request, route, 499, start)
            raise
        except Exception as error:  # whatever it is, the client gets one line of JSON
            reply = explain(error)
        self._write_down(request, route, reply.status_code, start)
        return reply

    def _write_down(self, request: Request, route: str, status: int, start: float) -> None:
        """Count a request, and add one of `/v1` to the audit log: its route, as a path may hold anything."""
        seconds, said = time.perf_counter() - start, request.state.said
        self._numbers.count(f"{request.method} {route}", status, seconds, said.get("bytes", 0))
        if route.startswith("/v1/"):
            caller = getattr(request.state, "caller", None)
            job = request.path_params.get("job_id", "")
            named = {"job": job} if re.fullmatch(r"[0-9a-f]{32}", job) else {}
            told = {"caller": caller and caller.name, "method": request.method, "route": route, "status": status}
            self._audit.write({**told, "seconds": round(seconds, 3), **named, **said})

    def _examining(self, operation: Operation) -> Callable[..., Awaitable[Response]]:
        async def examine(
            request: Request, model: ModelName = None, explain: Explain = None, destination: Destination = None
        ) -> Response:
            kind = choose_kind(request.headers.get("accept"))
            said = {"operation": operation, "model": model, "explain": explain, "destination": destination}
            async with self._bodies.receive(request) as body:
                accepted = await self._accepted(request, said, body)
                result = await self._examiner.examine(accepted, body.file)
                encoded = await asyncio.to_thread(encode, result, kind)
            return Response(encoded.body, media_type=encoded.media_type, headers=dict(encoded.headers))

        examine.__doc__ = (
            f"{operation.capitalize()} a study that is sent, or one by reference, and wait for the result."
        )
        examine.__name__ = operation
        return examine

    async def accept(
        self,
        request: Request,
        operation: Annotated[Operation | None, Query(description="of a study that is sent")] = None,
        model: ModelName = None,
        explain: Explain = None,
        destination: Destination = None,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Queue a study that is sent, or one by reference. Once this answers, the job outlives every process."""
        said = {"operation": operation, "model": model, "explain": explain, "destination": destination}
        async with self._bodies.receive(request) as body:
            accepted = await self._accepted(request, said, body)
            reply = await self._jobs.accept(_owner(request), accepted, body, idempotency_key)
            request.state.said["job"] = reply.headers["Location"].rpartition("/")[2]
            return reply

    async def show(self, request: Request, job_id: JobId) -> Response:
        """How far a job is."""
        return await self._jobs.show(_owner(request), job_id)

    async def cancel(self, request: Request, job_id: JobId) -> Response:
        """End a job that has not ended; of one that has, remove the result at once."""
        return await self._jobs.cancel(_owner(request), job_id)

    async def events(self, request: Request, job_id: JobId) -> Response:
        """Server-sent events: `progress` as it changes, then `done`, `failed` or `cancelled`."""
        return await self._jobs.follow(_owner(request), job_id, request)

    async def result(self, request: Request, job_id: JobId) -> Response:
        """What was found, as `Accept` asks."""
        return await self._jobs.result(_owner(request), job_id, request.headers.get("accept"))

    async def image(self, request: Request, job_id: JobId) -> Response:
        """The scan that was looked at, as `.nii.gz`."""
        return await self._jobs.image(_owner(request), job_id)

    async def _accepted(self, request: Request, said: Mapping[str, Any], body: Body) -> Accepted:
        """The request, checked. Raises `HttpError`."""
        request.state.said["bytes"] = body.size_bytes
        given = {name: value for name, value in said.items() if value is not None}
        if body.kind == "json":
            told = _told(body.file.read())
            if "input" not in told:
                told = {"input": told}
            both = sorted(given.keys() & told.keys())
            if both:
                raise HttpError(400, "bad_request", f"{both[0]} stands in the query and in the body; say it once")
            ask: Ask = _checked(JobAsk, {**told, **given})
            asked = ask.model_dump()
        else:
            asked = {**given, "input": Sent(sent=body.kind, size_bytes=body.size_bytes).model_dump()}
        model = self._model(request.state.caller, asked.get("model"), asked.get("operation"))
        accepted: Accepted = _checked(Accepted, {**asked, "model": model})
        request.state.said |= {
            "operation": accepted.operation,
            "model": model,
            "destination": accepted.destination,
            "input": self._pseudonyms.token("input", accepted.input.model_dump_json(), body.sha256),
        }
        await asyncio.to_thread(self._examiner.check, accepted)
        return accepted

    def _model(self, caller: Caller, name: str | None, operation: str | None) -> str:
        """The model that is meant. One that the caller may not use is as good as none."""
        models = {name: model for name, model in self._examiner.models.items() if caller.may_use(name)}
        if not models:
            raise HttpError(403, "not_allowed", "this token lacks the scope infer, or infer:MODEL")
        if name is None:
            fitting = [each.name for each in models.values() if operation in (None, each.operation)]
            if not fitting:
                raise HttpError(404, "unknown_model", f"no model can {operation}; see /v1/models")
            return fitting[0]
        if name not in models:
            raise HttpError(404, "unknown_model", f"no model {name[:64]!r}; known: {', '.join(models)}")
        if operation not in (None, models[name].operation):
            raise HttpError(400, "wrong_operation", f"{name} can {models[name].operation}, not {operation}")
        return name


def _owner(request: Request) -> str:
    return str(request.state.caller.name)


def _replica() -> str:
    try:
        return str(get_replica_context().replica_id.unique_id)
    except RayServeException:  # not in Ray Serve: an application on its own
        return "alone"


def _audit_key() -> bytes:
    try:
        return settings.pseudonym_key()
    except OSError as error:  # nowhere to keep one, as in a container whose disk is read only
        logger.warning("inputs get new pseudonyms in the audit log (%s); set TOMORAY_KEY_FILE", error.strerror)
        return secrets.token_bytes(32)


def _audit_file(config: AuditConfig) -> Path | None:
    if config.file == "-":
        return None
    return Path(config.file).expanduser() if config.file else settings.state_folder() / "audit.jsonl"


def _told(data: bytes) -> dict[str, Any]:
    try:
        told = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise HttpError(400, "bad_json", "the body is not JSON") from error
    if not isinstance(told, dict):
        raise HttpError(400, "bad_json", f"the body is a {type(told).__name__}; wanted an object")
    return told


def _checked(kind: type[BaseModel], values: Mapping[str, Any]) -> Any:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise HttpError(400, "bad_json", _where(error)) from error


async def _no_such_route(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "the handler of nothing else"
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    return explain(HttpError(error.status_code, code, f"{error.detail}; what there is: /openapi.json", error.headers))


class _Route(APIRoute):
    """A route whose requests all go through `Gateway.answer`."""

    def get_route_handler(self) -> Handler:
        """What FastAPI calls for a request."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            gateway: Gateway = request.app.state.gateway
            return await gateway.answer(request, self.path, handle)

        return answer


def _where(error: ValidationError | RequestValidationError) -> str:
    """The first thing that is wrong, without the value, which may be anything."""
    first = error.errors()[0]
    return ": ".join(part for part in (".".join(str(part) for part in first["loc"]), str(first["msg"])) if part)
