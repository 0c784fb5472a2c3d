"""What a request may name as input: archives, S3 prefixes and DICOMweb servers that the config lists, nothing else.

A request never gives an address that the server would then fetch: S3 prefixes are compared with the list, DICOMweb
servers are chosen by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from serving.asks import DicomWebStudy, Reference, S3Prefix
from serving.failures import HttpError
from serving.messages import ArchivedScan
from tomoray.archive import Archive


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Everything that may be named.

    Attributes:
        archives: full URLs by every name that a request may use for them.
        s3: prefixes.
        dicomweb: roots of servers, by name.
    """

    archives: Mapping[str, str]
    s3: Sequence[str] = ()
    dicomweb: Mapping[str, str] | None = None

    def archived(self, reference: Reference) -> ArchivedScan:
        """The scan that is meant, which is there. One small request to the archive. Raises `HttpError`."""
        scan = ArchivedScan(archive=self._archive(reference.archive), scan_id=reference.scan_id)
        if not _opened(scan.archive).has_scan(scan.scan_id):
            raise HttpError(404, "unknown_scan", f"the archive has no scan {scan.scan_id}")
        return scan

    def prefix(self, reference: S3Prefix) -> str:
        """The prefix that is meant. Raises `HttpError` where it lies below none that may be read."""
        wanted = reference.s3.rstrip("/") + "/"
        parts = wanted.removeprefix("s3://").split("/")
        if ".." in parts or "." in parts or not any(wanted.startswith(f"{prefix.rstrip('/')}/") for prefix in self.s3):
            raise HttpError(403, "prefix_not_allowed", "this server does not read that S3 prefix")
        return wanted

    def source(self, reference: DicomWebStudy) -> str:
        """The study that is meant as a source (`tomoray.sources`). Raises `HttpError` for an unknown server."""
        root = (self.dicomweb or {}).get(reference.dicomweb)
        if root is None:
            known = ", ".join(self.dicomweb or {}) or "none"
            raise HttpError(403, "server_not_allowed", f"no DICOMweb server of that name; known: {known}")
        series = f"&SeriesInstanceUID={reference.series}" if reference.series else ""
        return f"dicomweb+{root.rstrip('/')}?StudyInstanceUID={reference.study}{series}"

    def _archive(self, name: str | None) -> str:
        if name is None:
            only = set(self.archives.values())
            if len(only) != 1:
                raise HttpError(400, "archive_missing", f"this server reads {len(only)} archives; name one as archive")
            return only.pop()
        try:
            return self.archives[name.rstrip("/")]
        except KeyError as error:
            raise HttpError(403, "archive_not_allowed", "this server does not read that archive") from error


@lru_cache(maxsize=64)
def _opened(url: str) -> Archive:
    return Archive.open(url)
