"""What was drawn on a series, as segmentations or contours, onto the grid of a scan."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from pydicom import Dataset

from tomoray.dicom.headers import STRUCTURE_SET_STORAGE, NotDicomError, read_dataset
from tomoray.dicom.rtstruct import read_rtstruct
from tomoray.dicom.seg import read_segmentation
from tomoray.errors import Reason, Refused
from tomoray.geometry import Geometry
from tomoray.ingest.series import DicomFile
from tomoray.privacy.identifiers import identifiers, is_clean
from tomoray.volume import Mask


@dataclass(slots=True)
class Drawing:
    """A segmentation or structure set, and whether it fits any scan it was tried on.

    Attributes:
        digest: SHA-256 of the file.
        refusal: why it does not fit the scan it was tried on last.
    """

    file: DicomFile
    digest: str
    dataset: Dataset | None
    refusal: Refused | None = None
    fits: bool = False


def read_drawings(files: Iterable[DicomFile], read: Callable[[str, str], bytes]) -> list[Drawing]:
    """Read the files; one that cannot be read fits nothing."""
    drawings = []
    for file in files:
        drawing = Drawing(file, "", None)
        try:
            data = read(file.root, file.key)
            drawing.digest = hashlib.sha256(data).hexdigest()
            drawing.dataset = read_dataset(data)
        except NotDicomError as error:
            drawing.refusal = Refused(Reason.UNREADABLE, f"an instance cannot be read: {error}")
        except Refused as refusal:
            drawing.refusal = refusal
        drawings.append(drawing)
    return drawings


def draw(
    drawings: Iterable[Drawing], geometry: Geometry, of_scan: Collection[str] | None = ()
) -> tuple[dict[str, Mask], list[str]]:
    """The masks of all drawings that lie on this grid, by label, and the digests of those drawings.

    Labels' names are stored, so one that holds an identifier is refused.

    Args:
        drawings: what to try; those that fit are marked.
        geometry: the grid.
        of_scan: identifiers of the scan's header, beside which those of the drawing count; None: any name is taken.
    """
    labels: dict[str, Mask] = {}
    digests: list[str] = []
    for drawing in drawings:
        if drawing.dataset is None:
            continue
        contours = drawing.dataset.get("SOPClassUID") == STRUCTURE_SET_STORAGE
        try:
            masks = (read_rtstruct if contours else read_segmentation)(drawing.dataset, geometry)
            known = None if of_scan is None else identifiers(drawing.dataset).union(of_scan)
            if known and not all(is_clean(name, known) for name in masks):
                raise Refused(Reason.LABEL_UNSUPPORTED, "a label's name holds an identifier; wanted a name of no one")
            twice = sorted(masks.keys() & labels.keys())
            if twice:
                raise Refused(Reason.LABEL_UNSUPPORTED, f"label {twice[0]} is given by two segmentations of one series")
        except Refused as refusal:
            drawing.refusal = refusal
        else:
            labels.update(masks)
            drawing.fits = True
            digests.append(drawing.digest)
    return labels, digests
