"""Where parallel planes lie: one regular grid, upright or sheared, or a refusal that says what was found.

Legend: `normal` is the unit vector across the planes, row direction x column direction; `heights_mm` are positions
along it, growing; a slide is how far planes move sideways, in their own plane, in mm for each mm of height.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tomoray.errors import Reason, Refused

Vector = npt.NDArray[np.float64]

DIRECTION_TOLERANCE = 1e-3  # of a direction cosine
POSITION_TOLERANCE_MM = 0.02  # plus one percent of the step: rounding in the header, never a missing slice
LINE_TOLERANCE_MM = 0.1  # how far a plane may lie sideways of the straight line through all planes
TILT_TOLERANCE_DEGREES = 0.5  # between GantryDetectorTilt, which is nominal, and the positions

MAX_TILT_DEGREES = 45.0  # gantries tilt up to 30
MAX_STEP_TO_MEDIAN = 3.0  # a wider step is a hole in the scan, and a slice drawn into it an invention
MIN_STEP_TO_MEDIAN = 0.25  # a finer grid than this would multiply the scan, not resample it


def axes(orientation: tuple[float, ...]) -> tuple[Vector, Vector, Vector]:
    """Unit vectors along a row, along a column, and across the plane, LPS (PS3.3 C.7.6.2.1.1).

    Raises:
        Refused: the row and column directions are no unit vectors at a right angle.
    """
    along_row, along_column = np.array(orientation, dtype=np.float64).reshape(2, 3)
    lengths = np.linalg.norm(along_row), np.linalg.norm(along_column)
    lean = abs(float(along_row @ along_column))
    if max(abs(length - 1) for length in lengths) > DIRECTION_TOLERANCE or lean > DIRECTION_TOLERANCE:
        raise Refused(
            Reason.NOT_ORTHOGONAL,
            f"row and column directions have lengths {lengths[0]:.4f}, {lengths[1]:.4f} and dot product {lean:.4f}; "
            "wanted 1, 1 and 0",
        )
    along_row, along_column = along_row / lengths[0], along_column / lengths[1]
    normal = np.cross(along_row, along_column)
    return along_row, along_column, normal / np.linalg.norm(normal)


def slide(positions_mm: Vector, normal: Vector) -> Vector:
    """How far the planes slide sideways for each mm along the normal, as an in-plane vector, LPS.

    Zero where they do not, within `LINE_TOLERANCE_MM` over the whole stack: that is rounding in the header.

    Args:
        positions_mm: [plane, 3], sorted along the normal, no two at one height.
        normal: unit vector across the planes.

    Raises:
        Refused: the planes do not lie on one straight line, or it leans more than a gantry can.
    """
    offsets = positions_mm - positions_mm[0]
    heights_mm = offsets @ normal
    sideways = offsets - np.outer(heights_mm, normal)
    if np.linalg.norm(sideways, axis=1).max() <= LINE_TOLERANCE_MM:
        return np.zeros(3)
    found: Vector = sideways[-1] / heights_mm[-1]
    off_line_mm = np.linalg.norm(sideways - np.outer(heights_mm, found), axis=1)
    if off_line_mm.max() > LINE_TOLERANCE_MM:
        raise Refused(
            Reason.IRREGULAR_POSITIONS,
            f"plane {int(off_line_mm.argmax())} lies {off_line_mm.max():.4g} mm sideways of the line through the "
            f"first and the last plane; wanted {LINE_TOLERANCE_MM} or less",
        )
    if tilt_degrees(found) > MAX_TILT_DEGREES:
        raise Refused(
            Reason.IRREGULAR_POSITIONS,
            f"planes slide sideways at {tilt_degrees(found):.1f} degrees; a gantry tilts {MAX_TILT_DEGREES:g} or less",
        )
    return found


def tilt_degrees(found: Vector) -> float:
    """The angle of a `slide`."""
    return float(np.degrees(np.arctan(np.linalg.norm(found))))


def regular_step_mm(heights_mm: Vector) -> float:
    """The one distance between neighbouring planes, measured over the whole stack.

    Raises:
        Refused: planes are missing, and where; or the steps differ otherwise.
    """
    steps = np.diff(heights_mm)
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
            f"{int((multiples - 1).sum())} planes are missing at a step of {usual:.4g} mm: {where}; wanted none",
        )
    raise Refused(
        Reason.VARIABLE_SPACING, f"steps from {steps.min():.4g} to {steps.max():.4g} mm; wanted one constant step"
    )


def finest_step_mm(heights_mm: Vector) -> float:
    """The step of a regular grid from the first height to the last that is as fine as the smallest step, or just finer.

    Raises:
        Refused: one step is so wide or so narrow beside the median that no resampling is sound.
    """
    steps = np.diff(heights_mm)
    usual = float(np.median(steps))
    if steps.max() > MAX_STEP_TO_MEDIAN * usual or steps.min() < MIN_STEP_TO_MEDIAN * usual:
        raise Refused(
            Reason.VARIABLE_SPACING,
            f"steps from {steps.min():.4g} to {steps.max():.4g} mm with a median of {usual:.4g}; to resample, wanted "
            f"{MIN_STEP_TO_MEDIAN:g} to {MAX_STEP_TO_MEDIAN:g} times the median",
        )
    span = float(heights_mm[-1] - heights_mm[0])
    return span / int(np.ceil(span / steps.min() - 1e-6))
