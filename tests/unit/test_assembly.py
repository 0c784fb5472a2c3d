"""Instances made here, field by field; `same_pixels` compares what `content` says lies in a file."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from tomoray.assembly.scans import Rejected, assemble
from tomoray.assembly.slices import PlaneRef
from tomoray.assembly.stack import REPAIRS, Rules, Stack
from tomoray.dicom.headers import CT_IMAGE_STORAGE, ENHANCED_CT_STORAGE, Instance, PixelFormat, Plane
from tomoray.errors import Reason, Refused

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
TILTED = (1.0, 0.0, 0.0, 0.0, float(np.cos(np.radians(18))), float(-np.sin(np.radians(18))))

Content = dict[str, object]  # key of a file -> what its pixels hold; without an entry, its instance UID


def plane(frame: int, position: Sequence[float], **changes) -> Plane:
    values = {
        "frame": frame,
        "orientation": AXIAL,
        "position": tuple(float(v) for v in position),
        "pixel_spacing": (0.8, 0.7),
        "slope": 1.0,
        "intercept": -1024.0,
        "rescale_type": "",
        "slice_thickness_mm": 2.5,
        "image_type": ("ORIGINAL", "PRIMARY", "AXIAL"),
        "acquisition_number": 1,
        "trigger_time_ms": None,
        "temporal_position": None,
        "instance_number": frame + 1,
    }
    return Plane(**(values | changes))


def instance(uid: str, *planes: Plane, **changes) -> Instance:
    values = {
        "root": "mem",
        "key": f"{uid}.dcm",
        "size_bytes": 9000,
        "transfer_syntax": "1.2.840.10008.1.2.1",
        "sop_class": CT_IMAGE_STORAGE,
        "sop_uid": f"1.2.3.4.{uid}",
        "series_uid": "1.2.3.4",
        "study_uid": "1.2.3",
        "frame_of_reference_uid": "1.2.3.5",
        "patient_id": "SECRET-17",
        "modality": "CT",
        "image_type": planes[0].image_type if planes else ("ORIGINAL", "PRIMARY", "AXIAL"),
        "rows": 36,
        "columns": 33,
        "n_frames": len(planes),
        "planes": planes,
        "pixels": PixelFormat(
            photometric="MONOCHROME2",
            samples=1,
            bits_allocated=16,
            bits_stored=12,
            high_bit=11,
            signed=False,
            padding=None,
            padding_limit=None,
            offset=800,
            length=2376,
        ),
        "burned_in": False,
        "lossy": False,
        "gantry_tilt_degrees": None,
        "referenced_series": "",
        "n_drawn": 0,
        "kernel": "",
        "kvp": None,
    }
    return Instance(**(values | changes))


def row(
    heights: Sequence[float], *, name: str = "a", origin=(-20, -30, 0), along=(0, 0, 1), of_file=None, **of_plane
) -> list[Instance]:
    """Classic instances at `origin + height * along`."""
    return [
        instance(
            f"{name}{n:03}",
            plane(0, np.add(origin, np.multiply(height, along)), **({"instance_number": n + 1} | of_plane)),
            **(of_file or {}),
        )
        for n, height in enumerate(heights)
    ]


def changed(found: Instance, **of_plane) -> Instance:
    """The instance with its one plane changed."""
    return replace(found, planes=(replace(found.planes[0], **of_plane),))


def run(
    instances: Sequence[Instance], *, rules: Rules | None = None, content: Content | None = None
) -> tuple[list[Stack], list[Rejected]]:
    held = content or {}

    def same_pixels(a: PlaneRef, b: PlaneRef) -> bool:
        one, other = instances[a.instance], instances[b.instance]
        assert np.allclose(one.planes[a.plane].position, other.planes[b.plane].position, atol=0.03)
        return (held.get(one.key, one.sop_uid), one.planes[a.plane].frame) == (
            held.get(other.key, other.sop_uid),
            other.planes[b.plane].frame,
        )

    return assemble(instances, rules or Rules(), same_pixels)


def stored(instances: Sequence[Instance], **settings) -> Stack:
    stacks, rejected = run(instances, **settings)
    assert rejected == []
    assert len(stacks) == 1
    return stacks[0]


def refusal(instances: Sequence[Instance], **settings) -> Refused:
    stacks, rejected = run(instances, **settings)
    assert stacks == []
    assert [found.part for found in rejected] == [""]
    assert rejected[0].instances == tuple(range(len(instances)))
    return rejected[0].refusal


def parts(instances: Sequence[Instance], **settings) -> dict[str, object]:
    """Name -> number of planes where stored, reason where refused."""
    stacks, rejected = run(instances, **settings)
    return {s.part: len(s.planes) for s in stacks} | {r.part: r.refusal.reason for r in rejected}


def heights(n: int, step: float = 2.5, start: float = 0.0) -> list[float]:
    return [start + step * k for k in range(n)]


def tilted(hs: Sequence[float], **changes) -> list[Instance]:
    """The table moves along z while the gantry leans by 18 degrees, as on a real scanner."""
    return row(hs, orientation=TILTED, **changes)


def enhanced(uid: str, *planes: Plane, **changes) -> Instance:
    return instance(uid, *planes, **({"sop_class": ENHANCED_CT_STORAGE[0]} | changes))


def both(*groups: Sequence[Instance]) -> list[Instance]:
    return [found for group in groups for found in group]


# --- one scan -------------------------------------------------------------------------------------------------------


def test_nothing_gives_nothing() -> None:
    assert run([]) == ([], [])


def test_planes_are_ordered_by_position() -> None:
    instances = row(heights(6))
    random.Random(1).shuffle(instances)
    stack = stored(instances)
    assert [instances[ref.instance].sop_uid[-3:] for ref in stack.planes] == ["000", "001", "002", "003", "004", "005"]
    assert stack.part == ""
    assert stack.repair is None
    assert stack.dropped == ()


POSES = {
    "head first, supine": (AXIAL, (0, 0, 1)),
    "head first, prone": ((-1.0, 0.0, 0.0, 0.0, -1.0, 0.0), (0, 0, 1)),
    "feet first, supine": ((-1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (0, 0, 1)),
    "flipped left to right": ((-1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (0, 0, -1)),
    "table moves out": (AXIAL, (0, 0, -1)),
    "sagittal": (SAGITTAL, (1, 0, 0)),
    "oblique": ((0.8, 0.6, 0.0, 0.0, 0.0, -1.0), (-0.6, 0.8, 0)),
    "tilted gantry": (TILTED, (0, 0, 1)),
    "tilted gantry, prone, feet first": ((-1.0, 0.0, 0.0, *TILTED[3:]), (0, 0, -1)),
    "skewed in both directions": (AXIAL, (0.3, -0.2, 1)),
}


@pytest.mark.parametrize("pose", POSES)
def test_affine_maps_every_corner_to_where_its_slice_says(pose: str) -> None:
    orientation, along = POSES[pose]
    instances = row(heights(7, 1.25), along=along, orientation=orientation)
    random.Random(2).shuffle(instances)
    stack = stored(instances)
    along_row, along_column = np.reshape(orientation, (2, 3))
    assert stack.geometry.shape_zyx == (7, 36, 33)
    for z, ref in enumerate(stack.planes):
        position = np.array(instances[ref.instance].planes[ref.plane].position)
        for y in (0, 35):
            for x in (0, 32):
                wanted = position + along_row * 0.7 * x + along_column * 0.8 * y  # PS3.3 C.7.6.2.1.1
                np.testing.assert_allclose((stack.geometry.matrix @ [x, y, z, 1])[:3], wanted, atol=1e-9)
    assert np.linalg.det(stack.geometry.matrix) > 0


def test_rounded_positions_are_one_grid_without_a_note() -> None:
    instances = row([round(h, 2) for h in heights(40, 0.625)])
    stack = stored(instances)
    assert stack.geometry.spacing_zyx_mm[0] == pytest.approx(0.625, abs=1e-3)
    assert stack.notes == ()


def test_position_wins_over_instance_number() -> None:
    instances = [changed(i, instance_number=n) for i, n in zip(row(heights(4)), [2, 1, 4, 3], strict=True)]
    assert stored(instances).notes == ("InstanceNumber does not follow position; position was used",)
    falling = [changed(i, instance_number=9 - n) for n, i in enumerate(row(heights(4)))]
    assert stored(falling).notes == ()


def test_what_the_header_says_of_the_pixels_is_noted() -> None:
    derived = row(heights(3), image_type=("DERIVED", "PRIMARY", "AXIAL"), of_file={"lossy": True})
    assert stored(derived).notes == (
        "pixels were compressed with loss before they came here",
        "image type says derived, primary",
    )
    assert stored(row(heights(3), image_type=("",))).notes == ("image type is missing",)


def test_any_slope_will_do() -> None:
    assert stored(row(heights(3), slope=0.5, rescale_type="HU")).notes == ()


# --- a whole series refused -----------------------------------------------------------------------------------------


def odd(n: int, **of_plane) -> Callable[[], list[Instance]]:
    """Eight slices, of which slice n is changed."""

    def make() -> list[Instance]:
        instances = row(heights(8))
        instances[n] = changed(instances[n], **of_plane)
        return instances

    return make


def odd_file(n: int, **of_file) -> Callable[[], list[Instance]]:
    def make() -> list[Instance]:
        instances = row(heights(8))
        instances[n] = replace(instances[n], **of_file)
        return instances

    return make


REFUSED = {
    "no study": (Reason.MISSING_UID, lambda: row(heights(4), of_file={"study_uid": ""})),
    "no series": (Reason.MISSING_UID, lambda: row(heights(4), of_file={"series_uid": ""})),
    "no instance": (Reason.MISSING_UID, odd_file(2, sop_uid="")),
    "two patients": (Reason.MIXED_PATIENT, odd_file(2, patient_id="SECRET-18")),
    "two studies": (Reason.MIXED_STUDY, odd_file(2, study_uid="1.2.9")),
    "two frames of reference": (Reason.MIXED_FRAME_OF_REFERENCE, odd_file(2, frame_of_reference_uid="1.2.9")),
    "two sizes": (Reason.MIXED_MATRIX, odd_file(2, rows=40)),
    "one turned": (Reason.MIXED_ORIENTATION, odd(2, orientation=(0.9998, 0.02, 0.0, -0.02, 0.9998, 0.0))),
    "one finer": (Reason.MIXED_SPACING, odd(2, pixel_spacing=(0.8, 0.71))),
    "one rescaled": (Reason.MIXED_RESCALE, odd(2, intercept=-1000.0)),
    "no orientation": (Reason.MISSING_GEOMETRY, odd(2, orientation=None)),
    "no position": (Reason.MISSING_GEOMETRY, odd(2, position=None)),
    "no spacing": (Reason.MISSING_GEOMETRY, odd(2, pixel_spacing=None)),
    "spacing of 0": (Reason.MISSING_GEOMETRY, odd(2, pixel_spacing=(0.8, 0.0))),
    "no slope": (Reason.MISSING_RESCALE, odd(2, slope=None)),
    "slope of 0": (Reason.MISSING_RESCALE, odd(2, slope=0.0)),
    "no intercept": (Reason.MISSING_RESCALE, odd(2, intercept=None)),
    "other units": (Reason.MISSING_RESCALE, odd(2, rescale_type="MGML")),
    "lean directions": (Reason.NOT_ORTHOGONAL, lambda: row(heights(4), orientation=(1.0, 0, 0, 0.1, 1.0, 0))),
    "long directions": (Reason.NOT_ORTHOGONAL, lambda: row(heights(4), orientation=(1.01, 0, 0, 0, 1.0, 0))),
    "two slices": (Reason.TOO_FEW_SLICES, lambda: row(heights(2))),
    "one missing": (Reason.MISSING_SLICES, lambda: row([0, 2.5, 5, 10, 12.5])),
    "uneven": (Reason.VARIABLE_SPACING, lambda: row([0, 2.5, 5, 8.2, 10.7])),
    "one aside": (Reason.IRREGULAR_POSITIONS, odd(4, position=(-20.0, -29.8, 10.0))),
    "on a curve": (
        Reason.IRREGULAR_POSITIONS,
        lambda: [changed(i, position=(-20.0, -30.0 + n * n, 2.5 * n)) for n, i in enumerate(row(heights(6)))],
    ),
    "leaning too far": (Reason.IRREGULAR_POSITIONS, lambda: row(heights(6), along=(0, 1.1, 1))),
    "one place twice": (Reason.DUPLICATE_POSITION, lambda: row([0, 2.5, 5, 5, 7.5])),
    "one height twice, aside": (Reason.DUPLICATE_POSITION, odd(4, position=(-20.0, -10.0, 7.5))),
    "multi-frame classic": (Reason.UNSUPPORTED_PIXELS, odd_file(2, n_frames=2, planes=())),
    "no functional groups": (Reason.MISSING_GEOMETRY, lambda: [enhanced("a", n_frames=9, planes=())]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_the_whole_series(case: str) -> None:
    reason, make = REFUSED[case]
    found = refusal(make())
    assert found.reason == reason
    assert "SECRET" not in str(found)
    assert "1.2.3" not in str(found)
    assert "\n" not in str(found)


def test_says_how_many_slices_are_missing_and_where() -> None:
    found = refusal(row([0, 2.5, 5, 12.5, 15, 20]))
    assert "3 planes are missing at a step of 2.5 mm: 2 after plane 2, 1 after plane 4" in found.evidence


def test_one_slice_is_no_scan_even_where_one_is_allowed() -> None:
    assert refusal(row([0.0]), rules=Rules(min_slices=1)).reason == Reason.TOO_FEW_SLICES
    assert len(stored(row(heights(2)), rules=Rules(min_slices=1)).planes) == 2


def test_rules_know_their_repairs() -> None:
    with pytest.raises(ValueError, match="unknown repair 'magic'"):
        Rules(repairs=frozenset({"magic"}))


# --- what is no slice -----------------------------------------------------------------------------------------------

NO_SLICE = {
    "localizer": (Reason.LOCALIZER, {"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, {}),
    "reformat": (Reason.DERIVED, {"image_type": ("DERIVED", "PRIMARY", "MPR")}, {}),
    "secondary": (Reason.DERIVED, {"image_type": ("DERIVED", "SECONDARY", "AXIAL")}, {}),
    "dose report": (Reason.DERIVED, {"image_type": ("ORIGINAL", "SECONDARY", "DOSE_INFO")}, {}),
    "screen": (Reason.DERIVED, {}, {"sop_class": "1.2.840.10008.5.1.4.1.1.7"}),
    "MR": (Reason.NOT_CT, {}, {"modality": "MR"}),
    "PET": (Reason.NOT_CT, {}, {"modality": "PT", "sop_class": "1.2.840.10008.5.1.4.1.1.128"}),
    "contours": (Reason.LABEL_WITHOUT_IMAGE, {}, {"sop_class": "1.2.840.10008.5.1.4.1.1.481.3"}),
    "text": (Reason.BURNED_IN_ANNOTATION, {}, {"burned_in": True}),
    "no rows": (Reason.NOT_AN_IMAGE, {}, {"rows": None}),
}


@pytest.mark.parametrize("case", NO_SLICE)
def test_what_is_no_slice_is_refused_by_itself(case: str) -> None:
    reason, of_plane, of_file = NO_SLICE[case]
    stray = instance("x", plane(0, (0, 0, 500), orientation=SAGITTAL, **of_plane), **of_file)
    name = reason.value.replace("_", " ")
    assert parts([stray]) == {"": reason}
    assert parts([stray, *row(heights(5))]) == {"slices": 5, name: reason}
    assert parts([stray, *row(heights(2))]) == {"slices": Reason.TOO_FEW_SLICES, name: reason}


def test_colour_pages_are_refused_by_themselves() -> None:
    page = instance("x", plane(0, (0, 0, 500)))
    page = replace(page, pixels=replace(page.pixels, samples=3, photometric="RGB"))
    assert parts([page, *row(heights(5))]) == {"slices": 5, "unsupported pixels": Reason.UNSUPPORTED_PIXELS}


def test_two_kinds_are_two_refusals() -> None:
    scout = instance("x", plane(0, (0, 0, 500), image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")))
    report = instance("y", plane(0, (0, 0, 500)), sop_class="1.2.840.10008.5.1.4.1.1.7")
    mip = instance("z", plane(0, (0, 0, 500), image_type=("DERIVED", "PRIMARY", "MIP")))
    assert parts([scout, report]) == {"localizer": Reason.LOCALIZER, "derived": Reason.DERIVED}
    rejected = run([report, mip, scout])[1]
    assert [found.instances for found in rejected] == [(0, 1), (2,)]
    assert "secondary capture" in rejected[0].refusal.evidence
    assert "reformatted" in rejected[0].refusal.evidence


def test_a_hole_left_by_a_refused_slice_is_a_missing_slice() -> None:
    instances = row(heights(7))
    instances[3] = replace(instances[3], burned_in=True)
    assert parts(instances) == {
        "slices": Reason.MISSING_SLICES,
        "burned in annotation": Reason.BURNED_IN_ANNOTATION,
    }


# --- missing UIDs ---------------------------------------------------------------------------------------------------


def test_missing_uids_are_taken_as_one_series_on_request() -> None:
    rules = Rules(repairs=frozenset({"missing_uid"}))
    bare = row(heights(4), of_file={"series_uid": "", "study_uid": "", "sop_class": ""})
    assert stored(bare, rules=rules).notes == (
        "study, series or class UIDs are missing; slices were taken for a series as they lay together",
    )
    some = [replace(found, study_uid="1.2.3" if n % 2 else "") for n, found in enumerate(bare)]
    assert len(stored(some, rules=rules).planes) == 4
    anonymous = [replace(found, sop_uid="") for found in bare]
    assert refusal(anonymous, rules=rules).reason == Reason.MISSING_UID
    assert "4 of 4 files have no instance UID" in refusal(anonymous, rules=rules).evidence


# --- copies ---------------------------------------------------------------------------------------------------------


def test_the_same_instance_twice_is_kept_once() -> None:
    instances = row(heights(5))
    instances.append(replace(instances[2], key="again.dcm", transfer_syntax="1.2.840.10008.1.2.4.80"))
    stack = stored(instances)
    assert stack.dropped == (PlaneRef(instance=5, plane=0),)
    assert stack.notes == ("1 identical copies of slices were left out",)


@pytest.mark.parametrize("how", ["pixels", "position", "spacing", "size"])
def test_different_files_of_one_instance_uid_are_refused(how: str) -> None:
    instances = row(heights(5))
    other = replace(instances[2], key="again.dcm")
    of_plane = {"position": {"position": (-20.0, -30.0, 12.5)}, "spacing": {"pixel_spacing": (0.8, 0.9)}}
    other = changed(other, **of_plane.get(how, {}))
    other = replace(other, rows=40) if how == "size" else other
    content = {"again.dcm": "something else"} if how == "pixels" else {}
    assert refusal([*instances, other], content=content).reason == Reason.DUPLICATE_INSTANCE


def test_the_same_slice_under_another_uid_is_kept_once() -> None:
    instances = row([0, 2.5, 5, 5.01, 7.5, 10])
    content = {"a002.dcm": "one", "a003.dcm": "one"}
    stack = stored(instances, content=content)
    assert stack.dropped == (PlaneRef(instance=3, plane=0),)
    assert [ref.instance for ref in stack.planes] == [0, 1, 2, 4, 5]
    assert stack.notes == ("1 identical copies of slices were left out",)


def test_a_series_that_was_sent_twice_is_one_scan() -> None:
    twice = both(row(heights(5), name="a"), row(heights(5), name="b"))
    content = {found.key: found.key[1:] for found in twice}
    stack = stored(twice, content=content)
    assert (len(stack.planes), len(stack.dropped)) == (5, 5)


def test_copies_do_not_make_up_the_number_of_slices() -> None:
    content = {"a001.dcm": "one", "a002.dcm": "one"}
    assert refusal(row([0, 2.5, 2.5]), content=content).reason == Reason.TOO_FEW_SLICES


def test_what_the_decoder_refuses_while_comparing_refuses_the_series() -> None:
    def cannot(_a: PlaneRef, _b: PlaneRef) -> bool:
        raise Refused(Reason.UNDECODABLE_PIXELS, "truncated")

    stacks, rejected = assemble(row([0, 2.5, 5, 5]), Rules(), cannot)
    assert stacks == []
    assert rejected[0].refusal.reason == Reason.UNDECODABLE_PIXELS


# --- several scans under one UID ------------------------------------------------------------------------------------


def phases(**values: Sequence[object]) -> list[Instance]:
    """Two scans at the same places; each keyword gives the value of a header field in either."""
    first, second = ({field: value[n] for field, value in values.items()} for n in (0, 1))
    return both(row(heights(5), name="a", **first), row(heights(5), name="b", **second))


@pytest.mark.parametrize(
    ("instances", "names"),
    [
        (phases(acquisition_number=(2, 7)), ["acquisition 2", "acquisition 7"]),
        (phases(temporal_position=(1, 2)), ["phase 1", "phase 2"]),
        (phases(trigger_time_ms=(0.0, 350.5)), ["trigger 0 ms", "trigger 350.5 ms"]),
        (phases(acquisition_number=(3, 3), trigger_time_ms=(10.0, 20.0)), ["trigger 10 ms", "trigger 20 ms"]),
        (phases(acquisition_number=(123456789, 123456788)), ["acquisition 123456788", "acquisition 123456789"]),
    ],
)
def test_phases_at_the_same_places_are_several_scans(instances: list[Instance], names: list[str]) -> None:
    stacks, rejected = run(instances)
    assert rejected == []
    assert [stack.part for stack in stacks] == names
    assert all(stack.notes[0].startswith("one of 2 scans under one series UID") for stack in stacks)
    assert all(len({instances[ref.instance].key[0] for ref in stack.planes}) == 1 for stack in stacks)


def test_phases_that_cover_other_ranges_are_several_scans() -> None:
    first = row(heights(8), name="a", acquisition_number=1)
    second = row(heights(6, start=10.0), name="b", acquisition_number=2)
    assert parts(both(first, second)) == {"acquisition 1": 8, "acquisition 2": 6}


def test_cardiac_steps_are_told_apart_by_phase_where_acquisitions_count_couch_positions() -> None:
    instances = [
        instance(f"{couch}{slice_}{phase}", plane(0, (0, 0, 10 * couch + 2.5 * slice_), **numbers))
        for couch in range(3)
        for slice_ in range(4)
        for phase in (1, 2)
        for numbers in [{"acquisition_number": couch, "temporal_position": phase, "instance_number": None}]
    ]
    assert parts(instances) == {"phase 1": 12, "phase 2": 12}


def test_phases_are_refused_where_one_is_not_whole() -> None:
    instances = phases(acquisition_number=(1, 2))
    del instances[7]  # within the second
    assert refusal(instances).reason == Reason.DUPLICATE_POSITION


def test_phases_are_refused_where_a_slice_does_not_say_its_phase() -> None:
    instances = phases(acquisition_number=(1, 2))
    instances[7] = changed(instances[7], acquisition_number=None)
    assert refusal(instances).reason == Reason.DUPLICATE_POSITION
    assert refusal(phases(acquisition_number=(1, None))).reason == Reason.DUPLICATE_POSITION


def test_phases_are_compared_once_not_slice_by_slice() -> None:
    calls = []
    stacks, _ = assemble(phases(acquisition_number=(1, 2)), Rules(), lambda a, b: calls.append((a, b)) or False)
    assert len(stacks) == 2
    assert len(calls) == 1


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(heights(5, start=30.0), id="a gap of whole planes"),
        pytest.param(heights(5, start=31.1), id="a gap of broken planes"),
        pytest.param(heights(5, step=5.0, start=12.5 + 2.5), id="another step"),
        pytest.param(heights(5, start=1.1), id="between the slices of the first"),
    ],
)
def test_acquisitions_that_make_no_grid_together_are_several_scans(second: list[float]) -> None:
    instances = both(row(heights(5), acquisition_number=4), row(second, name="b", acquisition_number=5))
    assert parts(instances) == {"acquisition 4": 5, "acquisition 5": 5}
    small = both(row(heights(5), acquisition_number=4), row(second[:2], name="b", acquisition_number=5))
    assert len(parts(small)) == 1


def test_acquisitions_that_continue_one_another_are_one_scan() -> None:
    instances = both(row(heights(5)), row(heights(5, start=12.5), name="b", acquisition_number=2))
    assert len(stored(instances).planes) == 10


def test_rotations_are_no_scans_even_where_a_slice_is_missing_between_them() -> None:
    rotations = [row(heights(4, start=10.0 * n), name=f"r{n}", acquisition_number=n) for n in range(5)]
    rotations[2].pop()
    assert refusal(both(*rotations)).reason == Reason.MISSING_SLICES
    again = [replace(found, sop_uid=f"{found.sop_uid}.9", key=f"{found.key}.9") for found in both(*rotations)]
    twice = [*both(*rotations), *again]
    content = {found.key: found.key.removesuffix(".9") for found in twice}
    assert refusal(twice, content=content).reason == Reason.MISSING_SLICES


def test_planes_in_two_orientations_are_two_scans() -> None:
    side = row(heights(6), name="b", origin=(0, 0, 0), along=(1, 0, 0), orientation=SAGITTAL)
    stacks, rejected = run(both(row(heights(5)), side))
    assert rejected == []
    assert {stack.part: len(stack.planes) for stack in stacks} == {"orientation 1": 6, "orientation 2": 5}
    assert stacks[0].notes == ("one of 2 groups of slices under one series UID that differ in geometry",)


def test_reconstructions_of_two_sizes_are_two_scans_where_number_or_type_tells_them_apart() -> None:
    def pair(**values: Sequence[object]) -> list[Instance]:
        instances = phases(**values)
        return instances[:5] + [replace(found, rows=48) for found in instances[5:]]

    assert parts(pair(acquisition_number=(1, 2))) == {"acquisition 1": 5, "acquisition 2": 5}
    types = (("ORIGINAL", "PRIMARY", "AXIAL"), ("ORIGINAL", "PRIMARY", "AXIAL", "LUNG"))
    assert parts(pair(image_type=types)) == {"image type 1": 5, "image type 2": 5}
    assert refusal(pair()).reason == Reason.MIXED_MATRIX


def test_groups_are_refused_together_where_one_is_no_scan() -> None:
    broken = row([0, 2.5, 7.5, 10], name="b", along=(1, 0, 0), orientation=SAGITTAL)
    found = refusal(both(row(heights(5)), broken))
    assert found.reason == Reason.MIXED_ORIENTATION
    assert "missing_slices" in found.evidence


def test_groups_are_regular_by_themselves_or_refused_whatever_may_be_repaired() -> None:
    uneven = row([0, 2.5, 5, 8.2], name="b", along=(1, 0, 0), orientation=SAGITTAL)
    assert refusal(both(row(heights(5)), uneven), rules=Rules(repairs=REPAIRS)).reason == Reason.MIXED_ORIENTATION


def test_phases_within_an_orientation_are_named_after_both() -> None:
    side = row(heights(4), name="s", along=(1, 0, 0), orientation=SAGITTAL)
    assert parts(both(side, phases(temporal_position=(1, 2)))) == {
        "orientation 1": 4,
        "orientation 2, phase 1": 5,
        "orientation 2, phase 2": 5,
    }


# --- tilt -----------------------------------------------------------------------------------------------------------

TILT_NOTES = {
    None: "planes slide sideways at 18 degrees, a tilted gantry; GantryDetectorTilt is missing",
    18.3: "planes slide sideways at 18 degrees, a tilted gantry; GantryDetectorTilt agrees",
    -18.0: "planes slide sideways at 18 degrees, a tilted gantry; GantryDetectorTilt agrees",
    0.0: "planes slide sideways at 18 degrees, a tilted gantry; GantryDetectorTilt says 0; positions were used",
}


@pytest.mark.parametrize("tag", TILT_NOTES)
def test_tilt_is_measured_and_compared_with_its_tag(tag: float | None) -> None:
    stack = stored(tilted(heights(5), of_file={"gantry_tilt_degrees": tag}))
    assert stack.notes == (TILT_NOTES[tag],)
    assert stack.repair is None


def test_tag_of_a_tilt_that_nothing_shows_is_refused() -> None:
    upright = row(heights(5), of_file={"gantry_tilt_degrees": 18.5})
    assert refusal(upright).reason == Reason.TILT_MISMATCH
    nominal = row(heights(5), of_file={"gantry_tilt_degrees": 0.5})
    assert stored(nominal).notes == ()


def test_leaning_slices_that_follow_one_another_upright_are_stored() -> None:
    normal = np.cross(TILTED[:3], TILTED[3:])
    upright = tilted(heights(5), along=normal, of_file={"gantry_tilt_degrees": 18.0})
    assert stored(upright).notes == (
        "slices lean by 18 degrees, as GantryDetectorTilt says, and follow one another upright",
    )


def test_missing_slice_of_a_tilted_stack_is_found() -> None:
    assert refusal(tilted([0, 2.5, 7.5, 10])).reason == Reason.MISSING_SLICES


# --- enhanced multi-frame -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sop_class", ENHANCED_CT_STORAGE)
def test_frames_of_one_instance_make_a_scan(sop_class: str) -> None:
    frames = [plane(n, (-20, -30, 2.5 * (7 - n))) for n in range(8)]
    stack = stored([enhanced("a", *frames, sop_class=sop_class)])
    assert stack.planes == tuple(PlaneRef(instance=0, plane=n) for n in range(7, -1, -1))
    assert stack.geometry.shape_zyx == (8, 36, 33)
    assert stack.notes == ()


def test_concatenated_instances_make_one_scan() -> None:
    first = enhanced("a", *(plane(n, (0, 0, 2.5 * n)) for n in range(4)))
    second = enhanced("b", *(plane(n, (0, 0, 10 + 2.5 * n)) for n in range(4)))
    assert [(ref.instance, ref.plane) for ref in stored([second, first]).planes] == [
        (i, n) for i in (1, 0) for n in range(4)
    ]


def test_frames_may_have_a_rescale_each() -> None:
    frames = [plane(n, (0, 0, 2.5 * n), slope=1.0 + n / 8) for n in range(4)]
    assert stored([enhanced("a", *frames)]).notes == ("frames have a rescale each, which was applied to each",)


def test_frames_of_two_phases_are_two_scans() -> None:
    frames = [plane(n, (0, 0, 2.5 * (n % 4)), temporal_position=1 + n // 4) for n in range(8)]
    assert parts([enhanced("a", *frames)]) == {"phase 1": 4, "phase 2": 4}


def test_frames_that_are_no_slices_are_refused_by_themselves() -> None:
    scout = plane(0, (0, 0, 99), image_type=("ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"))
    frames = [plane(1 + n, (0, 0, 2.5 * n), image_type=("ORIGINAL", "PRIMARY", "AXIAL", "NONE")) for n in range(4)]
    stacks, rejected = run([enhanced("a", scout, *frames, image_type=("MIXED", "PRIMARY", "AXIAL", "NONE"))])
    assert [len(stack.planes) for stack in stacks] == [4]
    assert rejected[0].planes == (PlaneRef(instance=0, plane=0),)
    assert rejected[0].refusal.reason == Reason.LOCALIZER


@pytest.mark.parametrize("contrast", ["PERFUSION", "MAXIMUM", "RESAMPLED", "SUBTRACTION"])
def test_derived_frames_are_refused(contrast: str) -> None:
    frames = [plane(n, (0, 0, 2.5 * n), image_type=("DERIVED", "PRIMARY", "VOLUME", contrast)) for n in range(4)]
    assert refusal([enhanced("a", *frames)]).reason == Reason.DERIVED


def test_frames_without_hu_are_refused() -> None:
    frames = [plane(n, (0, 0, 2.5 * n), rescale_type="US") for n in range(4)]
    assert refusal([enhanced("a", *frames)]).reason == Reason.MISSING_RESCALE


def test_an_enhanced_instance_twice_is_kept_once() -> None:
    first = enhanced("a", *(plane(n, (0, 0, 2.5 * n)) for n in range(4)))
    stack = stored([first, replace(first, key="again.dcm")])
    assert stack.dropped == tuple(PlaneRef(instance=1, plane=n) for n in range(4))
    shorter = replace(first, key="again.dcm", planes=first.planes[:3], n_frames=3)
    assert refusal([first, shorter]).reason == Reason.DUPLICATE_INSTANCE


# --- whatever the order ---------------------------------------------------------------------------------------------


@dataclass
class Case:
    instances: list[Instance]
    content: Content
    rules: Rules


def _cases() -> dict[str, Case]:
    stray = instance("x", plane(0, (0, 0, 500), image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")))
    copies = row([0, 2.5, 5, 5.01, 7.5, 10])
    copies.append(replace(copies[0], key="again.dcm"))
    frames = enhanced("e", *(plane(n, (-20, -30, 12.5 + 2.5 * n)) for n in range(4)))
    side = row(heights(6), name="b", along=(1, 0, 0), orientation=SAGITTAL)
    cases = {
        "plain": Case(row(heights(9)), {}, Rules()),
        "localizer": Case([stray, *row(heights(5))], {}, Rules()),
        "copies": Case(copies, {"a002.dcm": "one", "a003.dcm": "one"}, Rules()),
        "phases": Case(phases(trigger_time_ms=(10.0, 20.0)), {}, Rules()),
        "orientations": Case(both(row(heights(5)), side), {}, Rules()),
        "classic and enhanced": Case([frames, *row(heights(5))], {}, Rules()),
        "tilt": Case(tilted([0, 2, 5, 7.5, 10]), {}, Rules(repairs=REPAIRS)),
        "two acquisitions": Case(
            both(row(heights(5)), row(heights(5, 5.0, 30.0), name="b", acquisition_number=2)), {}, Rules()
        ),
    }
    return cases | {name: Case(make(), {}, Rules()) for name, (_, make) in REFUSED.items()}


def _named(found: tuple[list[Stack], list[Rejected]], instances: Sequence[Instance]) -> object:
    def names(refs: Sequence[PlaneRef]) -> list[tuple[str, int]]:
        return [(instances[ref.instance].key, ref.plane) for ref in refs]

    stacks, rejected = found
    return (
        [(s.part, names(s.planes), s.geometry, s.notes, sorted(names(s.dropped)), s.repair) for s in stacks],
        [(r.part, sorted(instances[n].key for n in r.instances), str(r.refusal)) for r in rejected],
    )


@pytest.mark.parametrize("name", _cases())
def test_result_does_not_depend_on_order_and_accounts_for_every_plane(name: str) -> None:
    case = _cases()[name]
    wanted = _named(run(case.instances, rules=case.rules, content=case.content), case.instances)
    for seed in range(8):
        shuffled = list(case.instances)
        random.Random(seed).shuffle(shuffled)
        stacks, rejected = run(shuffled, rules=case.rules, content=case.content)
        assert _named((stacks, rejected), shuffled) == wanted
        ends = [ref for s in stacks for ref in (*s.planes, *s.dropped)] + [ref for r in rejected for ref in r.planes]
        assert sorted(ends) == [
            PlaneRef(instance=n, plane=p) for n, found in enumerate(shuffled) for p in range(len(found.planes))
        ]
        assert {ref.instance for ref in ends} | {n for r in rejected for n in r.instances} == set(range(len(shuffled)))
        assert len({found.part for found in (*stacks, *rejected)}) == len(stacks) + len(rejected)


def _random_series(random_: random.Random) -> list[Instance]:
    """A mixture of up to three runs of slices, with a few values broken."""
    found: list[Instance] = []
    axial, scout = ("ORIGINAL", "PRIMARY", "AXIAL"), ("ORIGINAL", "PRIMARY", "LOCALIZER")
    for name in "abc"[: random_.randint(1, 3)]:
        values = {
            "acquisition_number": random_.choice([None, 1, 1, 2, 3]),
            "temporal_position": random_.choice([None, None, 1, 2]),
            "orientation": random_.choice([AXIAL, AXIAL, SAGITTAL, TILTED]),
            "pixel_spacing": random_.choice([(0.8, 0.7), (0.8, 0.7), (0.5, 0.5)]),
            "image_type": random_.choice([axial, axial, axial, scout]),
        }
        places = heights(random_.randint(1, 9), random_.choice([2.5, 5.0]), random_.choice([0.0, 12.5, 25.0, 1.1]))
        if random_.random() < 0.3:
            along = (1, 0, 0) if values["orientation"] == SAGITTAL else (0, 0.2, 1)
            found += row(places, name=name, along=along, **values)
        elif random_.random() < 0.3:
            frames = [plane(n, (-20, -30, height), **values) for n, height in enumerate(places)]
            found.append(enhanced(name, *frames))
        else:
            found += row(places, name=name, **values)
    for _ in range(random_.choice([0, 0, 1, 2])):
        n = random_.randrange(len(found))
        one = found[n]
        which = random_.randrange(len(one.planes)) if one.planes else 0
        breaks = [
            {"position": None},
            {"position": (0.0, 0.0, 0.0)},
            {"orientation": (0.0,) * 6},
            {"pixel_spacing": (0.0, 1.0)},
            {"slope": 0.0},
            {"intercept": None},
            {"rescale_type": "US"},
            {"image_type": ()},
            {"acquisition_number": None},
        ]
        if random_.random() < 0.5 and one.planes:
            planes = list(one.planes)
            planes[which] = replace(planes[which], **random_.choice(breaks))
            found[n] = replace(one, planes=tuple(planes))
        else:
            of_file = random_.choice([{"burned_in": True}, {"rows": None}, {"modality": "MR"}, {"n_frames": 7}, {}])
            found[n] = replace(one, **of_file)
            found.append(replace(found[n], key=f"{one.key}.again"))
    return found


@pytest.mark.parametrize("seed", range(200))
def test_every_plane_that_is_stored_lies_where_its_header_says(seed: int) -> None:
    random_ = random.Random(seed)
    instances = _random_series(random_)
    rules = Rules(repairs=frozenset(random_.choice([(), ("tilt",), ("variable_spacing",), tuple(REPAIRS)])))
    stacks, rejected = run(instances, rules=rules)
    for stack in stacks:
        to_voxel = np.linalg.inv(stack.geometry.matrix)
        voxels = [to_voxel @ [*instances[r.instance].planes[r.plane].position, 1] for r in stack.planes]
        assert (np.diff([voxel[2] for voxel in voxels]) > 0).all()
        assert voxels[-1][2] == pytest.approx(stack.geometry.shape_zyx[0] - 1, abs=1e-6)
        if stack.repair is None:
            np.testing.assert_allclose(voxels, [[0, 0, z, 1] for z in range(len(voxels))], atol=0.15)
    shuffled = random_.sample(instances, len(instances))
    assert _named(run(shuffled, rules=rules), shuffled) == _named((stacks, rejected), instances)
    ends = [ref for s in stacks for ref in (*s.planes, *s.dropped)] + [ref for r in rejected for ref in r.planes]
    assert sorted(ends) == [
        PlaneRef(instance=n, plane=p) for n, found in enumerate(instances) for p in range(len(found.planes))
    ]
