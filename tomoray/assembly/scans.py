"""From the images of one series to scans, and refusals that say what was found.

Positions decide, never file names or InstanceNumber. Every plane ends in exactly one place: in a stack, left out of
one as an identical copy, or in a refusal. One odd slice is never dropped: it refuses the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

import numpy as np

from tomoray.assembly import grid
from tomoray.assembly.interleaved import tell_apart
from tomoray.assembly.kinds import refusal_of_kind
from tomoray.assembly.slices import (
    PlaneRef,
    SamePixels,
    Slice,
    check_headers,
    check_identity,
    drop_instance_copies,
    groups_by_geometry,
    known,
)
from tomoray.assembly.stack import Rules, Stack, build_stack
from tomoray.dicom.headers import Instance
from tomoray.errors import Reason, Refused


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """What was refused of a series, and why.

    Attributes:
        part: as in `Stack`; "" for the whole series.
        instances: indices of the files concerned. Of an enhanced instance, other frames may be stored.
        refusal: with reason and evidence.
        planes: the planes that are refused; none of a file that describes none.
    """

    part: str
    instances: tuple[int, ...]
    refusal: Refused
    planes: tuple[PlaneRef, ...] = ()


def assemble(
    instances: Sequence[Instance], rules: Rules, same_pixels: SamePixels
) -> tuple[list[Stack], list[Rejected]]:
    """Sort the images of one Series Instance UID into scans and refusals.

    The result does not depend on the order of `instances`, but for the indices in it.

    Args:
        instances: all images of the series, without its segmentations.
        rules: what a stack must be.
        same_pixels: tells whether two planes of one shape hold the same HU in every voxel. It is asked about planes
            at one position only, and what it raises as `Refused` refuses the part.

    Returns:
        Stacks in the order of their parts, and refusals.
    """
    if not instances:
        return [], []
    indices = sorted(range(len(instances)), key=lambda n: (instances[n].sop_uid, instances[n].root, instances[n].key))
    try:
        check_identity(instances, uids_may_be_missing="missing_uid" in rules.repairs)
    except Refused as refusal:
        return [], [_rejected(instances, "", indices, None, refusal)]

    kinds, others, slices = _split_by_kind(instances, indices, rules)
    rest = sorted({item.ref.instance for item in slices} | set(others))
    stacks: list[Stack] = []
    rejected = [_rejected(instances, part, *found) for part, found in sorted(kinds.items())]
    if rest:
        try:
            check_headers([instances[n] for n in rest], slices)
            stacks = _assemble_slices(drop_instance_copies(slices, same_pixels), rules, same_pixels)
        except Refused as refusal:
            rejected.insert(0, _rejected(instances, "slices", rest, [s.ref for s in slices], refusal))
    if len(stacks) + len(rejected) == 1:
        return [replace(stack, part="") for stack in stacks], [replace(found, part="") for found in rejected]
    return stacks, rejected


# --- what is a slice --------------------------------------------------------------------------------------------------

_Kinds = dict[str, tuple[list[int], list[PlaneRef], Refused]]


def _split_by_kind(
    instances: Sequence[Instance], indices: Sequence[int], rules: Rules
) -> tuple[_Kinds, list[int], list[Slice]]:
    """What is no slice, by the reason's name; CT images that describe no plane; and the slices."""
    class_may_be_missing = "missing_uid" in rules.repairs
    kinds: _Kinds = {}
    others: list[int] = []
    slices: list[Slice] = []
    for n in indices:
        instance = instances[n]
        for position, plane in enumerate(instance.planes or (None,)):
            refusal = refusal_of_kind(instance, plane, class_may_be_missing=class_may_be_missing)
            if refusal is None and plane is None:
                others.append(n)
            elif refusal is None and plane is not None:
                slices.append(Slice(ref=PlaneRef(instance=n, plane=position), instance=instance, plane=plane))
            elif refusal is not None:
                part = refusal.reason.value.replace("_", " ")
                files, planes, first = kinds.setdefault(part, ([], [], refusal))
                files.append(n)
                if plane is not None:
                    planes.append(PlaneRef(instance=n, plane=position))
                if refusal.evidence not in first.evidence:
                    both = Refused(first.reason, f"{first.evidence}; {refusal.evidence}")
                    kinds[part] = (files, planes, both)
    return kinds, others, slices


def _rejected(
    instances: Sequence[Instance], part: str, files: Iterable[int], planes: Iterable[PlaneRef] | None, refusal: Refused
) -> Rejected:
    chosen = tuple(sorted(set(files)))
    if planes is None:
        planes = [PlaneRef(instance=n, plane=p) for n in chosen for p in range(len(instances[n].planes))]
    return Rejected(part=part, instances=chosen, refusal=refusal, planes=tuple(sorted(planes)))


# --- which slices make a scan -----------------------------------------------------------------------------------------

_Attribute = tuple[str, Callable[[Slice], float | None], str]  # what it is, its value, the name of a part

_ACQUISITION: _Attribute = ("acquisition number", lambda s: s.plane.acquisition_number, "acquisition {}")
_PHASES: tuple[_Attribute, ...] = (
    _ACQUISITION,
    ("temporal position", lambda s: s.plane.temporal_position, "phase {}"),
    ("trigger time", lambda s: s.plane.trigger_time_ms, "trigger {:.15g} ms"),
)
_SPLIT_BY: dict[Reason, tuple[_Attribute, ...]] = {
    Reason.DUPLICATE_POSITION: _PHASES,
    Reason.MISSING_SLICES: (_ACQUISITION,),
    Reason.VARIABLE_SPACING: (_ACQUISITION,),
    Reason.IRREGULAR_POSITIONS: (_ACQUISITION,),
}


def _assemble_slices(slices: Sequence[Slice], rules: Rules, same_pixels: SamePixels) -> list[Stack]:
    groups, mixed = groups_by_geometry(slices)
    if mixed is None:
        return _assemble_group(groups[0], rules, same_pixels)
    names = _names_of_groups(groups)
    if not names:
        raise mixed
    stacks: list[Stack] = []
    for name, group in sorted(zip(names, groups, strict=True), key=lambda pair: pair[0]):
        try:
            found = _assemble_group(group, replace(rules, repairs=rules.repairs - {"variable_spacing"}), same_pixels)
        except Refused as refusal:
            evidence = (
                f"{mixed.evidence}; one of {len(groups)} such groups, of {len(group)} slices, is no scan by itself"
            )
            raise Refused(mixed.reason, f"{evidence} ({refusal})") from refusal
        for stack in found:
            part = f"{name}, {stack.part}" if stack.part != "slices" else name
            note = f"one of {len(groups)} groups of slices under one series UID that differ in geometry"
            stacks.append(replace(stack, part=part, notes=(note, *stack.notes)))
    return stacks


def _names_of_groups(groups: Sequence[Sequence[Slice]]) -> list[str]:
    """A name for each group; none unless every two differ by orientation, by acquisition number or by image type."""
    numbers = [{s.plane.acquisition_number for s in group} for group in groups]
    types = [{s.plane.image_type for s in group} for group in groups]
    pairs = list(combinations(range(len(groups)), 2))
    turned = [_turned(groups[a][0], groups[b][0]) for a, b in pairs]
    acquired = [None not in numbers[a] | numbers[b] and not numbers[a] & numbers[b] for a, b in pairs]
    typed = [not types[a] & types[b] for a, b in pairs]
    if all(turned):
        return _numbered("orientation", [s[0].plane.orientation for s in groups])
    if all(acquired):
        return [f"acquisition {min(n for n in found if n is not None)}" for found in numbers]
    if all(typed):
        return _numbered("image type", [sorted(found) for found in types])
    if all(any(ways) for ways in zip(turned, acquired, typed, strict=True)):
        return _numbered("group", list(range(len(groups))))
    return []


def _numbered(what: str, keys: Sequence[object]) -> list[str]:
    return [f"{what} {1 + sum(str(other) < str(key) for other in keys)}" for key in keys]


def _turned(one: Slice, other: Slice) -> bool:
    apart = np.subtract(known(one.plane.orientation), known(other.plane.orientation))
    return bool(np.abs(apart).max() > grid.DIRECTION_TOLERANCE)


def _assemble_group(slices: Sequence[Slice], rules: Rules, same_pixels: SamePixels) -> list[Stack]:
    """One stack, or one for each phase or acquisition where only they are regular."""
    strict = replace(rules, repairs=rules.repairs - {"variable_spacing"})
    try:
        stack = build_stack(slices, strict, same_pixels)
    except Refused as refusal:
        for attribute in _SPLIT_BY.get(refusal.reason, ()):
            stacks = _split(slices, attribute, refusal.reason, strict, same_pixels)
            if stacks:
                return stacks
        if refusal.reason == Reason.VARIABLE_SPACING and strict != rules:
            return [build_stack(slices, rules, same_pixels)]
        raise
    return _split_interleaved(slices, stack, strict, same_pixels) or [stack]


def _split_interleaved(slices: Sequence[Slice], stack: Stack, rules: Rules, same_pixels: SamePixels) -> list[Stack]:
    """A stack for each of two acquisitions whose slices alternate in `stack`; none where it is one.

    Raises:
        Refused: they alternate, and are too few to be scans by themselves.
    """
    by_ref = {item.ref: item for item in slices}
    ordered = [by_ref[ref] for ref in stack.planes]
    found = tell_apart(ordered)
    if found is None:
        return []
    what, names = found
    places = np.array([item.position for item in ordered])
    halves: tuple[list[Slice], list[Slice]] = ([], [])
    for item in slices:  # copies go with what they are copies of
        halves[int(np.linalg.norm(places - item.position, axis=1).argmin()) % 2].append(item)
    note = f"one of 2 scans under one series UID whose slices alternate, told apart by {what}"
    stacks = []
    for name, half in zip(names, halves, strict=True):
        try:
            alone = build_stack(half, rules, same_pixels)
        except Refused as refusal:
            raise Refused(
                Reason.MIXED_ACQUISITION,
                f"every second slice has another {what}: two acquisitions alternate, and one is no scan by itself "
                f"({refusal}); wanted one",
            ) from refusal
        stacks.append(replace(alone, part=name, notes=(note, *alone.notes)))
    return sorted(stacks, key=lambda one: one.part)


def _split(
    slices: Sequence[Slice], attribute: _Attribute, reason: Reason, rules: Rules, same_pixels: SamePixels
) -> list[Stack]:
    """A stack for each value of the attribute; none unless each makes a scan by itself."""
    what, value, name = attribute
    parts: dict[float, list[Slice]] = {}
    for item in slices:
        key = value(item)
        if key is None:
            return []
        parts.setdefault(key, []).append(item)
    if len(parts) < 2 or (reason != Reason.DUPLICATE_POSITION and _one_continues(list(parts.values()))):
        return []
    note = f"one of {len(parts)} scans under one series UID, told apart by {what}"
    stacks = []
    for key in sorted(parts):
        try:
            stack = build_stack(parts[key], rules, same_pixels)
        except Refused:
            return []
        stacks.append(replace(stack, part=name.format(key), notes=(note, *stack.notes)))
    return stacks


def _one_continues(parts: Sequence[Sequence[Slice]]) -> bool:
    """True where a part goes on where another ends, a step away: then the numbers count rotations, not scans."""
    normal = grid.axes(known(parts[0][0].plane.orientation))[2]
    for below, above in pairwise(sorted(_heights_mm(part, normal) for part in parts)):
        if above[0] - below[-1] < grid.POSITION_TOLERANCE_MM or len(below) + len(above) < 3:
            continue
        try:
            grid.regular_step_mm(np.array([*below, *above]))
        except Refused:
            continue
        return True
    return False


def _heights_mm(slices: Sequence[Slice], normal: grid.Vector) -> list[float]:
    """Positions along the normal, growing; of copies at one position, one."""
    found = np.sort([float(np.dot(s.position, normal)) for s in slices])
    kept: list[float] = found[np.diff(found, prepend=-np.inf) >= grid.POSITION_TOLERANCE_MM].tolist()
    return kept
