"""Words that describe a CT and nobody: free text of a header is kept only where it is made of them.

A positive list, as names cannot be listed. It was drawn up from the terms of DICOM (PS3.3, PS3.16 Annex L) and from the
headers of public collections; what a site writes besides is added by `DeidentifyConfig.safe_words`.
"""

from __future__ import annotations

import re
from collections.abc import Collection


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SCANNERS = _words(
    """
    ACCESS ACTIVION ALEXION ALL ALPHA APEX AQUILION AS ASCEND ASTEION ASTOUND ATLAS AURA BEAM BIG BIOGRAPH BORE
    BRIGHTSPEED BRILLIANCE CARDIAC CARTESION CEED CELESTEION CITE CONE CONFIDENCE CORE CT DEFINITION DISCOVERY DR
    DRIVE DUAL DUO ECLOS EDGE ELITE EMOTION EN EVO EXCEED EXCEL FLASH FLOW FORCE FRONTIER FX GEMINI GENESIS GO GS
    GSI GXL HD HISPEED HORIZON ICT IDT IMATRON INCISIVE INGENUITY INTEVO IQ IQON LB LIGHTNING LIGHTSPEED LS LXP
    MAXIMA MCT MI MIYABI MX8000 NAEOTOM NEUVIZ NX ONE OPEN OPTIMA PERFORMIX PERSPECTIVE PET PLUS POWER PRECEDENCE
    PRECISION PRIME PRO QX REVOLUTION RP RT RX SCENARIA SCOPE SENSATION SERIES SLOW SOM SOMARIS SOMATOM SP SPECTRAL
    SPIRIT ST STE SUPRIA SYMBIA SYNGO TF TOF TOMORAY TOP TRILOGY TRUEPOINT UCT ULTRA UMI UP VCT VEREOS VIDA VIEW
    VIEWPRO VIVO VOLUME XL XP XTRA ZOOM C E I S X
    """
)

KERNELS = _words(
    """
    BODY BONE BONEPLUS BRAIN CA CB CC CHST DETAIL EA EB EC EDGE EXPERIMENTAL FA FB HARD HR LUNG MEDIUM SHARP SMOOTH
    SOFT STANDARD STD STND UA UB UC ULTRA VERY YA YB YC YD YE A B C D E F G H L U Y
    """
)

BODY_PARTS = _words(
    """
    ABD ABDOMEN ADRENAL ANKLE AORTA ARM BACK BLADDER BODY BONE BRAIN BREAST BRONCHUS BUTTOCK CALCANEUS CALF CAROTID
    CAROTIDS CEREBRUM CHEST CLAVICLE COCCYX COLON CORNEA CORONARY CSPINE DUODENUM EAR ELBOW ESOPHAGUS EXTREMITY EYE
    EYELID FACE FEMUR FINGER FOOT FOREARM GALLBLADDER GROIN HAND HEAD HEART HIP HUMERUS IAC ILIUM JAW JEJUNUM JOINT
    KIDNEY KIDNEYS KNEE LARYNX LEG LEGS LIVER LSPINE LUMBAR LUNG LUNGS MAXILLA MEDIASTINUM MOUTH NECK NOSE ORBIT
    ORBITS OVARY PANCREAS PARTIALBODY PATELLA PEDIATRIC PEL PELV PELVIS PHANTOM PHARYNX PROSTATE RECTUM RENAL RIB
    RIBS SACRUM SCALP SCAPULA SHOULDER SINUS SINUSES SKULL SPINE SPLEEN SSPINE STERNUM STOMACH TESTIS THIGH THORAX
    THUMB THYMUS THYROID TIBIA TOE TONGUE TRACHEA TSPINE ULNA URETER UTERUS VAGINA WHOLEBODY WRIST
    """
)

TERMS = _words(
    """
    AB ABDOMINAL ABDROUTINE AC ACQUISITION ADMIRE AICE AIDR ALGORITHM AND ANGIO ANGIOGRAPHY AP ART ARTERIAL ASIR
    ATTEN ATTENUATION AUTO AVERAGE AX AXIAL AXL BASELINE BEST BOLUS BONES BOWTIE BREATH BRONCHI CALCIUM CAP CARE CCW
    CE CERVICAL CH CHESTABD CLOCKWISE CM COLONOGRAPHY COLONOSCOPY CON CONTRAST CONTROL COR CORONAL CORONALS CT CTA
    CTAC CTPA CW DECUB DECUBITUS DELAY DELAYED DERIVED DIAGNOSTIC DIASTOLE DL DOSE DUAL DYNAMIC EARLY EC ECG
    EMBOLISM ENERGY ENHANCED ENTERIC EXP EXPIRATION FBP FEET FEMORAL FFS FIL FILTER FIRST FLAT FOLLOW FOR FOV FULL
    GATED GATING HEAD HEADFIRST HELICAL HELIX HFS HIGH HIRES HOLD HOUNSFIELD HR HRCT HU IDOSE IMAGE IMAGES IMR IN
    INC INDEX INFLOW INJECTION INSP INSPIRATION INTERVAL IODINE IR ITERATIVE IV IVR KEV KM KV LARGE LAT LATE LATERAL
    LD LDCT LEFT LEVEL LIGHT LOCALIZER LOW LOWER LUMBAR LYMPH MA MAR MAS MAX MAXIMUM MEDIASTINAL MEDIUM METAL MIN
    MINIMUM MINIP MIP MIPS MM MODE MONO MONOE MONOENERGETIC MPR MULTI MULTIFRAME NATIV NATIVE NEPHROGRAPHIC NEUTRAL
    NO NODES NODULE NON NONCON NONCONTRAST NONE NORMAL OBLIQUE OF ONLY ORAL ORG ORIGINAL PA PARALLEL PARENCHYMA PE
    PERFUSION PET PHASE PLAIN PORTAL POST POSTERIOR PRE PRIMARY PRONE PROTOCOL PULMONARY PV QUANTITATIVE RAW RCBF
    RECON RECONS RECONSTRUCTION REFORMAT REFORMATS REFORMATTED RENDERED RESOLUTION RIGHT ROUTINE SAFIRE SAG SAGITAL
    SAGITTAL SAGITTALS SCAN SCANO SCANOGRAM SCOUT SCREENING SEC SECONDARY SEQ SEQUENCE SERIES SFT SHARPENED SLICE
    SLICES SMALL SMART SPECTRAL SPI SPIRAL SS STACK STATIC STEP SUBTRACTION SUPINE SURVIEW SYSTOLE TEST TH THICK
    THIN THINS THORACIC THORAXROUTINE TIMING TISSUE TOPO TOPOGRAM TRA TRANSVERSE TRIGGER TUBE UNENHANCED UNSPECIFIED
    UPPER UROGRAPHY VEN VENOUS VESSEL VIRTUAL VOL VOLUME VRT WB WC WEDGE WHOLE WIDE WINDOW WITH WITHOUT WO XYZ C W
    Z
    """
)

# Terms that DICOM defines for the code strings that are kept (PS3.3 C.7.6.1, C.8.2).
CODES = _words(
    """
    10918 14495 15444 AFP AFS AL ALUMINUM ANGLE AVERAGE AXIAL BACK BARIUM BUTTERFLY CARBON CINE COLOR CONSTANT
    COPPER CT DERIVED DIOXIDE FFDL FFDR FFP FFS FILTER FILTERED FREE GADOLINIUM HEADNECK HELICAL HELIX HFDL HFDR HFP
    HFS IODINE ISO ITERATIVE LFP LFS LOCALIZER MIXED MOLYBDENUM MONOCHROME1 MONOCHROME2 NO ORIGINAL OTHER PALETTE
    PRIMARY PROJ PROJECTION REFORMATTED RESAMPLED RFP RFS RGB SECONDARY SHUTTLE SOM4 SOM5 SOM7 SPIRAL STATIONARY
    STRIP TEFLON US VOLUME WEDGE XENON YES L R
    """
)

# Single letters are kernels only where a kernel is named; elsewhere they may be initials.
DESCRIPTIONS = BODY_PARTS | TERMS | frozenset(kernel for kernel in KERNELS if len(kernel) > 1)

KERNEL_WORDS = KERNELS | TERMS

# Words of institutions and addresses that name none.
PLACES = _words(
    """
    ABTEILUNG ADDRESS ANONYMOUS CAMPUS CARE CENTER CENTRAL CENTRE CENTRO CITY CLINIC CLINICA CLINICAL CLINIQUE
    COUNTY DEPARTMENT DIAGNOSTIC EAST FROM GENERAL GROUP HEALTH HEALTHCARE HOPITAL HOSPITAL HOSPITALS IMAGING
    INSTITUT INSTITUTE INSTITUTION INTERNATIONAL KLINIK KLINIKUM KRANKENHAUS MEDICAL MEDICINE MEDIZIN NATIONAL NORTH
    OSPEDALE PHONE PRACTICE PRAXIS PRIVATE PUBLIC RADIOLOGIE RADIOLOGY REGIONAL RESEARCH ROAD ROOM SCHOOL SCIENCE
    SCIENCES SERVICE SERVICES SOUTH STRASSE STREET SYSTEM SYSTEMS TELEPHONE TRUST UNIT UNITED UNIVERSITE UNIVERSITY
    WEST
    """
)

MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)

# Whole words only; the first that is found counts.
_MANUFACTURERS: tuple[tuple[str, str], ...] = (
    ("UNITED IMAGING", r"UNITED ?IMAGING|UIH"),
    ("NEUROLOGICA", r"NEUROLOGICA"),
    ("CARESTREAM", r"CARESTREAM"),
    ("FUJIFILM", r"FUJI ?FILM"),
    ("SHIMADZU", r"SHIMADZU"),
    ("NEUSOFT", r"NEUSOFT|NMS|PNMS"),
    ("TOSHIBA", r"TOSHIBA"),
    ("SIEMENS", r"SIEMENS"),
    ("PHILIPS", r"PHILIPS"),
    ("MARCONI", r"MARCONI"),
    ("ELSCINT", r"ELSCINT"),
    ("IMATRON", r"IMATRON"),
    ("HITACHI", r"HITACHI"),
    ("SAMSUNG", r"SAMSUNG"),
    ("ANKE", r"ANKE"),
    ("MINFOUND", r"MINFOUND"),
    ("PLANMECA", r"PLANMECA"),
    ("HOLOGIC", r"HOLOGIC"),
    ("PICKER", r"PICKER"),
    ("TOMORAY", r"TOMORAY"),
    ("VARIAN", r"VARIAN"),
    ("ELEKTA", r"ELEKTA"),
    ("ACCURAY", r"ACCURAY|TOMOTHERAPY"),
    ("CANON", r"CANON"),
    ("GE", r"GE|GEMS|GENERAL ELECTRIC"),
)
_MANUFACTURER_PATTERNS = tuple((name, re.compile(rf"\b(?:{pattern})\b")) for name, pattern in _MANUFACTURERS)

_TOKEN = re.compile(r"[^\W_]+(?:\.\d+)?[^\W_]*[+%]?")
_NUMBER = re.compile(r"\d{1,3}(?:\.\d{1,3})?")
_MEASURE = re.compile(
    r"\d{1,3}(?:\.\d{1,3})?(?:MM|CM|KVP?|MAS?|S|SEC|HU|ML|CC|KEV|%)"
    r"|\d{1,3}(?:\.\d{1,3})?(?:X\d{1,3}(?:\.\d{1,3})?){1,2}(?:MM)?"
)
_CODE = re.compile(r"[A-Z]{1,2}\d{1,2}[A-Z]{0,2}|\d{1,2}[DPR]")  # kernels, and "16P", "4R", "3D"; no age such as 93Y
_NUMBERED = re.compile(r"([A-Z]{2,})\d{1,3}[A-Z]?")
_PLAIN = re.compile(r"[A-Za-z0-9 .,:;/\\()<>=&+%*_-]{1,64}")
_BODY_PART = re.compile(f"(?:{'|'.join(sorted(BODY_PARTS, key=len, reverse=True))})+[RL]?")

MAX_BARE_DIGITS = 4  # more digits without a unit could be a date or a telephone number


def manufacturer(text: str) -> str | None:
    """Who built the scanner, in one word of a short list; None where no name of the list is in `text`.

    Example:
        >>> manufacturer("GE MEDICAL SYSTEMS")
        'GE'
    """
    words = re.sub(r"[\W_]+", " ", text.upper())
    return next((name for name, pattern in _MANUFACTURER_PATTERNS if pattern.search(words)), None)


def clean_words(text: str, known: Collection[str]) -> str | None:
    """The words of `text` that are in `known`, that are measures ("1.25mm", "5x5") or codes ("B30f", "16P").

    Where that is all of it, the text as it stands. Numbers without a unit stay while they have four digits at most
    between them: more could be a date.

    Args:
        text: as in the header.
        known: upper case.

    Returns:
        At most 64 ASCII characters, or None where no word is left.

    Example:
        >>> clean_words("Chest 1.25mm for Dr. Jones B30f", TERMS | BODY_PARTS)
        'Chest 1.25mm for B30f'
    """
    words = _TOKEN.findall(text)
    numbers = [word for word in words if _NUMBER.fullmatch(word)]
    few = sum(sum(map(str.isdigit, word)) for word in words if not re.search("[^0-9.]", word)) <= MAX_BARE_DIGITS
    kept = [word for word in words if (few and word in numbers) or _is_safe(word.upper(), known)]
    if not any(word not in numbers for word in kept) and len(kept) < len(words):
        return None  # a number that is left of words which were not understood says nothing
    text = text.strip()
    if len(kept) == len(words) and _PLAIN.fullmatch(text):
        return text or None
    return " ".join(kept)[:64] or None


def scanner_model(text: str, known: Collection[str]) -> str | None:
    """The known words and numbers of a model's name; None unless one of them is a word."""
    kept = clean_words(text, known)
    return kept if kept and re.search("[A-Za-z]{2}", kept) else None


def body_part(text: str, known: Collection[str]) -> str | None:
    """The body part in upper case, where all of it is known ("CHEST", "NECKCHESTABDOMEN"); None otherwise."""
    parts = re.findall(r"[^\W_]+", text.upper())
    safe = all(_BODY_PART.fullmatch(part) or part in known for part in parts)
    return " ".join(parts)[:64] if parts and safe else None


def _is_safe(word: str, known: Collection[str]) -> bool:
    if not word.isascii():
        return False
    if word in known or word.rstrip("+") in known or _MEASURE.fullmatch(word) or _CODE.fullmatch(word):
        return True
    numbered = _NUMBERED.fullmatch(word)
    return numbered is not None and numbered[1] in known
