"""Where the frames of a multi-frame DICOM object lie on a scan's grid, and their pixels.

From the functional groups (PS3.3 C.7.6.16): each frame says its own position, or all share it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.pixels.utils import iter_pixels

from tomoray.errors import Reason, Refused
from tomoray.geometry import Geometry, Matrix

# A frame may lie this far from the grid, in voxels: positions are decimal strings, often rounded.
GRID_TOLERANCE = 0.1

Pixels = npt.NDArray[np.unsignedinteger[Any]]
Voxel = TypeVar("Voxel", bound=np.generic)


@dataclass(frozen=True, slots=True)
class FrameGroups:
    """The functional groups of one frame: its own, else those that all frames share."""

    own: Dataset
    shared: Dataset

    def item(self, keyword: str) -> Dataset:
        """The first item of a group. Raises `Refused` (LABEL_UNSUPPORTED) where there is none."""
        for groups in (self.own, self.shared):
            if groups.get(keyword):
                first: Dataset = groups[keyword].value[0]
                return first
        raise Refused(Reason.LABEL_UNSUPPORTED, f"a frame has no {keyword}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A rectangle in an array [z, y, x].

    Attributes:
        axes: the array's axes along (the frame's normal, down its rows, along its columns).
        flips: whether the frame runs against each of them.
        starts: the frame's first index on each axis, once flipped.
        size: rows and columns.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    starts: tuple[int, int, int]
    size: tuple[int, int]

    def of(self, array_zyx: npt.NDArray[Voxel]) -> npt.NDArray[Voxel]:
        """The frame's pixels [row, column] as a view of `array_zyx`."""
        turned = np.transpose(array_zyx, self.axes)[tuple(slice(None, None, -1 if f else 1) for f in self.flips)]
        plane, row, column = self.starts
        view: npt.NDArray[Voxel] = turned[plane, row : row + self.size[0], column : column + self.size[1]]
        return view


def frame_places(dataset: Dataset, geometry: Geometry) -> list[tuple[FrameGroups, Place]]:
    """The functional groups and the place of every frame, in the order of the pixels.

    Raises:
        Refused: LABEL_UNSUPPORTED (no position, orientation or spacing), LABEL_GEOMETRY_MISMATCH (a frame off the
            grid or beyond it).
    """
    to_voxel = np.linalg.inv(geometry.matrix)
    size = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    places = []
    for own in dataset.get("PerFrameFunctionalGroupsSequence") or []:
        groups = FrameGroups(own, shared)
        places.append((groups, _place(to_voxel @ _frame_matrix(groups), size, geometry)))
    return places


def decode_frames(dataset: Dataset, count: int) -> Iterator[Pixels]:
    """The pixels [row, column] of the frames, one at a time.

    Raises:
        Refused: LABEL_UNSUPPORTED where there are not `count`, UNDECODABLE_PIXELS.
    """
    stored = int(dataset.get("NumberOfFrames") or 0)
    if stored != count:
        raise Refused(Reason.LABEL_UNSUPPORTED, f"{stored} frames are stored, {count} are described")
    try:
        yield from iter_pixels(dataset, raw=True)
    except Exception as error:  # a codec fed with broken bytes can raise anything
        raise Refused(
            Reason.UNDECODABLE_PIXELS, f"pixel data are truncated or damaged ({type(error).__name__})"
        ) from error


def _frame_matrix(groups: FrameGroups) -> Matrix:
    """The affine (column, row, 0, 1) -> LPS mm of a frame (PS3.3 C.7.6.2.1.1)."""
    try:
        position = np.array(groups.item("PlanePositionSequence").ImagePositionPatient, float)
        orientation = np.array(groups.item("PlaneOrientationSequence").ImageOrientationPatient, float)
        down_mm, along_mm = (float(v) for v in groups.item("PixelMeasuresSequence").PixelSpacing)
        matrix = np.eye(4)
        matrix[:3, 0], matrix[:3, 1] = orientation[:3] * along_mm, orientation[3:] * down_mm
        matrix[:3, 3] = position
    except (AttributeError, TypeError, ValueError) as error:
        raise Refused(Reason.LABEL_UNSUPPORTED, "a frame has no position, orientation or spacing") from error
    return matrix


def _place(frame_to_voxel: Matrix, size: tuple[int, int], geometry: Geometry) -> Place:
    """The place of a frame from the affine (column, row, 0, 1) -> voxel (x, y, z)."""
    rows, columns = size
    corner, steps = frame_to_voxel[:3, 3], np.rint(frame_to_voxel[:3, :2])
    last = np.array([columns - 1, rows - 1])
    start = np.rint(corner)
    end = start + steps @ last
    if sorted(np.abs(steps).sum(axis=1).tolist()) != [0, 1, 1] or (np.abs(steps).sum(axis=0) != 1).any():
        raise Refused(Reason.LABEL_GEOMETRY_MISMATCH, "rows or columns of a frame do not follow the scan's voxels")
    far = corner + frame_to_voxel[:3, :2] @ last
    off = float(max(np.abs(corner - start).max(), np.abs(far - end).max()))
    if off > GRID_TOLERANCE:
        raise Refused(
            Reason.LABEL_GEOMETRY_MISMATCH,
            f"a frame lies {off:.2f} voxels off the scan's grid; wanted {GRID_TOLERANCE} at most",
        )
    shape_xyz = geometry.shape_zyx[::-1]
    if (np.minimum(start, end) < 0).any() or (np.maximum(start, end) >= shape_xyz).any():
        raise Refused(Reason.LABEL_GEOMETRY_MISMATCH, "a frame lies outside the scan")
    along, down = (int(np.abs(steps[:, i]).argmax()) for i in (0, 1))  # 0 is x
    normal = 3 - along - down
    flips = (False, bool(steps[down, 1] < 0), bool(steps[along, 0] < 0))
    plane, row, column = (
        int(shape_xyz[axis] - 1 - start[axis] if flip else start[axis])
        for axis, flip in zip((normal, down, along), flips, strict=True)
    )
    return Place(axes=(2 - normal, 2 - down, 2 - along), flips=flips, starts=(plane, row, column), size=size)
