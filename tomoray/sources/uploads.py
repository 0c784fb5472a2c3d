"""The one CT scan in a zip file that somebody sent."""

from __future__ import annotations

import io
import zipfile
import zlib

from tomoray.dicom import MEDIA_DIRECTORY_STORAGE, NotDicomError, looks_like_dicom, read_instance
from tomoray.errors import Fatal, Reason, Refused, TooLarge
from tomoray.pseudonyms import Pseudonyms
from tomoray.series import DicomSeries, LoadedSeries, load_dicom
from tomoray.sources.grouping import group_dicom


def read_zip(data: bytes, max_bytes: int, pseudonyms: Pseudonyms, *, min_slices: int = 3) -> LoadedSeries:
    """The one CT scan in a zip file of a DICOM study.

    Args:
        data: the zip file.
        max_bytes: more than this after decompression is an error; a forged size cannot get around it.
        pseudonyms: turns identifiers into pseudonyms.
        min_slices: fewer are refused.

    Raises:
        Fatal: not a zip file, too large (`TooLarge`), or no DICOM in it.
        Refused: no series, or more than one, is a usable CT scan.
    """
    members = _unzip(data, max_bytes)
    instances = []
    for name, member in members.items():
        if looks_like_dicom(member):
            try:
                instance = read_instance(member, root="", key=name, size_bytes=len(member))
            except NotDicomError as error:
                raise Refused(Reason.UNREADABLE, f"a file in the zip cannot be read: {error}") from error
            if instance is not None and instance.sop_class != MEDIA_DIRECTORY_STORAGE:
                instances.append(instance)
    if not instances:
        raise Fatal(f"no DICOM file among the {len(members)} files of the zip; send one CT study")
    usable: list[LoadedSeries] = []
    refusals: list[Refused] = []
    for series in group_dicom(instances):
        try:
            alone = DicomSeries(instances=series.instances)
            usable.append(load_dicom(alone, lambda _root, key: members[key], pseudonyms, min_slices=min_slices))
        except Refused as refusal:
            refusals.append(refusal)
        if len(usable) > 1:
            raise Refused(Reason.SEVERAL_SCANS, "several CT scans in one study; send one")
    if not usable:
        raise refusals[0]
    return usable[0]


def _unzip(data: bytes, max_bytes: int) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    left = max_bytes
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in archive.infolist():
                if entry.is_dir():
                    continue
                with archive.open(entry) as member:
                    members[entry.filename] = member.read(left + 1)
                left -= len(members[entry.filename])
                if left < 0:
                    raise TooLarge(f"the zip holds more than {max_bytes} bytes; send less, or raise the limit")
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        raise Fatal(f"the zip file cannot be read ({type(error).__name__}); send a plain, unencrypted zip") from error
    return members
