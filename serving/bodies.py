"""What a request carries: read once, counted and hashed as it comes, on disk where it is large.

A multipart body is packed into a zip on its way, so that further on there are zips and NIfTI files only.
"""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import IO, Literal

from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving.failures import HttpError
from serving.schemas import JSON, NIFTI, NIFTI_ALIAS, ZIP, ZIP_ALIAS
from tomoray.errors import Busy
from tomoray.serving_config import LimitsConfig

MB = 1_000_000
MAX_JSON_BYTES = 64 * 1024
MAX_PARTS = 20_000

BodyKind = Literal["zip", "nifti", "json"]
_KINDS: dict[str, BodyKind] = {ZIP: "zip", ZIP_ALIAS: "zip", NIFTI: "nifti", NIFTI_ALIAS: "nifti", JSON: "json"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Body:
    """A body at its start.

    Attributes:
        sha256: of the bytes as they came.
    """

    file: IO[bytes]
    kind: BodyKind
    size_bytes: int
    sha256: str


class Bodies:
    """Reads bodies, as many at a time as `limits` allow together."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._in_flight = 0

    @asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[Body]:
        """The whole body, for as long as the `with` lasts.

        Raises:
            HttpError: 413 as soon as it is, or says it is, larger than allowed; 415 where its type is none of ours; 400
                for a multipart body that is none.
            Busy: all bodies together would be too large.
        """
        content_type, parameters = parse_options_header(request.headers.get("content-type"))
        media_type = content_type.decode("latin-1").lower()
        multipart = media_type in ("multipart/form-data", "multipart/related")
        if media_type not in _KINDS and not multipart:
            raise HttpError(415, "unsupported_media_type", f"wanted Content-Type {', '.join(_KINDS)} or multipart")
        kind = "zip" if multipart else _KINDS[media_type]
        most = self._limits.body_mb * MB
        if kind == "json":
            most = min(MAX_JSON_BYTES, most)
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            raise _too_large(most)
        with tempfile.SpooledTemporaryFile(self._limits.in_memory_mb * MB) as file:
            write, close = _packer(file, parameters.get(b"boundary", b"")) if multipart else (file.write, _nothing)
            digest, size = hashlib.sha256(), 0
            try:
                async for chunk in request.stream():
                    self._in_flight += len(chunk)
                    size += len(chunk)
                    if size > most:
                        raise _too_large(most)
                    if self._in_flight > self._limits.bodies_mb * MB:
                        raise Busy("as many bodies as the server takes at once are being read; try again later")
                    digest.update(chunk)
                    write(chunk)
                close()
                file.seek(0)
                yield Body(file=file, kind=kind, size_bytes=size, sha256=digest.hexdigest())
            except MultipartParseError as error:
                raise HttpError(400, "bad_multipart", "the multipart body cannot be read") from error
            finally:
                self._in_flight -= size


def _too_large(most: int) -> HttpError:
    return HttpError(413, "too_large", f"the body is larger than {most} bytes")


def _nothing() -> None:
    return None


def _packer(file: IO[bytes], boundary: bytes) -> tuple[Callable[[bytes], object], Callable[[], None]]:
    """Functions that take a multipart body and its end, and write each part as a member of a zip into `file`."""
    if not boundary:
        raise HttpError(400, "bad_multipart", "the Content-Type of a multipart body wants a boundary")
    packed = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED)
    member: list[IO[bytes]] = []
    count = 0

    def begin() -> None:
        nonlocal count
        count += 1
        if count > MAX_PARTS:
            raise HttpError(413, "too_large", f"more than {MAX_PARTS} parts")
        member.append(packed.open(f"{count}", "w", force_zip64=True))

    def data(chunk: bytes, start: int, end: int) -> None:
        member[-1].write(chunk[start:end])

    def end() -> None:
        member.pop().close()

    parser = MultipartParser(boundary, {"on_part_begin": begin, "on_part_data": data, "on_part_end": end})

    def close() -> None:
        parser.finalize()
        if member:
            raise HttpError(400, "bad_multipart", "the multipart body was cut off")
        packed.close()

    return parser.write, close
