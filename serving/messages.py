"""What the gateway and the models tell each other: arrays and pseudonyms only, never a DICOM header.

A model answers `find.remote(Request(…))`, called with `options(stream=True)`, by any number of `Progress` and then one
`Segmentation`, `Classification` or `Detections`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import ray

from tomoray.geometry import Geometry
from tomoray.volume import Mask, ScanInfo

Explanation = Literal["uncertainty", "gradcam", "occlusion"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchivedScan:
    """A scan by its place.

    Attributes:
        archive: full URL of an archive that the server may read; the gateway has checked it.
        scan_id: of the scan.
    """

    archive: str
    scan_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a model is asked.

    Attributes:
        scan: an archived scan, or an object of Ray that holds `(image_zyx, geometry)`: int16 HU and where it is.
        explain: what else is wanted besides the finding; None: nothing.
        progress: whether anybody wants to know how far it is.
    """

    scan: ArchivedScan | ray.ObjectRef[Any]
    explain: Explanation | None = None
    progress: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a request is.

    Attributes:
        done: windows that went through the network.
        of: windows in all.
    """

    done: int
    of: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What every answer holds.

    Attributes:
        info: of the archived scan; None for one that was sent.
        header: of the archived scan, as it was archived; empty for one that was sent.
        seconds: by step.
        map_zyx: what was asked for as explanation, float16 0 to 1, on the scan's own grid; None: nothing was.
        sha256: of the weights that answered, where they may be others than those of `/v1/models`: a canary's.
    """

    geometry: Geometry
    info: ScanInfo | None = None
    header: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    map_zyx: npt.NDArray[np.float16] | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Segmentation(Finding):
    """Masks, an eighth of their size on the way.

    Attributes:
        packed: `np.packbits` of every mask [z, y, x], by label.
    """

    packed: Mapping[str, npt.NDArray[np.uint8]]

    def masks(self) -> dict[str, Mask]:
        """The masks, uint8 [z, y, x], 0 or 1, by label."""
        shape = self.geometry.shape_zyx
        count = int(np.prod(shape))
        return {label: np.unpackbits(bits, count=count).reshape(shape) for label, bits in self.packed.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Classification(Finding):
    """Probabilities of classes, calibrated where the run was; they sum to 1."""

    probabilities: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """One lesion.

    Attributes:
        center_lps_mm: patient coordinates (x, y, z).
        size_mm: edges along the scan's own axes (x, y, z).
        probability: 0 to 1.
    """

    label: str
    center_lps_mm: tuple[float, float, float]
    size_mm: tuple[float, float, float]
    probability: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Detections(Finding):
    """Boxes around lesions, the most probable first."""

    boxes: Sequence[Box]
