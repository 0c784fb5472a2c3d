"""Pixel data of one DICOM instance -> Hounsfield units."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID

from tomoray.dicom import Instance, NotDicomError, quiet_pydicom, read_dataset
from tomoray.errors import Reason, Refused
from tomoray.volume import AIR_HU

Stored = npt.NDArray[np.integer[Any]]

# The fastest kept decoder of each syntax; pydicom's own preference would take GDCM for JPEG-LS.
_PLUGINS = {
    "1.2.840.10008.1.2.4.50": "pylibjpeg",  # JPEG baseline
    "1.2.840.10008.1.2.4.51": "pylibjpeg",  # JPEG extended
    "1.2.840.10008.1.2.4.57": "pylibjpeg",  # JPEG lossless
    "1.2.840.10008.1.2.4.70": "pylibjpeg",  # JPEG lossless, first order
    "1.2.840.10008.1.2.4.80": "pyjpegls",  # JPEG-LS lossless
    "1.2.840.10008.1.2.4.81": "pyjpegls",  # JPEG-LS near-lossless
    "1.2.840.10008.1.2.4.90": "pylibjpeg",  # JPEG 2000 lossless
    "1.2.840.10008.1.2.4.91": "pylibjpeg",  # JPEG 2000
    "1.2.840.10008.1.2.4.201": "pylibjpeg",  # HTJ2K lossless
    "1.2.840.10008.1.2.4.202": "pylibjpeg",  # HTJ2K lossless, RPCL
    "1.2.840.10008.1.2.4.203": "pylibjpeg",  # HTJ2K
    "1.2.840.10008.1.2.5": "pydicom",  # RLE lossless
}


def decode_hu(data: bytes, instance: Instance, frame: int, out: npt.NDArray[np.int16]) -> int:
    """Decode one slice into `out` as HU: rescale slope and intercept applied once (PS3.3 C.11.1.1.2).

    Padding (PS3.3 C.7.5.1.1.2) that lies below -1024 HU is written as -1024: it is no tissue and no air, and would
    bend every statistic. Values of a fractional slope are rounded to whole HU.

    Args:
        data: the whole file.
        instance: its header.
        frame: 0-based index of the slice in its file.
        out: int16 [y, x], filled in place.

    Returns:
        The number of padding voxels that were set to -1024.

    Raises:
        Refused: the pixels cannot be decoded, or do not fit 16-bit HU.
    """
    try:
        dataset = read_dataset(data)
    except NotDicomError as error:
        raise Refused(Reason.UNREADABLE, f"an instance cannot be read: {error}") from error
    stored = _stored_values(dataset)
    if stored.shape != out.shape:
        raise Refused(Reason.UNDECODABLE_PIXELS, f"pixel data decode to {stored.shape}; wanted {out.shape}")
    slope, intercept = instance.planes[frame].slope, instance.planes[frame].intercept
    assert slope is not None, "checked before pixels are read"
    assert intercept is not None, "as above"
    padding = _padding(dataset, stored, slope, intercept)
    if slope == 1.0 and intercept.is_integer():
        hu = stored.astype(np.int32)
        hu += int(intercept)
    else:
        hu = np.rint(stored * slope + intercept).astype(np.int64)
    if padding is not None:
        hu[padding] = AIR_HU
    low, high = int(hu.min()), int(hu.max())
    if low < -32768 or high > 32767:
        raise Refused(Reason.HU_OUT_OF_RANGE, f"HU from {low} to {high}; wanted -32768 to 32767")
    out[...] = hu
    return 0 if padding is None else int(padding.sum())


def _stored_values(dataset: Dataset) -> Stored:
    """The stored integers of a monochrome, single-frame instance, [y, x]."""
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", "")) if hasattr(dataset, "file_meta") else ""
    kind = f"{dataset.get('PhotometricInterpretation')}, {dataset.get('SamplesPerPixel')} samples"
    if kind != "MONOCHROME2, 1 samples" or int(dataset.get("NumberOfFrames") or 1) != 1:
        raise Refused(Reason.UNSUPPORTED_PIXELS, f"found {kind}; wanted one frame of MONOCHROME2, 1 samples")
    allocated, stored = dataset.get("BitsAllocated"), dataset.get("BitsStored")
    if allocated not in (8, 16) or not stored or not 1 <= stored <= allocated or dataset.get("HighBit") != stored - 1:
        raise Refused(
            Reason.UNSUPPORTED_PIXELS,
            f"bits allocated {allocated}, stored {stored}, high bit {dataset.get('HighBit')}; wanted 8 or 16 allocated "
            "with the high bit at stored - 1",
        )
    if "PixelData" not in dataset:
        raise Refused(Reason.NOT_AN_IMAGE, "no pixel data")
    compressed = UID(syntax).is_compressed if syntax.startswith("1.2.840.10008.1.2") else None
    if compressed is None or (compressed and syntax not in _PLUGINS and not UID(syntax).is_deflated):
        raise Refused(Reason.UNSUPPORTED_PIXELS, f"no decoder for transfer syntax {syntax[:64] or 'none'}")
    try:
        with quiet_pydicom():
            values = pixel_array(dataset, raw=True, decoding_plugin=_PLUGINS.get(syntax, ""))
    except Exception as error:  # a codec fed with broken bytes can raise anything
        raise Refused(
            Reason.UNDECODABLE_PIXELS, f"pixel data are truncated or damaged ({type(error).__name__})"
        ) from error
    if stored < allocated and syntax not in _PLUGINS:
        return _without_high_bits(values, allocated - stored)
    return cast("Stored", values)


def _without_high_bits(values: Stored, unused: int) -> Stored:
    """Drop what stands above the stored bits (old overlays), and extend the sign of signed values."""
    return cast("Stored", np.right_shift(np.left_shift(values, unused), unused))


def _padding(dataset: Dataset, stored: Stored, slope: float, intercept: float) -> npt.NDArray[np.bool_] | None:
    """Which voxels are padding below -1024 HU, or None where none is declared."""
    value = _same_sign(dataset.get("PixelPaddingValue"), stored.dtype)
    if value is None:
        return None
    limit = _same_sign(dataset.get("PixelPaddingRangeLimit"), stored.dtype)
    low, high = sorted((value, value if limit is None else limit))
    if max(low * slope, high * slope) + intercept >= AIR_HU:
        return None
    return cast("npt.NDArray[np.bool_]", stored == low if low == high else (stored >= low) & (stored <= high))


def _same_sign(value: object, dtype: np.dtype[Any]) -> int | None:
    """The padding value as the pixels hold it: writers often store a signed one as unsigned, or the other way."""
    if not isinstance(value, int):
        return None
    return int(np.array(value & 0xFFFF, dtype=np.uint16).view(np.int16)) if dtype.kind == "i" else value & 0xFFFF
