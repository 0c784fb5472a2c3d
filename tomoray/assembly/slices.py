"""The slices of one series before they are sorted in space: are their headers whole, and which belong together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from tomoray.assembly.grid import DIRECTION_TOLERANCE
from tomoray.dicom.headers import ENHANCED_CT_STORAGE, Instance, Plane
from tomoray.errors import Reason, Refused

SPACING_TOLERANCE_MM = 1e-4

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class PlaneRef:
    """One plane: an index into the instances that were given, and one into that instance's `planes`."""

    instance: int
    plane: int


SamePixels = Callable[[PlaneRef, PlaneRef], bool]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Slice:
    """One plane with its headers, and the planes that are left out as its identical copies."""

    ref: PlaneRef
    instance: Instance
    plane: Plane
    copies: tuple[PlaneRef, ...] = ()

    @property
    def classic(self) -> bool:
        """True where the instance is one slice by its kind, not a frame of an enhanced one."""
        return self.instance.sop_class not in ENHANCED_CT_STORAGE

    @property
    def position(self) -> tuple[float, ...]:
        """Centre of the first voxel, LPS mm."""
        return known(self.plane.position)

    def with_copies(self, others: Sequence[Slice]) -> Slice:
        """Itself, with `others` and their copies left out for it."""
        refs = [ref for other in others for ref in (other.ref, *other.copies)]
        return replace(self, copies=(*self.copies, *refs))


def known(value: T | None) -> T:
    """A value that the checks here have found to be there."""
    assert value is not None, "checked by check_headers"
    return value


def check_identity(instances: Sequence[Instance], *, uids_may_be_missing: bool) -> None:
    """Refuse what is not one series of one study of one patient.

    Args:
        instances: all of one Series Instance UID.
        uids_may_be_missing: study and series UIDs may be empty, as the caller knows the series otherwise.
    """
    fields = {
        "instance": [instance.sop_uid for instance in instances],
        "series": [] if uids_may_be_missing else [instance.series_uid for instance in instances],
        "study": [] if uids_may_be_missing else [instance.study_uid for instance in instances],
    }
    missing = {name: uids.count("") for name, uids in fields.items() if "" in uids}
    if missing:
        found = ", ".join(f"{count} of {len(instances)} files have no {name} UID" for name, count in missing.items())
        raise Refused(Reason.MISSING_UID, f"{found}; wanted all, to tell scans and copies apart")
    if len({instance.patient_id for instance in instances}) > 1:
        raise Refused(Reason.MIXED_PATIENT, "several patients under one series UID")
    if len({instance.study_uid for instance in instances} - {""}) > 1:
        raise Refused(Reason.MIXED_STUDY, "several studies under one series UID")


def check_headers(instances: Sequence[Instance], slices: Sequence[Slice]) -> None:
    """Refuse instances and slices whose geometry or whose HU their headers do not tell."""
    for instance in instances:
        if len(instance.planes) != instance.n_frames or not instance.planes:
            enhanced = instance.sop_class in ENHANCED_CT_STORAGE
            raise Refused(
                Reason.MISSING_GEOMETRY if enhanced else Reason.UNSUPPORTED_PIXELS,
                f"an instance says {instance.n_frames} frames and describes {len(instance.planes)} planes",
            )
    _refuse_any(
        slices,
        Reason.MISSING_GEOMETRY,
        "have orientation, position or pixel spacing that is missing or malformed; wanted all three",
        lambda p: p.orientation is None or p.position is None or p.pixel_spacing is None,
    )
    _refuse_any(
        slices,
        Reason.MISSING_GEOMETRY,
        "have a pixel spacing that is not above 0 mm",
        lambda p: min(known(p.pixel_spacing)) <= 0,
    )
    _refuse_any(
        slices,
        Reason.MISSING_RESCALE,
        "have no usable rescale slope and intercept, so HU are unknown",
        lambda p: p.slope is None or p.intercept is None or p.slope == 0,
    )
    _refuse_any(
        slices,
        Reason.MISSING_RESCALE,
        "have a rescale to other units; wanted HU",
        lambda p: p.rescale_type not in ("", "HU"),
    )


def check_rescale(slices: Sequence[Slice]) -> None:
    """Refuse classic instances of one stack that differ in rescale; frames of an enhanced one may."""
    found = sorted({(known(s.plane.slope), known(s.plane.intercept)) for s in slices if s.classic})
    if len(found) > 1:
        shown = ", ".join(f"{slope:g} and {intercept:g}" for slope, intercept in found[:4])
        raise Refused(
            Reason.MIXED_RESCALE, f"found {len(found)} pairs of rescale slope and intercept: {shown}; wanted one"
        )


def drop_instance_copies(slices: Sequence[Slice], same_pixels: SamePixels) -> list[Slice]:
    """Keep one of each SOP Instance UID. Copies must be alike in geometry and in every voxel.

    Raises:
        Refused: different instances carry one UID.
    """
    by_uid: dict[str, dict[int, list[Slice]]] = {}
    for item in slices:
        by_uid.setdefault(item.instance.sop_uid, {}).setdefault(item.ref.instance, []).append(item)
    kept: list[Slice] = []
    for copies in by_uid.values():
        first, *others = copies.values()
        for other in others:
            if [_place(s) for s in other] != [_place(s) for s in first] or not all(
                same_pixels(a.ref, b.ref) for a, b in zip(first, other, strict=True)
            ):
                raise Refused(
                    Reason.DUPLICATE_INSTANCE, f"{len(copies)} different files carry one instance UID; wanted one"
                )
        kept.extend(one.with_copies([other[n] for other in others]) for n, one in enumerate(first))
    return kept


def groups_by_geometry(slices: Sequence[Slice]) -> tuple[list[list[Slice]], Refused | None]:
    """Groups alike in frame of reference, matrix, orientation and pixel spacing.

    Returns:
        The groups, in the order of their first slices, and what to refuse the series with if they may not stand
        side by side (None for one group).
    """
    refusal: Refused | None = None

    def keep(reason: Reason, evidence: str) -> None:
        nonlocal refusal
        refusal = refusal or Refused(reason, evidence)

    groups = _split_by(slices, lambda s: s.instance.frame_of_reference_uid)
    if len(groups) > 1:
        keep(Reason.MIXED_FRAME_OF_REFERENCE, f"found {len(groups)} frames of reference in one series; wanted one")

    sizes = sorted({(known(s.instance.rows), known(s.instance.columns)) for s in slices})
    if len(sizes) > 1:
        shown = ", ".join(f"{rows} x {columns}" for rows, columns in sizes[:4])
        keep(Reason.MIXED_MATRIX, f"found {len(sizes)} sizes in one series: {shown}; wanted one")
    groups = [part for group in groups for part in _split_by(group, lambda s: (s.instance.rows, s.instance.columns))]

    whole = len(groups)
    groups = [
        part for group in groups for part in _cluster(group, lambda s: known(s.plane.orientation), DIRECTION_TOLERANCE)
    ]
    if len(groups) > whole:
        spread = _spread([known(s.plane.orientation) for s in slices])
        keep(Reason.MIXED_ORIENTATION, f"direction cosines differ by {spread:.4g} within one series; wanted one")

    whole = len(groups)
    groups = [
        part
        for group in groups
        for part in _cluster(group, lambda s: known(s.plane.pixel_spacing), SPACING_TOLERANCE_MM)
    ]
    if len(groups) > whole:
        spread = _spread([known(s.plane.pixel_spacing) for s in slices])
        keep(Reason.MIXED_SPACING, f"pixel spacing differs by {spread:.4g} mm within one series; wanted one")
    return groups, refusal


def _refuse_any(slices: Sequence[Slice], reason: Reason, what: str, wrong: Callable[[Plane], bool]) -> None:
    count = sum(wrong(item.plane) for item in slices)
    if count:
        raise Refused(reason, f"{count} of {len(slices)} slices {what}")


def _place(item: Slice) -> object:
    plane, instance = item.plane, item.instance
    shape = (instance.rows, instance.columns, instance.frame_of_reference_uid)
    return plane.frame, plane.position, plane.orientation, plane.pixel_spacing, shape


def _split_by(slices: Sequence[Slice], key: Callable[[Slice], object]) -> list[list[Slice]]:
    groups: dict[object, list[Slice]] = {}
    for item in slices:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def _cluster(
    slices: Sequence[Slice], value: Callable[[Slice], tuple[float, ...]], tolerance: float
) -> list[list[Slice]]:
    """One group where all values lie within `tolerance`; else each slice joins the first group it is near to."""
    if _spread([value(item) for item in slices]) <= tolerance:
        return [list(slices)]
    groups: list[list[Slice]] = []
    for item in slices:
        near = (group for group in groups if _spread([value(group[0]), value(item)]) <= tolerance)
        group = next(near, None)
        if group is None:
            groups.append([item])
        else:
            group.append(item)
    return groups


def _spread(values: Sequence[tuple[float, ...]]) -> float:
    return float(np.ptp(np.array(values), axis=0).max())
