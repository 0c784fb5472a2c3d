"""From masks to a reply of the type that was asked for, and from exceptions to a status and one line."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fastapi.responses import JSONResponse, Response
from pydicom import Dataset
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, RayServeException

from serving.schemas import (
    DICOM,
    JSON,
    NIFTI,
    NIFTI_ALIAS,
    Failure,
    FailureReply,
    LabelVolume,
    ScanGeometry,
    SegmentReply,
    ServedModel,
    ServedModelName,
)
from tomoray import nifti
from tomoray.errors import Refused, TomoRayError, Transient
from tomoray.geometry import Geometry
from tomoray.predictions import segmentation_file
from tomoray.volume import Mask

logger = logging.getLogger("ray.serve")

RETRY_AFTER_S = 5


class HttpError(Exception):
    """The request ends with this status and `{"error": {"code", "message"}}`."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A segmented scan.

    Attributes:
        masks: uint8 [z, y, x], by label, on the scan's own grid.
        headers: makes the DICOM headers that a SEG refers to, in plane order.
        scan_id: of an archived scan; None: a SEG gets new UIDs.
        seconds: by step.
    """

    model: ServedModel
    masks: Mapping[str, Mask]
    geometry: Geometry
    headers: Callable[[], Sequence[Dataset]]
    scan_id: str | None
    seconds: Mapping[str, float]
    notes: Sequence[str]


def choose_type(accept: str | None) -> str:
    """The media type to reply with: the highest q in `Accept` (RFC 9110, 12.5.1), then the one named first.

    Raises:
        HttpError: 406; the types there are stand in the message.
    """
    ranges = [_media_range(part) for part in (accept or "*/*").split(",") if part.strip()]

    def preference(offered: str) -> tuple[float, int]:
        for pattern in (offered, offered.partition("/")[0] + "/*", "*/*"):  # the most specific range decides
            for position, (named, q) in enumerate(ranges):
                if named == pattern:
                    return q, -position
        return 0.0, 0

    chosen = max(_ENCODERS, key=preference)
    if preference(chosen)[0] <= 0:
        raise HttpError(406, "not_acceptable", f"none of the types in Accept; wanted one of: {', '.join(_ENCODERS)}")
    return chosen


def encode(result: Result, media_type: str) -> Response:
    """The reply. Its headers say what the body cannot: model, classes and seconds."""
    body, file_name = _ENCODERS[media_type](result)
    headers = {
        "TomoRay-Model": f"{result.model.name}; sha256={result.model.sha256}",
        "TomoRay-Labels": ", ".join(f"{number}={label}" for number, label in enumerate(result.masks, start=1)),
        "Server-Timing": ", ".join(f"{step};dur={1000 * seconds:.0f}" for step, seconds in result.seconds.items()),
    }
    if file_name:
        headers["Content-Disposition"] = f'attachment; filename="{file_name}"'
    return Response(body, media_type=media_type, headers=headers)


def explain(error: Exception) -> Response:
    """The reply to a request that ended in `error`. What was not foreseen is logged by type and place only."""
    cause = getattr(error, "cause", None)  # what the model raised, out of what Ray wrapped around it
    problem = _problem(cause if isinstance(cause, Exception) else error)
    failure = FailureReply(error=Failure(code=problem.code, message=" ".join(problem.message.split())))
    retry = {"Retry-After": str(RETRY_AFTER_S)} if problem.status == 503 else None
    return JSONResponse(failure.model_dump(), status_code=problem.status, headers=retry)


def _problem(error: Exception) -> HttpError:
    if isinstance(error, HttpError):
        return error
    if isinstance(error, Refused):
        return HttpError(422, error.reason.value, str(error))
    if isinstance(error, Transient):
        return HttpError(503, "try_again", str(error))
    if isinstance(error, BackPressureError):
        return HttpError(503, "busy", "all replicas of the model are busy; try again")
    if isinstance(error, RayActorError | RayServeException):
        return HttpError(503, "model_unavailable", "the model's replica went away; try again")
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown place"
    logger.error("a request failed: %s at %s", type(error).__name__, place)
    if isinstance(error, TomoRayError):
        return HttpError(500, "failed", str(error))
    kind = "ray" if isinstance(error, RayError) else "internal"
    return HttpError(500, kind, f"the server failed ({type(error).__name__}); its log says where")


def _as_json(result: Result) -> tuple[bytes, str]:
    model, geometry = result.model, result.geometry
    reply = SegmentReply(
        model=ServedModelName(name=model.name, sha256=model.sha256, version=model.version),
        geometry=ScanGeometry(
            shape_zyx=geometry.shape_zyx,
            spacing_zyx_mm=geometry.spacing_zyx_mm,
            affine_lps=list(geometry.affine_lps),
        ),
        labels={
            label: LabelVolume(voxels=voxels, volume_ml=round(voxels * geometry.voxel_volume_ml, 3))
            for label, mask in result.masks.items()
            for voxels in (int(mask.sum(dtype="int64")),)
        },
        seconds={step: round(seconds, 3) for step, seconds in result.seconds.items()},
        notes=list(result.notes),
    )
    return reply.model_dump_json().encode(), ""


def _as_dicom_seg(result: Result) -> tuple[bytes, str]:
    body = segmentation_file(result.masks, result.headers(), result.model.sha256, result.scan_id)
    return body, "segmentation.dcm"


def _as_nifti(result: Result) -> tuple[bytes, str]:
    return nifti.write_label_map(result.masks, result.geometry), "segmentation.nii.gz"


_ENCODERS = {JSON: _as_json, DICOM: _as_dicom_seg, NIFTI: _as_nifti, NIFTI_ALIAS: _as_nifti}


def _media_range(text: str) -> tuple[str, float]:
    """(type, q) of one part of `Accept`; a q that is no number counts as 0."""
    media_type, *parameters = (part.strip().lower() for part in text.split(";"))
    weights = [parameter[2:] for parameter in parameters if parameter.startswith("q=")]
    try:
        return media_type, float(weights[0]) if weights else 1.0
    except ValueError:
        return media_type, 0.0
