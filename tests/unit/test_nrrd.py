from __future__ import annotations

import gzip
import io

import nrrd as pynrrd
import numpy as np
import pytest

from tomoray import nifti, nrrd
from tomoray.config import NiftiPattern
from tomoray.errors import Reason, Refused
from tomoray.geometry import Geometry
from tomoray.ingest.loader import LoadedScan
from tomoray.ingest.volume_files import group_volumes, is_volume
from tomoray.sources import list_source

DIRECTIONS = np.array([[0.7, 0.1, 0], [-0.1, 0.8, 0], [0, 0, 2.5]])  # a row an axis
ORIGIN = np.array([-120.0, -130, 40])


def file_of(values_xyz, **fields) -> bytes:
    header = {"space": "left-posterior-superior", "space directions": DIRECTIONS, "space origin": ORIGIN, **fields}
    buffer = io.BytesIO()
    pynrrd.write(buffer, values_xyz, {name: value for name, value in header.items() if value is not None})
    return buffer.getvalue()


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
@pytest.mark.parametrize("kind", [np.int16, np.float32, np.dtype(">i2"), np.uint8])
def test_voxels_keep_their_order_and_place_in_every_encoding(encoding, kind):
    values = np.arange(24).reshape(2, 3, 4).astype(kind)

    image, geometry = nrrd.read_image(file_of(values, encoding=encoding))

    assert (image.dtype, image.shape) == (np.int16, (4, 3, 2))
    assert image[3, 1, 0] == values[0, 1, 3]
    assert (geometry.matrix @ [0, 0, 0, 1])[:3] == pytest.approx(ORIGIN)
    assert (geometry.matrix @ [1, 0, 0, 1])[:3] == pytest.approx(ORIGIN + DIRECTIONS[0])


@pytest.mark.parametrize(
    ("space", "signs"), [("LPS", (1, 1)), ("right-anterior-superior", (-1, -1)), ("RAS", (-1, -1)), ("LAS", (1, -1))]
)
def test_space_of_the_file_becomes_lps(space, signs):
    _, geometry = nrrd.read_image(file_of(np.zeros((2, 3, 4), np.int16), space=space))
    assert (geometry.matrix @ [0, 0, 0, 1])[:3] == pytest.approx([-120 * signs[0], -130 * signs[1], 40])
    assert geometry.matrix[:2, 1] == pytest.approx([-0.1 * signs[0], 0.8 * signs[1]])


def test_nifti_and_nrrd_of_one_grid_agree():
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    image, geometry = nrrd.read_image(file_of(values))
    same, grid = nifti.read_image(nifti.write(image, geometry))
    assert np.array_equal(image, same)
    assert geometry.agrees_with(grid, tolerance_mm=1e-4)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (file_of(np.zeros((2, 3), np.int16), space=None, **{"space directions": None, "space origin": None}), "not_3d"),
        (file_of(np.zeros((2, 3, 4), np.int16), space=None, **{"space dimension": 3}), "no_orientation"),
        (file_of(np.zeros((2, 3, 4), np.int16), space="scanner-xyz"), "no_orientation"),
        (file_of(np.zeros((2, 3, 4), np.int16), **{"space origin": None}), "no_orientation"),
        (file_of(np.zeros((2, 3, 4), np.int16), **{"space directions": np.zeros((3, 3))}), "no_orientation"),
        (file_of(np.zeros((2, 3, 4), np.int16), **{"space units": ["cm", "cm", "cm"]}), "no_orientation"),
        (file_of(np.full((2, 3, 4), 40_000, np.int32)), "hu_out_of_range"),
        (file_of(np.full((2, 3, 4), np.nan, np.float32)), "hu_out_of_range"),
        (file_of(np.zeros((20, 30, 40), np.int16), encoding="raw")[:900], "unreadable"),
        (file_of(np.random.default_rng(0).integers(0, 99, (20, 30, 40)).astype(np.int16))[:900], "unreadable"),
        (b"a text file", "unreadable"),
        (b"", "unreadable"),
    ],
)
def test_refuses_what_is_no_ct_volume(data, reason):
    with pytest.raises(Refused) as caught:
        nrrd.read_image(data)
    assert caught.value.reason.endswith(reason)


def test_header_cannot_name_another_file_of_this_machine(tmp_path):
    (tmp_path / "voxels.raw").write_bytes(bytes(48))
    head = file_of(np.zeros((2, 3, 4), np.int16), encoding="raw").partition(b"\n\n")[0]
    with pytest.raises(Refused, match="another file"):
        nrrd.read_image(head + f"\ndata file: {tmp_path}/voxels.raw\n\n".encode())


def test_stream_with_far_more_than_its_voxels_is_refused():
    head = file_of(np.zeros((2, 3, 4), np.int16), encoding="gzip").partition(b"\n\n")[0]
    with pytest.raises(Refused, match="voxels of the NRRD file cannot be read"):
        nrrd.read_image(head + b"\n\n" + gzip.compress(bytes(10**7)))


def test_mask_lies_on_the_grid_of_its_image_or_is_refused():
    grid = Geometry.from_matrix((4, 3, 2), nrrd.read_image(file_of(np.zeros((2, 3, 4), np.int16)))[1].matrix)
    inside = np.zeros((2, 3, 4), np.uint8)
    inside[0, 1, 3] = 7
    assert np.argwhere(nrrd.read_mask(file_of(inside), grid)).tolist() == [[3, 1, 0]]
    for wrong, reason in (
        (file_of(inside, **{"space origin": ORIGIN + 1}), Reason.LABEL_GEOMETRY_MISMATCH),
        (file_of(np.arange(24, dtype=np.uint8).reshape(2, 3, 4)), Reason.LABEL_UNSUPPORTED),
    ):
        with pytest.raises(Refused) as caught:
            nrrd.read_mask(wrong, grid)
        assert caught.value.reason == reason


def test_cases_may_mix_both_formats(tmp_path, load_source):
    values = np.random.default_rng(0).integers(-1000, 100, (5, 6, 7)).astype(np.int16)
    image, grid = nrrd.read_image(file_of(values))
    (tmp_path / "a_ct.nrrd").write_bytes(file_of(values))
    (tmp_path / "a_lung.nii.gz").write_bytes(nifti.write((image > 0).astype(np.uint8), grid))
    (tmp_path / "a_gtv.nrrd").write_bytes(file_of((values > 50).astype(np.uint8)))
    (tmp_path / "b_ct.nii.gz").write_bytes(nifti.write(image, grid))
    (tmp_path / "b_ct.nrrd").write_bytes(file_of(values))

    files = list(list_source(str(tmp_path)))
    cases, bad = group_volumes(files, NiftiPattern())
    [volume] = [
        part.volume for part in load_source(str(tmp_path)) if isinstance(part, LoadedScan) and part.volume.labels
    ]

    assert all(is_volume(file) for file in files)
    assert [case.case for case in cases] == ["a", "b"]
    assert np.array_equal(volume.image_zyx, np.transpose(values))
    assert {name: int(mask.sum()) for name, mask in volume.labels.items()} == {
        "lung": int((values > 0).sum()),
        "gtv": int((values > 50).sum()),
    }
    assert [(entry.file.key, entry.refusal.reason) for entry in bad] == [("b_ct.nrrd", Reason.DUPLICATE_INSTANCE)]
