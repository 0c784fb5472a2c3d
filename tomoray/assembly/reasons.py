"""What each reason to refuse means, and what to do about it: the table of docs/reasons.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tomoray.errors import Reason


class About(NamedTuple):
    """One reason, explained."""

    meaning: str
    advice: str


ABOUT: Mapping[Reason, About] = {
    Reason.NOT_CT: About(
        "another modality, or another kind of object than CT Image Storage",
        "nothing: it is no CT",
    ),
    Reason.NOT_AN_IMAGE: About(
        "no pixels, or no rows and columns",
        "fetch the file again",
    ),
    Reason.LOCALIZER: About(
        "a scout view: the image type says LOCALIZER",
        "nothing: it is no slice",
    ),
    Reason.DERIVED: About(
        "a secondary capture, a reformat, a projection, a map: not slices as they were reconstructed",
        "ask for the original series",
    ),
    Reason.BURNED_IN_ANNOTATION: About(
        (
            "text may be burned into the pixels and name the patient: the header says so, or it is no "
            "original slice and does not deny it"
        ),
        ("look at the pixels; set Burned In Annotation to NO where there is none, or ask for the original series"),
    ),
    Reason.UNREADABLE: About(
        "a file that should be DICOM, a volume or an archive cannot be read, or changed while it was read",
        "fetch the file again",
    ),
    Reason.SEVERAL_SCANS: About(
        "a zip that was sent for segmentation holds more than one CT scan",
        "send one scan",
    ),
    Reason.MISSING_UID: About(
        "no study, series or instance UID, so scans cannot be told apart",
        "export again with UIDs, or repair: missing_uid",
    ),
    Reason.MISSING_GEOMETRY: About(
        (
            "orientation, position or pixel spacing is absent, malformed or not above 0; or functional "
            "groups that do not fit the frames"
        ),
        "export again with whole headers",
    ),
    Reason.MISSING_RESCALE: About(
        "no usable slope and intercept, or their unit is not HU",
        "export again with whole headers",
    ),
    Reason.MIXED_PATIENT: About(
        "several patients under one series UID",
        "find out where the files were merged",
    ),
    Reason.MIXED_STUDY: About(
        "several studies under one series UID",
        "find out where the files were merged",
    ),
    Reason.MIXED_FRAME_OF_REFERENCE: About(
        "several frames of reference: positions cannot be compared",
        "find out where the files were merged",
    ),
    Reason.MIXED_ORIENTATION: About(
        "slices that are not parallel, and no groups that are scans by themselves",
        "look for the odd slice; remove it or export again",
    ),
    Reason.MIXED_SPACING: About(
        "several pixel spacings, likewise",
        "look for the odd slice; remove it or export again",
    ),
    Reason.MIXED_MATRIX: About(
        "several numbers of rows and columns, likewise",
        "look for the odd slice; remove it or export again",
    ),
    Reason.MIXED_RESCALE: About(
        "several rescale slopes or intercepts among classic instances",
        "look for the odd slice; remove it or export again",
    ),
    Reason.MIXED_ACQUISITION: About(
        (
            "two acquisitions whose slices alternate: by their pixels, where no attribute tells them apart; or by "
            "one, where the half is no scan"
        ),
        "find out where the files were merged, and give each acquisition a series UID",
    ),
    Reason.DUPLICATE_INSTANCE: About(
        "different files under one instance UID, or two volume files of one case",
        "keep the right one",
    ),
    Reason.TOO_FEW_SLICES: About(
        "fewer than min_slices, 3 by default",
        "fetch the rest",
    ),
    Reason.NOT_ORTHOGONAL: About(
        "row and column directions are no unit vectors at a right angle",
        "export again",
    ),
    Reason.DUPLICATE_POSITION: About(
        ("two slices at one position that differ, and no phases, each whole, that number or time tell apart"),
        "separate them by what tells them apart",
    ),
    Reason.MISSING_SLICES: About(
        "gaps of whole planes: how many, after which plane, counted from 0",
        "fetch the slices",
    ),
    Reason.VARIABLE_SPACING: About(
        "steps between slices that differ, and not by whole planes",
        "use another reconstruction, or repair: variable_spacing",
    ),
    Reason.IRREGULAR_POSITIONS: About(
        ("a slice more than 0.1 mm sideways of the line through the others, or a lean of more than 45 degrees"),
        "look for the odd slice",
    ),
    Reason.TILT_MISMATCH: About(
        ("GantryDetectorTilt tells of a tilt of more than 0.5 degrees that neither positions nor orientation show"),
        "find out whether the images were straightened; if so, export with the tag at 0",
    ),
    Reason.UNSUPPORTED_PIXELS: About(
        (
            "colour, several frames in a classic instance, an unusual number of bits, or a transfer syntax "
            "without a decoder"
        ),
        "convert with a DICOM toolkit",
    ),
    Reason.UNDECODABLE_PIXELS: About(
        "truncated or damaged pixel data",
        "fetch the file again",
    ),
    Reason.TOO_LARGE: About(
        "more pixels than a CT slice can have, or more frames than the file can hold",
        "fetch the file again; it is damaged or forged",
    ),
    Reason.HU_OUT_OF_RANGE: About(
        "HU that 16 bits cannot hold",
        "check slope and intercept",
    ),
    Reason.NIFTI_NO_ORIENTATION: About(
        "no orientation: sform and qform codes are both 0, no known space, or a singular affine",
        "convert again from DICOM",
    ),
    Reason.NIFTI_NOT_3D: About(
        "other than three axes",
        "split it",
    ),
    Reason.LABEL_WITHOUT_IMAGE: About(
        "a segmentation, structure set or mask whose image is not among the sources",
        "add the image",
    ),
    Reason.LABEL_GEOMETRY_MISMATCH: About(
        "a mask that is not on its image's grid, or a contour between its planes or beyond it",
        "resample the mask",
    ),
    Reason.LABEL_UNSUPPORTED: About(
        (
            "fractional segments, open contours, several values in one mask, two masks of one name, or a "
            "name that holds an identifier"
        ),
        "convert the mask",
    ),
}
