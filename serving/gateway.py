"""The HTTP side: requests in, masks from the model, replies out. On CPU; DICOM headers stay in this process.

Bytes are unpacked, decoded and encoded in threads, so that the event loop always answers. A decoded scan goes to
the model through Ray's object store, a scan of an archive by its name.
"""

from __future__ import annotations

import asyncio
import io
import secrets
import time
from typing import Annotated, Any

import ray
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import ValidationError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from serving.model import Segmentation
from serving.replies import HttpError, Result, choose_type, encode, explain
from serving.schemas import (
    JSON,
    SEGMENT_BODY,
    SEGMENT_REPLIES,
    ZIP,
    ZIP_ALIAS,
    Health,
    Reference,
    ServedModel,
    ServedModels,
)
from tomoray import __version__
from tomoray.dicom.seg import archived_headers
from tomoray.errors import Fatal, TooLarge
from tomoray.ingest.loader import LoadedScan
from tomoray.ingest.uploads import read_zip
from tomoray.privacy.pseudonyms import Pseudonyms

MAX_JSON_BYTES = 64 * 1024
MAX_EXPANSION = 4  # a study may unpack to this many times the largest body


class Gateway:
    """Routes. A plain class: `serving.app` makes it a deployment.

    Args:
        models: what is served; the first is the default.
        handles: the deployments, by model name.
        archives: archives that a reference may name: as the config writes them, and their full URLs.
        max_body_bytes: larger requests get 413.
    """

    def __init__(
        self,
        models: list[ServedModel],
        handles: dict[str, DeploymentHandle[Any]],
        archives: dict[str, str],
        max_body_bytes: int,
    ) -> None:
        self._models = {model.name: model for model in models}
        self._handles = handles
        self._archives = archives
        self._max_body_bytes = max_body_bytes
        self._pseudonyms = Pseudonyms(secrets.token_bytes(32))  # of scans that were sent; they leave with nobody

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The HTTP application; Ray Serve asks for it once in each replica."""
        api = FastAPI(
            title="TomoRay",
            version=__version__,
            summary="CT in; DICOM SEG, NIfTI or numbers out.",
            docs_url=None,  # their pages load scripts from other hosts
            redoc_url=None,
            exception_handlers={HTTPException: _no_such_route, RequestValidationError: _bad_parameter},
        )
        api.get("/healthz", summary="Whether the gateway answers")(self.healthz)
        api.get("/v1/models", summary="What is served")(self.models)
        api.post(
            "/v1/segment",
            summary="Segment one CT scan",
            response_class=Response,
            responses=SEGMENT_REPLIES,
            openapi_extra=SEGMENT_BODY,
        )(self.segment)
        return api

    async def healthz(self) -> Health:
        """Always `{"status": "ok"}`."""
        return Health()

    async def models(self) -> ServedModels:
        """Every model with its labels, the grid it works on and the digest of its weights."""
        return ServedModels(models=list(self._models.values()))

    async def segment(
        self,
        request: Request,
        model: Annotated[str | None, Query(description="a name of /v1/models; the first by default")] = None,
    ) -> Response:
        """Segment a study that is sent, or a scan of an archive by reference.

        By value, a DICOM SEG carries the patient and the identifiers of the study as sent; by reference, the
        archive's pseudonyms.
        """
        try:
            media_type = choose_type(request.headers.get("accept"))
            chosen = self._model(model)
            content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if content_type in (ZIP, ZIP_ALIAS):
                result = await self._segment_study(chosen, await _body(request, self._max_body_bytes))
            elif content_type == JSON:
                limit = min(MAX_JSON_BYTES, self._max_body_bytes)
                result = await self._segment_archived(chosen, await _body(request, limit))
            else:
                raise HttpError(415, "unsupported_media_type", f"wanted Content-Type {ZIP} or {JSON}")
            return await asyncio.to_thread(encode, result, media_type)
        except Exception as error:  # whatever it is, the client gets one line of JSON
            return explain(error)

    async def _segment_study(self, model: ServedModel, data: bytes) -> Result:
        start = time.perf_counter()
        loaded, reference = await asyncio.to_thread(self._read, data)
        read_s = time.perf_counter() - start
        found: Segmentation = await self._handles[model.name].segment.remote(reference)
        return Result(
            model=model,
            masks=await asyncio.to_thread(found.masks),
            geometry=found.geometry,
            headers=lambda: loaded.headers,
            scan_id=None,
            seconds={"read": read_s, "segment": found.seconds},
            notes=loaded.volume.info.notes,
        )

    async def _segment_archived(self, model: ServedModel, data: bytes) -> Result:
        try:
            reference = Reference.model_validate_json(data)
        except ValidationError as error:
            raise HttpError(400, "bad_json", _where(error)) from error
        archive = self._archive(reference.archive)
        found: Segmentation | None = await self._handles[model.name].segment_archived.remote(archive, reference.scan_id)
        if found is None:
            raise HttpError(404, "unknown_scan", f"the archive has no scan {reference.scan_id}")
        geometry, info, header = found.geometry, found.info, found.header
        assert info is not None, "an archived scan has one"
        return Result(
            model=model,
            masks=await asyncio.to_thread(found.masks),
            geometry=geometry,
            headers=lambda: archived_headers(geometry, info, header),
            scan_id=info.scan_id,
            seconds={"segment": found.seconds},
            notes=info.notes,
        )

    def _read(self, data: bytes) -> tuple[LoadedScan, ray.ObjectRef[Any]]:
        try:
            loaded = read_zip(data, MAX_EXPANSION * self._max_body_bytes, self._pseudonyms)
        except TooLarge as error:
            raise HttpError(413, "too_large", str(error)) from error
        except Fatal as error:
            raise HttpError(400, "bad_zip", str(error)) from error
        return loaded, ray.put((loaded.volume.image_zyx, loaded.volume.geometry))

    def _model(self, name: str | None) -> ServedModel:
        if name is None:
            return next(iter(self._models.values()))
        if name not in self._models:
            raise HttpError(404, "unknown_model", f"no model {name[:64]!r}; known: {', '.join(self._models)}")
        return self._models[name]

    def _archive(self, name: str | None) -> str:
        if name is None:
            only = set(self._archives.values())
            if len(only) != 1:
                raise HttpError(400, "archive_missing", "this server reads several archives; name one as archive")
            return only.pop()
        try:
            return self._archives[name.rstrip("/")]
        except KeyError as error:
            raise HttpError(403, "archive_not_allowed", "this server does not read that archive") from error


async def _no_such_route(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "the handler of nothing else"
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    return explain(HttpError(error.status_code, code, f"{error.detail}; what there is: /openapi.json"))


async def _bad_parameter(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError), "the handler of nothing else"
    return explain(HttpError(400, "bad_request", _where(error)))


async def _body(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises `HttpError` 413 as soon as it is, or says it is, larger."""
    too_large = HttpError(413, "too_large", f"the body is larger than {max_bytes} bytes")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise too_large
    body = io.BytesIO()
    async for chunk in request.stream():
        body.write(chunk)
        if body.tell() > max_bytes:
            raise too_large
    return body.getvalue()


def _where(error: ValidationError | RequestValidationError) -> str:
    """The first thing that is wrong, without the value, which may be anything."""
    first = error.errors()[0]
    return ": ".join(part for part in (".".join(str(part) for part in first["loc"]), str(first["msg"])) if part)
