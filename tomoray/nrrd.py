"""NRRD in (https://teem.sourceforge.net/nrrd/format.html), of one file that holds header and voxels."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from typing import Any

import nrrd
import numpy as np
import numpy.typing as npt

from tomoray.errors import Reason, Refused
from tomoray.geometry import Geometry
from tomoray.nifti import as_image, as_mask
from tomoray.volume import Image, Mask

# What x and y of the file's space are multiplied with to become LPS
_TO_LPS = {
    "left-posterior-superior": (1.0, 1.0),
    "lps": (1.0, 1.0),
    "right-anterior-superior": (-1.0, -1.0),
    "ras": (-1.0, -1.0),
    "left-anterior-superior": (1.0, -1.0),
    "las": (1.0, -1.0),
}
_GZIP = ("gzip", "gz")


def read_image(data: bytes) -> tuple[Image, Geometry]:
    """Read a CT in HU from the bytes of a `.nrrd` file.

    Returns:
        int16 [z, y, x] in the file's own voxel order, and its geometry. Fractional values are rounded.

    Raises:
        Refused: not three-dimensional, no orientation, values that are no 16-bit HU, a detached or unreadable file.
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


def _read(data: bytes) -> tuple[npt.NDArray[Any], Geometry]:
    file = io.BytesIO(data)
    try:
        header: Mapping[str, Any] = nrrd.read_header(file)
        shape = tuple(int(n) for n in header["sizes"])
        detached = any("data" in name and "file" in name for name in header)
    except Exception as error:  # a parser of broken bytes can raise anything; each file must be accounted for
        raise Refused(Reason.UNREADABLE, f"the NRRD file cannot be read ({type(error).__name__})") from error
    if detached:  # it would name any file of this machine
        raise Refused(Reason.UNREADABLE, "the NRRD file keeps its voxels in another file; wanted one file with both")
    if len(shape) != 3 or min(shape) < 1:
        raise Refused(Reason.NIFTI_NOT_3D, f"shape {shape}; wanted three axes")
    geometry = _geometry(header, shape)
    try:
        values = nrrd.read_data(header, _bounded(header, file, shape))
    except Exception as error:  # as above
        raise Refused(
            Reason.UNREADABLE, f"the voxels of the NRRD file cannot be read ({type(error).__name__})"
        ) from error
    return np.transpose(values), geometry


def _geometry(header: Mapping[str, Any], shape: tuple[int, ...]) -> Geometry:
    space = str(header.get("space", "")).lower()
    if space not in _TO_LPS:
        found = "another" if space else "no"
        raise Refused(Reason.NIFTI_NO_ORIENTATION, f"the NRRD file names {found} space; wanted LPS, RAS or LAS")
    units = {str(unit).strip('"').lower() for unit in header.get("space units", ["mm"])}
    matrix = np.eye(4)
    try:
        matrix[:3, :3] = np.asarray(header["space directions"], dtype=np.float64).T
        matrix[:3, 3] = np.asarray(header["space origin"], dtype=np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(Reason.NIFTI_NO_ORIENTATION, "the NRRD file has no space directions or origin") from error
    if units - {"mm", "millimeter", "millimeters", ""}:
        raise Refused(Reason.NIFTI_NO_ORIENTATION, "the NRRD file's space units are other than mm")
    matrix[:2] *= np.array(_TO_LPS[space])[:, None]
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-9:
        raise Refused(Reason.NIFTI_NO_ORIENTATION, "the space directions are singular or not finite")
    return Geometry.from_matrix((shape[2], shape[1], shape[0]), matrix)


def _bounded(header: Mapping[str, Any], file: io.BytesIO, shape: tuple[int, ...]) -> io.BytesIO:
    """The voxels' bytes as they are to be parsed; a gzip stream that holds far more than its voxels is cut short."""
    if header.get("encoding") not in _GZIP:
        return file
    wanted = 8 * int(np.prod(shape, dtype=np.int64)) + 2**16
    plain = zlib.decompressobj(zlib.MAX_WBITS | 16)
    at = file.tell()
    plain.decompress(file.read(), wanted)
    if plain.unconsumed_tail:
        raise ValueError("more bytes than voxels")
    file.seek(at)
    return file
