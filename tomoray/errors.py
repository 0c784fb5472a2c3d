"""Errors, grouped by what the caller does next: skip the series, try again, or stop.

Every message is one line: the thing (by its pseudonym), what was found, what to do. It never holds patient
data. Errors cross process borders, so each passes all its arguments to `super().__init__`.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a series was not stored. The value stands in the catalog's `reason` column (docs/reasons.md)."""

    NOT_CT = "not_ct"
    NOT_AN_IMAGE = "not_an_image"
    LOCALIZER = "localizer"
    DERIVED = "derived"
    BURNED_IN_ANNOTATION = "burned_in_annotation"
    MISSING_UID = "missing_uid"
    MISSING_GEOMETRY = "missing_geometry"
    MISSING_RESCALE = "missing_rescale"
    TOO_FEW_SLICES = "too_few_slices"
    MIXED_ORIENTATION = "mixed_orientation"
    MIXED_SPACING = "mixed_spacing"
    MIXED_MATRIX = "mixed_matrix"
    MIXED_RESCALE = "mixed_rescale"
    MIXED_FRAME_OF_REFERENCE = "mixed_frame_of_reference"
    MIXED_ACQUISITION = "mixed_acquisition"
    MIXED_PATIENT = "mixed_patient"
    MIXED_STUDY = "mixed_study"
    NOT_ORTHOGONAL = "not_orthogonal"
    DUPLICATE_INSTANCE = "duplicate_instance"
    DUPLICATE_POSITION = "duplicate_position"
    MISSING_SLICES = "missing_slices"
    VARIABLE_SPACING = "variable_spacing"
    IRREGULAR_POSITIONS = "irregular_positions"
    TILT_MISMATCH = "tilt_mismatch"
    UNSUPPORTED_PIXELS = "unsupported_pixels"
    UNDECODABLE_PIXELS = "undecodable_pixels"
    TOO_LARGE = "too_large"
    HU_OUT_OF_RANGE = "hu_out_of_range"
    UNREADABLE = "unreadable"
    SEVERAL_SCANS = "several_scans"
    NIFTI_NO_ORIENTATION = "nifti_no_orientation"
    NIFTI_NOT_3D = "nifti_not_3d"
    LABEL_WITHOUT_IMAGE = "label_without_image"
    LABEL_GEOMETRY_MISMATCH = "label_geometry_mismatch"
    LABEL_UNSUPPORTED = "label_unsupported"


class TomoRayError(Exception):
    """The root of all errors that TomoRay raises on purpose."""


class Refused(TomoRayError):
    """Skip this series: it is not understood, and is not guessed at.

    Args:
        reason: the machine-readable code.
        evidence: what was found and what was wanted, in one line without patient data.
    """

    def __init__(self, reason: Reason, evidence: str) -> None:
        super().__init__(reason, evidence)
        self.reason = reason
        self.evidence = evidence

    def __str__(self) -> str:
        return f"{self.reason}: {self.evidence}"


class Transient(TomoRayError):
    """Try again: a connection, a timeout, a busy server."""


class Busy(Transient):
    """Try again later: as much waits already as may."""


class Fatal(TomoRayError):
    """Stop: the command ends with exit code 1 and this message."""


class Usage(Fatal):
    """Stop: the command line or a config is wrong; exit code 2."""


class TooLarge(Fatal):
    """Stop: more data than the caller allows."""


class Shortage(Fatal):
    """Stop: more memory than there is. One worker meets it, and the others do not know of it."""


class Forbidden(Fatal):
    """Stop: whoever asks may not do this on the cluster."""
