"""A DICOMweb server as a source (PS3.18): series by QIDO-RS, instances by WADO-RS, as they are stored there.

    dicomweb+https://host/dicom-web?PatientID=…&StudyInstanceUID=…

`Modality=CT` is asked for unless the URL says otherwise; `Modality=` asks for all. Who asks is said by the environment
(`TOMORAY_DICOMWEB_TOKEN`, or `TOMORAY_DICOMWEB_USER` and `_PASSWORD`) and never by a URL that is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, urlsplit

from tomoray.dicomweb import Found, retrieve, search, text
from tomoray.errors import Fatal, Transient, Usage
from tomoray.sources.files import SeriesListing, SourceFile

_PREFIX = "dicomweb+"
_SERIES_PATH = re.compile(r"/studies/[^/?]+/series/[^/?]+/?$")

_SERIES_UID, _STUDY_UID, _SOP_UID = "0020000E", "0020000D", "00080018"
_PATIENT_ID, _MODALITY, _MANUFACTURER, _N_INSTANCES = "00100020", "00080060", "00080070", "00201209"


def is_dicomweb(url: str) -> bool:
    """True by the scheme."""
    return url.startswith(("dicomweb+http://", "dicomweb+https://"))


def is_query(url: str) -> bool:
    """True for a server and what is asked of it; False for the root of one series, and for every other source."""
    return is_dicomweb(url) and not _SERIES_PATH.search(url)


def list_series(url: str) -> Iterator[SeriesListing]:
    """The series that a server has for the query in `url`, page by page, in its order.

    Raises:
        Fatal: the server cannot be reached, denies access, or knows none.
    """
    base, query = _split(url)
    asked = {"Modality": "CT", **dict(parse_qsl(query, keep_blank_values=True))}
    fields = ",".join((_SERIES_UID, _STUDY_UID, _PATIENT_ID, _MODALITY, _MANUFACTURER, _N_INSTANCES))
    asked = {name: value for name, value in asked.items() if value} | {"includefield": fields}
    found = _matches(f"{base}/series", asked, _SERIES_UID)
    first = next(found, None)
    if first is None:
        raise Fatal(f"{base}: the server has no such CT series; look at the query")
    return _listings(base, first, found)


def list_instances(root: str) -> Iterator[SourceFile]:
    """The instances of one series, sorted; `root` is a `SeriesListing.root`. Their sizes are not known."""
    for key in sorted(text(found, _SOP_UID) for found in _matches(f"{_split(root)[0]}/instances", {}, _SOP_UID)):
        yield SourceFile(root=root, key=key, size_bytes=-1)


def read_instance(root: str, key: str, length: int | None = None) -> bytes:
    """The bytes of one instance, in the transfer syntax in which the server keeps it; or their first `length`.

    Raises:
        Refused: UNREADABLE; the server does not have it any more.
        Transient, Fatal: it cannot be reached, or denies access.
    """
    return retrieve(f"{_split(root)[0]}/instances/{key}")[:length]


def _split(url: str) -> tuple[str, str]:
    """The plain HTTP address without a trailing slash, and the query.

    Raises:
        Usage: a user or a password stands in `url`, which is kept as lineage.
    """
    parts = urlsplit(url.removeprefix(_PREFIX))
    if "@" in parts.netloc or not parts.hostname:
        raise Usage(
            "a dicomweb URL needs a host and holds no user; set TOMORAY_DICOMWEB_USER and TOMORAY_DICOMWEB_PASSWORD"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", parts.query


def _matches(url: str, asked: dict[str, str], key: str) -> Iterator[Found]:
    """As `search`, for a command that is to say at once that a server is away."""
    try:
        yield from search(url, asked, key)
    except Transient as error:
        raise Fatal(str(error)) from error


def _listings(base: str, first: Found, others: Iterator[Found]) -> Iterator[SeriesListing]:
    yield _listing(base, first)
    for found in others:
        yield _listing(base, found)


def _listing(base: str, found: Found) -> SeriesListing:
    study, series, count = text(found, _STUDY_UID), text(found, _SERIES_UID), text(found, _N_INSTANCES)
    return SeriesListing(
        root=f"{_PREFIX}{base}/studies/{study}/series/{series}",
        series_uid=series,
        patient_id=text(found, _PATIENT_ID),
        study_uid=study,
        modality=text(found, _MODALITY),
        n_instances=int(count) if count.isdecimal() else 0,
        size_bytes=0,
        version=f"{count or 'unknown'} instances",
        manufacturer=text(found, _MANUFACTURER) or None,
    )
