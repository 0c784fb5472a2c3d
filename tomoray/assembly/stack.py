"""Slices alike in geometry to one regular grid, or a refusal that says what was found.

Nothing is repaired unless `Rules` asks for it, and then it is noted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tomoray.assembly import grid
from tomoray.assembly.resample import resample_planes, to_voxels
from tomoray.assembly.slices import PlaneRef, SamePixels, Slice, check_rescale, known
from tomoray.errors import Reason, Refused
from tomoray.geometry import Geometry

REPAIRS = frozenset({"missing_uid", "tilt", "variable_spacing"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What a stack must be.

    Attributes:
        min_slices: fewer are refused; 2 at least, as one slice has no step.
        repairs: of `REPAIRS`, what may be repaired instead of refused or stored sheared.
    """

    min_slices: int = 3
    repairs: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        unknown = sorted(self.repairs - REPAIRS)
        if unknown:
            raise ValueError(f"unknown repair {unknown[0]!r}; wanted some of {', '.join(sorted(REPAIRS))}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
    """How the voxels that are stored come from those that were scanned (see `apply_repair`).

    Attributes:
        kind: "variable_spacing", "tilt", or "tilt+variable_spacing".
        source_shape_zyx: of the planes as scanned.
        source_positions: centre of the first voxel of each, in plane order, LPS mm, without the header's rounding of
            what is regular.
    """

    kind: str
    source_shape_zyx: tuple[int, int, int]
    source_positions: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """Planes that make one scan, and the grid it is stored on.

    Attributes:
        part: "" where the series is this scan and nothing else; else a short name, without patient data.
        planes: in plane order, growing along the normal.
        geometry: of the voxels that are stored: after the repair, where there is one.
        notes: what was decided on the way, in plain words.
        dropped: identical copies of planes, left out.
        repair: None where planes are stored as they are.
    """

    part: str
    planes: tuple[PlaneRef, ...]
    geometry: Geometry
    notes: tuple[str, ...] = ()
    dropped: tuple[PlaneRef, ...] = ()
    repair: Repair | None = None

    def nearest_planes(self) -> tuple[PlaneRef, ...]:
        """For each plane that is stored, the scanned one nearest to it: itself, where steps were not resampled."""
        if self.repair is None:
            return self.planes
        heights = to_voxels(np.array(self.repair.source_positions), self.geometry)[:, 2]
        return tuple(self.planes[int(np.abs(heights - z).argmin())] for z in range(self.geometry.shape_zyx[0]))


def build_stack(slices: Sequence[Slice], rules: Rules, same_pixels: SamePixels) -> Stack:
    """Sort slices by position and prove that they make one regular grid, or can be made one by the repairs in `rules`.

    The affine follows PS3.3 C.7.6.2.1.1; the vector from slice to slice is measured over the whole stack. Where slices
    slide sideways, as under a tilted gantry, it leans: the grid is sheared, and exact.

    Args:
        slices: of one size, orientation and pixel spacing, with whole headers.
        rules: what the stack must be.
        same_pixels: as in `assembly.assemble`.

    Raises:
        Refused: with the reason and what was found and wanted.
    """
    _check_count(slices, rules)
    check_rescale(slices)
    along_row, along_column, normal = grid.axes(known(slices[0].plane.orientation))
    ordered = _drop_plane_copies(sorted(slices, key=lambda s: float(np.dot(s.position, normal))), normal, same_pixels)
    _check_count(ordered, rules)

    positions = np.array([s.position for s in ordered])
    slide = grid.slide(positions, normal)
    tilt_notes = _tilt_notes(ordered, grid.tilt_degrees(slide), normal)
    heights_mm = (positions - positions[0]) @ normal
    step_mm, repairs = _step(heights_mm, sheared=bool(slide.any()), rules=rules)

    row_mm, column_mm = known(slices[0].plane.pixel_spacing)
    matrix = np.eye(4)
    matrix[:3, 0] = along_row * column_mm
    matrix[:3, 1] = along_column * row_mm
    matrix[:3, 2] = (normal if repairs else normal + slide) * step_mm
    matrix[:3, 3] = positions[0]
    shape = (len(ordered), known(slices[0].instance.rows), known(slices[0].instance.columns))
    repair = None
    if repairs:
        if "variable_spacing" not in repairs:
            heights_mm = step_mm * np.arange(len(ordered))
        placed = positions[0] + np.outer(heights_mm, normal + slide)
        repair = Repair(
            kind="+".join(repairs),
            source_shape_zyx=shape,
            source_positions=tuple((float(x), float(y), float(z)) for x, y, z in placed),
        )
        shape, matrix = _hull(placed, (round(heights_mm[-1] / step_mm) + 1, *shape[1:]), matrix)
    return Stack(
        part="slices",
        planes=tuple(s.ref for s in ordered),
        geometry=Geometry.from_matrix(shape, matrix),
        notes=(*_notes(ordered), *tilt_notes, *_repair_notes(repairs, heights_mm, step_mm)),
        dropped=tuple(sorted(ref for s in ordered for ref in s.copies)),
        repair=repair,
    )


def apply_repair(image_zyx: npt.NDArray[np.int16], stack: Stack) -> npt.NDArray[np.int16]:
    """The voxels to store, on `stack.geometry`, from the planes as scanned.

    Linear interpolation in HU, a plane at a time (see `resample`); what was not scanned is -1024.

    Args:
        image_zyx: int16 HU, the planes of `stack.planes` in order.
        stack: says what to do.

    Returns:
        A new array; `image_zyx` itself where there is nothing to repair.
    """
    if stack.repair is None:
        return image_zyx
    if image_zyx.shape != stack.repair.source_shape_zyx:
        raise ValueError(f"image has shape {image_zyx.shape}; wanted {stack.repair.source_shape_zyx}")
    return resample_planes(image_zyx, np.array(stack.repair.source_positions), stack.geometry)


def _step(heights_mm: grid.Vector, *, sheared: bool, rules: Rules) -> tuple[float, list[str]]:
    """The step of the grid to store, and the repairs that make it."""
    repairs = ["tilt"] if sheared and "tilt" in rules.repairs else []
    try:
        return grid.regular_step_mm(heights_mm), repairs
    except Refused as refusal:
        if refusal.reason != Reason.VARIABLE_SPACING or "variable_spacing" not in rules.repairs:
            raise
        if sheared and not repairs:
            evidence = f"{refusal.evidence}; the stack is tilted too, which wants the repair of the tilt as well"
            raise Refused(refusal.reason, evidence) from refusal
    return grid.finest_step_mm(heights_mm), [*repairs, "variable_spacing"]


def _repair_notes(repairs: Sequence[str], heights_mm: grid.Vector, step_mm: float) -> list[str]:
    notes = []
    if "tilt" in repairs:
        notes.append("the tilt was resampled to an upright grid")
    if "variable_spacing" in repairs:
        steps = np.diff(heights_mm)
        notes.append(f"steps from {steps.min():.4g} to {steps.max():.4g} mm were resampled to {step_mm:.4g} mm")
    return notes


def _check_count(slices: Sequence[Slice], rules: Rules) -> None:
    wanted = max(rules.min_slices, 2)
    if len(slices) < wanted:
        raise Refused(Reason.TOO_FEW_SLICES, f"found {len(slices)} slices, wanted {wanted} or more")


def _drop_plane_copies(by_height: Sequence[Slice], normal: grid.Vector, same_pixels: SamePixels) -> list[Slice]:
    """Keep one plane at each height: copies in every voxel are left out, anything else is refused."""
    heights_mm = np.array([s.position for s in by_height]) @ normal
    places = np.cumsum(np.diff(heights_mm, prepend=heights_mm[0]) >= grid.POSITION_TOLERANCE_MM)
    shared = len(by_height) - (int(places[-1]) + 1)
    kept: list[Slice] = []
    for place in range(int(places[-1]) + 1):
        here = sorted((by_height[int(n)] for n in np.flatnonzero(places == place)), key=_identity)
        for other in here[1:]:
            apart_mm = float(np.linalg.norm(np.subtract(here[0].position, other.position)))
            if apart_mm >= grid.POSITION_TOLERANCE_MM or not same_pixels(here[0].ref, other.ref):
                raise Refused(
                    Reason.DUPLICATE_POSITION,
                    f"{shared} slices share another's position; wanted one at each, or phases, each whole, told apart "
                    "by acquisition number, temporal position or trigger time",
                )
        kept.append(here[0].with_copies(here[1:]))
    return kept


def _identity(item: Slice) -> tuple[str, str, str, int]:
    return item.instance.sop_uid, item.instance.root, item.instance.key, item.plane.frame


def _hull(
    positions_mm: grid.Vector, shape_zyx: tuple[int, int, int], matrix: grid.Vector
) -> tuple[tuple[int, int, int], grid.Vector]:
    """Widen a grid by whole rows and columns until it holds every plane; the first plane's voxels stay on it."""
    z, rows, columns = shape_zyx
    offsets_xyz = (positions_mm - positions_mm[0]) @ np.linalg.inv(matrix[:3, :3]).T
    low = np.floor(offsets_xyz[:, :2].min(axis=0) + 1e-3)
    high = np.ceil(offsets_xyz[:, :2].max(axis=0) - 1e-3)
    moved = matrix.copy()
    moved[:3, 3] = matrix[:3, 3] + matrix[:3, :2] @ low
    more_columns, more_rows = (high - low).astype(int).tolist()
    return (z, rows + more_rows, columns + more_columns), moved


def _tilt_notes(slices: Sequence[Slice], degrees: float, normal: grid.Vector) -> list[str]:
    """What positions and GantryDetectorTilt say of a tilt. The tag is nominal and its sign is no standard's.

    Raises:
        Refused: the tag tells of a tilt that neither the positions nor the slices' orientation show.
    """
    tags = sorted({abs(s.instance.gantry_tilt_degrees) for s in slices if s.instance.gantry_tilt_degrees is not None})
    said = " to ".join(f"{tag:.4g}" for tag in sorted({*tags[:1], *tags[-1:]}))
    if degrees:
        agrees = all(abs(tag - degrees) <= grid.TILT_TOLERANCE_DEGREES for tag in tags)
        tag_says = "is missing" if not tags else "agrees" if agrees else f"says {said}; positions were used"
        return [f"planes slide sideways at {degrees:.3g} degrees, a tilted gantry; GantryDetectorTilt {tag_says}"]
    if not tags or tags[-1] <= grid.TILT_TOLERANCE_DEGREES:
        return []
    lean = float(np.degrees(np.arccos(min(1.0, abs(float(normal[2]))))))
    if all(abs(tag - lean) <= grid.TILT_TOLERANCE_DEGREES for tag in tags):
        return [f"slices lean by {lean:.3g} degrees, as GantryDetectorTilt says, and follow one another upright"]
    raise Refused(
        Reason.TILT_MISMATCH,
        f"GantryDetectorTilt is {said} degrees, but slices lean by {lean:.3g} and do not slide sideways; wanted a tilt "
        "that positions or orientation show",
    )


def _notes(ordered: Sequence[Slice]) -> list[str]:
    notes = []
    instances = [s.instance for s in ordered]
    if any(not (instance.series_uid and instance.study_uid and instance.sop_class) for instance in instances):
        notes.append("study, series or class UIDs are missing; slices were taken for a series as they lay together")
    copies = sum(len(s.copies) for s in ordered)
    if copies:
        notes.append(f"{copies} identical copies of slices were left out")
    numbers = [s.plane.instance_number for s in ordered if s.classic]
    found = [number for number in numbers if number is not None]
    if len(found) < len(numbers) or (found != sorted(found) and found != sorted(found, reverse=True)):
        notes.append("InstanceNumber does not follow position; position was used")
    if len({(s.plane.slope, s.plane.intercept) for s in ordered}) > 1:
        notes.append("frames have a rescale each, which was applied to each")
    if any(instance.lossy for instance in instances):
        notes.append("pixels were compressed with loss before they came here")
    if any(s.plane.image_type[:1] == ("DERIVED",) for s in ordered):
        notes.append("image type says derived, primary")
    if not any(any(s.plane.image_type) for s in ordered):
        notes.append("image type is missing")
    return notes
