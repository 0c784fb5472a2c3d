"""Slices of a scan with outlines of its masks, as SVG: a windowed PNG beneath, crisp contours above.

Legend: volumes are [z, y, x]; "canonical" ones have axes that grow to Superior, Posterior, Left. A picture is seen as
radiologists do: the patient's right on the left, anterior (axial) or superior (coronal) at the top; its SVG units
are millimetres, so the aspect is the body's whatever the voxels' shape.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from scipy import ndimage

from tomoray.geometry import Geometry, to_canonical
from tomoray.volume import Image, Mask

LUNG_WINDOW_HU = (-1350.0, 150.0)
BODY_HU = -300
CLOSE_UP_MM = 60.0
PIXELS_PER_VIEW = 520

Array = npt.NDArray[Any]
Sides = tuple[str, str, str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One scan with its true and its predicted masks (uint8 [z, y, x], by label), on the scan's own grid."""

    patient_id: str
    image_zyx: Image
    geometry: Geometry
    truth: Mapping[str, Mask]
    prediction: Mapping[str, Mask]


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """One slice, ready to draw.

    Attributes:
        name: "axial", "coronal" or "close-up".
        pixels: HU [row, column].
        pixel_mm: height and width of a pixel.
        truth, prediction: masks of the same shape, by label.
        sides: letters at the left, right, top and bottom edge.
    """

    name: str
    pixels: Array
    pixel_mm: tuple[float, float]
    truth: Mapping[str, Array]
    prediction: Mapping[str, Array]
    sides: Sides

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width."""
        return self.pixels.shape[0] * self.pixel_mm[0], self.pixels.shape[1] * self.pixel_mm[1]


def views(case: Case, label: str) -> list[View]:
    """Axial, coronal and an axial close-up through the largest piece of `label` (of the prediction where it has none).

    Where neither has a voxel of it: through the middle, and no close-up.
    """
    image = to_canonical(case.image_zyx, case.geometry)
    truth = {name: to_canonical(mask, case.geometry) for name, mask in case.truth.items()}
    prediction = {name: to_canonical(mask, case.geometry) for name, mask in case.prediction.items()}
    order, _ = case.geometry.canonical_axes()
    spacing = case.geometry.spacing_zyx_mm
    z_mm, y_mm, x_mm = spacing[order[0]], spacing[order[1]], spacing[order[2]]
    found = next((m[label] for m in (truth, prediction) if label in m and m[label].any()), None)
    z, y, x = (n // 2 for n in image.shape) if found is None else largest_piece(found)

    def view(
        name: str, cut: tuple[slice | int, ...], mm: tuple[float, float], sides: tuple[str, str, str, str]
    ) -> View:
        return View(
            name=name,
            pixels=image[cut],
            pixel_mm=mm,
            truth={name: mask[cut] for name, mask in truth.items()},
            prediction={name: mask[cut] for name, mask in prediction.items()},
            sides=sides,
        )

    axial_sides = ("R", "L", "A", "P")
    shown = [
        view("axial", (z, *_body(image[z])), (y_mm, x_mm), axial_sides),
        view("coronal", (slice(None, None, -1), y, _body(image[:, y])[1]), (z_mm, x_mm), ("R", "L", "S", "I")),
    ]
    if found is not None:
        around = _window((y, x), (y_mm, x_mm), image.shape[1:])
        shown.append(view("close-up", (z, *around), (y_mm, x_mm), axial_sides))
    return shown


def largest_piece(mask_zyx: Array) -> tuple[int, int, int]:
    """Where to cut: the z, y and x planes in which the largest connected piece has its largest areas."""
    pieces, _ = ndimage.label(mask_zyx > 0)
    largest = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    z, y, x = (int(largest.sum(axis=axes).argmax()) for axes in ((1, 2), (0, 2), (0, 1)))
    return z, y, x


def contours(mask: Array) -> list[npt.NDArray[np.int64]]:
    """Closed outlines of a binary mask, by marching squares at one half.

    Returns:
        Per outline an (n, 2) array of (x, y) in half pixels, pixel centres at even numbers; the last point equals
        the first. Outer outlines and holes wind in opposite directions, so that fill rules work too.
    """
    padded = np.pad(np.asarray(mask) > 0, 1).astype(np.int64)
    corners = padded[:-1, :-1] + 2 * padded[:-1, 1:] + 4 * padded[1:, 1:] + 8 * padded[1:, :-1]
    following: dict[tuple[int, int], tuple[int, int]] = {}
    for row, column in zip(*np.nonzero((corners > 0) & (corners < 15)), strict=True):
        x, y = 2 * (int(column) - 1), 2 * (int(row) - 1)
        for start, end in _SEGMENTS[int(corners[row, column])]:
            following[x + start[0], y + start[1]] = (x + end[0], y + end[1])
    outlines = []
    while following:
        first, point = following.popitem()
        outline = [first, point]
        while point != first:
            point = following.pop(point)
            outline.append(point)
        outlines.append(np.array(outline, dtype=np.int64))
    return outlines


def draw(view: View, window_hu: tuple[float, float] = LUNG_WINDOW_HU) -> str:
    """The view as one `<svg>` element; its classes `truth` and `prediction` are styled by the page."""
    height, width = view.size_mm
    bar = 10 if width < 100 else 50
    left, right, top, bottom = view.sides
    text = width / 27
    row_mm, column_mm = view.pixel_mm
    place = f"translate({column_mm / 2:.4f} {row_mm / 2:.4f}) scale({column_mm / 2:.5f} {row_mm / 2:.5f})"
    outlines = "".join(
        f'<path class="{kind}" transform="{place}" d="{_path(mask)}"><title>{kind}: {_plain(label)}</title></path>'
        for kind, masks in (("truth", view.truth), ("prediction", view.prediction))
        for label, mask in masks.items()
        if np.any(mask)
    )
    return (
        f'<svg viewBox="0 0 {width:.2f} {height:.2f}" role="img" aria-label="{view.name} slice with outlines">'
        f'<image href="data:image/png;base64,{_png(view, window_hu)}" width="{width:.2f}" height="{height:.2f}" '
        f'preserveAspectRatio="none"/>{outlines}'
        f'<g class="marks" font-size="{text:.2f}">'
        f'<text x="{text / 3:.2f}" y="{height / 2:.2f}">{left}</text>'
        f'<text x="{width - text / 3:.2f}" y="{height / 2:.2f}" text-anchor="end">{right}</text>'
        f'<text x="{width / 2:.2f}" y="{text:.2f}" text-anchor="middle">{top}</text>'
        f'<text x="{width / 2:.2f}" y="{height - text / 3:.2f}" text-anchor="middle">{bottom}</text>'
        f'<path d="M{width - text / 2:.2f} {height - text / 2:.2f}h{-bar}"/>'
        f'<text x="{width - text / 2:.2f}" y="{height - text * 0.9:.2f}" text-anchor="end">{bar} mm</text></g></svg>'
    )


_TOP, _RIGHT, _BOTTOM, _LEFT = (1, 0), (2, 1), (1, 2), (0, 1)
# By which corners are inside (1 top left, 2 top right, 4 bottom right, 8 bottom left); the inside is on the left.
_SEGMENTS = {
    1: [(_LEFT, _TOP)],
    2: [(_TOP, _RIGHT)],
    3: [(_LEFT, _RIGHT)],
    4: [(_RIGHT, _BOTTOM)],
    5: [(_LEFT, _TOP), (_RIGHT, _BOTTOM)],
    6: [(_TOP, _BOTTOM)],
    7: [(_LEFT, _BOTTOM)],
    8: [(_BOTTOM, _LEFT)],
    9: [(_BOTTOM, _TOP)],
    10: [(_TOP, _RIGHT), (_BOTTOM, _LEFT)],
    11: [(_BOTTOM, _RIGHT)],
    12: [(_RIGHT, _LEFT)],
    13: [(_RIGHT, _TOP)],
    14: [(_TOP, _LEFT)],
}


def _path(mask: Array) -> str:
    """Outlines as SVG path data; where a mask goes on beyond the picture, its outline closes outside of it."""
    parts = []
    for outline in contours(np.pad(mask, 1, mode="edge")):
        x, y = outline[0] - 2  # half pixels: the padding
        steps = np.diff(outline, axis=0)
        turns = np.flatnonzero(np.any(np.diff(steps, axis=0) != 0, axis=1)) + 1
        kept = np.diff(outline[np.concatenate(([0], turns, [len(outline) - 1]))], axis=0)[:-1]
        parts.append(f"M{x} {y}" + "".join(f"l{dx} {dy}" for dx, dy in kept) + "z")
    return "".join(parts)


def _png(view: View, window_hu: tuple[float, float]) -> str:
    height, width = view.size_mm
    scale = PIXELS_PER_VIEW / max(height, width)
    hu = Pillow.fromarray(np.ascontiguousarray(view.pixels, dtype=np.float32))
    hu = hu.resize((round(width * scale), round(height * scale)), Pillow.Resampling.BICUBIC)
    low, high = window_hu
    grey = np.clip((np.asarray(hu) - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Pillow.fromarray(grey).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _body(pixels: Array) -> tuple[slice, slice]:
    """Rows and columns that hold the body and a small margin; all where there is none."""
    inside = pixels > BODY_HU
    bounds = []
    for axis, size in ((1, pixels.shape[0]), (0, pixels.shape[1])):
        lines = np.flatnonzero(inside.mean(axis=axis) > 0.03)
        first, last, margin = (lines[0], lines[-1], size // 64) if lines.size else (0, size, 0)
        bounds.append(slice(max(0, int(first) - margin), min(size, int(last) + 1 + margin)))
    return bounds[0], bounds[1]


def _window(centre: tuple[int, int], pixel_mm: tuple[float, float], shape: tuple[int, ...]) -> tuple[slice, slice]:
    """A square of `CLOSE_UP_MM` around `centre`, moved inwards at an edge."""
    bounds = []
    for middle, mm, size in zip(centre, pixel_mm, shape, strict=True):
        n = min(size, round(CLOSE_UP_MM / mm))
        start = min(max(0, middle - n // 2), size - n)
        bounds.append(slice(start, start + n))
    return bounds[0], bounds[1]


def _plain(text: str) -> str:
    return "".join(c for c in text if c.isalnum() or c in " _-.")
