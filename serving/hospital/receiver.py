"""A DICOM node that takes series in: on disk, whole and durable, before the sender is told that all is well.

SPOOL/<series>/<instance>.dcm      both names are digests of UIDs
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
from pydicom import Dataset
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    Verification,
)

from serving.hospital.rules import Series
from tomoray.errors import Fatal
from tomoray.hospital_config import ReceiverConfig

SUCCESS, OUT_OF_ROOM, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xC000
_TAKEN = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
_FACTS = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "Modality",
    "BodyPartExamined",
    "SeriesDescription",
    "StudyDescription",
)


class Receiver:
    """Listens from the moment that it is made until `close`.

    Args:
        config: where, and from whom.
        spool: a folder for what is sent.

    Raises:
        Fatal: the port is taken.
    """

    def __init__(self, config: ReceiverConfig, spool: Path) -> None:
        self._config = config
        self._spool = spool
        spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        node = AE(ae_title=config.ae_title)
        node.require_called_aet = True
        node.require_calling_aet = config.senders
        node.add_supported_context(Verification)
        for kind in _TAKEN:
            node.add_supported_context(kind, ALL_TRANSFER_SYNTAXES)
        try:
            server = node.start_server(
                (config.host, config.port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
            )
        except OSError as error:
            raise Fatal(
                f"cannot listen at {config.host}:{config.port} ({error.strerror}); choose another port"
            ) from error
        assert server is not None, "one that does not block is returned"
        self._server = server
        self._used_bytes = _size_bytes(spool)
        self.port: int = server.server_address[1]

    def close(self) -> None:
        """Stop listening. What is on disk stays."""
        self._server.shutdown()

    def series(self) -> Iterator[Series]:
        """Every series on disk, as it is now."""
        for folder in sorted(self._spool.iterdir()):
            paths = sorted(folder.glob("*.dcm"))
            if paths:
                yield _described(pydicom.dcmread(paths[0], stop_before_pixels=True), len(paths))

    def files(self, series: Series) -> Iterator[bytes]:
        """The instances of a series, in the order of the digests of their UIDs."""
        for path in sorted(self._folder(series.series_uid).glob("*.dcm")):
            yield path.read_bytes()

    def forget(self, series_uid: str) -> None:
        """Remove a series from the disk."""
        shutil.rmtree(self._folder(series_uid), ignore_errors=True)
        self._used_bytes = _size_bytes(self._spool)

    def _folder(self, series_uid: str) -> Path:
        return self._spool / _digest(series_uid)

    def _store(self, event: Any) -> int:
        """What the sender is told of one instance."""
        data: bytes = event.encoded_dataset()
        if self._used_bytes + len(data) > self._config.room_gb * 1e9:
            return OUT_OF_ROOM
        try:
            header = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=list(_FACTS))
            series_uid, instance_uid = str(header.SeriesInstanceUID), str(header.SOPInstanceUID)
        except Exception:  # whatever a sender may come up with
            return NOT_UNDERSTOOD
        try:
            write_durably(self._folder(series_uid) / f"{_digest(instance_uid)}.dcm", data)
        except OSError:  # the disk is full, or the series has just been forgotten
            return OUT_OF_ROOM
        self._used_bytes += len(data)
        return SUCCESS


def write_durably(path: Path, data: bytes) -> None:
    """Write a file that is there as a whole, also after the power fails, or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    Path(part).replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _size_bytes(spool: Path) -> int:
    return sum(path.stat().st_size for path in spool.glob("*/*.dcm"))


def _described(header: Dataset, instances: int) -> Series:
    return Series(
        study_uid=str(header.get("StudyInstanceUID", "")),
        series_uid=str(header.SeriesInstanceUID),
        origin="receiver",
        modality=str(header.get("Modality", "")),
        body_part=str(header.get("BodyPartExamined", "")),
        series_description=str(header.get("SeriesDescription", "")),
        study_description=str(header.get("StudyDescription", "")),
        instances=instances,
    )


def _digest(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()[:32]
