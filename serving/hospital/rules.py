"""Which series are whose business."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tomoray.hospital_config import RuleConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """A series as rules see it, and where it is.

    Attributes:
        origin: `pacs` or `receiver`.
        instances: how many are there.
    """

    study_uid: str
    series_uid: str
    origin: str
    modality: str
    body_part: str
    series_description: str
    study_description: str
    instances: int


def matches(rule: RuleConfig, series: Series) -> bool:
    """True where everything that the rule says holds for the series."""
    told = (series.series_description, series.study_description)
    return (
        series.modality.upper() in {modality.upper() for modality in rule.modality}
        and (not rule.body_part or series.body_part.upper() in {part.upper() for part in rule.body_part})
        and (rule.description is None or _found(rule.description, told))
        and (rule.not_description is None or not _found(rule.not_description, told))
        and series.instances >= rule.min_instances
    )


def _found(pattern: str, told: tuple[str, ...]) -> bool:
    return any(re.search(pattern, text, re.IGNORECASE) for text in told)
