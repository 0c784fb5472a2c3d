"""NIfTI in and out. NIfTI affines are RAS; ours are LPS: x and y change sign."""

from __future__ import annotations

import gzip
import io
from collections.abc import Mapping
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from tomoray.errors import Reason, Refused
from tomoray.geometry import Geometry
from tomoray.volume import Image, Mask

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_HEAD_BYTES = 348
_SLACK_BYTES = 2**16  # more than this behind the voxels is a bomb


def read_image(data: bytes) -> tuple[Image, Geometry]:
    """Read a CT in HU from the bytes of a `.nii` or `.nii.gz` file.

    Returns:
        int16 [z, y, x] in the file's own voxel order, and its geometry. Fractional values are rounded.

    Raises:
        Refused: not three-dimensional, no orientation, values that are no 16-bit HU, or an unreadable file.
    """
    return as_image(*_read(data))


def read_mask(data: bytes, image: Geometry) -> Mask:
    """Read a mask that lies on the grid of `image`: 0 outside, one other value inside.

    Returns:
        uint8 [z, y, x], 0 or 1.

    Raises:
        Refused: the grids differ, there are several values inside, or as for `read_image`.
    """
    return as_mask(*_read(data), image)


def as_image(values_zyx: npt.NDArray[Any], geometry: Geometry) -> tuple[Image, Geometry]:
    """Values of any type as a CT in HU. Raises `Refused` where they are none."""
    low, high = float(values_zyx.min()), float(values_zyx.max())
    if not (low >= -32768 and high <= 32767):  # false for nan too
        raise Refused(Reason.HU_OUT_OF_RANGE, f"values from {low:g} to {high:g}; wanted HU within -32768 to 32767")
    rounded = values_zyx if values_zyx.dtype.kind in "iu" else np.rint(values_zyx)
    return np.ascontiguousarray(rounded, dtype=np.int16), geometry


def as_mask(values_zyx: npt.NDArray[Any], geometry: Geometry, image: Geometry) -> Mask:
    """Values of any type as a mask on the grid of `image`. Raises `Refused` where they are none."""
    if not geometry.agrees_with(image):
        raise Refused(
            Reason.LABEL_GEOMETRY_MISMATCH,
            f"mask has shape {geometry.shape_zyx} and image {image.shape_zyx}, or they lie apart; wanted one grid",
        )
    found = np.unique(values_zyx)
    if np.count_nonzero(found) > 1:
        raise Refused(Reason.LABEL_UNSUPPORTED, f"mask has {np.count_nonzero(found)} values beside 0; wanted one")
    return np.ascontiguousarray(values_zyx != 0, dtype=np.uint8)


def write(array_zyx: npt.NDArray[Any], geometry: Geometry) -> bytes:
    """The bytes of a `.nii.gz` file that holds `array_zyx` (int16 or uint8) at its place. The same every time."""
    make: Any = nibabel.Nifti1Image  # untyped
    image = make(np.transpose(array_zyx), _RAS_TO_LPS @ geometry.matrix)
    image.header.set_xyzt_units("mm", "sec")
    return gzip.compress(image.to_bytes(), compresslevel=3, mtime=0)


def write_label_map(masks: Mapping[str, Mask], geometry: Geometry) -> bytes:
    """One `.nii.gz` of uint8 in which class n is the n-th mask and 0 is background. The same every time.

    Where masks overlap the later one wins, as in training (`TrainConfig.labels`).

    Args:
        masks: uint8 [z, y, x], 0 or 1, by label; at most 255.
        geometry: the grid of every mask.
    """
    if len(masks) > 255:
        raise ValueError(f"{len(masks)} masks; a uint8 label map holds at most 255")
    classes_zyx = np.zeros(geometry.shape_zyx, dtype=np.uint8)
    for number, mask in enumerate(masks.values(), start=1):
        classes_zyx[mask > 0] = number
    return write(classes_zyx, geometry)


def _inflated(data: bytes) -> bytes:
    """The plain file; a gzip stream that holds more than its header says is no volume, and is not unpacked."""
    with gzip.open(io.BytesIO(data)) as plain:
        head = plain.read(_HEAD_BYTES)
        read_header: Any = nibabel.Nifti1Header.from_fileobj  # untyped
        header = read_header(io.BytesIO(head), check=False)
        n_bytes = (
            int(np.prod(header["dim"][1 : 1 + int(header["dim"][0])], dtype=np.int64)) * int(header["bitpix"]) // 8
        )
        wanted = max(0, n_bytes) + int(header["vox_offset"])
        rest = plain.read(max(0, wanted - len(head)))
        if len(rest) == wanted - len(head) and len(plain.read(_SLACK_BYTES)) == _SLACK_BYTES:
            raise ValueError("more bytes than voxels")
    return head + rest


def _read(data: bytes) -> tuple[npt.NDArray[Any], Geometry]:
    try:
        raw = _inflated(data) if data[:2] == b"\x1f\x8b" else data
        image = nibabel.Nifti1Image.from_stream(io.BytesIO(raw))
        values = np.asanyarray(image.dataobj)
        oriented = bool(image.header["sform_code"]) or bool(image.header["qform_code"])
    except Exception as error:  # a parser of broken bytes can raise anything; each file must be accounted for
        raise Refused(Reason.UNREADABLE, f"the NIfTI file cannot be read ({type(error).__name__})") from error
    if values.ndim != 3 or 0 in values.shape:
        raise Refused(Reason.NIFTI_NOT_3D, f"shape {values.shape}; wanted three axes")
    if not oriented:
        raise Refused(Reason.NIFTI_NO_ORIENTATION, "sform and qform codes are both 0; wanted an orientation")
    matrix = _RAS_TO_LPS @ image.affine
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-9:
        raise Refused(Reason.NIFTI_NO_ORIENTATION, "the affine is singular or not finite")
    return np.transpose(values), Geometry.from_matrix(values.shape[::-1], matrix)
