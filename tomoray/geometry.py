"""Where voxels are: the affine from voxel index to patient millimetres.

Legend: arrays are indexed [z, y, x]; affines take the index as (x, y, z, 1) and give millimetres in LPS
(x grows to the patient's Left, y to Posterior, z to Superior), as in DICOM PS3.3 C.7.6.2.1.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
Zyx = tuple[int, int, int]
ZyxMm = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """Shape and place of a scan.

    Attributes:
        shape_zyx: number of voxels along z, y, x.
        affine_lps: 16 numbers, row by row: voxel index (x, y, z, 1) -> LPS mm.
    """

    shape_zyx: Zyx
    affine_lps: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.affine_lps) != 16:
            raise ValueError(f"affine_lps has {len(self.affine_lps)} numbers; wanted 16")

    @classmethod
    def from_matrix(cls, shape_zyx: Zyx, matrix: npt.ArrayLike) -> Geometry:
        """Make one from a 4 x 4 array-like."""
        rows = np.asarray(matrix, dtype=np.float64).reshape(4, 4)
        z, y, x = (int(n) for n in shape_zyx)
        return cls(shape_zyx=(z, y, x), affine_lps=tuple(float(v) for v in rows.ravel()))

    @property
    def matrix(self) -> Matrix:
        """The affine as a 4 x 4 float64 array."""
        return np.array(self.affine_lps, dtype=np.float64).reshape(4, 4)

    @property
    def spacing_zyx_mm(self) -> ZyxMm:
        """Distance between neighbouring voxels along z, y, x, in mm."""
        x, y, z = np.linalg.norm(self.matrix[:3, :3], axis=0)
        return float(z), float(y), float(x)

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.matrix[:3, :3]))) / 1000.0

    def agrees_with(self, other: Geometry, tolerance_mm: float = 0.01) -> bool:
        """True where every corner voxel of both grids lies at the same place, within `tolerance_mm`."""
        if self.shape_zyx != other.shape_zyx:
            return False
        z, y, x = (n - 1 for n in self.shape_zyx)
        corners = np.array([[i, j, k, 1] for i in (0, x) for j in (0, y) for k in (0, z)], dtype=np.float64).T
        apart = (self.matrix - other.matrix) @ corners
        return bool(np.abs(apart[:3]).max() <= tolerance_mm)

    def canonical_axes(self) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
        """The permutation and flips that turn a [z, y, x] array into nearest-LPS order.

        Returns:
            `(order, flips)`: `np.transpose(a, order)`, then reversing the axes where `flips` is true, gives an
            array whose axes grow to Superior, Posterior, Left. Both are lossless; see `to_canonical`.

        Raises:
            ValueError: two voxel axes run along the same patient axis.
        """
        columns = self.matrix[:3, :3] / np.linalg.norm(self.matrix[:3, :3], axis=0)
        patient_axis = np.abs(columns).argmax(axis=0)  # for voxel axes x, y, z: 0 = L, 1 = P, 2 = S
        if sorted(patient_axis.tolist()) != [0, 1, 2]:
            raise ValueError("two voxel axes run along the same patient axis; the affine is too oblique")
        order: list[int] = []
        flips: list[bool] = []
        for wanted in (2, 1, 0):
            column = int(np.flatnonzero(patient_axis == wanted)[0])
            order.append(2 - column)
            flips.append(bool(columns[wanted, column] < 0))
        return (order[0], order[1], order[2]), (flips[0], flips[1], flips[2])


def to_canonical(array_zyx: npt.NDArray[np.generic], geometry: Geometry) -> npt.NDArray[np.generic]:
    """A view of `array_zyx` (any dtype) with axes growing to Superior, Posterior, Left. No copy."""
    order, flips = geometry.canonical_axes()
    view = np.transpose(array_zyx, order)
    return view[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]


def from_canonical(array_zyx: npt.NDArray[np.generic], geometry: Geometry) -> npt.NDArray[np.generic]:
    """The inverse of `to_canonical`: back in the order in which `geometry` describes the scan. No copy."""
    order, flips = geometry.canonical_axes()
    view = array_zyx[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    return np.transpose(view, tuple(np.argsort(order)))
