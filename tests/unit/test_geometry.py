from __future__ import annotations

import itertools

import numpy as np
import pytest

from tomoray.geometry import Geometry, from_canonical, to_canonical


def axial(shape_zyx: tuple[int, int, int] = (4, 5, 6)) -> Geometry:
    """A plain head-first supine scan: x to the left, y to the back, z up."""
    return Geometry.from_matrix(shape_zyx, [[0.7, 0, 0, -100], [0, 0.8, 0, -90], [0, 0, 2.5, 30], [0, 0, 0, 1]])


def test_spacing_and_volume_come_from_the_affine() -> None:
    assert axial().spacing_zyx_mm == pytest.approx((2.5, 0.8, 0.7))
    assert axial().voxel_volume_ml == pytest.approx(2.5 * 0.8 * 0.7 / 1000)


def test_spacing_holds_for_a_turned_grid() -> None:
    c, s = np.cos(0.3), np.sin(0.3)
    turned = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ axial().matrix
    assert Geometry.from_matrix((4, 5, 6), turned).spacing_zyx_mm == pytest.approx((2.5, 0.8, 0.7))


def test_wants_sixteen_numbers() -> None:
    with pytest.raises(ValueError, match="12 numbers; wanted 16"):
        Geometry(shape_zyx=(1, 1, 1), affine_lps=tuple(range(12)))


def test_canonical_order_of_an_axial_scan_is_its_own() -> None:
    assert axial().canonical_axes() == ((0, 1, 2), (False, False, False))


def test_canonical_order_of_a_sagittal_scan() -> None:
    # voxel x runs to the back, y down, z to the right
    sagittal = Geometry.from_matrix((3, 4, 5), [[0, 0, -1, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    order, flips = sagittal.canonical_axes()
    assert order == (1, 2, 0)
    assert flips == (True, False, True)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_canonical_voxel_lies_where_the_affine_says(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    matrix = np.eye(4)
    for column, (patient_axis, sign) in enumerate(zip(order, signs, strict=True)):
        matrix[:3, column] = 0
        matrix[patient_axis, column] = sign
    geometry = Geometry.from_matrix((2, 3, 4), matrix)
    z, y, x = np.indices(geometry.shape_zyx)
    patient = np.einsum("ij,j...->i...", matrix, np.stack([x, y, z, np.ones_like(x)]))
    left, posterior, superior = (to_canonical(patient[axis], geometry) for axis in range(3))
    assert np.all(np.diff(superior, axis=0) == 1)
    assert np.all(np.diff(posterior, axis=1) == 1)
    assert np.all(np.diff(left, axis=2) == 1)
    np.testing.assert_array_equal(from_canonical(to_canonical(z, geometry), geometry), z)


def test_refuses_an_affine_without_three_axes() -> None:
    flat = Geometry.from_matrix((2, 2, 2), [[1, 1, 0, 0], [0, 0.1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    with pytest.raises(ValueError, match="same patient axis"):
        flat.canonical_axes()


def test_grids_agree_within_a_hundredth_of_a_millimetre_at_every_corner() -> None:
    moved, turned = axial().matrix, axial().matrix
    moved[0, 3] += 0.009
    turned[0, 2] += 0.009  # three planes up this makes 0.027 mm
    assert axial().agrees_with(Geometry.from_matrix((4, 5, 6), moved))
    assert not axial().agrees_with(Geometry.from_matrix((4, 5, 6), turned))
    assert not axial().agrees_with(axial((4, 5, 7)))
