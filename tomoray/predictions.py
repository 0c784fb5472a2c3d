"""Predicted masks as files: one folder a scan, complete when its mark is there, named by the model that drew them.

    zarr        OUT/scans/<scan_id>/labels/<label>/          an archive without images
    nifti       OUT/<scan_id>/<label>.nii.gz                 uint8, 0 or 1, on the scan's own grid
    dicom-seg   OUT/<scan_id>/segmentation.dcm               of the archived scan: its UIDs are pseudonyms

The last two add OUT/<scan_id>/prediction.json as their mark.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydicom import Dataset

from tomoray import __version__, nifti
from tomoray.archive import Archive, Scan
from tomoray.config import Layout
from tomoray.dicom.seg import archived_headers, write_segmentation
from tomoray.errors import Fatal
from tomoray.storage import Store
from tomoray.volume import Mask

Format = Literal["zarr", "nifti", "dicom-seg"]

_MARK = "prediction.json"


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The masks of one model in one place. Pickles.

    Attributes:
        model_sha256: of the weights; masks of another model are not complete, and are replaced.
    """

    store: Store
    format: Format
    model_sha256: str

    def prepare(self, layout: Layout) -> None:
        """Make the place ready, once, before any `write`. Raises `Fatal` where it cannot be used."""
        self.store.check()
        if self.format == "zarr" and not self.store.exists("tomoray.json"):
            Archive.create(self.store.url, layout)

    def has(self, scan_id: str) -> bool:
        """True where this model's masks of the scan are complete."""
        if self.format == "zarr":
            archive = Archive.open(self.store.url)
            return archive.has_scan(scan_id) and archive.scan(scan_id).attributes == self._attributes
        try:
            found: object = json.loads(self.store.read(f"{scan_id}/{_MARK}"))
        except FileNotFoundError:
            return False
        return found == self._attributes

    def write(self, scan: Scan, masks: Mapping[str, Mask]) -> None:
        """Store the masks of one scan, the mark last. Safe to repeat."""
        if self.format == "zarr":
            Archive.open(self.store.url).write_masks(scan.scan_id, masks, scan.geometry, self._attributes)
            return
        folder = self.store.child(scan.scan_id)
        folder.delete([_MARK])
        files = _nifti_files(scan, masks) if self.format == "nifti" else self._segmentation(scan, masks)
        for name, data in files.items():
            folder.write(name, data)
        folder.write(_MARK, json.dumps(self._attributes, sort_keys=True).encode())

    @property
    def _attributes(self) -> dict[str, str]:
        return {"model_sha256": self.model_sha256, "format": self.format}

    def _segmentation(self, scan: Scan, masks: Mapping[str, Mask]) -> dict[str, bytes]:
        try:
            headers = archived_headers(scan.geometry, scan.info, scan.header)
        except ValueError as error:
            raise Fatal(f"scan {scan.scan_id} did not come from DICOM ({error}); choose --format nifti") from error
        data = segmentation_file(masks, headers, self.model_sha256, scan.scan_id)
        return {"segmentation.dcm": data}


def segmentation_file(
    masks: Mapping[str, Mask], headers: Sequence[Dataset], model_sha256: str, scan_id: str | None
) -> bytes:
    """A model's masks as DICOM SEG of the series that `headers` describe (`dicom_seg.write_segmentation`).

    For an archived scan the same bytes each time; with no `scan_id` it gets new UIDs and today's date.
    """
    return write_segmentation(
        masks,
        headers,
        algorithm=f"TomoRay model {model_sha256[:12]}",
        algorithm_version=__version__,
        uid_seed=scan_id and f"{model_sha256}/{scan_id}",
        series_description="TomoRay segmentation",
    )


def _nifti_files(scan: Scan, masks: Mapping[str, Mask]) -> dict[str, bytes]:
    return {f"{label}.nii.gz": nifti.write(mask, scan.geometry) for label, mask in masks.items()}
