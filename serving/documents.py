"""What `/openapi.json` says of each route: bodies, replies and errors, with examples."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse, Response

from serving.asks import Ask, JobAsk, input_schema
from serving.schemas import (
    DICOM,
    JSON,
    NIFTI,
    NIFTI_ALIAS,
    ZIP,
    ClassifyReply,
    DetectReply,
    FailureReply,
    Health,
    JobReply,
    SegmentReply,
)

_BINARY = {"type": "string", "format": "binary"}
_REPLIES = {"segment": SegmentReply, "classify": ClassifyReply, "detect": DetectReply}

_FAILURES = {
    400: ("The request is broken.", "bad_zip", "the zip file cannot be read; send a plain, unencrypted zip"),
    401: ("Nobody that the server knows.", "unauthorized", "wanted a bearer token; see docs/serving-security.md"),
    403: (
        "Not for this caller, or not for this server.",
        "archive_not_allowed",
        "this server does not read that archive",
    ),
    404: ("No such model, scan or job.", "unknown_model", "no model 'liver'; known: phantom"),
    406: ("None of the types in `Accept`.", "not_acceptable", f"wanted one of: {JSON}, {DICOM}, {NIFTI}"),
    409: ("The job has no result yet.", "not_done", "the job is running; look again later"),
    413: ("More than the server takes.", "too_large", "the body is larger than 2048000000 bytes"),
    415: ("A body of no known type.", "unsupported_media_type", f"wanted Content-Type {ZIP} or {JSON}"),
    422: ("The study is refused.", "missing_slices", "missing_slices: 3 slices are missing; wanted none"),
    429: ("Come back after `Retry-After` seconds.", "busy", "1000 jobs wait already; try again later"),
    500: ("The server failed.", "internal", "the server failed; its log says where"),
    503: ("Try again after `Retry-After` seconds.", "try_again", "the bucket does not answer; try again"),
}

_SUMMARIES = {
    "segment": "Segment one CT scan",
    "classify": "Classify one CT scan",
    "detect": "Detect lesions in one CT scan",
    "accept": "Queue a job",
    "show": "How far a job is",
    "cancel": "End a job, or remove its result",
    "events": "Follow a job",
    "result": "What a job found",
    "image": "The scan that a job looked at",
    "ready": "Whether the gateway can take jobs",
    "metrics": "Numbers for Prometheus",
}
_ERRORS = {
    "accept": (400, 401, 403, 404, 413, 415, 422, 429, 500, 503),
    "show": (400, 401, 404, 429, 500, 503),
    "cancel": (400, 401, 404, 429, 500, 503),
    "events": (400, 401, 404, 429, 500, 503),
    "result": (400, 401, 404, 406, 409, 422, 429, 500, 503),
    "image": (400, 401, 404, 409, 422, 429, 500, 503),
    "ready": (503,),
    "metrics": (401, 403, 429, 503),
}


def document(route: str) -> dict[str, Any]:
    """What FastAPI wants to know of a route."""
    errors = _ERRORS.get(route, (400, 401, 403, 404, 406, 413, 415, 422, 429, 500, 503))
    said: dict[str, Any] = {
        "summary": _SUMMARIES[route],
        "response_class": JSONResponse if route == "ready" else Response,
        "responses": {**_success(route), **{status: _failure(*_FAILURES[status]) for status in errors}},
    }
    if route in _REPLIES or route == "accept":
        said["openapi_extra"] = {"requestBody": _body(JobAsk if route == "accept" else Ask)}
    return said


def _success(route: str) -> dict[int | str, dict[str, Any]]:
    if route in _REPLIES:
        return {200: _result(_REPLIES[route])}
    if route == "accept":
        return {202: {"model": JobReply, "description": "The job is on disk, and will end. `Location` is its place."}}
    if route == "result":
        return {200: _result(SegmentReply | ClassifyReply | DetectReply)}
    if route == "image":
        return {200: {"description": "int16 HU", "content": {NIFTI: {"schema": _BINARY, "example": "a .nii.gz file"}}}}
    if route == "events":
        job = {"type": "string", "description": "the job as JSON (JobReply)"}
        schema = {"type": "object", "properties": {"event": {"type": "string"}, "data": job}}
        example = {"event": "progress", "data": '{"id": "q1Zr0xkOQ2yTjXg3", "state": "running", …}'}
        content = {"text/event-stream": {"schema": schema, "example": example}}
        return {200: {"description": "The job, each time it has changed.", "content": content}}
    if route == "ready":
        return {200: {"model": Health, "description": "The queue answers."}}
    if route == "metrics":
        return {200: {"description": "Prometheus' text format", "content": {"text/plain": {}}}}
    replies: dict[int | str, dict[str, Any]] = {200: {"model": JobReply, "description": "The job as it is now."}}
    if route == "cancel":
        replies[204] = {"description": "The job had ended; its result is removed."}
    return replies


def _result(model: Any) -> dict[str, Any]:
    return {
        "model": model,
        "description": "On the scan's own grid: as `Accept` asks, numbers by default.",
        "content": {
            DICOM: {"schema": _BINARY, "example": "a DICOM Segmentation; with `; kind=sr` a report"},
            NIFTI: {"schema": _BINARY, "example": "a .nii.gz label map: class n is the n-th label, later labels win"},
            NIFTI_ALIAS: {"schema": _BINARY, "example": "the same as application/gzip"},
        },
    }


def _body(ask: type[Ask]) -> dict[str, Any]:
    return {
        "required": True,
        "description": "One CT study as a zip or a multipart message of its DICOM files, or as NIfTI; or a reference.",
        "content": {
            ZIP: {"schema": _BINARY, "example": "the bytes of study.zip"},
            NIFTI: {"schema": _BINARY, "example": "the bytes of scan.nii.gz"},
            "multipart/form-data": {
                "schema": {"type": "object", "additionalProperties": {"type": "string", "format": "binary"}}
            },
            JSON: {"schema": input_schema(ask)},
        },
    }


def _failure(description: str, code: str, message: str) -> dict[str, Any]:
    example = {"error": {"code": code, "message": message}}
    return {"model": FailureReply, "description": description, "content": {JSON: {"example": example}}}
