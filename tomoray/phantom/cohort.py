"""A cohort of procedural thorax CTs as DICOM, with masks that are known: for the demo and for tests.

Each patient comes from a generator of its own, seeded by the cohort's seed and its index: the same pair writes the
same bytes, whatever the size of the cohort. Anatomy is in `phantom_anatomy` and `phantom_lungs`, the scanner in
`phantom_dicom`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import date, timedelta

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from tomoray import __version__
from tomoray.config import PhantomConfig
from tomoray.dicom.seg import write_segmentation
from tomoray.geometry import Geometry
from tomoray.phantom.canvas import Canvas, Point
from tomoray.phantom.lungs import Nodule, draw_nodules, draw_vessels
from tomoray.phantom.organs import draw_organs
from tomoray.phantom.scanner import SCANNERS, SYNTAXES, Scan, acquire, encode_slices, slice_headers
from tomoray.phantom.trunk import AIR_HU, APEX_MM, BASE_MM, Body, Texture, draw_trunk
from tomoray.progress import track
from tomoray.storage import open_store
from tomoray.volume import Mask


@dataclass(frozen=True, kw_only=True, slots=True)
class Anatomy:
    """What a patient is made of, before a scanner sees it.

    Attributes:
        scale: size along (x, y, z) against the nominal chest.
        centre_lps_mm: where the carina of the patient lies.
    """

    body: Body
    scale: Point
    centre_lps_mm: Point


@dataclass(frozen=True, kw_only=True, slots=True)
class PhantomImage:
    """A patient in memory.

    Attributes:
        hu_zyx: int16 HU, planes from feet to head.
        masks: "lungs" (the nodules in them included) and "nodules", uint8 [z, y, x].
        nodules: their centres in LPS mm.
    """

    scan: Scan
    geometry: Geometry
    hu_zyx: npt.NDArray[np.int16]
    masks: dict[str, Mask]
    nodules: tuple[Nodule, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PhantomPatient:
    """A patient as it was written.

    Attributes:
        folder: holds `ct/*.dcm` and `seg/lungs-nodules.dcm`.
    """

    patient_id: str
    folder: str
    slices: int
    size_bytes: int
    nodules: tuple[Nodule, ...]


def write_cohort(config: PhantomConfig) -> list[PhantomPatient]:
    """Write every patient of the cohort, one after another. Safe to repeat: the same config, the same bytes."""
    patients = []
    with track("phantom", config.patients) as advance:
        for index in range(config.patients):
            patients.append(write_patient(config, index))
            advance(1)
    return patients


def write_patient(config: PhantomConfig, index: int) -> PhantomPatient:
    """Write patient `index` (from 0) of the cohort: a CT series and its segmentation.

    Needs nothing from the other patients, so that a caller may write them in any order and in many processes. Other
    files in the patient's folder are deleted: slices of another cohort would make one broken series with these.
    """
    image = make_patient(config.seed, index, config.matrix)
    scan = image.scan
    headers = slice_headers(scan)
    files = {f"ct/{number:04d}.dcm": data for number, data in encode_slices(scan, image.hu_zyx, headers)}
    files["seg/lungs-nodules.dcm"] = write_segmentation(
        image.masks,
        headers,
        algorithm="TomoRay phantom",
        algorithm_version=__version__,
        uid_seed=f"{scan.uid_seed}/segmentation",
        series_description="Phantom truth: lungs, nodules",
    )
    folder = open_store(config.out).child(scan.patient_id)
    folder.delete(found.key for found in folder.list() if found.key not in files)  # of another seed or matrix
    for key, data in files.items():
        folder.write(key, data)
    return PhantomPatient(
        patient_id=scan.patient_id,
        folder=folder.url,
        slices=scan.planes,
        size_bytes=sum(len(data) for data in files.values()),
        nodules=image.nodules,
    )


def make_patient(seed: int, index: int, matrix: int = 256) -> PhantomImage:
    """Patient `index` of the cohort `seed` in memory, on `matrix` x `matrix` planes."""
    anatomy, scan = sample_patient(seed, index, matrix)
    rng = _generator(seed, index, "pixels")
    canvas = _canvas(anatomy, scan)
    texture = _texture(scan, rng)
    lungs = draw_trunk(canvas, anatomy.body, texture)
    draw_organs(canvas, anatomy.body, rng)
    draw_vessels(canvas, lungs, anatomy.body.blood_hu, rng)
    nodule_mask, nodules = draw_nodules(canvas, lungs, anatomy.scale, rng)
    masks = {"lungs": (lungs > 0).view(np.uint8), "nodules": nodule_mask.view(np.uint8)}
    del lungs, texture
    _draw_table(canvas, anatomy)
    hu = acquire(canvas.hu, scan, rng)
    placed = tuple(replace(n, centre=_to_lps(n.centre, anatomy)) for n in nodules)
    return PhantomImage(scan=scan, geometry=_geometry(scan), hu_zyx=hu, masks=masks, nodules=placed)


def sample_patient(seed: int, index: int, matrix: int = 256) -> tuple[Anatomy, Scan]:
    """What patient `index` is made of and how it is scanned; nothing is drawn yet.

    Vendors and transfer syntaxes take turns, so that a dozen patients have every pair of them.
    """
    rng = _generator(seed, index, "patient")
    contrast = bool(rng.random() < 0.4)
    body = _sample_body(rng, contrast=contrast)
    size = float(rng.normal(0.93 if body.female else 1.0, 0.04))
    sx, sy, sz = (size * float(rng.normal(1.0, spread)) for spread in (0.025, 0.04, 0.05))
    slice_mm = float(rng.choice([1.5, 2.0, 2.5, 3.0], p=[0.2, 0.4, 0.25, 0.15]))
    width_mm = float(np.clip(2.04 * body.half_width_mm * sx + rng.uniform(4, 24), 320, 430))
    pixel_mm = round(width_mm / matrix, 6)
    low, high = (BASE_MM - float(rng.uniform(4, 16))) * sz, (APEX_MM + float(rng.uniform(8, 20))) * sz
    half_mm = pixel_mm * (matrix - 1) / 2
    x = round(float(rng.uniform(-15, 15)) - half_mm, 1)
    y = round(float(rng.uniform(-40, 10)) - half_mm, 1)
    z = round(float(rng.uniform(-900, 200)) * 2) / 2
    height_m = float(rng.normal(1.72, 0.05)) * sz**0.5
    scan = Scan(
        scanner=SCANNERS[(index + seed) % len(SCANNERS)],
        syntax=SYNTAXES[(index + seed) % len(SYNTAXES)],
        sharp=bool(rng.random() < 0.4),
        rows=matrix,
        planes=int((high - low) / slice_mm) + 1,
        pixel_mm=pixel_mm,
        slice_mm=slice_mm,
        position_lps_mm=(x, y, z),
        head_first=bool(rng.random() < 0.65),
        patient_id=f"TOMORAY-{index:04d}",
        patient_name=f"PHANTOM^{index:04d}",
        sex="F" if body.female else "M",
        age_years=int(rng.integers(35, 88)),
        height_m=height_m,
        weight_kg=round(height_m**2 * (17 + 0.6 * body.fat_mm)),
        contrast=contrast,
        date=(date(2015, 1, 1) + timedelta(days=int(rng.integers(0, 3650)))).strftime("%Y%m%d"),
        time=f"{rng.integers(7, 19):02d}{rng.integers(0, 60):02d}{rng.integers(0, 60):02d}",
        table_height_mm=round(float(rng.uniform(110, 190)), 1),
        tube_ma=int(rng.integers(120, 340)),
        uid_seed=f"tomoray phantom/{seed}/{index}",
    )
    centre = (x + half_mm + float(rng.uniform(-4, 4)), y + half_mm + float(rng.uniform(-12, 0)), z - low)
    return Anatomy(body=body, scale=(sx, sy, sz), centre_lps_mm=centre), scan


def _sample_body(rng: np.random.Generator, *, contrast: bool) -> Body:
    fat_mm = float(np.clip(rng.normal(14, 6), 6, 28))
    return Body(
        female=bool(rng.random() < 0.5),
        fat_mm=fat_mm,
        wall_mm=30 + 0.75 * fat_mm + float(rng.uniform(-2, 4)),
        heart=float(rng.normal(1.0, 0.05)),
        aorta_mm=float(rng.uniform(11.0, 14.5)),
        domes_mm=(float(rng.normal(-66, 6)), float(rng.normal(-77, 6))),
        blood_hu=float(rng.uniform(150, 280) if contrast else rng.uniform(36, 48)),
        liver_hu=float(rng.uniform(85, 115) if contrast else rng.uniform(50, 65)),
        bone_hu=float(rng.uniform(650, 1000)),
        lung_hu=float(rng.normal(-858, 18)),
        gravity_hu=float(rng.uniform(25, 55)),
        phase_mm=float(rng.uniform(0, 23)),
        lean_mm=float(rng.normal(0, 7)),
    )


def _generator(seed: int, index: int, what: str) -> np.random.Generator:
    """A generator of its own for each seed, patient and purpose."""
    return np.random.default_rng(list(hashlib.sha256(f"{seed}/{index}/{what}".encode()).digest()))


def _to_lps(point: Point, anatomy: Anatomy) -> Point:
    x, y, z = (c + p * s for p, s, c in zip(point, anatomy.scale, anatomy.centre_lps_mm, strict=True))
    return x, y, z


def _canvas(anatomy: Anatomy, scan: Scan) -> Canvas:
    axes = []
    steps, counts = (scan.pixel_mm, scan.pixel_mm, scan.slice_mm), (scan.rows, scan.rows, scan.planes)
    for first, step, count, centre, scale in zip(
        scan.position_lps_mm, steps, counts, anatomy.centre_lps_mm, anatomy.scale, strict=True
    ):
        axes.append(((first + step * np.arange(count) - centre) / scale).astype(np.float32))
    x, y, z = axes
    return Canvas(hu=np.full((len(z), len(y), len(x)), AIR_HU, np.float32), x=x, y=y, z=z)


def _texture(scan: Scan, rng: np.random.Generator) -> Texture:
    """Tiles of some 100 mm."""
    steps = (scan.slice_mm, scan.pixel_mm, scan.pixel_mm)
    shape = [max(8, round(130 / step)) for step in steps]
    tiles = []
    for width_mm in (2.0, 8.0):
        tile = rng.standard_normal(shape, dtype=np.float32)
        tile = ndimage.gaussian_filter(tile, [width_mm / step for step in steps], mode="wrap")
        tiles.append(tile / tile.std())
    return Texture(fine=tiles[0], broad=tiles[1])


def _draw_table(canvas: Canvas, anatomy: Anatomy) -> None:
    """A curved carbon shell with foam in it, under the back."""
    top = anatomy.body.half_depth_mm + 7
    box = canvas.box((-400, top - 60, -1000), (400, top + 40, 1000))
    bow = top + 2 - 26 * (box.x / 190) ** 2
    depth = np.minimum(np.minimum(box.y - bow, bow + 16 - box.y), 195 - np.abs(box.x))
    board = canvas.coverage(depth)
    shell = board - canvas.coverage(depth - 2.5)
    view = canvas.hu[box.part]
    view += (view < -900) * (np.float32(60) * board + np.float32(700) * shell)


def _geometry(scan: Scan) -> Geometry:
    matrix = np.diag([scan.pixel_mm, scan.pixel_mm, scan.slice_mm, 1.0])
    matrix[:3, 3] = scan.position_lps_mm
    return Geometry.from_matrix((scan.planes, scan.rows, scan.rows), matrix)
