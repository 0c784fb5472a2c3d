"""The trunk of the phantom, from the skin to the surface of the lungs.

Everything is drawn in the coordinates of a nominal chest, in mm from the carina (x Left, y Posterior, z Superior);
`Body` says how a patient differs, and a patient's size only scales the axes of the canvas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tomoray.phantom.canvas import Box, Canvas, Field, Point, ellipsoid_depth, mix, ray_depth, smooth_max

FAT_HU, MUSCLE_HU, AIR_HU = -100.0, 55.0, -1000.0
APEX_MM, BASE_MM = 100.0, -132.0  # of the nominal lungs
HEART_TILT = np.array([[0.80, -0.45, -0.40], [0.49, 0.87, 0.0], [0.35, -0.20, 0.92]])

_RIB_PITCH_MM = 27.0
_SLAB = 8  # planes drawn at once: what they need stays in the cache

_LEVELS = (-160, -60, -20, 20, 50, 80, 100, 125)  # z, where the profiles below are given
_CAGE_HALF_WIDTH = (132, 130, 124, 114, 101, 83, 70, 62)
_CAGE_HALF_DEPTH = (92, 92, 88, 79, 68, 55, 46, 42)
_CAGE_CENTRE_Y = (0, 0, 1, 5, 10, 16, 20, 22)
_BODY_WIDTH = (0.97, 0.97, 0.98, 1.0, 1.02, 1.02, 1.0, 0.93)  # of the half width
_BODY_DEPTH = (1.0, 1.0, 1.0, 0.98, 0.94, 0.86, 0.78, 0.74)  # of the half depth
_BODY_CENTRE_Y = (0, 0, 0, 2, 5, 9, 13, 15)
_PEDICLE_HALF_WIDTH = (36, 36, 34, 31, 29, 31, 38, 50)


@dataclass(frozen=True, kw_only=True, slots=True)
class Body:
    """How a patient's chest differs from the nominal one; lengths in nominal mm.

    Attributes:
        fat_mm: depth of the fat under the skin at the flank.
        wall_mm: from the rib cage to the skin at the flank.
        heart: size of the heart, 1 is nominal.
        aorta_mm: its radius.
        domes_mm: height z of the right and left dome of the diaphragm.
        blood_hu: of arteries and the heart's chambers (with contrast or not).
        bone_hu: of cortical bone.
        lung_hu: of the parenchyma half way between front and back; `gravity_hu` more at the back, less in front.
        phase_mm: shifts vertebrae and ribs along z.
        lean_mm: how much lower the left ribs stand than the right ones.
    """

    female: bool
    fat_mm: float
    wall_mm: float
    heart: float
    aorta_mm: float
    domes_mm: tuple[float, float]
    blood_hu: float
    liver_hu: float
    bone_hu: float
    lung_hu: float
    gravity_hu: float
    phase_mm: float
    lean_mm: float

    @property
    def half_width_mm(self) -> float:
        """From the midline to the skin of the flank."""
        return 130 + self.wall_mm

    @property
    def half_depth_mm(self) -> float:
        """From the middle of the body to the skin of the back."""
        return 92 + 0.72 * self.wall_mm

    @property
    def heart_centre(self) -> Point:
        """The middle of the heart."""
        return 24.0, -24.0, -64.0

    @property
    def heart_radii(self) -> Point:
        """Half axes of the heart, along `HEART_TILT`."""
        return 56.0 * self.heart, 42.0 * self.heart, 48.0 * self.heart


@dataclass(frozen=True, kw_only=True, slots=True)
class Texture:
    """Smooth noise of unit variance, as tiles [z, y, x] that repeat: tissue is nowhere quite even.

    Attributes:
        fine: some 4 mm wide.
        broad: some 20 mm wide.
    """

    fine: Field
    broad: Field

    def slab(self, start: int, shape: tuple[int, ...]) -> tuple[Field, Field]:
        """Both, from plane `start` on, over `shape`."""
        return _tiled(self.fine, start, shape), _tiled(self.broad, start, shape)


def draw_trunk(canvas: Canvas, body: Body, texture: Texture) -> Field:
    """Draw skin, fat, muscle, ribs, lungs and upper abdomen; the depth inside the lungs, [z, y, x] in mm."""
    depth = np.empty_like(canvas.hu)
    for start in range(0, len(canvas.z), _SLAB):
        planes = slice(start, start + _SLAB)
        part = Canvas(hu=canvas.hu[planes], x=canvas.x, y=canvas.y, z=canvas.z[planes])
        depth[planes] = _Slab(part, body, *texture.slab(start, part.hu.shape)).draw()
    return depth


def profile(z: Field, values: tuple[float, ...]) -> Field:
    """One of this module's profiles at the heights `z`."""
    return np.interp(z, _LEVELS, values).astype(np.float32)


def front_of_cage(z: Field) -> Field:
    """Y of the inside of the breastbone."""
    return profile(z, _CAGE_CENTRE_Y) - profile(z, _CAGE_HALF_DEPTH)


def spine_y(z: Field) -> Field:
    """Y of the centre of the vertebral bodies: the curve of the thoracic spine."""
    return 60 - 16 * np.maximum((z - 30) / 80, 0) ** 2


class _Slab:
    """Some planes at work. Depths are mm [z, y, x] or of a shape that broadcasts to it."""

    def __init__(self, canvas: Canvas, body: Body, fine: Field, broad: Field) -> None:
        self.canvas, self.body, self.fine, self.broad = canvas, body, fine, broad
        self.x, self.y, self.z = canvas.x[None, None], canvas.y[None, :, None], canvas.z[:, None, None]
        self.box = Box((slice(None), slice(None), slice(None)), self.x, self.y, self.z)
        self.cage_y = profile(self.z, _CAGE_CENTRE_Y)
        self.cage = self._oval(
            profile(self.z, _CAGE_HALF_WIDTH),
            profile(self.z, _CAGE_HALF_DEPTH),
            self.cage_y,
            squareness=0.45,
            taper=0.10,
        )

    def draw(self) -> Field:
        """Draw everything from outside to inside; the depth inside the lungs."""
        self._wall()
        self._ribs()
        neck = np.clip((self.z - 80) * np.float32(1 / 20), 0, 1)
        self._fill(self.cage, FAT_HU + 5 * self.fine + neck * 140)
        dome = self._diaphragm()
        self._abdomen(np.minimum(dome - self.z, self.cage - 1))
        lungs: Field = np.minimum(self.cage - 2, self.z - dome)
        lungs = np.minimum(lungs, np.minimum(self._apex() - self.z, self.z - np.float32(BASE_MM)))
        lungs = np.minimum(lungs, -self._mediastinum())
        self._parenchyma(lungs)
        return lungs

    def _fill(self, depth: Field, hu: Field | float) -> None:
        mix(self.canvas.hu, self.canvas.coverage(depth), hu)

    def _oval(
        self, half_width: Field, half_depth: Field, centre_y: Field, *, squareness: float, taper: float = 0.0
    ) -> Field:
        """Depth inside an oval between ellipse (0) and rectangle (1): the squircle of Fernandez-Guasti (1992).

        With `taper` it is that share narrower in front, and wider behind.
        """
        y = self.y - centre_y
        v = y / half_depth
        u2, v2 = (self.x / (half_width * (1 + np.float32(taper) * np.clip(v, -1, 1)))) ** 2, v * v
        return ray_depth(self.x**2 + y * y, u2 + v2 - np.float32(squareness) * np.minimum(u2 * v2, 1))

    def _wall(self) -> None:
        """Skin, fat, and muscle in sheets with fat between them."""
        body, z = self.body, self.z
        skin = self._oval(
            body.half_width_mm * profile(z, _BODY_WIDTH),
            body.half_depth_mm * profile(z, _BODY_DEPTH),
            profile(z, _BODY_CENTRE_Y),
            squareness=0.55,
        )
        skin = skin - (2 + 4 * (self.y > 0)) * np.exp(-((self.x / 22) ** 2))  # the grooves of breastbone and spine
        gland = None
        if body.female:
            for side in (-1, 1):
                centre = (side * 76.0, -84.0 - 0.5 * body.wall_mm, -42.0)
                breast = ellipsoid_depth(self.box, centre, (54.0, 36.0, 58.0))
                skin = smooth_max(skin, breast, 12.0)
                gland = breast if gland is None else np.maximum(gland, breast)
        self._fill(skin, FAT_HU + 6 * self.fine)
        mix(self.canvas.hu, self.canvas.coverage(skin) - self.canvas.coverage(skin - 2), -10.0)
        if gland is not None:
            self._fill(np.minimum(gland - 10, 6 * (self.broad - 0.4)), 25.0)
        front = np.clip((-20 - self.y) * np.float32(1 / 60), 0, 1)
        fat_mm = np.float32(body.fat_mm) * (1 - np.float32(0.35) * front) + 2 * self.broad
        thick_mm = 25 + 13 * (1 - front) + 60 * np.clip((z - 25) * np.float32(1 / 65), 0, 1)
        muscle = np.minimum(skin - fat_mm, thick_mm + self.cage)
        self._fill(muscle, MUSCLE_HU + 6 * self.fine)
        for sheet_mm in (14.5, 24.0, 38.0):
            sheet = 1.1 + 1.1 * self.broad - np.abs(self.cage + np.float32(sheet_mm) + 3 * self.broad)
            self._fill(np.minimum(sheet, muscle - 1), FAT_HU + 25)

    def _ribs(self) -> None:
        """Oblique hoops: each falls from the spine to the front, where bone turns into cartilage."""
        iz, iy, ix = np.nonzero((self.cage < 0) & (self.cage > -13))
        x, y, z = self.x[0, 0, ix], self.y[0, iy, 0] - self.cage_y[iz, 0, 0], self.z[iz, 0, 0]
        angle = np.abs(np.arctan2(x, y)) * np.float32(1 / np.pi)  # 0 at the spine, 1 at the breastbone
        fall = 78 * np.sin(np.minimum(angle, 0.82) * np.float32(np.pi / 2 / 0.82)) ** 1.3
        fall -= 90 * np.maximum(angle - 0.82, 0)
        level = z + fall + np.float32(self.body.phase_mm) + np.float32(self.body.lean_mm / 2) * np.sign(x)
        across = (level + _RIB_PITCH_MM / 2) % _RIB_PITCH_MM - _RIB_PITCH_MM / 2
        radial = self.cage[iz, iy, ix] + np.float32(6.0)
        depth = 5.2 * (1 - np.sqrt((radial / 4.6) ** 2 + (across / 6.4) ** 2))
        depth = np.where((angle > 0.06) & (z + fall < 128), depth, np.float32(-9))
        bone = np.where(depth > 1.9, np.float32(0.3 * self.body.bone_hu), np.float32(self.body.bone_hu))
        bone = np.where(angle > 0.8, np.float32(110), bone)
        voxels = self.canvas.hu[iz, iy, ix]
        mix(voxels, self.canvas.coverage(depth), bone + 20 * self.fine[iz, iy, ix])
        self.canvas.hu[iz, iy, ix] = voxels

    def _diaphragm(self) -> Field:
        """Height z of the diaphragm over each (y, x): two domes that fall towards the wall, more at the back."""
        domes = []
        for side, height in zip((-1, 1), self.body.domes_mm, strict=True):
            rho2 = ((self.x - side * 60) / 72) ** 2 + ((self.y + 12) / 92) ** 2
            behind = np.maximum(self.y, 0) * np.float32(0.12)
            domes.append(np.float32(height) - 50 * rho2 * (0.6 + 0.4 * rho2) - behind)
        return smooth_max(domes[0], domes[1], 15.0)

    def _apex(self) -> Field:
        """Height z of the top of the lungs over each (y, x)."""
        tops = [APEX_MM - ((self.x - s * 42) / 8.4) ** 2 - ((self.y - 18) / 10.0) ** 2 for s in (-1, 1)]
        return np.maximum(tops[0], tops[1])

    def _mediastinum(self) -> Field:
        """Depth inside what keeps the lungs apart."""
        x, y, z, body = self.x, self.y, self.z, self.body
        width = profile(z, _PEDICLE_HALF_WIDTH)
        pedicle = self._oval(width, 0 * width + 60, 0 * width - 2, squareness=0.2)
        middle = 5 - np.abs(x - 4)
        behind = np.minimum(21 - np.abs(x), y - 54)
        depth = np.maximum(pedicle, np.maximum(middle, behind))
        radii = body.heart_radii
        heart = ellipsoid_depth(self.box, body.heart_centre, (radii[0] + 5, radii[1] + 5, radii[2] + 4), HEART_TILT)
        depth = smooth_max(depth, heart, 10.0)
        spine = 22 - np.sqrt(x**2 + (y - spine_y(z)) ** 2)
        aorta = body.aorta_mm + 2 - np.sqrt((x - 23) ** 2 + (y - 38) ** 2) - np.maximum(z - 14, 0)
        depth = smooth_max(depth, np.maximum(spine, aorta), 6.0)
        for side in (-1, 1):
            hilum = ellipsoid_depth(self.box, (side * 38.0, 4.0, -16.0), (17.0, 17.0, 22.0))
            depth = smooth_max(depth, hilum, 8.0)
        return depth

    def _abdomen(self, below: Field) -> None:
        """Diaphragm, liver, stomach and spleen; `below` is the depth under the domes and inside the cage."""
        if float(below.max()) < -2:
            return
        self._fill(below, FAT_HU + 5 * self.fine)
        mix(self.canvas.hu, self.canvas.coverage(below) - self.canvas.coverage(below - 3), MUSCLE_HU)
        inside = below - 3
        liver = np.minimum(inside, 34 - self.x - np.maximum(self.y + 20, 0) * np.float32(0.55))
        self._fill(liver, self.body.liver_hu + 5 * self.fine)
        stomach = np.minimum(inside - 1, ellipsoid_depth(self.box, (62.0, -30.0, -124.0), (38.0, 36.0, 36.0)))
        self._fill(stomach, 30.0)
        self._fill(np.minimum(stomach - 3, -38 - self.y), -960.0)  # gas rises to the front
        spleen = np.minimum(inside - 1, ellipsoid_depth(self.box, (88.0, 38.0, -126.0), (34.0, 40.0, 40.0)))
        self._fill(spleen, self.body.liver_hu - 6 + 5 * self.fine)

    def _parenchyma(self, lungs: Field) -> None:
        """Lung tissue, heavier towards the back, with the fissures between the lobes."""
        gravity = np.float32(self.body.gravity_hu / 80) * self.y
        self._fill(lungs, np.float32(self.body.lung_hu) + gravity + 16 * self.fine + 9 * self.broad)
        oblique = np.abs(self.z + 18 - 0.95 * self.y + 2 * self.broad) * np.float32(0.725)
        level = np.where(
            (self.x < 0) & (self.y < -4), np.abs(self.z + 14 - 0.08 * self.x + 2 * self.broad), np.float32(9)
        )
        fissure = np.minimum(0.3 + 0.3 * self.broad - np.minimum(oblique, level), lungs)
        self._fill(fissure, -700.0)


def _tiled(tile: Field, start: int, shape: tuple[int, ...]) -> Field:
    picks = [
        np.arange(first, first + n) % size for first, n, size in zip((start, 0, 0), shape, tile.shape, strict=True)
    ]
    part: npt.NDArray[np.float32] = tile[np.ix_(*picks)]
    return part
