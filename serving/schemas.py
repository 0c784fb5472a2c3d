"""What goes over HTTP, for `/openapi.json` and for checking requests."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from serving.asks import Operation
from serving.queue.job import State

DICOM, JSON, NIFTI, ZIP = "application/dicom", "application/json", "application/gzip", "application/zip"
NIFTI_ALIAS, ZIP_ALIAS = "application/x-nifti", "application/x-zip-compressed"


class ServedModel(BaseModel):
    """A model and what it expects.

    Attributes:
        labels: their order gives the classes 1, 2, … of a NIfTI reply and the segment numbers of a DICOM SEG.
        spacing_zyx_mm: the grid that it works on; null: each scan's own. Replies are on the scan's own grid always.
        sha256: of the weights.
        version: of TomoRay.
        operation: what it can be asked for.
        calibrated: whether probabilities were fitted on scans that the network did not learn from; null: it gives none.
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
                    "operation": "segment",
                    "calibrated": None,
                }
            ]
        },
    )

    name: str
    labels: list[str]
    spacing_zyx_mm: tuple[float, float, float] | None
    sha256: str
    version: str
    operation: Operation = "segment"
    calibrated: bool | None = None


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


class ServedModelName(BaseModel):
    """Which model answered."""

    name: str
    sha256: str
    version: str


class StoredResult(BaseModel):
    """Where the server itself put a result.

    Attributes:
        destination: its name.
        reference: what it is called there.
    """

    destination: str
    reference: str


class _Reply(BaseModel):
    """What every answer says.

    Attributes:
        seconds: by step.
        notes: what was decided when the study was read, in plain words.
        stored: where the server put the result too; null: nowhere.
    """

    model: ServedModelName
    geometry: ScanGeometry
    seconds: dict[str, float]
    notes: list[str]
    stored: StoredResult | None = None


class SegmentReply(_Reply):
    """Masks in numbers."""

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

    labels: dict[str, LabelVolume]


class Failure(BaseModel):
    """A machine-readable code and one line for people."""

    code: str
    message: str


class ClassifyReply(_Reply):
    """Probabilities of classes; they sum to 1."""

    probabilities: dict[str, float]
    calibrated: bool | None


class FoundBox(BaseModel):
    """A box around a lesion.

    Attributes:
        center_lps_mm: patient coordinates (x, y, z).
        size_mm: edges along the scan's own axes (x, y, z).
    """

    label: str
    center_lps_mm: tuple[float, float, float]
    size_mm: tuple[float, float, float]
    probability: float


class DetectReply(_Reply):
    """Boxes around lesions, the most probable first."""

    boxes: list[FoundBox]
    calibrated: bool | None


class JobProgress(BaseModel):
    """Windows that went through the network, of all; 0 of 0 before the first."""

    done: int
    of: int


class JobReply(BaseModel):
    """A job, without anything that would tell of whom.

    Attributes:
        state: queued, running, done, failed or cancelled; the last three are final.
        attempts: how often it was begun; more than once where a process was lost.
        expires: when it and its result are forgotten.
        error: why it failed.
        links: `self`, `events`, and once it is done `result` and `image`.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "q1Zr0xkOQ2yTjXg3",
                    "state": "running",
                    "operation": "segment",
                    "model": "phantom",
                    "progress": {"done": 12, "of": 64},
                    "attempts": 1,
                    "created": "2026-03-01T10:00:00Z",
                    "started": "2026-03-01T10:00:01Z",
                    "finished": None,
                    "expires": None,
                    "error": None,
                    "links": {"self": "/v1/jobs/q1Zr0xkOQ2yTjXg3", "events": "/v1/jobs/q1Zr0xkOQ2yTjXg3/events"},
                }
            ]
        }
    )

    id: str
    state: State
    operation: Operation
    model: str
    progress: JobProgress
    attempts: int
    created: datetime
    started: datetime | None
    finished: datetime | None
    expires: datetime | None
    error: Failure | None
    links: dict[str, str]


class Health(BaseModel):
    """The gateway answers, or is ready."""

    status: str = "ok"


class FailureReply(BaseModel):
    """Every answer that is not 200."""

    error: Failure
