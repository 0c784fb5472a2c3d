"""Repairs, on fields whose value is known everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from tomoray.assembly.resample import resample_planes
from tomoray.assembly.scans import assemble
from tomoray.assembly.stack import Rules, Stack, apply_repair
from tomoray.errors import Reason, Refused
from tomoray.geometry import Geometry

ROWS, COLUMNS = 36, 33  # of `make_series`
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
TILTED = (1.0, 0.0, 0.0, 0.0, 0.9510565163, -0.3090169944)  # by 18 degrees
BOTH = ("tilt", "variable_spacing")

Field = Callable[[np.ndarray], np.ndarray]  # LPS mm [..., 3] -> HU


@pytest.fixture
def stack_of(make_series) -> Callable[..., Stack]:
    """`stack_of(heights_mm, repairs=...)`: slices at heights along a direction, as files, and the stack they make."""

    def make(
        heights_mm: Sequence[float], *, repairs: Sequence[str], along=(0, 0, 1), orientation=AXIAL, spacing=(1, 1)
    ) -> Stack:
        series = make_series(len(heights_mm))
        for dataset, height in zip(series.datasets, heights_mm, strict=True):
            position = np.array([-3.0, 5.0, 7.0]) + np.multiply(height, along)
            dataset.ImagePositionPatient = [round(float(v), 9) for v in position]
            dataset.ImageOrientationPatient = list(orientation)
            dataset.PixelSpacing = list(spacing)
        stacks, rejected = assemble(series.instances(), Rules(repairs=frozenset(repairs)), lambda _a, _b: False)
        if rejected:
            raise rejected[0].refusal
        return stacks[0]

    return make


def places(geometry: Geometry) -> np.ndarray:
    """LPS mm of every voxel, [z, y, x, 3]."""
    z, y, x = np.indices(geometry.shape_zyx)
    return np.stack([x, y, z, np.ones_like(x)], axis=-1) @ geometry.matrix.T[:, :3]


def scanned(stack: Stack, field: Field, *, orientation=AXIAL, spacing=(1.0, 1.0)) -> np.ndarray:
    """What a scanner would give at the source planes."""
    assert stack.repair is not None
    along_row, along_column = np.reshape(orientation, (2, 3))
    y, x = np.indices((ROWS, COLUMNS))
    in_plane = x[..., None] * along_row * spacing[1] + y[..., None] * along_column * spacing[0]
    exact = np.stack([field(np.array(position) + in_plane) for position in stack.repair.source_positions])
    return np.rint(exact).astype(np.int16)


def ramp(lps_mm: np.ndarray) -> np.ndarray:
    return lps_mm @ [8.0, 4.0, 10.0]


def covered(stack: Stack, slide_xy: tuple[float, float]) -> np.ndarray:
    """Target voxels that lie between samples, where a slice's first voxel moves by `slide_xy` voxels a target plane."""
    z, y, x = np.indices(stack.geometry.shape_zyx).astype(float)
    origin = np.linalg.inv(stack.geometry.matrix) @ [*stack.repair.source_positions[0], 1]
    x, y = x - origin[0] - slide_xy[0] * z, y - origin[1] - slide_xy[1] * z
    return (x >= 0) & (x <= COLUMNS - 1) & (y >= 0) & (y <= ROWS - 1)


def test_nothing_to_repair_gives_the_same_array(stack_of) -> None:
    stack = stack_of([0, 2, 4], repairs=BOTH)
    image = np.zeros(stack.geometry.shape_zyx, dtype=np.int16)
    assert apply_repair(image, stack) is image
    assert stack.notes == ()


def test_tilt_is_kept_as_it_is_unless_its_repair_is_asked_for(stack_of) -> None:
    assert stack_of([0, 2, 4], repairs=["variable_spacing"], along=(0, 0.25, 1)).repair is None


@pytest.mark.parametrize("slide_xy", [(0.0, 0.25), (0.0, -0.25), (0.5, 0.25), (-0.25, -0.5)])
def test_tilt_repair_reproduces_a_ramp_exactly(stack_of, slide_xy: tuple[float, float]) -> None:
    stack = stack_of([2.0 * n for n in range(7)], repairs=["tilt"], along=(slide_xy[0] / 2, slide_xy[1] / 2, 1))
    image = apply_repair(scanned(stack, ramp), stack)
    inside = covered(stack, slide_xy)
    assert image.dtype == np.int16
    assert inside.sum() > 0.5 * image.size
    assert np.array_equal(image[inside], ramp(places(stack.geometry))[inside])
    assert (image[~inside] == -1024).all()


def test_tilt_repair_makes_an_upright_grid_that_holds_every_voxel(stack_of) -> None:
    along = (0.1, -0.3, 1)
    stack = stack_of([2.0 * n for n in range(7)], repairs=["tilt"], along=along)
    columns = stack.geometry.matrix[:3, :3]
    np.testing.assert_allclose(columns, np.diag([1, 1, 2]), atol=1e-12)
    for z, position in enumerate(stack.repair.source_positions):
        np.testing.assert_allclose(position, np.array([-3, 5, 7]) + 2 * z * np.array(along), atol=1e-9)
        for corner in ([0, 0, 0], [COLUMNS - 1, ROWS - 1, 0]):
            x, y, k, _ = np.linalg.inv(stack.geometry.matrix) @ [*np.add(position, corner), 1]
            assert k == pytest.approx(z)
            assert -1e-9 <= x <= stack.geometry.shape_zyx[2] - 1 + 1e-9
            assert -1e-9 <= y <= stack.geometry.shape_zyx[1] - 1 + 1e-9
    assert stack.repair.kind == "tilt"
    assert stack.notes[-1] == "the tilt was resampled to an upright grid"


def test_tilt_repair_of_a_leaning_gantry_keeps_a_ramp_within_rounding(stack_of) -> None:
    setting = {"orientation": TILTED, "spacing": (0.5, 0.5)}
    stack = stack_of([1.3 * n for n in range(6)], repairs=["tilt"], **setting)
    image = apply_repair(scanned(stack, ramp, **setting), stack)
    inside = image != -1024
    assert inside.sum() >= 6 * (ROWS - 1) * COLUMNS
    assert np.abs(image - ramp(places(stack.geometry)))[inside].max() <= 1.0  # half a HU twice


def test_whole_voxels_of_slide_move_voxels_untouched(stack_of) -> None:
    stack = stack_of([2.0 * n for n in range(4)], repairs=["tilt"], along=(0, 0.5, 1))
    source = np.random.default_rng(0).integers(-1000, 3000, (4, ROWS, COLUMNS)).astype(np.int16)
    image = apply_repair(source, stack)
    assert image.shape == (4, ROWS + 3, COLUMNS)
    for z in range(4):
        assert np.array_equal(image[z, z : z + ROWS], source[z])


def test_variable_spacing_repair_reproduces_a_ramp_exactly(stack_of) -> None:
    stack = stack_of([0, 2, 5, 7, 9], repairs=["variable_spacing"])
    assert stack.geometry.shape_zyx == (6, ROWS, COLUMNS)
    assert stack.geometry.spacing_zyx_mm == pytest.approx((1.8, 1, 1))  # 9 mm in as few steps of 2 mm or less
    image = apply_repair(scanned(stack, ramp), stack)
    assert np.array_equal(image, np.rint(ramp(places(stack.geometry))))
    assert stack.repair.kind == "variable_spacing"
    assert stack.notes == ("steps from 2 to 3 mm were resampled to 1.8 mm",)


def test_variable_spacing_repair_keeps_slices_that_lie_on_the_grid(stack_of) -> None:
    stack = stack_of([0, 1, 3, 4, 6], repairs=["variable_spacing"])
    source = np.random.default_rng(0).integers(-1000, 3000, (5, ROWS, COLUMNS)).astype(np.int16)
    image = apply_repair(source, stack)
    assert np.array_equal(image[[0, 1, 3, 4, 6]], source)


def test_every_stored_plane_has_a_nearest_scanned_one(stack_of) -> None:
    def nearest(**setting) -> list[int]:
        return [ref.instance for ref in stack_of([0, 1, 3, 4, 6], repairs=BOTH, **setting).nearest_planes()]

    assert nearest() == [0, 1, 1, 2, 3, 3, 4]
    assert nearest(along=(0, 0.25, 1)) == [0, 1, 1, 2, 3, 3, 4]
    plain = stack_of([0, 2, 4], repairs=())
    assert plain.nearest_planes() == plain.planes


def test_error_between_slices_is_within_what_is_documented(stack_of) -> None:
    def bowl(lps_mm: np.ndarray) -> np.ndarray:
        return 5.0 * lps_mm[..., 2] ** 2

    stack = stack_of([0, 1, 2.5, 4, 6], repairs=["variable_spacing"])
    image = apply_repair(scanned(stack, bowl), stack)
    widest_mm, second_derivative = 2.0, 10.0
    error = np.abs(image - bowl(places(stack.geometry))).max()
    assert 1.0 < error <= widest_mm**2 / 8 * second_derivative + 1.0


def test_both_repairs_together_reproduce_a_ramp_exactly(stack_of) -> None:
    stack = stack_of([0, 1, 3, 4, 6], repairs=BOTH, along=(0, 0.25, 1))
    assert stack.repair.kind == "tilt+variable_spacing"
    image = apply_repair(scanned(stack, ramp), stack)
    known = image != -1024
    assert stack.geometry.shape_zyx == (7, ROWS + 2, COLUMNS)
    assert known.sum() >= 7 * (ROWS - 1) * COLUMNS
    assert np.array_equal(image[known], ramp(places(stack.geometry))[known])
    assert known[0, :ROWS].all()
    assert not known[0, ROWS:].any()


@pytest.mark.parametrize("repairs", [(), ("tilt",), ("variable_spacing",)])
def test_tilt_with_variable_spacing_wants_both_repairs(stack_of, repairs: tuple[str, ...]) -> None:
    with pytest.raises(Refused) as caught:
        stack_of([0, 1, 3, 4, 5.5, 7], repairs=repairs, along=(0, 0.25, 1))
    assert caught.value.reason == Reason.VARIABLE_SPACING


@pytest.mark.parametrize("heights", [[0, 2, 4.1, 6, 12.7, 15], [0, 2, 4.1, 6, 6.4, 8.4]])
def test_steps_too_wide_or_too_narrow_are_not_resampled(stack_of, heights: list[float]) -> None:
    with pytest.raises(Refused, match="to resample, wanted") as caught:
        stack_of(heights, repairs=["variable_spacing"])
    assert caught.value.reason == Reason.VARIABLE_SPACING


def test_missing_slices_are_never_made_up(stack_of) -> None:
    with pytest.raises(Refused) as caught:
        stack_of([0, 2, 4, 8, 10], repairs=BOTH)
    assert caught.value.reason == Reason.MISSING_SLICES


def test_rounded_positions_are_not_resampled_sideways(stack_of) -> None:
    stack = stack_of([0, 1, 3, 4, 6], repairs=BOTH, along=(0.004, 0.003, 1))
    assert stack.repair.kind == "variable_spacing"
    assert stack.geometry.shape_zyx == (7, ROWS, COLUMNS)


def test_apply_wants_the_planes_of_its_stack(stack_of) -> None:
    stack = stack_of([0, 1, 3, 4, 6], repairs=BOTH)
    with pytest.raises(ValueError, match=r"wanted \(5, 36, 33\)"):
        apply_repair(np.zeros((7, ROWS, COLUMNS), dtype=np.int16), stack)


def test_planes_that_miss_the_grid_leave_air() -> None:
    geometry = Geometry.from_matrix((2, 4, 4), np.eye(4))
    far = np.array([[50.0, 0, 0], [50.0, 0, 1]])
    assert (resample_planes(np.zeros((2, 4, 4), dtype=np.int16), far, geometry) == -1024).all()
