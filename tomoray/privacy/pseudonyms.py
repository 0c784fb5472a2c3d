"""Identifiers out, keyed pseudonyms in: the same key and identifier always give the same pseudonym."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Pseudonyms:
    """HMAC-SHA-256 under a secret key (`settings.pseudonym_key`), kept apart by kind.

    Example:
        >>> Pseudonyms(b"0123456789abcdef").token("patient", "DOE^JANE")
        'fbb6e5cfee39a5f6bb04'
    """

    key: bytes = field(repr=False)

    def token(self, kind: str, *identifiers: str) -> str:
        """20 hexadecimal digits that stand for `identifiers`."""
        return self._digest(kind, identifiers).hex()[:20]

    def uid(self, kind: str, identifier: str) -> str:
        """A DICOM UID that stands for `identifier`: `2.25.` and a 128-bit number (PS3.5 B.2)."""
        return f"2.25.{int.from_bytes(self._digest(kind, (identifier,))[:16], 'big')}"

    def digest(self, kind: str, identifiers: Iterable[str]) -> str:
        """64 hexadecimal digits that stand for the whole list, in its order."""
        return self._digest(kind, identifiers).hex()

    def _digest(self, kind: str, identifiers: Iterable[str]) -> bytes:
        mac = hmac.new(self.key, kind.encode(), hashlib.sha256)
        for identifier in identifiers:
            mac.update(b"\0" + identifier.encode())
        return mac.digest()


def public_root(root: str) -> str:
    """What may be stored of where a file came from: the source as it was named, and no name found within it.

    An archive in a folder has the root `FOLDER//below/archive.zip`, a DICOMweb series `BASE/studies/UID/series/UID`.

    Example:
        >>> public_root("/data/ct//DOE^JANE/ct.zip")
        '/data/ct'
    """
    scheme, separator, place = root.rpartition("://")
    if scheme.startswith("dicomweb"):
        place = re.sub(r"/studies/[^/]*/series/[^/]*$", "", place)
    return scheme + separator + place.partition("//")[0]
