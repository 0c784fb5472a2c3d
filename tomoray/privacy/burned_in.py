"""Series whose pixels may show text, or a face: what their headers say.

Pixels are not looked at. A header that says nothing is believed only for CT slices as they were reconstructed; screen
captures, scanned film, dose reports and reformats made at a workstation are where burned-in names are found. The
pixel filters of RSNA's Clinical Trial Processor, which TCIA's curation rests on, go by the same attributes.
"""

from __future__ import annotations

from pydicom import Dataset

from tomoray.dicom.headers import CT_STORAGE, SECONDARY_CAPTURE_PREFIX, quiet_pydicom
from tomoray.privacy.identifiers import values_as_text

_CAPTURED_MODALITIES = frozenset({"SC", "OT", "DOC", "XC", "SR", "PR", "KO", "HC", "AR"})
_CAPTURED_IMAGE_TYPES = (
    *("SCREEN", "SAVE", "CAPTURE", "SNAPSHOT", "PRINT", "FILM", "REPORT", "DOSE", "SUMMARY", "PROT", "EXPORT"),
    *("SECONDARY", "PRESENTATION", "ANNOTAT", "FUSION", "RGB"),
)


def burned_in_suspect(dataset: Dataset) -> str | None:
    """Why the pixels may show text or a face; None where there is no sign of it.

    Burned In Annotation (PS3.3 C.7.6.1.1.6) decides where it is there. Otherwise only original, primary images of the
    CT Image Storage classes pass, and none that were converted, captured or printed.

    Returns:
        One line that quotes nothing of the header.
    """
    with quiet_pydicom():
        stated = _first(dataset, "BurnedInAnnotation")
        image_type = [text.upper() for text in _texts(dataset, "ImageType")]
        sop_class = _first(dataset, "SOPClassUID")
        modality = _first(dataset, "Modality")
        features = _first(dataset, "RecognizableVisualFeatures")
        converted = bool(_first(dataset, "ConversionType"))
    if stated == "YES":
        return "Burned In Annotation says YES"
    if features == "YES":
        return "Recognizable Visual Features says YES: a face may be seen"
    if stated == "NO":
        return None
    if sop_class.startswith(SECONDARY_CAPTURE_PREFIX):
        return "a secondary capture that does not say whether text is burned in"
    if modality in _CAPTURED_MODALITIES:
        return "its modality is that of captures and documents"
    if converted:
        return "it was converted from film or a screen, and does not say whether text is burned in"
    if any(hint in value for value in image_type for hint in _CAPTURED_IMAGE_TYPES):
        return "its image type is that of a capture or a report"
    if sop_class not in CT_STORAGE and (sop_class or modality != "CT"):
        return "no CT image, and it does not say whether text is burned in"
    if image_type[:2] != ["ORIGINAL", "PRIMARY"]:
        return "not an original slice, and it does not say whether text is burned in"
    return None


def _texts(dataset: Dataset, keyword: str) -> list[str]:
    try:
        return values_as_text(dataset.get(keyword))
    except Exception:  # a malformed element says nothing
        return []


def _first(dataset: Dataset, keyword: str) -> str:
    texts = _texts(dataset, keyword)
    return texts[0].upper() if texts else ""
