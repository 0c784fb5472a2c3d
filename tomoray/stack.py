"""From slices to one regular grid, or a refusal that says what was found.

Positions decide, never file names or InstanceNumber. Nothing is repaired silently: a stack whose slices do not
lie on one regular grid is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tomoray.dicom import (
    CT_IMAGE_STORAGE,
    ENHANCED_CT_STORAGE,
    SECONDARY_CAPTURE_PREFIX,
    SEGMENTATION_STORAGE,
    STRUCTURE_SET_STORAGE,
    Instance,
)
from tomoray.errors import Reason, Refused
from tomoray.geometry import Geometry

DIRECTION_TOLERANCE = 1e-3  # of a direction cosine
POSITION_TOLERANCE_MM = 0.02  # plus one percent of the step: rounding in the header, never a missing slice
SHEAR_TOLERANCE_MM = 0.1  # how far slices may slide sideways, over the whole stack

T = TypeVar("T")

_REFORMATS = {"REFORMATTED", "MPR", "CSA MPR", "PROJECTION IMAGE", "MIP", "MINIP", "AVERAGE", "CPR", "CSAPARALLEL"}
_NOT_PLAIN = {"SCREEN SAVE", "DOSE_INFO", "PERFUSION"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """Slices in plane order, growing along the normal, and the grid they lie on."""

    instances: tuple[Instance, ...]
    geometry: Geometry
    notes: tuple[str, ...]


def build_stack(instances: Sequence[Instance], min_slices: int) -> Stack:
    """Sort the slices of one series by position and prove that they make one regular grid.

    The affine follows PS3.3 C.7.6.2.1.1, with the step along the normal measured over the whole stack.

    Raises:
        Refused: with the reason and what was found and wanted.
    """
    _check_kind(instances)
    _check_headers(instances)
    if len(instances) < min_slices:
        raise Refused(Reason.TOO_FEW_SLICES, f"found {len(instances)} slices, wanted {min_slices} or more")

    first = instances[0]
    rows, columns = _known(first.rows), _known(first.columns)
    row_mm, column_mm = _known(first.planes[0].pixel_spacing)
    along_row, along_column = _directions(instances)
    normal = np.cross(along_row, along_column)

    positions = np.array([instance.planes[0].position for instance in instances])
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    step_mm = _regular_step_mm(positions @ normal)
    _check_upright(positions, normal)

    matrix = np.eye(4)
    matrix[:3, 0] = along_row * column_mm
    matrix[:3, 1] = along_column * row_mm
    matrix[:3, 2] = normal * step_mm
    matrix[:3, 3] = positions[0]
    ordered = tuple(instances[i] for i in order)
    return Stack(
        instances=ordered,
        geometry=Geometry.from_matrix((len(ordered), rows, columns), matrix),
        notes=_notes(ordered),
    )


def _check_kind(instances: Sequence[Instance]) -> None:
    first = instances[0]
    for instance in instances:
        if not (instance.series_uid and instance.study_uid and instance.sop_uid):
            raise Refused(Reason.MISSING_UID, "study, series or instance UID is missing, so scans cannot be told apart")
        if instance.sop_class in ENHANCED_CT_STORAGE:
            raise Refused(Reason.ENHANCED_MULTIFRAME, "enhanced multi-frame CT; wanted one slice an instance")
        if instance.sop_class.startswith(SECONDARY_CAPTURE_PREFIX):
            raise Refused(Reason.DERIVED, "secondary capture; wanted CT Image Storage")
        if instance.sop_class in (*SEGMENTATION_STORAGE, STRUCTURE_SET_STORAGE):
            raise Refused(Reason.LABEL_WITHOUT_IMAGE, "segmentation of a series that is not among the sources")
        if instance.modality != "CT" or instance.sop_class != CT_IMAGE_STORAGE:
            found = instance.modality if instance.modality.isalnum() else "none"
            raise Refused(Reason.NOT_CT, f"modality {found[:16]}; wanted CT Image Storage")
        if "LOCALIZER" in instance.image_type:
            raise Refused(Reason.LOCALIZER, "image type says LOCALIZER; wanted axial slices")
        kinds = set(instance.image_type)
        if kinds & _NOT_PLAIN or (
            instance.image_type[0] == "DERIVED" and (kinds & _REFORMATS or "SECONDARY" in instance.image_type[1:2])
        ):
            raise Refused(Reason.DERIVED, "image type says derived or reformatted; wanted original slices")
        if instance.burned_in:
            raise Refused(Reason.BURNED_IN_ANNOTATION, "header says text is burned into the pixels")
        if not instance.rows or not instance.columns:
            raise Refused(Reason.NOT_AN_IMAGE, "no rows and columns")
        if instance.patient_id != first.patient_id:
            raise Refused(Reason.MIXED_PATIENT, "several patients under one series UID")


def _check_headers(instances: Sequence[Instance]) -> None:
    for instance in instances:
        if instance.n_frames != 1 or not instance.planes:
            raise Refused(Reason.UNSUPPORTED_PIXELS, f"found {instance.n_frames} frames in an instance; wanted one")
        plane = instance.planes[0]
        if plane.orientation is None or plane.position is None or plane.pixel_spacing is None:
            raise Refused(Reason.MISSING_GEOMETRY, "orientation, position or pixel spacing is missing or malformed")
        if min(plane.pixel_spacing) <= 0:
            raise Refused(Reason.MISSING_GEOMETRY, f"pixel spacing is {plane.pixel_spacing}; wanted above 0")
        if plane.slope is None or plane.intercept is None or plane.slope == 0:
            raise Refused(Reason.MISSING_RESCALE, "no usable rescale slope and intercept, so HU are unknown")
        if plane.rescale_type not in ("", "HU"):
            raise Refused(Reason.MISSING_RESCALE, "rescale gives other units; wanted HU")
    _check_same(instances, Reason.MIXED_FRAME_OF_REFERENCE, "frame of reference", lambda i: i.frame_of_reference_uid)
    _check_same(instances, Reason.MIXED_MATRIX, "rows x columns", lambda i: (i.rows, i.columns), show=True)
    _check_same(
        instances, Reason.MIXED_RESCALE, "rescale", lambda i: (i.planes[0].slope, i.planes[0].intercept), show=True
    )
    _check_close(
        instances, Reason.MIXED_ORIENTATION, "orientation", lambda i: i.planes[0].orientation, DIRECTION_TOLERANCE
    )
    _check_close(instances, Reason.MIXED_SPACING, "pixel spacing", lambda i: i.planes[0].pixel_spacing, 1e-4)


def _check_same(
    instances: Sequence[Instance], reason: Reason, what: str, value: Callable[[Instance], object], *, show: bool = False
) -> None:
    found = sorted({value(instance) for instance in instances}, key=str)
    if len(found) > 1:
        evidence = f": {', '.join(str(v) for v in found[:4])}" if show else ""
        raise Refused(reason, f"found {len(found)} values of {what} in one series{evidence}; wanted one")


def _check_close(
    instances: Sequence[Instance],
    reason: Reason,
    what: str,
    value: Callable[[Instance], tuple[float, ...] | None],
    tolerance: float,
) -> None:
    spread = float(np.ptp(np.array([value(instance) for instance in instances]), axis=0).max())
    if spread > tolerance:
        raise Refused(reason, f"{what} differs by {spread:.4g} within one series; wanted one")


def _directions(instances: Sequence[Instance]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    along_row, along_column = np.array(_known(instances[0].planes[0].orientation)).reshape(2, 3)
    lengths = np.linalg.norm(along_row), np.linalg.norm(along_column)
    lean = abs(float(along_row @ along_column))
    if max(abs(length - 1) for length in lengths) > DIRECTION_TOLERANCE or lean > DIRECTION_TOLERANCE:
        raise Refused(
            Reason.NOT_ORTHOGONAL,
            f"row and column directions have lengths {lengths[0]:.4f}, {lengths[1]:.4f} and dot product {lean:.4f}; "
            "wanted 1, 1 and 0",
        )
    return along_row / lengths[0], along_column / lengths[1]


def _regular_step_mm(heights_mm: npt.NDArray[np.float64]) -> float:
    """The one distance between neighbouring planes; `heights_mm` is sorted. Refuses any other stack."""
    steps = np.diff(heights_mm)
    if (steps < POSITION_TOLERANCE_MM).any():
        raise Refused(
            Reason.DUPLICATE_POSITION, f"{int((steps < POSITION_TOLERANCE_MM).sum())} slices share another's position"
        )
    step = float((heights_mm[-1] - heights_mm[0]) / len(steps))
    grid = heights_mm[0] + step * np.arange(len(heights_mm))
    if np.abs(heights_mm - grid).max() <= POSITION_TOLERANCE_MM + 0.01 * step:
        return step

    usual = float(np.median(steps))
    multiples = np.rint(steps / usual)
    if (multiples >= 1).all() and np.abs(steps - multiples * usual).max() <= POSITION_TOLERANCE_MM + 0.01 * usual:
        gaps = np.flatnonzero(multiples > 1)
        where = ", ".join(f"{int(multiples[i]) - 1} after plane {i}" for i in gaps[:4])
        raise Refused(
            Reason.MISSING_SLICES,
            f"{int((multiples - 1).sum())} planes are missing at a step of {usual:.4g} mm: {where}",
        )
    raise Refused(
        Reason.VARIABLE_SPACING, f"steps from {steps.min():.4g} to {steps.max():.4g} mm; wanted one constant step"
    )


def _check_upright(positions: npt.NDArray[np.float64], normal: npt.NDArray[np.float64]) -> None:
    offsets = positions - positions[0]
    sideways = np.linalg.norm(offsets - np.outer(offsets @ normal, normal), axis=1)
    if sideways.max() > SHEAR_TOLERANCE_MM:
        degrees = np.degrees(np.arctan2(sideways[-1], offsets[-1] @ normal))
        raise Refused(
            Reason.SHEARED_STACK,
            f"slices slide sideways by {sideways.max():.4g} mm ({degrees:.1f} degrees, a tilted gantry); wanted 0",
        )


def _notes(ordered: Sequence[Instance]) -> tuple[str, ...]:
    notes = []
    numbers = [instance.planes[0].instance_number for instance in ordered]
    known = [number for number in numbers if number is not None]
    if len(known) < len(numbers) or (known != sorted(known) and known != sorted(known, reverse=True)):
        notes.append("InstanceNumber does not follow position; position was used")
    if any(instance.lossy for instance in ordered):
        notes.append("pixels were compressed with loss before they came here")
    if ordered[0].image_type[0] == "DERIVED":
        notes.append("image type says derived, primary")
    return tuple(notes)


def _known(value: T | None) -> T:
    assert value is not None, "checked by _check_kind and _check_headers"
    return value
