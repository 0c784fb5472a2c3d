"""The one CT scan in what somebody sent: a zip file, the files of a study, a NIfTI file."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Mapping
from typing import IO

from tomoray.assembly.stack import Rules
from tomoray.dicom.headers import MEDIA_DIRECTORY_STORAGE, NotDicomError, looks_like_dicom, read_instance
from tomoray.errors import Fatal, Reason, Refused, TooLarge
from tomoray.ingest.inventory import Head, group_dicom, head_of
from tomoray.ingest.loader import LoadedScan, load_dicom, load_volume_files
from tomoray.ingest.series import VolumeCase
from tomoray.privacy.deidentify import Deidentifier
from tomoray.privacy.pseudonyms import Pseudonyms


def read_zip(file: bytes | IO[bytes], max_bytes: int, pseudonyms: Pseudonyms, *, min_slices: int = 3) -> LoadedScan:
    """The one CT scan in a zip file of a DICOM study.

    Args:
        file: the zip file, or its bytes.
        max_bytes: more than this after decompression, of files or of voxels, is an error; a forged size cannot get
            around it.
        pseudonyms: turns identifiers into pseudonyms.
        min_slices: fewer are refused.

    Raises:
        Fatal: not a zip file, too large (`TooLarge`), or no DICOM in it.
        Refused: no series, or more than one, is a usable CT scan.
    """
    members = _unzip(io.BytesIO(file) if isinstance(file, bytes) else file, max_bytes)
    return read_study(members, max_bytes, pseudonyms, min_slices=min_slices)


def read_study(
    files: Mapping[str, bytes], max_bytes: int, pseudonyms: Pseudonyms, *, min_slices: int = 3
) -> LoadedScan:
    """The one CT scan among the files of a study, by name. Args and errors as of `read_zip`."""
    heads = [head for name, data in files.items() if (head := _head(name, data)) is not None]
    if not heads:
        raise Fatal(f"no DICOM file among {len(files)} files; send one CT study")
    if sum(head.voxel_bytes for head in heads) > max_bytes:  # codestreams, too, can say more than they hold
        raise TooLarge(f"the slices decode to more than {max_bytes} bytes; send less, or raise the limit")
    usable: list[LoadedScan] = []
    refusals: list[Refused] = []
    rules, deidentifier = Rules(min_slices=min_slices), Deidentifier(pseudonyms)
    for series in group_dicom(heads, pseudonyms):
        for part in load_dicom(series, lambda _, key: files[key], deidentifier, rules, keep_headers=True):
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


def read_nifti(file: bytes | IO[bytes], max_bytes: int, pseudonyms: Pseudonyms, *, min_slices: int = 3) -> LoadedScan:
    """The scan in a `.nii` or `.nii.gz` file; it has no headers. Args and errors as of `read_zip`."""
    data = file if isinstance(file, bytes) else file.read()
    if data[:2] == b"\x1f\x8b":
        try:
            with gzip.open(io.BytesIO(data)) as packed:
                data = packed.read(max_bytes + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise Fatal(f"the NIfTI file cannot be unpacked ({type(error).__name__}); send it again") from error
    if len(data) > max_bytes:
        raise TooLarge(f"the NIfTI file holds more than {max_bytes} bytes; send less, or raise the limit")
    case = VolumeCase(root="", case="sent", image="sent.nii", size_bytes=len(data), labels=())
    (part,) = load_volume_files(case, lambda *_: data, Deidentifier(pseudonyms), Rules(min_slices=min_slices))
    if not isinstance(part, LoadedScan):
        raise part.refusal
    return part


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


def _unzip(file: IO[bytes], max_bytes: int) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    left = max_bytes
    try:
        with zipfile.ZipFile(file) as archive:
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
