"""What is inside the lungs of the phantom: trees of vessels, and nodules.

Coordinates as in `tomoray.phantom.trunk`; `scale` turns its nominal mm into the patient's, per axis (x, y, z).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tomoray.phantom.canvas import Box, Canvas, Field, Point

Points = npt.NDArray[np.float64]

# Roots of the four trees: pulmonary arteries and veins of both lungs.
_ROOTS: tuple[Point, ...] = ((-42.0, 2.0, -14.0), (42.0, 10.0, -10.0), (-42.0, 4.0, -30.0), (42.0, 4.0, -30.0))
_LEAVES = 600
_LEAF_RADIUS_MM = 0.62
_DETOUR = 0.45  # balancing factor of Cuntz et al. 2010: 0 saves length, 1 takes the straight way to the root
_MURRAY = 2.7  # r^2.7 of a parent is the sum over its children


@dataclass(frozen=True, kw_only=True, slots=True)
class Nodule:
    """One nodule as it was drawn.

    Attributes:
        centre: (x, y, z) in the mm of its frame: nominal where it is drawn, LPS in `PhantomPatient`.
        diameter_mm: of the sphere that its surface wobbles about.
        hu: mean density of the (outer) part; a part-solid nodule has a denser core.
        kind: "solid", "part-solid" or "ground-glass".
        pleural: whether it touches the surface of the lung, which cuts it.
    """

    centre: Point
    diameter_mm: float
    hu: float
    kind: str
    pleural: bool


def draw_vessels(canvas: Canvas, lungs: Field, blood_hu: float, rng: np.random.Generator) -> None:
    """Draw arteries and veins from the hila to everywhere in both `lungs` (depth inside them [z, y, x] in mm)."""
    for root in _ROOTS:
        inside = _sample(canvas, lungs, _LEAVES, rng, side=1 if root[0] > 0 else -1)
        nodes, parents = _grow(np.array(root), inside)
        radii = _radii(parents)
        for child, parent in enumerate(parents.tolist()):
            if parent < 0:
                continue
            ends = (float(min(radii[parent], 1.3 * radii[child])), float(radii[child]))
            start, end = nodes[parent], nodes[child]
            canvas.tube(
                (float(start[0]), float(start[1]), float(start[2])),
                (float(end[0]), float(end[1]), float(end[2])),
                ends,
                blood_hu - 15 if ends[1] > 1 else 20.0,
                brighten=True,
            )


def draw_nodules(
    canvas: Canvas, lungs: Field, scale: Point, rng: np.random.Generator
) -> tuple[npt.NDArray[np.bool_], list[Nodule]]:
    """Draw three to eight nodules apart from one another; return their mask [z, y, x] and what they are.

    The mask is what lies inside the lungs. A nodule that finds no room shrinks until it does, or is left out.
    """
    mask = np.zeros(lungs.shape, bool)
    diameters = np.sort(8.0 + 22.0 * rng.beta(1.6, 2.2, int(rng.integers(3, 9))))[::-1]
    diameters[0] = max(diameters[0], 15.0)
    placed: list[Nodule] = []
    for diameter_mm in diameters.tolist():
        kind = str(rng.choice(["solid", "part-solid", "ground-glass"], p=[0.7, 0.14, 0.16]))
        hu = float(rng.uniform(-20, 80) if kind == "solid" else rng.uniform(-550, -350))
        wanted = Nodule(
            centre=(0.0, 0.0, 0.0), diameter_mm=diameter_mm, hu=hu, kind=kind, pleural=bool(rng.random() < 0.3)
        )
        nodule = _find_room(canvas, lungs, scale, wanted, placed, rng)
        if nodule is not None:
            placed.append(nodule)
            _draw_nodule(canvas, lungs, nodule, scale, mask, rng)
    return mask, placed


def _find_room(
    canvas: Canvas, lungs: Field, scale: Point, wanted: Nodule, others: list[Nodule], rng: np.random.Generator
) -> Nodule | None:
    """The nodule at a random place: at the lung's surface or well inside, away from the hila and the others."""
    diameter = wanted.diameter_mm
    for centre in _sample(canvas, lungs, 500, rng):
        radii = _at(canvas, lungs, centre) / (diameter / 2)  # of depth
        room = 0.35 < radii < 0.75 if wanted.pleural else radii > 1.2
        gaps = [_apart(centre, root, scale) - 26 - diameter / 2 for root in _ROOTS]
        gaps += [_apart(centre, o.centre, scale) - 8 - (diameter + o.diameter_mm) / 2 for o in others]
        if room and min(gaps) > 0 and centre[2] < 85:
            return replace(wanted, centre=(float(centre[0]), float(centre[1]), float(centre[2])), diameter_mm=diameter)
        diameter = max(8.0, diameter * 0.997)
    return None


def _apart(one: Points, other: Point, scale: Point) -> float:
    """Distance in the patient's mm."""
    return float(np.linalg.norm((one - np.array(other)) * np.array(scale)))


def _draw_nodule(
    canvas: Canvas, lungs: Field, nodule: Nodule, scale: Point, mask: npt.NDArray[np.bool_], rng: np.random.Generator
) -> None:
    """A sphere whose radius wobbles with the direction by a few broad bumps."""
    reach = nodule.diameter_mm * 0.8
    low, high = ([c + sign * reach / s for c, s in zip(nodule.centre, scale, strict=True)] for sign in (-1, 1))
    box = canvas.box((low[0], low[1], low[2]), (high[0], high[1], high[2]))
    x, y, z = _millimetres(box, nodule.centre, scale)
    distance = np.sqrt(x * x + y * y + z * z) + np.float32(1e-3)
    radius = np.full(distance.shape, nodule.diameter_mm / 2, np.float32)
    for bumps, height in ((3, 0.10), (6, 0.05)):
        for direction in rng.standard_normal((bumps, 3)):
            u = (direction / np.linalg.norm(direction)).astype(np.float32)
            cosine = (x * u[0] + y * u[1] + z * u[2]) / distance
            radius += np.float32(rng.uniform(-height, height) * nodule.diameter_mm / 2) * (3 * cosine * cosine - 1)
    shape = radius - distance
    inside = lungs[box.part]
    mask[box.part] |= (shape > 0) & (inside > 0)
    under = canvas.hu[box.part]
    canvas.paint(box, np.minimum(shape, inside), nodule.hu if nodule.kind == "solid" else np.maximum(under, nodule.hu))
    if nodule.kind == "part-solid":
        canvas.paint(box, np.minimum(shape - 0.28 * nodule.diameter_mm, inside), float(rng.uniform(-10, 60)))


def _millimetres(box: Box, centre: Point, scale: Point) -> tuple[Field, Field, Field]:
    """The box's coordinates from `centre`, in the patient's mm."""
    parts = [
        (axis - np.float32(c)) * np.float32(s) for axis, c, s in zip((box.x, box.y, box.z), centre, scale, strict=True)
    ]
    return parts[0], parts[1], parts[2]


def _sample(canvas: Canvas, lungs: Field, count: int, rng: np.random.Generator, side: int = 0) -> Points:
    """Random points (x, y, z) at least 3 mm inside the lungs; `side` -1 takes the right lung only, 1 the left."""
    found: list[Points] = []
    total = 0
    lows = np.array([canvas.x[0], canvas.y[0], canvas.z[0]], float)
    highs = np.array([canvas.x[-1], canvas.y[-1], canvas.z[-1]], float)
    while total < count:
        points = rng.uniform(lows, highs, (max(64, 8 * count), 3))
        steps = (highs - lows) / (np.array(lungs.shape[::-1]) - 1)
        index = np.rint((points - lows) / steps).astype(int)
        good = (lungs[index[:, 2], index[:, 1], index[:, 0]] > 3) & (points[:, 0] * side >= 0)
        found.append(points[good])
        total += int(good.sum())
    return np.concatenate(found)[:count]


def _at(canvas: Canvas, field: Field, point: Points) -> float:
    """The field's value at the voxel nearest to a point."""
    x, y, z = (
        min(int(np.searchsorted(axis, value)), len(axis) - 1)
        for axis, value in zip((canvas.x, canvas.y, canvas.z), point, strict=True)
    )
    return float(field[z, y, x])


def _grow(root: Points, leaves: Points) -> tuple[Points, npt.NDArray[np.int64]]:
    """A tree from the root to all leaves that balances length against detour.

    Prim's algorithm with `_DETOUR` times the way from the root added to each edge (Cuntz et al. 2010,
    doi:10.1371/journal.pcbi.1000877).

    Returns:
        Nodes (n, 3), parents before children, and each node's parent (-1 for the root).
    """
    points = np.vstack([root, leaves])
    count = len(points)
    parent = np.zeros(count, np.int64)
    way = np.zeros(count)
    cost = np.linalg.norm(points - points[0], axis=1)
    cost[0] = np.inf
    length = cost.copy()
    rank, order = np.full(count, -1), [0]
    rank[0] = 0
    parents = [-1]
    for _ in range(count - 1):
        node = int(cost.argmin())
        rank[node] = len(order)
        order.append(node)
        parents.append(int(rank[parent[node]]))
        way[node] = way[parent[node]] + length[node]
        cost[node] = np.inf
        edge = np.linalg.norm(points - points[node], axis=1)
        better = (rank < 0) & (edge + _DETOUR * way[node] < cost)
        cost[better] = edge[better] + _DETOUR * way[node]
        length[better], parent[better] = edge[better], node
    return points[order], np.array(parents)


def _radii(parents: npt.NDArray[np.int64]) -> Points:
    """Radius of the vessel that ends at each node, by Murray's law from the leaves up; children follow parents."""
    flow = np.ones(len(parents))
    for child in range(len(parents) - 1, 0, -1):
        flow[parents[child]] += flow[child]
    radii: Points = _LEAF_RADIUS_MM * flow ** (1 / _MURRAY)
    return radii
