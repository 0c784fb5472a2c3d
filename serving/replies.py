"""From a result to bytes of the type that was asked for; the same for replies, jobs and destinations.

Types are those of `Accept`, told apart where one is not enough by a parameter: `application/dicom; kind=sr`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel
from pydicom import Dataset

from serving.failures import HttpError
from serving.messages import Classification, Detections, Segmentation
from serving.results import Result
from serving.schemas import (
    DICOM,
    JSON,
    NIFTI,
    NIFTI_ALIAS,
    ClassifyReply,
    DetectReply,
    FoundBox,
    LabelVolume,
    ScanGeometry,
    SegmentReply,
    ServedModelName,
)
from tomoray import nifti
from tomoray.dicom.seg import Kind as SegmentationKind
from tomoray.dicom.sr import Lesion, Measurements
from tomoray.predictions import report_file, segmentation_file


class Kind(NamedTuple):
    """A media type, and which of several documents of that type; empty: the usual one."""

    media_type: str
    kind: str = ""

    def __str__(self) -> str:
        return f"{self.media_type}; kind={self.kind}" if self.kind else self.media_type


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A result as bytes.

    Attributes:
        file_name: what to call it; empty for what is read at once.
        headers: what the body cannot say: model, classes and seconds.
    """

    body: bytes
    media_type: str
    file_name: str
    headers: Mapping[str, str]


def choose_kind(accept: str | None) -> Kind:
    """What to reply with: the highest q in `Accept` (RFC 9110, 12.5.1), then the one named first.

    Raises:
        HttpError: 406; what there is stands in the message.
    """
    ranges = [_media_range(part) for part in (accept or "*/*").split(",") if part.strip()]

    def preference(offered: Kind) -> tuple[float, int]:
        whole = f"{offered.media_type.partition('/')[0]}/*"
        patterns = [offered] if offered.kind else [offered, Kind(whole), Kind("*/*")]
        for pattern in patterns:  # the most specific range decides
            for position, (named, q) in enumerate(ranges):
                if named == pattern:
                    return q, -position
        return 0.0, 0

    chosen = max(_ENCODERS, key=preference)
    if preference(chosen)[0] <= 0:
        known = ", ".join(str(kind) for kind in _ENCODERS)
        raise HttpError(406, "not_acceptable", f"none of the types in Accept; wanted one of: {known}")
    return chosen


def encode(result: Result, kind: Kind) -> Encoded:
    """The result as `kind`. Raises `HttpError` 406 where it cannot be told that way."""
    body, file_name = _ENCODERS[kind](result)
    headers = {
        "TomoRay-Model": f"{result.model.name}; sha256={result.model.sha256}",
        "Server-Timing": ", ".join(f"{step};dur={1000 * seconds:.0f}" for step, seconds in result.seconds.items()),
    }
    if isinstance(result.finding, Segmentation):
        labels = enumerate(result.finding.packed, start=1)
        headers["TomoRay-Labels"] = ", ".join(f"{number}={label}" for number, label in labels)
    if result.stored:
        headers["TomoRay-Stored"] = result.stored.reference
    if file_name:
        headers["Content-Disposition"] = f'attachment; filename="{file_name}"'
    return Encoded(body=body, media_type=kind.media_type, file_name=file_name, headers=headers)


def image_file(result: Result) -> bytes:
    """The scan that was looked at, as `.nii.gz`, int16 HU."""
    return nifti.write(result.read_image(), result.finding.geometry)


def _as_json(result: Result) -> tuple[bytes, str]:
    return _numbers(result).model_dump_json().encode(), ""


def _numbers(result: Result) -> BaseModel:
    model, geometry, finding = result.model, result.finding.geometry, result.finding
    common = {
        "model": ServedModelName(name=model.name, sha256=model.sha256, version=model.version),
        "geometry": ScanGeometry(
            shape_zyx=geometry.shape_zyx,
            spacing_zyx_mm=geometry.spacing_zyx_mm,
            affine_lps=list(geometry.affine_lps),
        ),
        "seconds": {step: round(seconds, 3) for step, seconds in result.seconds.items()},
        "notes": list(result.notes),
        "stored": result.stored,
    }
    if isinstance(finding, Classification):
        return ClassifyReply(**common, probabilities=dict(finding.probabilities), calibrated=model.calibrated)
    if isinstance(finding, Detections):
        boxes = [FoundBox.model_validate(dataclasses.asdict(box)) for box in finding.boxes]
        return DetectReply(**common, boxes=boxes, calibrated=model.calibrated)
    assert isinstance(finding, Segmentation), "there is no other finding"
    labels = {
        label: LabelVolume(voxels=voxels, volume_ml=round(voxels * geometry.voxel_volume_ml, 3))
        for label, voxels in voxel_counts(finding).items()
    }
    return SegmentReply(**common, labels=labels)


def _as_segmentation(result: Result, kind: SegmentationKind = "BINARY") -> tuple[bytes, str]:
    masks = _segmentation(result).masks()
    body = segmentation_file(masks, _headers(result), result.model.sha256, result.uid_seed, kind, result.made)
    return body, "segmentation.dcm"


def _as_report(result: Result) -> tuple[bytes, str]:
    finding, geometry = result.finding, result.finding.geometry
    if isinstance(finding, Segmentation):
        voxels = voxel_counts(finding)
        measured = Measurements(volumes_ml={label: count * geometry.voxel_volume_ml for label, count in voxels.items()})
    elif isinstance(finding, Classification):
        measured = Measurements(probabilities=finding.probabilities)
    else:
        assert isinstance(finding, Detections), "there is no other finding"
        axes = geometry.matrix[:3, :3].T
        axes = (axes / np.linalg.norm(axes, axis=1, keepdims=True)).tolist()
        lesions = [Lesion(**dataclasses.asdict(box), axes_lps=axes) for box in finding.boxes]
        found = Counter(box.label for box in finding.boxes)
        measured = Measurements(lesions=lesions, counts={label: found[label] for label in result.model.labels})
    return report_file(measured, _headers(result), result.model.sha256, result.uid_seed, result.made), "report.dcm"


def _as_dicom(result: Result) -> tuple[bytes, str]:
    return _as_segmentation(result) if isinstance(result.finding, Segmentation) else _as_report(result)


def voxel_counts(finding: Segmentation) -> dict[str, int]:
    """Voxels of each label."""
    return {label: int(np.bitwise_count(bits).sum(dtype=np.int64)) for label, bits in finding.packed.items()}


def _headers(result: Result) -> Sequence[Dataset]:
    try:
        return result.headers()
    except ValueError as error:
        raise HttpError(406, "not_acceptable", "the scan did not come from DICOM; ask for NIfTI or JSON") from error


def _as_nifti(result: Result) -> tuple[bytes, str]:
    return nifti.write_label_map(_segmentation(result).masks(), result.finding.geometry), "segmentation.nii.gz"


def _as_explanation(result: Result) -> tuple[bytes, str]:
    if result.finding.map_zyx is None:
        raise HttpError(406, "not_acceptable", "no explanation was asked for; say explain=uncertainty or another")
    percent = np.rint(100 * result.finding.map_zyx.astype(np.float32)).astype(np.uint8)
    return nifti.write(percent, result.finding.geometry), "explanation.nii.gz"


def _segmentation(result: Result) -> Segmentation:
    if not isinstance(result.finding, Segmentation):
        raise HttpError(406, "not_acceptable", f"{result.model.name} makes no masks; ask for application/json")
    return result.finding


_ENCODERS: dict[Kind, Callable[[Result], tuple[bytes, str]]] = {
    Kind(JSON): _as_json,
    Kind(DICOM): _as_dicom,
    Kind(DICOM, "seg"): _as_segmentation,
    Kind(DICOM, "labelmap"): partial(_as_segmentation, kind="LABELMAP"),
    Kind(DICOM, "sr"): _as_report,
    Kind(NIFTI): _as_nifti,
    Kind(NIFTI_ALIAS): _as_nifti,
    Kind(NIFTI, "explanation"): _as_explanation,
}


def _media_range(text: str) -> tuple[Kind, float]:
    """(type, q) of one part of `Accept`; a q that is no number counts as 0."""
    media_type, *parameters = (part.strip().lower() for part in text.split(";"))
    named = dict(parameter.partition("=")[::2] for parameter in parameters)
    try:
        q = float(named.get("q", "1"))
    except ValueError:
        q = 0.0
    return Kind(media_type, named.get("kind", "")), q
