from __future__ import annotations

import numpy as np
import pytest
from pydicom import Dataset

from tomoray import nifti
from tomoray.dicom.rtstruct import fill_even_odd, read_rtstruct
from tomoray.errors import Reason, Refused
from tomoray.geometry import Geometry
from tomoray.volume import LABEL_NAME

GRID = Geometry.from_matrix((5, 64, 48), [[0.7, 0, 0, -20], [0, 0.8, 0, -30], [0, 0, 2.5, -100], [0, 0, 0, 1]])
TILTED = Geometry.from_matrix((5, 64, 48), [[0, 0, 2.5, -20], [0.8, 0, 0, -30], [0, -0.7, 0, 60], [0, 0, 0, 1]])


def contour(points_xy, plane: float, geometry: Geometry = GRID, kind: str = "CLOSED_PLANAR") -> Dataset:
    """A contour given in voxels."""
    item = Dataset()
    item.ContourGeometricType = kind
    voxels = [[x, y, plane, 1] for x, y in points_xy]
    item.ContourData = [f"{value:.4f}" for point in voxels for value in (geometry.matrix @ point)[:3]]
    return item


def structures(rois: dict[str, list[Dataset]]) -> Dataset:
    dataset = Dataset()
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(rois.items(), start=1):
        described, drawn = Dataset(), Dataset()
        described.ROINumber, described.ROIName = number, name
        drawn.ReferencedROINumber, drawn.ContourSequence = number, contours
        dataset.StructureSetROISequence.append(described)
        dataset.ROIContourSequence.append(drawn)
    return dataset


def circle(radius: float, x: float = 22.3, y: float = 30.6) -> list[tuple[float, float]]:
    angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    return [(x + radius * np.cos(a), y + radius * np.sin(a)) for a in angles]


def square(low: float, high: float) -> list[tuple[float, float]]:
    return [(low, low), (high, low), (high, high), (low, high)]


@pytest.mark.parametrize("geometry", [GRID, TILTED])
def test_circle_holds_the_voxels_whose_centres_lie_in_it(geometry):
    y, x = np.mgrid[:64, :48]
    distance = np.hypot(x - 22.3, y - 30.6)

    mask = read_rtstruct(structures({"GTV": [contour(circle(15), 2, geometry)]}), geometry)["gtv"]

    sure = np.abs(distance - 15) > 0.01  # the circle is a polygon
    assert np.array_equal(mask[2][sure], (distance < 15)[sure])
    assert mask.sum() == mask[2].sum()


def test_ring_of_two_contours_has_a_hole_and_a_keyhole_is_the_same():
    outer, inner = circle(15), circle(6)
    ring = read_rtstruct(structures({"a": [contour(outer, 1), contour(inner, 1)]}), GRID)["a"]
    keyhole = [*outer, outer[0], inner[0], *inner[::-1]]
    same = read_rtstruct(structures({"a": [contour(keyhole, 1)]}), GRID)["a"]
    assert ring[1].sum() == pytest.approx(np.pi * (15**2 - 6**2), rel=0.01)
    assert np.array_equal(ring, same)


def test_squares_that_share_an_edge_neither_overlap_nor_gap():
    left, right = [(1, 1), (5, 1), (5, 5), (1, 5)], [(5, 1), (9, 1), (9, 5), (5, 5)]
    size = (10, 12)
    one, other, both = (
        fill_even_odd([np.array(points, float) for points in given], size) for given in ([left], [right], [left, right])
    )
    assert one.sum() == other.sum() == 16
    assert np.array_equal(one + other, both)


def test_islands_and_planes_stay_apart():
    mask = read_rtstruct(
        structures({"a": [contour(square(1.5, 5.5), 0), contour(square(9.5, 11.5), 0), contour(square(1.5, 3.5), 4)]}),
        GRID,
    )["a"]
    assert mask.sum(axis=(1, 2)).tolist() == [16 + 4, 0, 0, 0, 4]
    assert mask[0, 2:6, 2:6].all()


def test_contour_on_the_outer_edge_of_the_scan_fills_it():
    whole = [(-0.5, -0.5), (47.5, -0.5), (47.5, 63.5), (-0.5, 63.5)]
    assert read_rtstruct(structures({"body": [contour(whole, 3)]}), GRID)["body"][3].all()


def test_points_enclose_nothing_and_do_not_stand_in_the_way():
    found = read_rtstruct(
        structures({"marker": [contour([(3, 3)], 0, kind="POINT")], "lung": [contour(square(2, 6), 1)]}), GRID
    )
    assert list(found) == ["lung"]


def test_names_are_safe_and_say_nothing_of_the_patient():
    dataset = structures(
        {name: [contour(square(2, 6), 1)] for name in ("Left Lung", "GTV Doe 4711-b", "../../x", "Ø", "left/lung")}
    )
    dataset.PatientName, dataset.PatientID = "DOE^JANE", "4711-B"
    names = list(read_rtstruct(dataset, GRID))
    assert names == ["left-lung", "gtv", "x", "roi-4", "left-lung-5"]
    assert all(LABEL_NAME.fullmatch(name) for name in names)


@pytest.mark.parametrize(
    ("contours", "reason", "evidence"),
    [
        ([contour(square(2, 6), 1.5)], Reason.LABEL_GEOMETRY_MISMATCH, "0.50 planes off"),
        ([contour(square(2, 6), 7)], Reason.LABEL_GEOMETRY_MISMATCH, "on plane 7 of a scan of 5"),
        ([contour(square(2, 60), 1)], Reason.LABEL_GEOMETRY_MISMATCH, "13.0 voxels beyond"),
        ([contour(square(2, 6), 1, TILTED)], Reason.LABEL_GEOMETRY_MISMATCH, "planes off"),
        ([contour(square(2, 6), 1, kind="OPEN_PLANAR")], Reason.LABEL_UNSUPPORTED, "type OPEN_PLANAR"),
        ([contour(square(2, 6), 1, kind="DOE_JANE")], Reason.LABEL_UNSUPPORTED, "type unknown"),
        ([contour([(2, 2), (3, 3)], 1)], Reason.LABEL_UNSUPPORTED, "no closed contour"),
        ([], Reason.LABEL_UNSUPPORTED, "no closed contour"),
    ],
)
def test_refuses_what_is_not_on_the_grid_or_not_closed(contours, reason, evidence):
    with pytest.raises(Refused) as caught:
        read_rtstruct(structures({"a": contours}), GRID)
    assert caught.value.reason == reason
    assert evidence in caught.value.evidence


def test_refuses_points_that_are_not_in_threes():
    item = contour(square(2, 6), 1)
    item.ContourData = item.ContourData[:-1]
    with pytest.raises(Refused, match="numbers in threes"):
        read_rtstruct(structures({"a": [item]}), GRID)


@pytest.mark.parametrize(("case", "volume_ml"), [("STS_003", 80.1), ("STS_008", 27.6), ("STS_035", 35.7)])
def test_real_contours_give_the_mask_that_others_made_of_them(case, volume_ml, real_ct, load_source):
    [scan] = load_source(str(real_ct / "sts-dicom" / f"{case}_CT_RTSTRUCT.tar.xz"))
    volume = scan.volume

    _, grid = nifti.read_image((real_ct / "sts-3mm" / f"{case}_ct.nii.gz").read_bytes())
    wanted = nifti.read_mask((real_ct / "sts-3mm" / f"{case}_gtv.nii.gz").read_bytes(), grid)

    [mask] = volume.labels.values()
    thinned = mask[:, 1::3, 1::3][:, : wanted.shape[1], : wanted.shape[2]]  # they kept every third row and column
    assert volume.geometry.spacing_zyx_mm[1] * 3 == pytest.approx(grid.spacing_zyx_mm[1], abs=1e-4)
    assert (thinned != wanted).sum() <= 0.005 * wanted.sum()
    assert mask.sum() * volume.geometry.voxel_volume_ml == pytest.approx(volume_ml, abs=0.05)
