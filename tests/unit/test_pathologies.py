"""Good series broken in one way each: refused with the right reason, or stored with exactly the voxels scanned."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from benchmarks.pathology_cases import CASES, Case, Series
from tomoray.assembly.stack import Rules
from tomoray.dicom.headers import read_instance
from tomoray.ingest.inventory import group_dicom, head_of
from tomoray.ingest.loader import LoadedScan, RefusedPart, load_dicom
from tomoray.privacy.deidentify import Deidentifier
from tomoray.privacy.pseudonyms import Pseudonyms
from tomoray.volume import Volume

NAMES = Pseudonyms(b"a key for tests only, of no worth")
PLACE_TOLERANCE_MM = 0.02


def load(series: Series) -> tuple[list[LoadedScan], list[RefusedPart]]:
    """What the files end in, by the way that preprocessing takes."""
    files = series.files()
    heads = [
        head_of(read_instance(data, root="mem", key=name, size_bytes=len(data))) for name, data in sorted(files.items())
    ]
    parts = [
        part
        for found in group_dicom(heads, NAMES)
        for part in load_dicom(found, lambda _root, key: files[key], Deidentifier(NAMES), Rules())
    ]
    return [p for p in parts if isinstance(p, LoadedScan)], [p for p in parts if isinstance(p, RefusedPart)]


def places_mm(volume: Volume) -> np.ndarray:
    """(n, 3): where each voxel lies by the volume's affine, in the order of its ravelled image."""
    z, y, x = np.indices(volume.image_zyx.shape).reshape(3, -1)
    return (volume.geometry.matrix @ [x, y, z, np.ones_like(x)])[:3].T


def check_voxels(series: Series, volumes: list[Volume]) -> None:
    """Every voxel scanned is stored once, at its place, with its HU; and nothing else is."""
    scanned = [plane for plane in series.planes if plane.hu is not None]
    at = np.concatenate([plane.points() for plane in scanned])
    hu = np.concatenate([plane.hu.ravel() for plane in scanned])
    assert sum(volume.image_zyx.size for volume in volumes) == len(hu)
    used: set[tuple[float, ...]] = set()
    for volume in volumes:
        tree_hits = cKDTree(at).query_ball_point(places_mm(volume), PLACE_TOLERANCE_MM)
        for found, hits in zip(volume.image_zyx.ravel().tolist(), tree_hits, strict=True):
            matching = [n for n in hits if hu[n] == found]
            assert matching, "a voxel whose HU was not scanned there"
            used.add((*at[matching[0]].tolist(), found))
    assert len(used) == len({(*place, value) for place, value in zip(at.tolist(), hu.tolist(), strict=True)})


def test_there_are_many_cases_and_their_names_differ():
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)
    assert sum(case.n_scans == 0 for case in CASES) >= 40


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_is_refused_with_its_reason_or_stored_exactly(case: Case):
    series = case.make()

    scans, refused = load(series)

    assert sorted(part.refusal.reason for part in refused) == sorted(case.refused)
    assert len(scans) == case.n_scans
    for part in refused:
        assert part.refusal.evidence
        assert "PATHOLOGY" not in part.refusal.evidence.upper()
    if scans:
        check_voxels(series, [scan.volume for scan in scans])
    for scan in scans:
        notes = scan.volume.info.notes
        for note in case.notes:
            assert any(note in said for said in notes), notes
        assert notes == () or case.notes, f"a note that nobody expected: {notes}"


def test_files_are_the_same_each_time():
    for case in CASES[:3]:
        assert case.make().files() == case.make().files()


def test_the_comparison_finds_a_voxel_out_of_place():
    series = CASES[0].make()
    ((scan,), _) = load(series)
    scan.volume.image_zyx[[3, 4]] = scan.volume.image_zyx[[4, 3]]
    with pytest.raises(AssertionError, match="not scanned there"):
        check_voxels(series, [scan.volume])
