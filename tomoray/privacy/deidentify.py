"""What leaves the hospital of a header: a description by a positive list, and an account of the rest.

The rules are those of the Basic Application Level Confidentiality Profile (PS3.15 Annex E, `ps3_15`), made
stricter: an attribute is kept where the profile allows it and `attributes.DESCRIBED` names it, and text only where it
is made of known words and holds no identifier of the same header. No value that was removed is stored, logged or
raised.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pydicom import Dataset
from pydicom.tag import BaseTag

from tomoray import __version__
from tomoray.config import DeidentifyConfig
from tomoray.dicom.headers import quiet_pydicom
from tomoray.privacy import ps3_15, vocabulary
from tomoray.privacy.attributes import (
    DESCRIBED,
    IDENTIFYING,
    Context,
    Json,
    age_years,
    as_read,
    make_context,
    patient_of,
    private_name,
    render_private,
    shift_days,
)
from tomoray.privacy.identifiers import Element, walk
from tomoray.privacy.pseudonyms import Pseudonyms

IDENTIFIERS_KEPT = "identifiers kept"

AUDIT_FIELDS = (
    pa.field("series_id", pa.string(), nullable=False),
    pa.field("profile", pa.string(), nullable=False),
    pa.field("n_removed", pa.int32(), nullable=False),
    pa.field("n_replaced", pa.int32(), nullable=False),
    pa.field("n_kept", pa.int32(), nullable=False),
    pa.field("n_cleaned", pa.int32(), nullable=False),
    pa.field("removed_tags", pa.list_(pa.string()), nullable=False),
    pa.field("code_version", pa.string(), nullable=False),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """What became of every element of a header, nested ones too. Holds tags, never values.

    Attributes:
        profile: the profile's name, or "identifiers kept".
        options: the options' names in PS3.16 CID 7050.
        counts: elements by action: X removed, D replaced by a stand-in, U UID replaced, C cleaned, K kept.
        tags: "gggg,eeee" by action, sorted, each once.
    """

    profile: str
    options: tuple[str, ...]
    counts: Mapping[str, int]
    tags: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Deidentified:
    """A series, described without a name.

    Attributes:
        attributes: keyword -> JSON value; several values are a list. `PatientID` and the UIDs are the archive's
            pseudonyms, private elements stand under their entry in `retain_safe_private`.
        manufacturer: of a short list (`vocabulary.manufacturer`).
        sex: F, M or O.
        age_years: 90 stands for all above 89.
    """

    attributes: dict[str, Json]
    manufacturer: str | None
    model: str | None
    kernel: str | None
    body_part: str | None
    sex: str | None
    age_years: float | None
    audit: Audit


@dataclass(frozen=True)
class Deidentifier:
    """Describes headers under one key and one set of options. Pickles.

    Example:
        >>> described = Deidentifier(Pseudonyms(key), DeidentifyConfig()).describe(dataset)
        >>> described.manufacturer, described.attributes["KVP"]
        ('SIEMENS', 120)
    """

    pseudonyms: Pseudonyms = field(repr=False)
    config: DeidentifyConfig = field(default_factory=DeidentifyConfig)

    def describe(self, dataset: Dataset) -> Deidentified:
        """What may be known of the series that a header belongs to. The header is not changed.

        Any header will do: what cannot be read is removed. Of an enhanced multi-frame object the first functional
        groups speak for the series.
        """
        return self.examine(dataset)[0]

    def examine(self, dataset: Dataset) -> tuple[Deidentified, frozenset[str]]:
        """As `describe`, and what in the header names somebody (`identifiers`), found on the same walk."""
        with quiet_pydicom():
            elements = list(walk(dataset))
            options = self._options
            context = make_context(elements, self.pseudonyms, self.config, options)
            attributes: dict[str, Json] = {}
            counts: Counter[str] = Counter()
            tags: dict[str, set[BaseTag]] = defaultdict(set)
            for element in elements:
                name, value, code = self._treat(element, context)
                if value is None or name in attributes:
                    code = "X"
                else:
                    attributes[name] = value
                counts[code] += 1
                tags[code].add(element.tag)
        sex = _text(attributes, "PatientSex")
        described = Deidentified(
            attributes=dict(sorted((attributes | self._conformance()).items())),
            manufacturer=vocabulary.manufacturer(_text(attributes, "Manufacturer") or ""),
            model=_text(attributes, "ManufacturerModelName"),
            kernel=_text(attributes, "ConvolutionKernel"),
            body_part=_text(attributes, "BodyPartExamined"),
            sex=sex if sex in ("F", "M", "O") else None,
            age_years=age_years(_text(attributes, "PatientAge") or ""),
            audit=Audit(
                profile=IDENTIFIERS_KEPT if self.config.keep_identifiers else ps3_15.PROFILE_CODE[1],
                options=tuple(ps3_15.OPTION_CODES[option][1] for option in options),
                counts=dict(sorted(counts.items())),
                tags={
                    code: tuple(f"{tag.group:04x},{tag.element:04x}" for tag in sorted(found, key=int))
                    for code, found in sorted(tags.items())
                },
            ),
        )
        return described, context.identifiers

    def shift_days(self, dataset: Dataset) -> int | None:
        """How many whole days back the dates of this patient move, 1 to 3650.

        The same for all series of a patient under one key. None where neither a patient nor a study is named, as no
        two series could be held together.
        """
        with quiet_pydicom():
            return shift_days(self.pseudonyms, patient_of(walk(dataset)))

    @property
    def _options(self) -> tuple[ps3_15.Option, ...]:
        config = self.config
        chosen: dict[ps3_15.Option, bool] = {
            "descriptors": config.clean_descriptors,
            "full_dates": config.dates == "kept",
            "modified_dates": config.dates == "shifted",
            "patient": config.retain_patient_characteristics,
            "device": config.retain_device,
            "safe_private": bool(config.retain_safe_private),
        }
        return tuple(option for option, wanted in chosen.items() if wanted and not config.keep_identifiers)

    def _treat(self, element: Element, context: Context) -> tuple[str, Json, str]:
        """The attribute's name, its value or None, and the action taken where there is a value."""
        name = element.keyword
        if self.config.keep_identifiers:
            kept = element.home and (name in DESCRIBED or name in IDENTIFYING)
            return name, as_read(element) if kept else None, "K"
        if element.tag.is_private:
            return (*self._private(element, context), "K")
        treatment = DESCRIBED.get(name)
        if treatment is None or not element.home or treatment.option not in (None, *context.options):
            return name, None, "X"
        wanted = ps3_15.action(element.tag, element.vr, context.options)
        if not (treatment.stands_in or wanted in ("K", "C", "U")):
            return name, None, "X"
        value = treatment.render(element, context)
        return name, value, "K" if value == as_read(element) else treatment.changed

    def _private(self, element: Element, context: Context) -> tuple[str, Json]:
        if not self.config.retain_safe_private or element.depth:
            return "", None
        name = private_name(element)
        return name, render_private(element, context) if name in self.config.retain_safe_private else None

    def _conformance(self) -> dict[str, Json]:
        """The attributes that say so (PS3.15 E.1.1)."""
        if self.config.keep_identifiers:
            return {"PatientIdentityRemoved": "NO"}
        codes = [ps3_15.PROFILE_CODE, *(ps3_15.OPTION_CODES[option] for option in self._options)]
        times = {"removed": "REMOVED", "shifted": "MODIFIED", "kept": "UNMODIFIED"}
        return {
            "PatientIdentityRemoved": "YES",
            "DeidentificationMethod": f"TomoRay {__version__}, PS3.15 {ps3_15.EDITION}, attributes by positive list",
            "DeidentificationMethodCodeSequence": [
                {"CodeValue": value, "CodingSchemeDesignator": "DCM", "CodeMeaning": meaning}
                for value, meaning in codes
            ],
            "LongitudinalTemporalInformationModified": times[self.config.dates],
        }


def audit_row(audit: Audit, *, series_id: str) -> dict[str, Any]:
    """An audit as one flat row (`AUDIT_FIELDS`)."""
    counts = defaultdict(int, audit.counts)
    return {
        "series_id": series_id,
        "profile": "; ".join([audit.profile, *audit.options]),
        "n_removed": counts["X"],
        "n_replaced": counts["D"] + counts["U"],
        "n_kept": counts["K"],
        "n_cleaned": counts["C"],
        "removed_tags": list(audit.tags.get("X", ())),
        "code_version": __version__,
    }


def _text(attributes: Mapping[str, Json], keyword: str) -> str | None:
    """An attribute's values as DICOM writes them."""
    value = attributes.get(keyword)
    return None if value is None else "\\".join(map(str, value)) if isinstance(value, list) else str(value)
