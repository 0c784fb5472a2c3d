"""Talking to a DICOMweb server (PS3.18): search, retrieve, store.

Who asks is said by the environment (`TOMORAY_DICOMWEB_TOKEN`, or `TOMORAY_DICOMWEB_USER` and `_PASSWORD`). Errors name
the server, never what was asked: a query may name a patient.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from tomoray import settings
from tomoray.errors import Fatal, Reason, Refused, TomoRayError, Transient

Found = Mapping[str, Any]  # attributes in the DICOM JSON model (PS3.18 F)

_PAGE = 500
_TIMEOUT_S = (5, 120)  # to connect, between bytes
_JSON = "application/dicom+json"
_AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'  # PS3.18 8.7.3.5.2
_FAILED, _FAILURE_REASON = "00081198", "00081197"
_RETRIED = Retry(
    total=6,
    connect=2,
    backoff_factor=0.5,
    status_forcelist=(429, 502, 503, 504),
    allowed_methods=("GET",),
    raise_on_status=False,
)


def search(url: str, asked: Mapping[str, str], key: str) -> Iterator[Found]:
    """Every match of a QIDO-RS query once, page by page. A server may give fewer than a page, or know no pages at all.

    Args:
        url: what is searched, such as `https://host/dicom-web/series`.
        asked: attributes to match, and `includefield`.
        key: the tag that tells matches apart.

    Raises:
        Transient, Fatal: the server cannot be reached or is busy; it denies access, or is none.
    """
    seen: set[str] = set()
    while True:
        page = _json(url, {**asked, "limit": str(_PAGE), "offset": str(len(seen))})
        new = [found for found in page if text(found, key) and text(found, key) not in seen]
        if not new:
            return
        seen.update(text(found, key) for found in new)
        yield from new


def retrieve(url: str) -> bytes:
    """One instance by WADO-RS, in the transfer syntax in which the server keeps it.

    Raises:
        Refused: UNREADABLE; the server does not have it any more.
        Transient, Fatal: it cannot be reached, or denies access.
    """
    reply = _ask("GET", url, headers={"Accept": _AS_STORED})
    if reply.status_code in (404, 410):
        raise Refused(Reason.UNREADABLE, "an instance is no longer on its server; run the command again")
    _check(reply)
    return _first_part(reply)


def store(root: str, instances: Sequence[bytes]) -> None:
    """Store instances by STOW-RS. Safe to repeat: an instance is stored once by its UID.

    Args:
        root: of the server, such as `https://host/dicom-web`.
        instances: DICOM files.

    Raises:
        Transient, Fatal: the server cannot be reached or is busy; it denies access, or does not want an instance.
    """
    boundary = secrets.token_hex(16)
    parts = [f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode() + data + b"\r\n" for data in instances]
    reply = _ask(
        "POST",
        f"{root.rstrip('/')}/studies",
        headers={
            "Accept": _JSON,
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        },
        data=b"".join([*parts, f"--{boundary}--\r\n".encode()]),
    )
    failed = _said(reply).get(_FAILED, {}).get("Value") if reply.status_code in (200, 202, 409) else None
    if failed:
        code = text(failed[0], _FAILURE_REASON)
        raise Fatal(f"{_place(reply.url)}: {len(failed)} of {len(instances)} instances were not stored (reason {code})")
    if reply.status_code != 202:  # which only warns
        _check(reply)


def text(found: Found, tag: str) -> str:
    """The first value of an attribute; empty where there is none."""
    values = found.get(tag, {}).get("Value") or [""]
    return str(values[0] or "").strip()


def _json(url: str, asked: Mapping[str, str]) -> list[Found]:
    reply = _ask("GET", url, params=asked, headers={"Accept": _JSON})
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


def _said(reply: requests.Response) -> Found:
    try:
        said = reply.json()
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _ask(method: str, url: str, **options: Any) -> requests.Response:
    try:
        return _session(settings.dicomweb()).request(method, url, timeout=_TIMEOUT_S, **options)
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
    """The server's address without what was asked."""
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
