"""The config of `tomoray pacs`: where studies come from, which model looks at them, where results go."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from tomoray.config import Config, Positive

Seconds = Annotated[float, Field(gt=0)]
Http = Annotated[str, Field(pattern=r"^https?://[^/@]+(/[^@]*)?$")]
AeTitle = Annotated[str, Field(pattern=r"^[\x21-\x5b\x5d-\x7e][\x20-\x5b\x5d-\x7e]{0,15}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class PacsConfig(Config):
    """A PACS that is looked at again and again, over DICOMweb.

    Attributes:
        dicomweb: root of the server; who asks is said by `TOMORAY_DICOMWEB_TOKEN`, or `…_USER` and `…_PASSWORD`.
        every_s: between two looks.
        days: only studies of today and so many days before; 0: all that there are.
        known_as: the name under which the serving itself reaches this PACS (`references.dicomweb` of its config), which
            then fetches the series on its own; None: the series is sent to it.
    """

    dicomweb: Http
    every_s: Seconds = 30.0
    days: Annotated[int, Field(ge=0)] = 1
    known_as: Name | None = None


class ReceiverConfig(Config):
    """A DICOM node that scanners and PACS send series to (C-STORE).

    Attributes:
        host: where it listens; DICOM itself knows neither users nor encryption, so open it to a closed network only.
        senders: the AE titles that may send; empty: any.
        room_gb: what may wait on disk; a sender is told to come back when it is full.
    """

    ae_title: AeTitle = "TOMORAY"
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 11112
    senders: list[AeTitle] = []
    room_gb: Annotated[float, Field(gt=0)] = 100.0


class RuleConfig(Config):
    """Series that a model is to look at. All that is said must hold.

    Attributes:
        model: a name of the server's `/v1/models`; None: its first one for the operation.
        modality: any of these.
        body_part: any of these Body Parts Examined; empty: whatever stands there, or nothing.
        description: a pattern (regular expression, case does not count) that is found in the description of the series
            or of the study.
        not_description: a pattern that is found in neither.
        min_instances: fewer are none of its business, such as a localizer.
        results: what goes back; SEG only from a model that segments.
    """

    operation: Literal["segment", "classify", "detect"] = "segment"
    model: Name | None = None
    modality: Annotated[list[str], Field(min_length=1)] = ["CT"]
    body_part: list[str] = []
    description: str | None = None
    not_description: str | None = None
    min_instances: Positive = 3
    results: Annotated[list[Literal["seg", "sr"]], Field(min_length=1)] = ["seg", "sr"]

    @field_validator("description", "not_description")
    @classmethod
    def _is_a_pattern(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from error
        return value

    @property
    def wanted(self) -> tuple[str, ...]:
        """What goes back, without what the operation cannot give."""
        return tuple(kind for kind in self.results if kind == "sr" or self.operation == "segment")


class NodeConfig(Config):
    """A DICOM node that results are sent to (C-STORE).

    Attributes:
        calling: the AE title that we give as ours.
    """

    host: str
    port: Annotated[int, Field(ge=1, le=65535)]
    ae_title: AeTitle
    calling: AeTitle = "TOMORAY"


class HospitalConfig(Config):
    """`tomoray pacs`: series from a PACS to a model, results back, once each.

    Attributes:
        server: a serving endpoint, whose token is in `TOMORAY_TOKEN`.
        state: a folder on this machine for what must outlive the process: what was done, and what is on its way.
        pacs: looked at for new series.
        receiver: sent new series.
        rules: each that matches a series has it looked at once.
        back_to: a DICOM node for the results; None: they are stored in `pacs`.
        settle_s: a series is whole when nothing was added to it for so long.
        metrics_port: for Prometheus, on loopback.
    """

    server: Http = "http://127.0.0.1:8000"
    state: Annotated[str, Field(min_length=1)]
    pacs: PacsConfig | None = None
    receiver: ReceiverConfig | None = None
    rules: Annotated[list[RuleConfig], Field(min_length=1)] = [RuleConfig()]
    back_to: NodeConfig | None = None
    settle_s: Annotated[float, Field(ge=0)] = 60.0
    metrics_port: Annotated[int | None, Field(ge=1, le=65535)] = None

    @model_validator(mode="after")
    def _knows_both_ways(self) -> HospitalConfig:
        if self.pacs is None and self.receiver is None:
            raise ValueError("nowhere to take series from; wanted pacs or receiver")
        if self.pacs is None and self.back_to is None:
            raise ValueError("nowhere to send results to; wanted back_to or pacs")
        return self
