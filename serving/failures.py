"""From exceptions to a status and one line, for replies and for jobs that failed."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping

from fastapi.responses import JSONResponse, Response
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from serving.schemas import Failure, FailureReply
from tomoray.errors import Busy, Refused, TomoRayError, TooLarge, Transient

logger = logging.getLogger("ray.serve")

RETRY_AFTER_S = 5


class HttpError(Exception):
    """The request ends with this status and `{"error": {"code", "message"}}`."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, code, message, headers)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}


def explain(error: Exception) -> Response:
    """The reply to a request that ended in `error`."""
    problem = as_http_error(error)
    failure = FailureReply(error=Failure(code=problem.code, message=problem.message))
    retry = {"Retry-After": str(RETRY_AFTER_S)} if problem.status in (429, 503) else {}
    return JSONResponse(failure.model_dump(), status_code=problem.status, headers={**retry, **problem.headers})


def as_http_error(error: Exception) -> HttpError:
    """What a client is told of `error`, in one line. What was not foreseen is logged by type and place only."""
    cause = getattr(error, "cause", None)  # what the model raised, out of what Ray wrapped around it
    problem = _problem(cause if isinstance(cause, Exception) else error)
    return HttpError(problem.status, problem.code, " ".join(problem.message.split()), problem.headers)


def _problem(error: Exception) -> HttpError:
    if isinstance(error, HttpError):
        return error
    if isinstance(error, Refused):
        return HttpError(422, error.reason.value, str(error))
    if isinstance(error, Busy):
        return HttpError(429, "busy", str(error))
    if isinstance(error, Transient):
        return HttpError(503, "try_again", str(error))
    if isinstance(error, TooLarge):
        return HttpError(413, "too_large", str(error))
    if isinstance(error, BackPressureError):
        return HttpError(429, "busy", "all replicas of the model are busy; try again")
    if isinstance(error, DeploymentUnavailableError):
        return HttpError(503, "model_unavailable", "the model cannot be started; the server's log says why")
    if isinstance(error, RayActorError | RayServeException):
        return HttpError(503, "model_unavailable", "the model's replica went away; try again")
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown place"
    logger.error("a request failed: %s at %s", type(error).__name__, place)
    if isinstance(error, TomoRayError):
        return HttpError(500, "failed", str(error))
    kind = "ray" if isinstance(error, RayError) else "internal"
    return HttpError(500, kind, f"the server failed ({type(error).__name__}); its log says where")
