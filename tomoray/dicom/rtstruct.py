"""Contours of an RT Structure Set (PS3.3 A.19, C.8.8.6) to masks on a scan's grid."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from tomoray.dicom.concepts import slug
from tomoray.dicom.frames import GRID_TOLERANCE
from tomoray.errors import Reason, Refused
from tomoray.geometry import Geometry, Matrix
from tomoray.volume import Mask

# CLOSED_PLANAR is drawn with holes as inner contours, against the letter of the standard; even-odd reads both
_CLOSED = {"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"}
_OPEN = {"OPEN_PLANAR", "OPEN_NONPLANAR"}
_DECIMALS = 6  # of a voxel: contours often run through voxel centres, where rounding would decide

Points = npt.NDArray[np.float64]


def read_rtstruct(dataset: Dataset, geometry: Geometry) -> dict[str, Mask]:
    """Masks of a structure set on a scan's grid, by label name in the order of ROI numbers.

    A voxel is inside where a line from its centre crosses the contours of its plane an odd number of times: inner
    contours are holes, and keyholes close by themselves. Planes without a contour are empty; nothing is interpolated.
    Points, and contours of fewer than three points, enclose nothing; an ROI of such only is left out.

    Names are slugs of the ROI names, without what names the patient; equal ones are told apart by ROI number.

    Args:
        dataset: the structure set.
        geometry: the grid of the scan that it refers to.

    Returns:
        uint8 [z, y, x], 0 or 1.

    Raises:
        Refused: LABEL_UNSUPPORTED (open or malformed contours, or none that is closed), LABEL_GEOMETRY_MISMATCH (a
            contour between the scan's planes, or beyond its voxels).
    """
    contours = {
        number: found
        for number, item in sorted(_items_by_number(dataset, "ROIContourSequence", "ReferencedROINumber").items())
        if (found := list(_closed_contours(item)))
    }
    if not contours:
        raise Refused(Reason.LABEL_UNSUPPORTED, "the structure set holds no closed contour")
    to_voxel = np.linalg.inv(geometry.matrix).astype(np.float64)
    names = _label_names(dataset, list(contours))
    return {
        names[number]: _fill([_on_grid(c, to_voxel, geometry) for c in contours[number]], geometry) for number in names
    }


def _items_by_number(dataset: Dataset, sequence: str, number: str) -> dict[int, Dataset]:
    try:
        return {int(item[number].value): item for item in dataset.get(sequence) or []}
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(Reason.LABEL_UNSUPPORTED, f"an item of {sequence} has no {number}") from error


def _closed_contours(roi: Dataset) -> Iterator[Points]:
    """The contours that enclose something, as points [n, 3] in LPS mm."""
    for contour in roi.get("ContourSequence") or []:
        kind = str(contour.get("ContourGeometricType", "")).upper()
        if kind == "POINT":
            continue
        if kind not in _CLOSED:
            found = kind if kind in _OPEN else "unknown"
            raise Refused(Reason.LABEL_UNSUPPORTED, f"a contour is of type {found}; wanted CLOSED_PLANAR")
        try:
            points = np.array(contour.get("ContourData") or [], dtype=np.float64).reshape(-1, 3)
        except (TypeError, ValueError) as error:
            raise Refused(Reason.LABEL_UNSUPPORTED, "a contour's points are not numbers in threes") from error
        if not np.isfinite(points).all():
            raise Refused(Reason.LABEL_UNSUPPORTED, "a contour's points are not finite")
        if len(points) >= 3:
            yield points


def _on_grid(points: Points, to_voxel: Matrix, geometry: Geometry) -> tuple[int, Points]:
    """The plane of a contour and its points [n, (x, y)] in voxels."""
    voxels = np.round(points @ to_voxel[:3, :3].T + to_voxel[:3, 3], _DECIMALS)
    plane = int(np.rint(voxels[:, 2].mean()))
    off = float(np.abs(voxels[:, 2] - plane).max())
    if off > GRID_TOLERANCE:
        raise Refused(
            Reason.LABEL_GEOMETRY_MISMATCH,
            f"a contour lies {off:.2f} planes off the scan's planes; wanted {GRID_TOLERANCE} at most",
        )
    planes, rows, columns = geometry.shape_zyx
    edge = 0.5 + GRID_TOLERANCE
    beyond = float(max((-voxels[:, :2]).max(), (voxels[:, :2] - [columns - 1, rows - 1]).max()))
    if not 0 <= plane < planes:
        raise Refused(Reason.LABEL_GEOMETRY_MISMATCH, f"a contour lies on plane {plane} of a scan of {planes} planes")
    if beyond > edge:
        raise Refused(
            Reason.LABEL_GEOMETRY_MISMATCH, f"a contour runs {beyond:.1f} voxels beyond the scan; wanted {edge} at most"
        )
    return plane, voxels[:, :2]


def _fill(contours: list[tuple[int, Points]], geometry: Geometry) -> Mask:
    mask: Mask = np.zeros(geometry.shape_zyx, np.uint8)
    for plane in sorted({plane for plane, _ in contours}):
        mask[plane] = fill_even_odd([points for at, points in contours if at == plane], geometry.shape_zyx[1:])
    return mask


def fill_even_odd(polygons: list[Points], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The pixels whose centres lie inside an odd number of polygons.

    Each edge flips, on every row whose centre line it crosses, all pixels from the crossing on. Centres on a left or
    upper edge are inside, on a right or lower one outside, so polygons that share an edge neither overlap nor gap.

    Args:
        polygons: points [n, (x, y)]; pixel centres lie at whole numbers. Closed from the last point to the first.
        size: rows and columns.

    Returns:
        uint8 [row, column], 0 or 1.
    """
    rows, columns = size
    flips = np.zeros((rows, columns + 1), np.uint8)
    starts = np.concatenate(polygons)
    ends = np.concatenate([np.roll(points, -1, axis=0) for points in polygons])
    swap = starts[:, 1] > ends[:, 1]  # always from above, so that the two ways along a keyhole cross alike
    upper, lower = np.where(swap[:, None], ends, starts), np.where(swap[:, None], starts, ends)
    first = np.clip(np.ceil(upper[:, 1]), 0, rows).astype(np.intp)
    count = np.clip(np.ceil(lower[:, 1]), 0, rows).astype(np.intp) - first
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    (x0, y0), (x1, y1) = upper[edge].T, lower[edge].T
    crossing = np.ceil(np.round(x0 + (row - y0) * (x1 - x0) / (y1 - y0), _DECIMALS))
    np.bitwise_xor.at(flips, (row, np.clip(crossing, 0, columns).astype(np.intp)), 1)
    return np.bitwise_xor.accumulate(flips, axis=1)[:, :columns]


def _label_names(dataset: Dataset, numbers: list[int]) -> dict[int, str]:
    described = _items_by_number(dataset, "StructureSetROISequence", "ROINumber")
    names: dict[int, str] = {}
    for number in numbers:
        name = _without_patient(slug(str(described.get(number, Dataset()).get("ROIName") or "")), dataset)
        name = name[:64].strip("-") or f"roi-{number}"
        names[number] = f"{name}-{number}" if name in names.values() else name
    return names


def _without_patient(name: str, dataset: Dataset) -> str:
    """`name` without the parts of the patient's name and without the patient's id; it is free text."""
    personal = {part for part in slug(str(dataset.get("PatientName") or "")).split("-") if len(part) > 2}
    patient_id = slug(str(dataset.get("PatientID") or ""))
    if len(patient_id) > 2:
        name = f"-{name}-".replace(f"-{patient_id}-", "-")
    return "-".join(part for part in name.split("-") if part and part not in personal)
