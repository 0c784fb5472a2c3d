"""DICOM PS3.15 Annex E as a table: what the confidentiality profile wants of each attribute.

`ps3_15.csv` holds Table E.1-1 of edition 2024b, one row a tag: `basic` is the action of the Basic Application Level
Confidentiality Profile, `options` what the options of E.3 make of it. Actions (E.1): X remove, Z empty or replace,
D replace by a dummy, U replace a UID consistently, C clean, K keep; `X/Z/D` leaves the choice to the object's type.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Literal

from pydicom.tag import BaseTag, Tag

EDITION = "2024b"

Option = Literal[
    "safe_private",
    "uids",
    "device",
    "institution",
    "patient",
    "full_dates",
    "modified_dates",
    "descriptors",
    "structured_content",
    "graphics",
]

# PS3.16 CID 7050, with the meanings written there.
PROFILE_CODE = ("113100", "Basic Application Confidentiality Profile")
OPTION_CODES: Mapping[Option, tuple[str, str]] = MappingProxyType(
    {
        "graphics": ("113103", "Clean Graphics Option"),
        "structured_content": ("113104", "Clean Structured Content Option"),
        "descriptors": ("113105", "Clean Descriptors Option"),
        "full_dates": ("113106", "Retain Longitudinal Temporal Information Full Dates Option"),
        "modified_dates": ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
        "patient": ("113108", "Retain Patient Characteristics Option"),
        "device": ("113109", "Retain Device Identity Option"),
        "uids": ("113110", "Retain UIDs Option"),
        "safe_private": ("113111", "Retain Safe Private Option"),
        "institution": ("113112", "Retain Institution Identity Option"),
    }
)

_TIMES = frozenset({"DA", "DT", "TM"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One row of Table E.1-1.

    Attributes:
        basic: the action without options, such as `X` or `X/Z/D`.
        options: what an option makes of it, `K` or `C`.
    """

    keyword: str
    basic: str
    options: Mapping[str, str]


def action(tag: BaseTag | int, vr: str, options: Collection[Option]) -> str:
    """What the profile with `options` wants of an attribute, as written in the table.

    Where several options speak of one attribute the stricter one wins: C over K, and a date or a time is kept by
    none but the options on dates. An attribute that the table does not list is `K`, except that curves, overlays and
    private ones are `X`: the options that could keep them look at values, and the caller does.

    Example:
        >>> action(0x00080080, "LO", ())  # Institution Name
        'X/Z/D'
        >>> action(0x00080020, "DA", {"modified_dates"})  # Study Date
        'C'
    """
    tag = Tag(tag)
    rule = TABLE.get(tag)
    if rule is None:
        return "X" if tag.is_private or is_graphic(tag) else "K"
    heard = {rule.options[name] for name in options if name in rule.options and (vr not in _TIMES or "dates" in name)}
    return "C" if "C" in heard else "K" if heard else rule.basic


def is_graphic(tag: BaseTag) -> bool:
    """True for curves (50xx,eeee) and overlays (60xx,eeee), of whatever number."""
    return tag.group >> 8 in (0x50, 0x60)


def _read_table() -> Mapping[int, Rule]:
    with (resources.files("tomoray.privacy") / "ps3_15.csv").open(encoding="ascii") as file:
        return MappingProxyType(
            {
                int(row["tag"], 16): Rule(
                    keyword=row["keyword"],
                    basic=row["basic"],
                    options=dict(option.split(":") for option in row["options"].split()),
                )
                for row in csv.DictReader(file)
            }
        )


TABLE: Mapping[int, Rule] = _read_table()
