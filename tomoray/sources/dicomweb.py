"""A DICOMweb server as a source (PS3.18): series by QIDO-RS, instances by WADO-RS, as they are stored there.

    dicomweb+https://host/dicom-web?PatientID=…&StudyInstanceUID=…

`Modality=CT` is asked for unless the URL says otherwise; `Modality=` asks for all. Who asks is said by the environment
(`TOMORAY_DICOMWEB_TOKEN`, or `TOMORAY_DICOMWEB_USER` and `_PASSWORD`) and never by a URL that is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from tomoray import settings
from tomoray.errors import Fatal, Reason, Refused, TomoRayError, Transient, Usage
from tomoray.sources.files import SeriesListing, SourceFile

_PREFIX = "dicomweb+"
_SERIES_PATH = re.compile(r"/studies/[^/?]+/series/[^/?]+/?$")
_PAGE = 500
_TIMEOUT_S = (5, 120)  # to connect, between bytes
_ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'  # PS3.18 8.7.3.5.2: as stored
_RETRIED = Retry(
    total=6,
    connect=2,
    backoff_factor=0.5,
    status_forcelist=(429, 502, 503, 504),
    allowed_methods=("GET",),
    raise_on_status=False,
)

# Attributes in the DICOM JSON model (PS3.18 F)
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
    found = _pages(f"{base}/series", asked, _SERIES_UID)
    first = next(found, None)
    if first is None:
        raise Fatal(f"{base}: the server has no such CT series; look at the query")
    return _listings(base, first, found)


def list_instances(root: str) -> Iterator[SourceFile]:
    """The instances of one series, sorted; `root` is a `SeriesListing.root`. Their sizes are not known."""
    for key in sorted(_text(found, _SOP_UID) for found in _pages(f"{_split(root)[0]}/instances", {}, _SOP_UID)):
        yield SourceFile(root=root, key=key, size_bytes=-1)


def read_instance(root: str, key: str, length: int | None = None) -> bytes:
    """The bytes of one instance, in the transfer syntax in which the server keeps it; or their first `length`.

    Raises:
        Refused: UNREADABLE; the server does not have it any more.
        Transient, Fatal: it cannot be reached, or denies access.
    """
    url = f"{_split(root)[0]}/instances/{key}"
    reply = _get(url, {}, _ACCEPT)
    if reply.status_code in (404, 410):
        raise Refused(Reason.UNREADABLE, "an instance is no longer on its server; run the command again")
    _check(reply)
    return _first_part(reply)[:length]


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


def _pages(url: str, asked: Mapping[str, str], key: str) -> Iterator[Mapping[str, Any]]:
    """Every match once. A server may give fewer than a page, or know no pages at all."""
    seen: set[str] = set()
    while True:
        page = _json(url, {**asked, "limit": str(_PAGE), "offset": str(len(seen))})
        new = [found for found in page if _text(found, key) and _text(found, key) not in seen]
        if not new:
            return
        seen.update(_text(found, key) for found in new)
        yield from new


def _json(url: str, asked: Mapping[str, str]) -> list[Mapping[str, Any]]:
    try:
        reply = _get(url, asked, "application/dicom+json")
    except Transient as error:
        raise Fatal(str(error)) from error
    if reply.status_code == 204:
        return []
    _check(reply)
    try:
        found = reply.json()
    except ValueError as error:
        raise Fatal(
            f"{_place(reply.url)}: the answer is no DICOM JSON; check that the address is of DICOMweb"
        ) from error
    return found if isinstance(found, list) else []


def _get(url: str, asked: Mapping[str, str], accept: str) -> requests.Response:
    try:
        return _session(settings.dicomweb()).get(url, params=asked, headers={"Accept": accept}, timeout=_TIMEOUT_S)
    except requests.RequestException as error:
        raise Transient(f"{_place(url)}: the DICOMweb server cannot be reached ({type(error).__name__})") from error


def _check(reply: requests.Response) -> None:
    """Nothing where the server answers well, else an error in one line."""
    place, status = _place(reply.url), reply.status_code
    trouble: TomoRayError | None = None
    if status in (401, 403):
        who = "TOMORAY_DICOMWEB_TOKEN, or TOMORAY_DICOMWEB_USER and TOMORAY_DICOMWEB_PASSWORD"
        trouble = Fatal(f"{place}: access denied ({status}); check {who}")
    elif status == 429 or status >= 500:
        trouble = Transient(f"{place}: the DICOMweb server answers {status}; try again")
    elif status != 200:
        trouble = Fatal(f"{place}: the DICOMweb server answers {status}; check the address and the query")
    if trouble:
        raise trouble


def _place(url: str) -> str:
    """The server's address without what was asked: a query may name a patient."""
    return re.sub(r"/(studies|series|instances)(/|\?|$).*", "", url.partition("?")[0])


@lru_cache(maxsize=4)
def _session(who: settings.DicomWebSettings) -> requests.Session:
    """One pool of connections a process; safe in threads, as nothing is changed in it."""
    session = requests.Session()
    session.trust_env = False  # a .netrc would send its own credentials
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=32, max_retries=_RETRIED))
    if who.token:
        session.headers["Authorization"] = f"Bearer {who.token}"
    elif who.user:
        session.auth = (who.user, who.password or "")
    return session


def _first_part(reply: requests.Response) -> bytes:
    """The body of the first part of a multipart answer (RFC 2046 5.1), or all where it is a plain one."""
    data, kind = reply.content, reply.headers.get("Content-Type", "")
    if not kind.lower().startswith("multipart/"):
        return data
    boundary = re.search(r'boundary="?([^";]+)"?', kind, re.IGNORECASE)
    if boundary:
        line = b"--" + boundary[1].strip().encode()
        start = data.find(line)
        body = data.find(b"\r\n\r\n", start)
        end = data.rfind(b"\r\n" + line)
        if 0 <= start < body < end:
            following = data.find(b"\r\n" + line, body, end)
            return data[body + 4 : end if following < 0 else following]
    raise Refused(Reason.UNREADABLE, "the DICOMweb server's answer is no multipart message, or was cut off")


def _listings(base: str, first: Mapping[str, Any], others: Iterator[Mapping[str, Any]]) -> Iterator[SeriesListing]:
    yield _listing(base, first)
    for found in others:
        yield _listing(base, found)


def _listing(base: str, found: Mapping[str, Any]) -> SeriesListing:
    study, series, count = _text(found, _STUDY_UID), _text(found, _SERIES_UID), _text(found, _N_INSTANCES)
    return SeriesListing(
        root=f"{_PREFIX}{base}/studies/{study}/series/{series}",
        series_uid=series,
        patient_id=_text(found, _PATIENT_ID),
        study_uid=study,
        modality=_text(found, _MODALITY),
        n_instances=int(count) if count.isdecimal() else 0,
        size_bytes=0,
        version=f"{count or 'unknown'} instances",
        manufacturer=_text(found, _MANUFACTURER) or None,
    )


def _text(found: Mapping[str, Any], tag: str) -> str:
    values = found.get(tag, {}).get("Value") or [""]
    return str(values[0] or "").strip()
