"""Where the server itself puts a result: a DICOMweb server, files, or an archive of masks; chosen by name.

Storing again changes nothing: names and UIDs follow from the job or the archived scan.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from serving.failures import HttpError
from serving.messages import Segmentation
from serving.replies import Kind, encode
from serving.results import Result
from serving.schemas import DICOM, JSON, NIFTI, StoredResult
from tomoray import dicomweb
from tomoray.archive import Archive
from tomoray.config import Layout
from tomoray.serving_config import DestinationConfig
from tomoray.storage import open_store

_FILES = {
    "segmentation.dcm": Kind(DICOM, "seg"),
    "report.dcm": Kind(DICOM, "sr"),
    "segmentation.nii.gz": Kind(NIFTI),
    "result.json": Kind(JSON),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Destinations:
    """All of them, by name."""

    places: Mapping[str, DestinationConfig]

    def check(self, name: str | None) -> None:
        """Raise `HttpError` for a name of none."""
        if name is not None and name not in self.places:
            known = ", ".join(self.places) or "none"
            raise HttpError(404, "unknown_destination", f"no destination of that name; known: {known}")

    def deliver(self, result: Result, name: str) -> StoredResult:
        """Store a result; where it is now.

        Raises:
            HttpError: 422; the destination takes no result of this kind.
            Transient, Fatal: it cannot be used.
        """
        place = self.places[name]
        called = result.uid_seed or secrets.token_hex(8)
        if place.stow:
            dicomweb.store(place.stow, list(_encoded(result, "segmentation.dcm", "report.dcm").values()))
            return StoredResult(destination=name, reference=f"series of {called}")
        if place.files:
            folder = open_store(place.files).child(called)
            for file_name, body in _encoded(result, *_FILES).items():
                folder.write(file_name, body)
            return StoredResult(destination=name, reference=folder.url)
        assert place.archive is not None, "a destination is one of three"
        if not isinstance(result.finding, Segmentation):
            raise HttpError(422, "not_storable", f"{result.model.name} makes no masks, and an archive takes only them")
        archive = Archive.create(place.archive, Layout())
        attributes = {"model_sha256": result.model.sha256, "format": "zarr"}
        archive.write_masks(called, result.finding.masks(), result.finding.geometry, attributes)
        return StoredResult(destination=name, reference=archive.scan(called).url)


def _encoded(result: Result, *file_names: str) -> dict[str, bytes]:
    """Those of the files that the result can be told as; at least one."""
    files: dict[str, bytes] = {}
    for file_name in file_names:
        try:
            files[file_name] = encode(result, _FILES[file_name]).body
        except HttpError as error:
            refusal = error
    if not files:
        raise HttpError(422, "not_storable", refusal.message)
    return files
