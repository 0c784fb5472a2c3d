"""The one CT scan in a zip file that somebody sent."""

from __future__ import annotations

import io
import zipfile
import zlib

from tomoray.assembly.stack import Rules
from tomoray.dicom.headers import MEDIA_DIRECTORY_STORAGE, NotDicomError, looks_like_dicom, read_instance
from tomoray.errors import Fatal, Reason, Refused, TooLarge
from tomoray.ingest.inventory import Head, group_dicom, head_of
from tomoray.ingest.loader import LoadedScan, load_dicom
from tomoray.privacy.deidentify import Deidentifier
from tomoray.privacy.pseudonyms import Pseudonyms


def read_zip(data: bytes, max_bytes: int, pseudonyms: Pseudonyms, *, min_slices: int = 3) -> LoadedScan:
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
    heads = [head for name, member in members.items() if (head := _head(name, member)) is not None]
    if not heads:
        raise Fatal(f"no DICOM file among the {len(members)} files of the zip; send one CT study")
    usable: list[LoadedScan] = []
    refusals: list[Refused] = []
    rules, deidentifier = Rules(min_slices=min_slices), Deidentifier(pseudonyms)
    for series in group_dicom(heads, pseudonyms):
        for part in load_dicom(series, lambda _, key: members[key], deidentifier, rules, keep_headers=True):
            if isinstance(part, LoadedScan):
                usable.append(part)
            else:
                refusals.append(part.refusal)
            if len(usable) > 1:
                raise Refused(Reason.SEVERAL_SCANS, "several CT scans in one study; send one")
    if not usable:
        raise refusals[0]
    (scan,) = usable
    if len({id(header) for header in scan.headers}) < len(scan.headers):
        found = "enhanced multi-frame CT; wanted one slice an instance, as results refer to slices by instance"
        raise Refused(Reason.UNSUPPORTED_PIXELS, found)
    return scan


def _head(name: str, data: bytes) -> Head | None:
    """The header of an image; None where it is something else, also a segmentation of one."""
    if not looks_like_dicom(data):
        return None
    try:
        instance = read_instance(data, root="", key=name, size_bytes=len(data))
    except NotDicomError as error:
        raise Refused(Reason.UNREADABLE, f"a file in the zip cannot be read: {error}") from error
    if instance is None or instance.sop_class == MEDIA_DIRECTORY_STORAGE:
        return None
    return head_of(instance)


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
