"""A scan in memory: Hounsfield units, where they are, and where they came from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tomoray.geometry import Geometry

LABEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # a folder's name in every store

AIR_HU = -1024  # what no scanner measures below; stands where nothing was scanned

Image = npt.NDArray[np.int16]
Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanUids:
    """Pseudonymous DICOM UIDs (`2.25.` + keyed number) of the source, for results that must refer to it.

    Attributes:
        instances: one SOP Instance UID for each plane, in plane order.
    """

    study: str
    series: str
    frame_of_reference: str
    instances: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanInfo:
    """Provenance of a scan. Every identifier in it is a keyed pseudonym.

    Attributes:
        part: which scan of its series, where that holds several, such as "acquisition 2".
        instances_sha256: keyed digest of the instances' UIDs and sizes; the same input gives the same one without
            decoding anything.
        input_sha256: digest of the SHA-256 of every file read, in plane order.
        notes: what was decided on the way, in plain words ("padding at -3024 HU set to -1024").
    """

    scan_id: str
    series_id: str
    patient_id: str
    source_uri: str
    n_instances: int
    instances_sha256: str
    input_sha256: str
    uids: ScanUids
    part: str = ""
    manufacturer: str | None = None
    model: str | None = None
    kernel: str | None = None
    kvp: float | None = None
    body_part: str | None = None
    slice_thickness_mm: float | None = None
    sex: str | None = None
    age_years: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Volume:
    """One scan.

    Attributes:
        image_zyx: int16 Hounsfield units, C order.
        labels: masks on the same grid by label name, uint8, 0 or 1.
    """

    image_zyx: Image
    geometry: Geometry
    info: ScanInfo
    labels: Mapping[str, Mask] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.image_zyx.dtype != np.int16 or self.image_zyx.shape != self.geometry.shape_zyx:
            raise ValueError(
                f"image is {self.image_zyx.dtype} {self.image_zyx.shape}; wanted int16 {self.geometry.shape_zyx}"
            )
        for name, mask in self.labels.items():
            if mask.dtype != np.uint8 or mask.shape != self.image_zyx.shape:
                raise ValueError(f"label {name!r} is {mask.dtype} {mask.shape}; wanted uint8 {self.image_zyx.shape}")
