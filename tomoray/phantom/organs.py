"""The organs of the phantom that lie in a few voxels: bones, heart, great vessels, airways.

Coordinates as in `tomoray.phantom.trunk`.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from tomoray.phantom.canvas import Canvas, Point, ellipsoid_depth, ray_depth
from tomoray.phantom.trunk import AIR_HU, FAT_HU, HEART_TILT, Body, front_of_cage, spine_y

_VERTEBRA_PITCH_MM = 23.0

Path = list[Point]


def draw_organs(canvas: Canvas, body: Body, rng: np.random.Generator) -> None:
    """Draw the spine, the other bones, the heart, the great vessels, a few lymph nodes and the airways."""
    _draw_spine(canvas, body)
    _draw_sternum(canvas, body)
    _draw_shoulders(canvas, body)
    _draw_heart(canvas, body)
    _draw_lymph_nodes(canvas, rng)
    _draw_great_vessels(canvas, body)
    _draw_airways(canvas)


def _draw_spine(canvas: Canvas, body: Body) -> None:
    """Vertebrae and discs one above the other, each with its arch and processes, and the canal with the cord."""
    box = canvas.box((-48, 26, -400), (48, 128, 400))
    x, y, z = box.x, box.y - spine_y(box.z), box.z + np.float32(body.phase_mm)
    half = _VERTEBRA_PITCH_MM / 2
    level = (z + half) % _VERTEBRA_PITCH_MM - half  # 0 in the middle of a vertebra
    waist = 0.98 - 0.10 * np.cos(level * np.float32(np.pi / half))
    column = ray_depth(x**2 + y**2, (x / (18.5 * waist)) ** 2 + (y / (15 * waist)) ** 2)
    canvas.paint(box, column, 90.0)  # discs
    vertebra = np.minimum(column, half - 2.6 - np.abs(level))
    canvas.paint(box, vertebra, 0.7 * body.bone_hu)
    canvas.paint(box, vertebra - 1.6, 0.22 * body.bone_hu)
    to_canal = np.sqrt((x / 1.12) ** 2 + (y - 24) ** 2)
    arch = np.minimum(14.5 - to_canal, 8.5 - np.abs(level + 3))
    canvas.paint(box, arch, 0.65 * body.bone_hu)
    tilted = level + 0.45 * (y - 36)
    spinous = np.minimum(np.minimum(3.6 - np.abs(x), np.minimum(y - 33, 52 - y)), 6.5 - np.abs(tilted))
    canvas.paint(box, spinous, 0.5 * body.bone_hu)
    side = np.abs(x)
    to_process = np.sqrt((y - 21 - 0.35 * (side - 12)) ** 2 + (level - 2) ** 2)
    process = np.minimum(5.0 - to_process, np.minimum(side - 9, 36 - side))
    canvas.paint(box, process, 0.7 * body.bone_hu)
    canvas.paint(box, process - 1.8, 0.3 * body.bone_hu)
    canvas.paint(box, 9.0 - to_canal, 22.0)
    canvas.paint(box, 4.8 - to_canal, 40.0)


def _draw_sternum(canvas: Canvas, body: Body) -> None:
    box = canvas.box((-26, -110, -95), (26, -20, 62))
    width = np.where(box.z > 30, 20, 14).astype(np.float32)
    y = box.y - front_of_cage(box.z) + 8
    sternum = ray_depth(box.x**2 + y**2, (box.x / width) ** 2 + (y / 5.8) ** 2)
    sternum = np.minimum(sternum, np.minimum(box.z + 88, 58 - box.z))
    canvas.paint(box, sternum, 0.5 * body.bone_hu)
    canvas.paint(box, sternum - 1.5, 0.2 * body.bone_hu)


def _draw_shoulders(canvas: Canvas, body: Body) -> None:
    """Clavicles, and shoulder blades as the arms lie above the head."""
    for side in (-1, 1):
        clavicle: Path = [(side * 16.0, -52.0, 62.0), (side * 60.0, -50.0, 84.0), (side * 120.0, -16.0, 106.0)]
        _bone(canvas, clavicle, (6.2, 6.0), body)
        _bone(canvas, [(side * 122.0, 52.0, 62.0), (side * 142.0, 30.0, 112.0)], (6.0, 13.0), body)
        turn = -side * np.radians(27)
        tilt = np.array([[np.cos(turn), np.sin(turn), 0], [-np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
        low, high = sorted((side * 30.0, side * 165.0))
        box = canvas.box((low, 0, -40), (high, 130, 125))
        blade = ellipsoid_depth(box, (side * 96.0, 74.0, 42.0), (34.0, 2.8, 60.0), tilt)
        canvas.paint(box, blade, 0.7 * body.bone_hu)


def _bone(canvas: Canvas, points: Path, radii: tuple[float, float], body: Body) -> None:
    """A long bone: dense outside, marrow inside."""
    _pipe(canvas, points, radii, 0.8 * body.bone_hu)
    _pipe(canvas, points, (radii[0] - 2.8, radii[1] - 2.8), 0.3 * body.bone_hu)


def _draw_heart(canvas: Canvas, body: Body) -> None:
    (x, y, z), radii = body.heart_centre, body.heart_radii
    box = canvas.box((x - 80, y - 80, z - 80), (x + 80, y + 80, z + 80))
    heart = ellipsoid_depth(box, (x, y, z), radii, HEART_TILT)
    flesh = 45 + 0.35 * (body.blood_hu - 45)
    canvas.paint(box, heart, flesh)
    for centre, size, share in (
        ((x + 16, y + 8, z - 6), (30.0, 20.0, 24.0), 1.0),  # left ventricle
        ((x - 10, y - 14, z - 4), (30.0, 15.0, 26.0), 0.85),  # right ventricle
        ((x - 30, y + 6, z + 14), (18.0, 18.0, 22.0), 0.8),  # right atrium
        ((x - 4, y + 26, z + 22), (26.0, 15.0, 16.0), 1.0),  # left atrium
    ):
        room = np.minimum(ellipsoid_depth(box, centre, size, HEART_TILT), heart - 4)
        canvas.paint(box, room, 45 + share * (body.blood_hu - 45))
    groove = 2.4 - np.abs(ellipsoid_depth(box, (x - 6, y + 2, z + 20), (34.0, 34.0, 30.0), HEART_TILT))
    canvas.paint(box, np.minimum(np.minimum(groove, heart + 1), 5 - heart), FAT_HU + 20)


def _draw_lymph_nodes(canvas: Canvas, rng: np.random.Generator) -> None:
    """A few small nodes along the trachea and in front of the arch."""
    for _ in range(int(rng.integers(4, 9))):
        centre = (float(rng.uniform(-20, 18)), float(rng.uniform(-30, 4)), float(rng.uniform(-16, 60)))
        size = (float(rng.uniform(3, 6)), float(rng.uniform(2.5, 4.5)), float(rng.uniform(3, 7)))
        box = canvas.box((-30, -42, centre[2] - 8), (30, 14, centre[2] + 8))
        canvas.paint(box, ellipsoid_depth(box, centre, size), 40.0)


def _draw_great_vessels(canvas: Canvas, body: Body) -> None:
    blood, r = body.blood_hu, body.aorta_mm
    arch: Path = [
        (-4, -22, -34),
        (-14, -30, -8),
        (-15, -28, 14),
        (-6, -16, 28),
        (10, 6, 31),
        (21, 28, 24),
        (23, 38, 4),
    ]
    _pipe(canvas, arch, (r * 1.15, r), blood)
    _pipe(canvas, [(23, 38, 4), (23, 39, -50), (19, 40, -100), (12, 38, -160)], (r, r * 0.85), blood)
    _pipe(canvas, [(18, -30, -34), (16, -26, -12), (10, -10, -8)], (14, 12.5), blood)
    _pipe(canvas, [(10, -10, -8), (-18, -4, -12), (-42, 2, -14)], (11.5, 9), blood)
    _pipe(canvas, [(10, -10, -8), (26, 4, -6), (42, 10, -10)], (11.5, 9), blood)
    for side in (-1, 1):
        _pipe(canvas, [(side * 14, 4, -36), (side * 42, 4, -30)], (8, 6), blood)
    vein = 45 + 0.7 * (blood - 45)
    _pipe(canvas, [(-26, -22, -36), (-27, -20, 0), (-25, -22, 44)], (9.5, 8.5), vein)
    _pipe(canvas, [(-25, -22, 44), (-40, -24, 70), (-70, -10, 96)], (7.5, 6), vein)
    _pipe(canvas, [(-25, -22, 44), (8, -30, 50), (40, -24, 70), (70, -10, 96)], (7, 6), vein)
    _pipe(canvas, [(-6, -12, 34), (-18, -6, 56), (-26, 4, 110)], (6, 4), blood)
    _pipe(canvas, [(4, -4, 36), (16, 0, 70), (24, 6, 125)], (4.5, 3.8), blood)
    _pipe(canvas, [(14, 8, 36), (26, 12, 70), (50, 10, 98)], (5, 4), blood)
    _pipe(canvas, [(-20, 6, -84), (-22, 12, -120), (-20, 18, -160)], (11, 12), 45 + 0.25 * (blood - 45))
    _pipe(canvas, [(3, 28, 120), (5, 30, 20), (8, 30, -40), (12, 20, -110)], (7, 8), 38.0)  # oesophagus
    _pipe(canvas, [(3, 28, 120), (5, 30, 40)], (1.4, 1.2), -600.0)


def _draw_airways(canvas: Canvas) -> None:
    trachea: Path = [(0, 6, 140), (0, 9, 70), (-2, 13, 6)]
    trees: list[tuple[Path, tuple[float, float]]] = [
        (trachea, (9.0, 8.8)),
        ([(-2, 13, 6), (-22, 15, -8), (-40, 14, -22)], (7.6, 6.2)),
        ([(-2, 13, 6), (20, 16, -12), (42, 20, -26)], (7.2, 5.8)),
        ([(-24, 15, -8), (-46, 8, 8), (-58, 4, 30)], (5.0, 2.6)),
        ([(-40, 14, -22), (-56, -16, -44)], (4.2, 2.2)),
        ([(-40, 14, -22), (-54, 24, -52), (-62, 34, -78)], (4.8, 2.2)),
        ([(38, 19, -24), (56, 2, 0), (60, 0, 26)], (4.8, 2.4)),
        ([(42, 20, -26), (56, 28, -52), (64, 36, -80)], (4.8, 2.2)),
    ]
    for points, (first, last) in trees:
        _pipe(canvas, points, (first + 1.6, last + 1.2), 30.0)
    for points, radii in trees:
        _pipe(canvas, points, radii, AIR_HU)


def _pipe(canvas: Canvas, points: Path, radii: tuple[float, float], hu: float) -> None:
    """A tube through several points, its radius going from the first to the last of `radii`."""
    steps = np.linspace(radii[0], radii[1], len(points))
    for (start, first), (end, last) in pairwise(zip(points, steps.tolist(), strict=True)):
        canvas.tube(start, end, (first, last), hu)
