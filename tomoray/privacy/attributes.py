"""Which attributes of a CT header may be kept, and what stands for each: numbers, known words, pseudonyms, moved days.

A renderer takes an element and the header it stands in, and gives a JSON value, or None: then the element is removed.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydicom.uid import UID

from tomoray.config import DeidentifyConfig
from tomoray.privacy import ps3_15, vocabulary
from tomoray.privacy.identifiers import Element, evidence, is_clean, values_as_text
from tomoray.privacy.pseudonyms import Pseudonyms

Json = Any  # str | int | float | a list of these

OLDEST_YEARS = 90  # stands for every age above 89 (45 CFR 164.514(b)(2)(i)(C))
MAX_SHIFT_DAYS = 3650
MAX_VALUES = 32  # of one attribute; none of those kept has more

_NUMBER_VRS = frozenset({"DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"})
_NUMBER = re.compile(r"[+-]?\d{0,7}(?:\.\d*)?(?:[eE][+-]?\d{1,2})?")
_DATE = re.compile(r"(\d{4})\.?(\d\d)\.?(\d\d)")
_TIME = re.compile(r"(?:[01]\d|2[0-3])(?:[0-5]\d(?:[0-5]\d(?:\.\d{1,6})?)?)?")
_DATE_TIME = re.compile(rf"(\d{{8}})({_TIME.pattern})?([+-]\d{{4}})?")
_DEVICE_NAME = re.compile(r"[A-Za-z0-9 ._/+-]{1,64}")
_PRIVATE_TEXT = re.compile(r"[A-Za-z0-9 .,:;/()<>=+&%*_-]{1,64}")
_LONG_NUMBER = 5  # digits of an identifier that a whole number is searched for
_LONG_FRACTION = 7  # and a number with its decimals
_LONGEST_NUMBER = 17
_OF_DEVICES = frozenset(rule.keyword for rule in ps3_15.TABLE.values() if "device" in rule.options)


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What the renderers know of the header and of what is wanted.

    Attributes:
        patient: what identifies the patient, as `DicomSeries.patient_id` takes it; empty where nothing does.
        identifiers: folded (`tomoray.privacy.identifiers`).
        but_of_devices: those that do not name the scanner.
        numbers: those made of digits only, five and more.
    """

    pseudonyms: Pseudonyms
    config: DeidentifyConfig
    options: frozenset[ps3_15.Option]
    patient: str
    identifiers: frozenset[str]
    but_of_devices: frozenset[str]
    numbers: frozenset[str]
    safe_words: frozenset[str]

    def known(self, words: frozenset[str]) -> frozenset[str]:
        """`words`, and those that the config adds."""
        return words | self.safe_words if self.safe_words else words


class Treatment(NamedTuple):
    """How an attribute is kept.

    Attributes:
        changed: the action to report where the value is not as it was read: C, D or U.
        option: without it the attribute is removed, though the profile would keep it.
        stands_in: the value says nothing of what it stands for, so it is kept where the profile asks for a dummy.
    """

    render: Callable[[Element, Context], Json]
    changed: str = "C"
    option: ps3_15.Option | None = None
    stands_in: bool = False


def make_context(
    elements: Collection[Element],
    pseudonyms: Pseudonyms,
    config: DeidentifyConfig,
    options: Iterable[ps3_15.Option],
) -> Context:
    """Search a header for identifiers, once."""
    found = frozenset(evidence(elements))
    return Context(
        pseudonyms=pseudonyms,
        config=config,
        options=frozenset(options),
        patient=patient_of(elements),
        identifiers=found,
        but_of_devices=frozenset(evidence(elements, _OF_DEVICES)) if config.retain_device else found,
        numbers=frozenset(text for text in found if _LONG_NUMBER <= len(text) <= _LONGEST_NUMBER and text.isdigit()),
        safe_words=frozenset(word.upper() for word in config.safe_words),
    )


def patient_of(elements: Iterable[Element]) -> str:
    """The Patient ID, else the study's UID, as `DicomSeries.patient_id` takes them; empty where there is neither."""
    top = {
        element.keyword: "\\".join(values_as_text(element.value)).strip(" \0")
        for element in elements
        if element.depth == 0 and element.keyword in ("PatientID", "StudyInstanceUID")
    }
    study = top.get("StudyInstanceUID")
    return top.get("PatientID") or (f"study {study}" if study else "")


def shift_days(pseudonyms: Pseudonyms, patient: str) -> int | None:
    """How many whole days back a patient's dates move, 1 to 3650; None for an unknown patient."""
    return 1 + int(pseudonyms.token("date shift", patient), 16) % MAX_SHIFT_DAYS if patient else None


def as_read(element: Element) -> Json:
    """The value as JSON, nothing hidden; None where it is empty or no text or number."""
    texts = values_as_text(element.value)
    if element.vr in _NUMBER_VRS:
        try:
            return _one_or_list([_to_number(text) for text in texts])
        except (ValueError, OverflowError):
            return _one_or_list(texts)
    return _one_or_list(texts) if any(texts) else None


def age_years(age: str) -> float | None:
    """Years from an Age String such as 045Y, 018M, 003W, 010D (PS3.5 6.2)."""
    per_year = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}
    matched = re.fullmatch(r"(\d{3})([YMWD])", age, flags=re.ASCII)
    return round(int(matched[1]) / per_year[matched[2]], 2) if matched else None


def private_name(element: Element) -> str:
    """How `retain_safe_private` names a private element: "0019,xx23 GEMS_ACQU_01" (as in PS3.15 Table E.3.10-1)."""
    return f"{element.tag.group:04x},xx{element.tag.element & 0xFF:02x} {element.creator}"


def render_private(element: Element, context: Context) -> Json:
    """Numbers, and short text without an identifier; dates, UIDs, sequences and bytes are never kept."""
    if element.vr in _NUMBER_VRS:
        return _number(element, context)
    if element.vr not in ("CS", "LO", "SH", "ST", "LT", "UC", "UT"):
        return None
    texts = values_as_text(element.value)[:MAX_VALUES]
    safe = all(_PRIVATE_TEXT.fullmatch(text) and is_clean(text, context.identifiers) for text in texts)
    return _one_or_list(texts) if safe else None


def _number(element: Element, context: Context) -> Json:
    texts = values_as_text(element.value)
    if len(texts) > MAX_VALUES or not all(_NUMBER.fullmatch(text) for text in texts):
        return None
    for text in texts:
        whole, digits = re.sub(r"\D", "", text.split(".")[0]), re.sub(r"\D", "", text)
        if any(n in whole or (len(n) >= _LONG_FRACTION and n in digits) for n in context.numbers):
            return None
    try:
        return _one_or_list([_to_number(text) for text in texts])
    except (ValueError, OverflowError):
        return None


def _words(known: frozenset[str]) -> Callable[[Element, Context], Json]:
    """Texts of known words; single words of them may be lost."""

    def render(element: Element, context: Context) -> Json:
        return _cleaned(element, context, lambda text: vocabulary.clean_words(text, context.known(known)))

    return render


def _kernel(element: Element, context: Context) -> Json:
    """All of a kernel's values, or nothing: a part of a kernel is another kernel."""
    known = context.known(vocabulary.KERNEL_WORDS)
    texts = values_as_text(element.value)
    kept = _cleaned(element, context, lambda text: vocabulary.clean_words(text, known))
    return kept if kept == _one_or_list(texts) else None


def _model(element: Element, context: Context) -> Json:
    known = context.known(vocabulary.SCANNERS)
    return _cleaned(element, context, lambda text: vocabulary.scanner_model(text, known))


def _body_part(element: Element, context: Context) -> Json:
    known = context.known(vocabulary.BODY_PARTS)
    return _cleaned(element, context, lambda text: vocabulary.body_part(text, known))


def _cleaned(element: Element, context: Context, clean: Callable[[str], str | None]) -> Json:
    """Each value cleaned, where neither it nor what is left of it holds an identifier."""
    kept = []
    for text in values_as_text(element.value)[:MAX_VALUES]:
        words = clean(text) if is_clean(text, context.identifiers) else None
        if words and is_clean(words, context.identifiers):
            kept.append(words)
    return _one_or_list(kept)


def _manufacturer(element: Element, _context: Context) -> Json:
    return vocabulary.manufacturer(" ".join(values_as_text(element.value)))


def _device_name(element: Element, context: Context) -> Json:
    texts = values_as_text(element.value)
    safe = all(_DEVICE_NAME.fullmatch(text) and is_clean(text, context.but_of_devices) for text in texts)
    return _one_or_list(texts) if safe else None


def _sex(element: Element, _context: Context) -> Json:
    texts = [text.upper() for text in values_as_text(element.value)]
    return texts[0] if texts and texts[0] in ("F", "M", "O") else None


def _age(element: Element, _context: Context) -> Json:
    age = "".join(values_as_text(element.value)[:1])
    years = age_years(age)
    if years is None:
        return None
    return age if years < OLDEST_YEARS else f"{OLDEST_YEARS:03d}Y"


def _patient_id(_element: Element, context: Context) -> Json:
    return context.pseudonyms.token("patient", context.patient) if context.patient else None


def _uid(kind: str) -> Callable[[Element, Context], Json]:
    """The pseudonym that `tomoray.ingest.series` gives a UID of the same kind."""

    def render(element: Element, context: Context) -> Json:
        uid = "\\".join(values_as_text(element.value)).strip(" \0")
        return context.pseudonyms.uid(kind, uid) if uid else None

    return render


def _standard_uid(element: Element, _context: Context) -> Json:
    texts = values_as_text(element.value)
    return texts[0] if len(texts) == 1 and texts[0] != UID(texts[0]).name else None


def _yes_or_no(element: Element, _context: Context) -> Json:
    """Whether contrast was given: what it was is free text."""
    texts = [text.strip().upper() for text in values_as_text(element.value)]
    if not any(texts):
        return None  # Type 2: empty is unknown
    return "NO" if all(text in ("", "NO", "NONE", "N", "WITHOUT", "W/O", "NOT GIVEN") for text in texts) else "YES"


def _date(element: Element, context: Context) -> Json:
    matched = _DATE.fullmatch("".join(values_as_text(element.value)[:1]))
    return _moved("".join(matched.groups()), context) if matched else None


def _date_time(element: Element, context: Context) -> Json:
    matched = _DATE_TIME.fullmatch("".join(values_as_text(element.value)[:1]))
    day = _moved(matched[1], context) if matched else None
    return day + (matched[2] or "") if matched and day else None


def _time(element: Element, context: Context) -> Json:
    text = "".join(values_as_text(element.value)[:1])
    return text if _TIME.fullmatch(text) and (context.config.dates != "shifted" or context.patient) else None


def _moved(day: str, context: Context) -> str | None:
    try:
        date = datetime.date(int(day[:4]), int(day[4:6]), int(day[6:]))
        if context.config.dates == "shifted":
            days = shift_days(context.pseudonyms, context.patient)
            if days is None:
                return None
            date -= datetime.timedelta(days=days)
    except (ValueError, OverflowError):
        return None
    return f"{date.year:04d}{date.month:02d}{date.day:02d}"


def _to_number(text: str) -> int | float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("not finite")
    return int(number) if number.is_integer() else number


def _one_or_list(values: list[Any]) -> Json:
    return None if not values else values[0] if len(values) == 1 else values


def _treat(keywords: str, treatment: Treatment) -> dict[str, Treatment]:
    return dict.fromkeys(keywords.split(), treatment)


DESCRIBED: dict[str, Treatment] = {
    **_treat(
        """
        AcquisitionNumber BitsAllocated BitsStored CTDIvol Columns
        ContrastBolusIngredientConcentration ContrastBolusVolume ContrastFlowDuration ContrastFlowRate
        DataCollectionCenterPatient DataCollectionDiameter DistanceSourceToDataCollectionCenter
        DistanceSourceToDetector DistanceSourceToPatient EstimatedDoseSaving Exposure ExposureInmAs ExposureInuAs
        ExposureTime ExposureTimeInms ExposureTimeInuS FocalSpots GantryDetectorTilt
        GeneratorPower HighBit KVP LossyImageCompressionRatio NumberOfFrames PixelPaddingRangeLimit
        PixelPaddingValue PixelRepresentation PixelSpacing ReconstructionAngle ReconstructionDiameter
        ReconstructionFieldOfView ReconstructionPixelSpacing ReconstructionTargetCenterPatient RescaleIntercept
        RescaleSlope RevolutionTime Rows SamplesPerPixel SingleCollimationWidth SliceThickness SpacingBetweenSlices
        SpiralPitchFactor TableFeedPerRotation TableHeight TableSpeed TotalCollimationWidth WaterEquivalentDiameter
        XRayTubeCurrent XRayTubeCurrentInmA XRayTubeCurrentInuA
        """,
        Treatment(_number),
    ),
    **_treat("PatientSize PatientWeight", Treatment(_number)),
    **_treat(
        """
        AcquisitionType BurnedInAnnotation ContrastBolusIngredient ExposureModulationType FilterMaterial FilterType
        ImageType Laterality LossyImageCompression LossyImageCompressionMethod Modality MultienergyCTAcquisition
        PatientPosition PhotometricInterpretation QualityControlImage RecognizableVisualFeatures
        ReconstructionAlgorithm RescaleType RotationDirection ScanOptions
        """,
        Treatment(_words(vocabulary.CODES | vocabulary.DESCRIPTIONS)),
    ),
    **_treat(
        "ProtocolName SeriesDescription",
        Treatment(_words(vocabulary.DESCRIPTIONS), option="descriptors"),
    ),
    "ConvolutionKernel": Treatment(_kernel, option="descriptors"),
    "BodyPartExamined": Treatment(_body_part, option="descriptors"),
    "Manufacturer": Treatment(_manufacturer),
    "ManufacturerModelName": Treatment(_model),
    **_treat(
        "DetectorID DeviceSerialNumber GantryID GeneratorID SoftwareVersions StationName",
        Treatment(_device_name, option="device"),
    ),
    "PatientID": Treatment(_patient_id, "D", stands_in=True),
    "ContrastBolusAgent": Treatment(_yes_or_no, "D", stands_in=True),
    "PatientSex": Treatment(_sex),
    "PatientAge": Treatment(_age, "D"),
    "StudyInstanceUID": Treatment(_uid("study"), "U"),
    "SeriesInstanceUID": Treatment(_uid("series"), "U"),
    "FrameOfReferenceUID": Treatment(_uid("frame"), "U"),
    "SOPClassUID": Treatment(_standard_uid),
    **_treat("AcquisitionDate ContentDate SeriesDate StudyDate", Treatment(_date)),
    **_treat("AcquisitionTime ContentTime SeriesTime StudyTime", Treatment(_time)),
    **_treat("AcquisitionDateTime", Treatment(_date_time)),
    "DateOfLastCalibration": Treatment(_date, option="device"),
    "TimeOfLastCalibration": Treatment(_time, option="device"),
}

# Kept as read besides these, where identifiers are kept on purpose.
IDENTIFYING = frozenset(
    {
        "AccessionNumber",
        "ImageComments",
        "InstitutionName",
        "InstitutionalDepartmentName",
        "OperatorsName",
        "OtherPatientIDs",
        "PatientBirthDate",
        "PatientComments",
        "PatientName",
        "ReferringPhysicianName",
        "SOPInstanceUID",
        "SeriesNumber",
        "StudyDescription",
        "StudyID",
    }
)
