from __future__ import annotations

import gzip

import nibabel
import numpy as np
import pytest

from tomoray import nifti
from tomoray.errors import Reason, Refused
from tomoray.geometry import Geometry

RAS = np.array([[-2.0, 0, 0, 90], [0, 0, 1.5, -40], [0, 3, 0, 7], [0, 0, 0, 1]])


def file_of(array_xyz, affine=RAS, *, code=1) -> bytes:
    image = nibabel.Nifti1Image(array_xyz, affine)
    image.set_sform(affine, code=code)
    image.set_qform(affine, code=code)
    return image.to_bytes()


def test_voxels_keep_their_order_and_place():
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)

    image, geometry = nifti.read_image(file_of(values))

    assert image.shape == (4, 3, 2)
    assert image[3, 1, 0] == values[0, 1, 3]
    assert (geometry.matrix @ [0, 0, 0, 1])[:3] == pytest.approx([-90, 40, 7])  # LPS: x and y change sign
    assert (geometry.matrix @ [1, 0, 0, 1])[:3] == pytest.approx([-88, 40, 7])


def test_what_is_written_is_read_back_at_its_place():
    values = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    geometry = Geometry.from_matrix(
        values.shape, [[0.7, 0.1, 0, -150], [-0.1, 0.7, 0, -160], [0, 0, 2.5, 33], [0, 0, 0, 1]]
    )

    image, back = nifti.read_image(nifti.write(values, geometry))

    assert np.array_equal(image, values)
    assert back.agrees_with(geometry, tolerance_mm=1e-4)
    assert nifti.write(values, geometry) == nifti.write(values, geometry)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (file_of(np.zeros((2, 3, 4, 2), np.int16)), Reason.NIFTI_NOT_3D),
        (file_of(np.zeros((2, 3, 4), np.int16), code=0), Reason.NIFTI_NO_ORIENTATION),
        (file_of(np.full((2, 3, 4), 40_000, np.int32)), Reason.HU_OUT_OF_RANGE),
        (file_of(np.full((2, 3, 4), np.nan, np.float32)), Reason.HU_OUT_OF_RANGE),
        (b"\x1f\x8b no gzip at all", Reason.UNREADABLE),
        (b"a text file", Reason.UNREADABLE),
        (file_of(np.zeros((20, 30, 40), np.int16))[:900], Reason.UNREADABLE),
    ],
)
def test_refuses_what_is_no_ct_volume(data, reason):
    with pytest.raises(Refused) as caught:
        nifti.read_image(data)
    assert caught.value.reason == reason


def test_mask_on_another_grid_is_refused():
    _, geometry = nifti.read_image(file_of(np.zeros((2, 3, 4), np.int16)))
    moved = RAS.copy()
    moved[0, 3] += 0.5
    assert nifti.read_mask(file_of(np.full((2, 3, 4), 255, np.uint8)), geometry).max() == 1
    with pytest.raises(Refused, match="label_geometry_mismatch"):
        nifti.read_mask(file_of(np.ones((2, 3, 4), np.uint8), moved), geometry)


def test_mask_of_several_classes_is_refused_rather_than_merged():
    _, geometry = nifti.read_image(file_of(np.zeros((2, 3, 4), np.int16)))
    with pytest.raises(Refused, match="label_unsupported"):
        nifti.read_mask(file_of(np.arange(24, dtype=np.uint8).reshape(2, 3, 4)), geometry)


def test_gzip_bomb_is_not_unpacked(make_volume):
    volume = make_volume((4, 5, 6))
    plain = gzip.decompress(nifti.write(volume.image_zyx, volume.geometry))
    image, _ = nifti.read_image(gzip.compress(plain + bytes(1000)))
    np.testing.assert_array_equal(image, volume.image_zyx)
    with pytest.raises(Refused, match="cannot be read"):
        nifti.read_image(gzip.compress(plain + bytes(10**6)))
