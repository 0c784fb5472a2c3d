"""Labels as DICOM names and codes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code


class Concept(NamedTuple):
    """Coded meaning of a label (PS3.16 CID 7150 and 7159), and where in the body it lies if that is known."""

    category: Code
    kind: Code
    region: Code | None = None


_ORGAN, _ABNORMAL = codes.SCT.AnatomicalStructure, codes.SCT.MorphologicallyAbnormalStructure
_LUNG = Concept(_ORGAN, codes.SCT.Lung)
_NODULE = Concept(_ABNORMAL, codes.SCT.Nodule, codes.SCT.Lung)
_TUMOUR = Concept(_ABNORMAL, codes.SCT.Neoplasm)
_LESION = Concept(_ABNORMAL, codes.SCT.Lesion)
_TISSUE = Concept(codes.SCT.Tissue, codes.SCT.Tissue)
CONCEPTS: Mapping[str, Concept] = {
    "lung": _LUNG,
    "lungs": _LUNG,
    "nodule": _NODULE,
    "nodules": _NODULE,
    "gtv": _TUMOUR,
    "tumor": _TUMOUR,
    "tumour": _TUMOUR,
    "neoplasm": _TUMOUR,
    "mass": Concept(_ABNORMAL, codes.SCT.Mass),
    "lesion": _LESION,
    "lesions": _LESION,
    "cyst": Concept(_ABNORMAL, codes.SCT.Cyst),
    "liver": Concept(_ORGAN, codes.SCT.Liver),
    "heart": Concept(_ORGAN, codes.SCT.Heart),
    "aorta": Concept(_ORGAN, codes.SCT.Aorta),
    "trachea": Concept(_ORGAN, codes.SCT.Trachea),
    "spleen": Concept(_ORGAN, codes.SCT.Spleen),
}


def concept_of(name: str) -> Concept:
    """What a label of that name means: a lesion where the name says so, else some tissue."""
    label = slug(name)
    return CONCEPTS.get(label) or (_LESION if re.search("lesion|tumou?r|nodul|metasta", label) else _TISSUE)


def title(name: str) -> str:
    """The label's name as it stands in a file: with a capital."""
    return name[:1].upper() + name[1:]


def slug(name: str) -> str:
    """`name` in lower case, with a hyphen for whatever is neither letter nor digit: "Left Lung" -> "left-lung"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
