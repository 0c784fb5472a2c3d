"""A CT volume to draw on: boxes of voxels, smooth edges, tubes.

Legend: arrays are float32 [z, y, x]; positions are (x, y, z) in mm, x to the patient's Left, y to Posterior, z to
Superior. A depth is a distance to a surface in mm, positive inside; `coverage` turns it into the share of a voxel
that lies inside, so that edges show partial volume.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.floating[Any]]  # float32 throughout, which numpy's types cannot follow
Point = tuple[float, float, float]


class Box(NamedTuple):
    """A part of a canvas.

    Attributes:
        part: slices [z, y, x].
        x, y, z: coordinates in mm, each shaped to broadcast to the part.
    """

    part: tuple[slice, slice, slice]
    x: Field
    y: Field
    z: Field


@dataclass(frozen=True, kw_only=True, slots=True)
class Canvas:
    """Hounsfield units on a grid.

    Attributes:
        hu: [z, y, x], drawn on in place.
        x, y, z: coordinates of the voxel centres in mm, growing.
    """

    hu: Field
    x: Field
    y: Field
    z: Field

    @property
    def edge_mm(self) -> float:
        """Width over which an edge goes from 0 to 1."""
        return float(self.x[1] - self.x[0])

    def box(self, low: Point, high: Point) -> Box:
        """The voxels between two corners; perhaps none."""
        ix, iy, iz = (
            slice(int(np.searchsorted(axis, start)), int(np.searchsorted(axis, stop, side="right")))
            for axis, start, stop in zip((self.x, self.y, self.z), low, high, strict=True)
        )
        return Box((iz, iy, ix), self.x[None, None, ix], self.y[None, iy, None], self.z[iz, None, None])

    def coverage(self, depth: Field) -> Field:
        """Share of each voxel inside the surface that lies `depth` mm away."""
        share: Field = np.clip(depth * np.float32(1.0 / self.edge_mm) + np.float32(0.5), 0.0, 1.0)
        return share

    def paint(self, box: Box, depth: Field, hu: Field | float) -> None:
        """Fill what is inside a surface with `hu`; its edge is mixed with what was there."""
        mix(self.hu[box.part], self.coverage(depth), hu)

    def tube(self, start: Point, end: Point, radii: tuple[float, float], hu: float, *, brighten: bool = False) -> None:
        """Draw a tapering cylinder with round ends; `brighten` leaves what is brighter already."""
        reach = max(radii) + self.edge_mm
        low = tuple(min(a, b) - reach for a, b in zip(start, end, strict=True))
        high = tuple(max(a, b) + reach for a, b in zip(start, end, strict=True))
        box = self.box((low[0], low[1], low[2]), (high[0], high[1], high[2]))
        if 0 in (box.x.size, box.y.size, box.z.size):
            return
        share = self.coverage(capsule_depth(box, start, end, radii))
        share *= np.float32(min(1.0, 2.0 * max(radii) / self.edge_mm))
        view = self.hu[box.part]
        if brighten:
            np.maximum(view, view + share * (np.float32(hu) - view), out=view)
        else:
            mix(view, share, hu)


def mix(under: Field, share: Field, over: Field | float) -> None:
    """Change `under` in place to `(1 - share) * under + share * over`."""
    under += share * (over - under)


def capsule_depth(box: Box, start: Point, end: Point, radii: tuple[float, float]) -> Field:
    """Depth inside a tapering cylinder with round ends."""
    ax, ay, az = (np.float32(v) for v in start)
    ux, uy, uz = (np.float32(b - a) for a, b in zip(start, end, strict=True))
    length2 = max(float(ux * ux + uy * uy + uz * uz), 1e-6)
    dx, dy, dz = box.x - ax, box.y - ay, box.z - az
    along = dx * ux + dy * uy + dz * uz
    t = np.clip(along * np.float32(1.0 / length2), 0.0, 1.0)
    apart2 = dx * dx + dy * dy + dz * dz + t * (t * np.float32(length2) - 2 * along)
    depth: Field = np.float32(radii[0]) + t * np.float32(radii[1] - radii[0]) - np.sqrt(np.maximum(apart2, 0.0))
    return depth


def ellipsoid_depth(box: Box, centre: Point, radii: Point, tilt: npt.NDArray[np.float64] | None = None) -> Field:
    """Depth inside an ellipsoid, measured along the ray from its centre; `tilt` is a 3 x 3 rotation of its axes."""
    dx, dy, dz = (axis - np.float32(c) for axis, c in zip((box.x, box.y, box.z), centre, strict=True))
    rows = np.eye(3) if tilt is None else tilt
    scaled2: Field = np.zeros(1, np.float32)
    for a, b, c in (rows / np.array(radii)[:, None]).tolist():
        along = dx * np.float32(a) + dy * np.float32(b) + dz * np.float32(c)
        scaled2 = scaled2 + along * along
    return ray_depth(dx * dx + dy * dy + dz * dz, scaled2)


def ray_depth(distance2: Field, scaled2: Field) -> Field:
    """Depth along the ray from the centre, from squared distance in mm and squared share of the radius."""
    scaled = np.sqrt(np.maximum(scaled2, np.float32(1e-4)))
    depth: Field = np.sqrt(np.maximum(distance2, np.float32(1.0))) * (1 / scaled - 1)
    return depth


def smooth_max(a: Field, b: Field, blend_mm: float) -> Field:
    """The larger of two depths with the crease rounded over `blend_mm` (polynomial smooth maximum)."""
    over = np.maximum(np.float32(blend_mm) - np.abs(a - b), 0)
    depth: Field = np.maximum(a, b) + over * over * np.float32(0.25 / blend_mm)
    return depth
