"""What goes over HTTP, for `/openapi.json` and for checking requests."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

DICOM, JSON, NIFTI, ZIP = "application/dicom", "application/json", "application/gzip", "application/zip"
NIFTI_ALIAS, ZIP_ALIAS = "application/x-nifti", "application/x-zip-compressed"


class Reference(BaseModel):
    """A scan that lies in an archive which the server may read."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"scan_id": "c46d9a3b0f7e2d815a6c", "archive": "s3://research/archive"}]},
    )

    scan_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    archive: Annotated[str | None, Field(description="may be left out where the server reads one archive only")] = None


class ServedModel(BaseModel):
    """A model and what it expects.

    Attributes:
        labels: their order gives the classes 1, 2, … of a NIfTI reply and the segment numbers of a DICOM SEG.
        spacing_zyx_mm: the grid that it works on; null: each scan's own. Replies are on the scan's own grid always.
        sha256: of the weights.
        version: of TomoRay.
    """

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "name": "phantom",
                    "labels": ["lungs", "nodules"],
                    "spacing_zyx_mm": [2.0, 2.0, 2.0],
                    "sha256": "8d0c5f4e1b7a9d36c2f1a04e5b6d7c8f90a1b2c3d4e5f60718293a4b5c6d7e8f",
                    "version": "0.1.0",
                }
            ]
        },
    )

    name: str
    labels: list[str]
    spacing_zyx_mm: tuple[float, float, float] | None
    sha256: str
    version: str


class ServedModels(BaseModel):
    """All models; the first is the default."""

    models: list[ServedModel]


class ScanGeometry(BaseModel):
    """Where the voxels of the scan, and so of the masks, are.

    Attributes:
        affine_lps: 16 numbers, row by row: voxel index (x, y, z, 1) to LPS mm.
    """

    shape_zyx: tuple[int, int, int]
    spacing_zyx_mm: tuple[float, float, float]
    affine_lps: list[float]


class LabelVolume(BaseModel):
    """How much of a label was found."""

    voxels: int
    volume_ml: float


class SegmentReply(BaseModel):
    """The answer in numbers.

    Attributes:
        seconds: by step: `read` (decoding the study) or none by reference, `segment`.
        notes: what was decided when the study was read, in plain words.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": {"name": "phantom", "sha256": "8d0c5f4e…", "version": "0.1.0"},
                    "geometry": {
                        "shape_zyx": [120, 256, 256],
                        "spacing_zyx_mm": [2.5, 1.4, 1.4],
                        "affine_lps": [1.4, 0, 0, -178.5, 0, 1.4, 0, -178.5, 0, 0, 2.5, -300, 0, 0, 0, 1],
                    },
                    "labels": {
                        "lungs": {"voxels": 812345, "volume_ml": 3980.491},
                        "nodules": {"voxels": 402, "volume_ml": 1.97},
                    },
                    "seconds": {"read": 0.41, "segment": 3.2},
                    "notes": [],
                }
            ]
        }
    )

    model: ServedModelName
    geometry: ScanGeometry
    labels: dict[str, LabelVolume]
    seconds: dict[str, float]
    notes: list[str]


class ServedModelName(BaseModel):
    """Which model answered."""

    name: str
    sha256: str
    version: str


class Health(BaseModel):
    """The gateway answers."""

    status: str = "ok"


class Failure(BaseModel):
    """A machine-readable code and one line for people."""

    code: str
    message: str


class FailureReply(BaseModel):
    """Every answer that is not 200."""

    error: Failure


def failure(description: str, code: str, message: str) -> dict[str, Any]:
    """An error reply for OpenAPI, with an example."""
    example = {"error": {"code": code, "message": message}}
    return {"model": FailureReply, "description": description, "content": {JSON: {"example": example}}}


_BINARY = {"type": "string", "format": "binary"}

SEGMENT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One CT study as a zip of its DICOM files, or a reference to an archived scan.",
        "content": {
            ZIP: {"schema": _BINARY, "example": "the bytes of study.zip"},
            JSON: {"schema": Reference.model_json_schema()},
        },
    }
}

SEGMENT_REPLIES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": SegmentReply,
        "description": "The masks on the scan's own grid: as `Accept` asks, numbers by default.",
        "content": {
            DICOM: {"schema": _BINARY, "example": "a DICOM Segmentation that refers to the study"},
            NIFTI: {"schema": _BINARY, "example": "a .nii.gz label map: class n is the n-th label, later labels win"},
            NIFTI_ALIAS: {"schema": _BINARY, "example": "the same as application/gzip"},
        },
    },
    400: failure("The body is broken.", "bad_zip", "the zip file cannot be read; send a plain, unencrypted zip"),
    403: failure("Not an archive for this server.", "archive_not_allowed", "this server does not read that archive"),
    404: failure("No such model or scan.", "unknown_model", "no model 'liver'; known: phantom"),
    406: failure("None of the types in `Accept`.", "not_acceptable", f"wanted one of: {JSON}, {DICOM}, {NIFTI}"),
    413: failure("More than the server takes.", "too_large", "the body is larger than 2048 MB"),
    415: failure("Neither zip nor JSON.", "unsupported_media_type", f"wanted Content-Type {ZIP} or {JSON}"),
    422: failure("The study is refused.", "missing_slices", "missing_slices: 3 slices are missing; wanted none"),
    500: failure("The server failed.", "internal", "the server failed; its log says where"),
    503: failure("Try again.", "busy", "all replicas are busy; try again"),
}
