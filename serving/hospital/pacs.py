"""The PACS: what is new in it, its instances, and the two ways back."""

from __future__ import annotations

import datetime
import io
from collections.abc import Iterator, Sequence

import pydicom
from pynetdicom import AE

from serving.hospital.rules import Series
from tomoray.dicomweb import retrieve, search, store, text
from tomoray.errors import Fatal, Transient
from tomoray.hospital_config import NodeConfig, PacsConfig

_STUDY_UID, _SERIES_UID, _INSTANCE_UID = "0020000D", "0020000E", "00080018"
_MODALITY, _BODY_PART, _SERIES_DESCRIPTION, _STUDY_DESCRIPTION = "00080060", "00180015", "0008103E", "00081030"
_INSTANCES = "00201209"
_FIELDS = (_STUDY_UID, _SERIES_UID, _MODALITY, _BODY_PART, _SERIES_DESCRIPTION, _STUDY_DESCRIPTION, _INSTANCES)


class Pacs:
    """A PACS over DICOMweb. All calls raise `Transient` where it is away."""

    def __init__(self, config: PacsConfig) -> None:
        self._config = config
        self._root = config.dicomweb.rstrip("/")

    def series(self, modalities: Sequence[str]) -> Iterator[Series]:
        """Its series of these modalities, of the days that the config names."""
        asked = {"includefield": ",".join(_FIELDS)}
        if self._config.days:
            first = datetime.date.today() - datetime.timedelta(days=self._config.days)
            asked["StudyDate"] = f"{first:%Y%m%d}-"
        for modality in modalities:
            for found in search(f"{self._root}/series", {**asked, "Modality": modality}, _SERIES_UID):
                study_uid, series_uid = text(found, _STUDY_UID), text(found, _SERIES_UID)
                count = text(found, _INSTANCES)  # which a PACS need not tell
                yield Series(
                    study_uid=study_uid,
                    series_uid=series_uid,
                    origin="pacs",
                    modality=text(found, _MODALITY) or modality,
                    body_part=text(found, _BODY_PART),
                    series_description=text(found, _SERIES_DESCRIPTION),
                    study_description=text(found, _STUDY_DESCRIPTION),
                    instances=int(count) if count.isdecimal() else len(self._instances(study_uid, series_uid)),
                )

    def files(self, series: Series) -> Iterator[bytes]:
        """The instances of a series, in the order of their UIDs. Raises `Refused` for one that has gone."""
        for url in self._instances(series.study_uid, series.series_uid):
            yield retrieve(url)

    def store(self, files: Sequence[bytes]) -> None:
        """Give results back by STOW-RS. Safe to repeat."""
        store(self._root, files)

    def _instances(self, study_uid: str, series_uid: str) -> list[str]:
        url = f"{self._root}/studies/{study_uid}/series/{series_uid}/instances"
        return [
            f"{url}/{uid}" for uid in sorted(text(found, _INSTANCE_UID) for found in search(url, {}, _INSTANCE_UID))
        ]


class Node:
    """A DICOM node that takes results."""

    def __init__(self, config: NodeConfig) -> None:
        self._config = config

    def store(self, files: Sequence[bytes]) -> None:
        """Give results back by C-STORE. Safe to repeat.

        Raises:
            Transient: the node is away, or has no room.
            Fatal: it does not want a file.
        """
        datasets = [pydicom.dcmread(io.BytesIO(data)) for data in files]
        node = AE(ae_title=self._config.calling)
        for dataset in datasets:
            node.add_requested_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
        place = f"DICOM node {self._config.ae_title}"
        association = node.associate(self._config.host, self._config.port, ae_title=self._config.ae_title)
        if not association.is_established:
            raise Transient(f"{place} does not let us in; is it there, and does it know {self._config.calling}?")
        try:
            for dataset in datasets:
                try:
                    status = association.send_c_store(dataset).get("Status")
                except ValueError as error:
                    raise Fatal(f"{place} does not take {dataset.SOPClassUID.name}") from error
                if status is None or status & 0xFF00 == 0xA700:
                    raise Transient(f"{place} broke off, or has no room")
                if status not in (0x0000, 0xB000, 0xB006, 0xB007):  # warnings store all the same
                    raise Fatal(f"{place} does not want {dataset.SOPClassUID.name} (status {status:#06x})")
        finally:
            association.release()
