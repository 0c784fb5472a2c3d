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
from datetime import datetime
from typing import Any, Literal

from pydicom import Dataset

from tomoray import __version__, nifti
from tomoray.archive import Archive, Scan
from tomoray.config import Layout
from tomoray.dicom.seg import Kind, archived_headers, write_segmentation
from tomoray.dicom.sr import Measurements, write_report
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
        config_sha256: of what else they depend on, where that may change under the same weights; likewise.
    """

    store: Store
    format: Format
    model_sha256: str
    config_sha256: str | None = None

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
        config = {} if self.config_sha256 is None else {"config_sha256": self.config_sha256}
        return {"model_sha256": self.model_sha256, "format": self.format, **config}

    def _segmentation(self, scan: Scan, masks: Mapping[str, Mask]) -> dict[str, bytes]:
        try:
            headers = archived_headers(scan.geometry, scan.info, scan.header)
        except ValueError as error:
            raise Fatal(f"scan {scan.scan_id} did not come from DICOM ({error}); choose --format nifti") from error
        data = segmentation_file(masks, headers, self.model_sha256, scan.scan_id)
        return {"segmentation.dcm": data}


def segmentation_file(
    masks: Mapping[str, Mask],
    headers: Sequence[Dataset],
    model_sha256: str,
    name: str | None,
    kind: Kind = "BINARY",
    made: datetime | None = None,
) -> bytes:
    """A model's masks as DICOM SEG of the series that `headers` describe (`dicom.seg.write_segmentation`).

    Args:
        masks: by label.
        headers: of the series.
        model_sha256: of the weights.
        name: of the scan in its archive, or of the job: with the same one the same bytes each time. None: new UIDs.
        kind: BINARY or LABELMAP.
        made: when; None: at the source's own date where there is a name, else now.
    """
    return write_segmentation(masks, headers, kind=kind, **_authorship(model_sha256, name, "segmentation", made))


def report_file(
    measurements: Measurements,
    headers: Sequence[Dataset],
    model_sha256: str,
    name: str | None,
    made: datetime | None = None,
) -> bytes:
    """What a model measured as DICOM SR of the series that `headers` describe (`dicom.sr.write_report`).

    With a `name`, its volumes refer to the segments of `segmentation_file` of the same name, model and series.
    """
    segmented = name is not None and bool(measurements.volumes_ml)
    return write_report(
        measurements, headers, segmented=segmented, **_authorship(model_sha256, name, "measurements", made)
    )


def _authorship(model_sha256: str, name: str | None, what: str, made: datetime | None) -> dict[str, Any]:
    return {
        "algorithm": f"TomoRay model {model_sha256[:12]}",
        "algorithm_version": __version__,
        "uid_seed": name and f"{model_sha256}/{name}",
        "series_description": f"TomoRay {what}",
        "made": made,
    }


def _nifti_files(scan: Scan, masks: Mapping[str, Mask]) -> dict[str, bytes]:
    return {f"{label}.nii.gz": nifti.write(mask, scan.geometry) for label, mask in masks.items()}
