"""What an image is: slices of a CT as they were reconstructed, or something that only shares their series."""

from __future__ import annotations

from tomoray.dicom.headers import (
    CT_IMAGE_STORAGE,
    CT_STORAGE,
    DRAWING_STORAGE,
    ENHANCED_CT_STORAGE,
    SECONDARY_CAPTURE_PREFIX,
    Instance,
    Plane,
)
from tomoray.errors import Reason, Refused

_REFORMATS = {"REFORMATTED", "MPR", "CSA MPR", "PROJECTION IMAGE", "MIP", "MINIP", "AVERAGE", "CPR", "CSAPARALLEL"}
_NOT_PLAIN = {"SCREEN SAVE", "DOSE_INFO", "PERFUSION"}


def refusal_of_kind(instance: Instance, plane: Plane | None, *, class_may_be_missing: bool = False) -> Refused | None:
    """Why a plane is no slice of a CT; None where it is one.

    Args:
        instance: the file.
        plane: the slice in it; None where its header describes none.
        class_may_be_missing: take Modality's word where the SOP Class UID is empty.

    Returns:
        A refusal with reason and evidence, not raised: the other planes of the series may be sound.
    """
    sop_class = instance.sop_class
    if class_may_be_missing and not sop_class:
        sop_class = CT_IMAGE_STORAGE
    if sop_class.startswith(SECONDARY_CAPTURE_PREFIX):
        return Refused(Reason.DERIVED, "secondary capture; wanted CT Image Storage")
    if sop_class in DRAWING_STORAGE:
        return Refused(Reason.LABEL_WITHOUT_IMAGE, "contours or masks of a series that is not among the sources")
    if instance.modality != "CT" or sop_class not in CT_STORAGE:
        found = instance.modality if instance.modality.isalnum() else "none"
        return Refused(Reason.NOT_CT, f"modality {found[:16]}; wanted CT Image Storage")

    image_type = instance.image_type if plane is None or not any(plane.image_type) else plane.image_type
    if "LOCALIZER" in image_type:
        return Refused(Reason.LOCALIZER, "image type says LOCALIZER; wanted axial slices")
    if _is_derived(image_type, enhanced=sop_class in ENHANCED_CT_STORAGE):
        return Refused(Reason.DERIVED, "image type says derived or reformatted; wanted original slices")
    if instance.burned_in:
        return Refused(Reason.BURNED_IN_ANNOTATION, "header says text is burned into the pixels")
    if not instance.rows or not instance.columns or instance.pixels.length == 0:
        return Refused(Reason.NOT_AN_IMAGE, "no rows and columns, or no pixels")
    if instance.pixels.samples not in (None, 1):
        return Refused(Reason.UNSUPPORTED_PIXELS, f"{instance.pixels.samples} samples a pixel (colour); wanted 1")
    return None


def _is_derived(image_type: tuple[str, ...], *, enhanced: bool) -> bool:
    """By Image Type (PS3.3 C.7.6.1.1.2), of enhanced CT also by value 4, Derived Pixel Contrast (C.8.16.1.4)."""
    kinds = set(image_type)
    if kinds & _NOT_PLAIN or (enhanced and any(contrast not in ("", "NONE") for contrast in image_type[3:4])):
        return True
    return image_type[:1] == ("DERIVED",) and bool(kinds & _REFORMATS or image_type[1:2] == ("SECONDARY",))
