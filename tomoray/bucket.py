"""An S3 bucket as a place for a store: clients for obstore, tensorstore and Arrow, and errors in one line."""

from __future__ import annotations

import re
from datetime import timedelta
from functools import cached_property
from typing import Any

import obstore
from obstore.store import S3Store
from pyarrow import fs

from tomoray import settings
from tomoray.arrow import ArrowFiles
from tomoray.errors import Fatal, TomoRayError, Transient

_UNREACHABLE = {
    "ConnectionRefused": "connection refused",
    "dns error": "unknown host",
    "kind: Timeout": "no answer in time",
    "TimedOut": "no answer in time",
    "kind: Connect": "no connection",
    "HTTP error: ": "connection lost",
    "CURL error": "connection lost",
}


class Bucket:
    """An S3 bucket; the endpoint and credentials are this process's own."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[type[Bucket], tuple[str]]:
        return Bucket, (self.name,)

    @property
    def url(self) -> str:
        """`s3://bucket`."""
        return f"s3://{self.name}"

    @cached_property
    def reader(self) -> S3Store:
        """A patient client: rides out a minute of trouble."""
        return self._client(timeout_s=120, retries=8, retry_for_s=60)

    @property
    def writer(self) -> S3Store:
        """The same client."""
        return self.reader

    def delete(self, paths: list[str]) -> None:
        """Delete in bulk, a thousand a request; absent objects are no error."""
        obstore.delete(self.writer, paths)

    def clear_partial(self, path: str) -> None:
        """Nothing: an upload that was cut off is no object. A lifecycle rule of the bucket drops its parts."""

    def check(self, path: str, *, writable: bool) -> None:
        """Ask for one key with little patience. The right to write shows at the first write."""
        del writable
        client = self._client(timeout_s=3, retries=1, retry_for_s=5)
        next(iter(obstore.list(client, path or None, chunk_size=1)), None)

    def kvstore(self, path: str) -> dict[str, Any]:
        """Spec of tensorstore's `s3` driver; the credentials stay in the environment."""
        s3 = settings.s3()
        credentials = "environment" if s3.access_key_id else "anonymous" if s3.endpoint_url else "default"
        spec = {
            "driver": "s3",
            "bucket": self.name,
            "path": path,
            "aws_region": s3.region,
            "aws_credentials": {"type": credentials},
        }
        return {**spec, "endpoint": s3.endpoint_url} if s3.endpoint_url else spec

    def arrow(self, path: str) -> tuple[fs.FileSystem, str]:
        """An Arrow filesystem on the same client, and `bucket/path`.

        Arrow's own S3 client signs uploads with trailing checksums, which Ceph's gateway and others answer with 411
        unless a variable is set in every process.
        """
        return fs.PyFileSystem(ArrowFiles(self)), f"{self.name}/{path}".rstrip("/")

    def translate(self, url: str, error: Exception) -> TomoRayError:
        """What obstore's or tensorstore's error means for `url`: `Transient` or `Fatal`, in one line."""
        text, s3 = str(error), settings.s3()
        where = s3.endpoint_url or f"AWS {s3.region}"
        code = _found(r"<Code>(\w+)</Code>", text)
        status = _found(r"(?:status code: |http_response_code=.)(\d{3})", text)
        if code == "NoSuchBucket":
            wrong = "make it, or check its name and AWS_ENDPOINT_URL"
            return Fatal(f"{url}: there is no bucket {self.name!r} at {where}; {wrong}")
        if "169.254.169.254" in text:
            return Fatal(f"{url}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        if status in {"401", "403"}:
            wrong = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
            return Fatal(f"{url}: access denied at {where} ({code or status}); check {wrong}")
        if cause := next((plain for sign, plain in _UNREACHABLE.items() if sign in text), None):
            wrong = "AWS_ENDPOINT_URL and the bucket's name"
            return Transient(f"{url}: cannot reach the bucket at {where} ({cause}); check {wrong}")
        if status and (status == "429" or status.startswith("5")):
            return Transient(f"{url}: {where} answers {status} {code or ''}".rstrip() + "; try again")
        return other_trouble(url, error)

    def _client(self, *, timeout_s: int, retries: int, retry_for_s: int) -> S3Store:
        s3 = settings.s3()
        given = {
            "endpoint": s3.endpoint_url,
            "access_key_id": s3.access_key_id,
            "secret_access_key": s3.secret_access_key,
            "session_token": s3.session_token,
        }
        return S3Store(
            self.name,
            region=s3.region,
            virtual_hosted_style_request=False,
            skip_signature=_anonymous(s3),
            config={name: value for name, value in given.items() if value},  # type: ignore[arg-type]
            client_options={"allow_http": True, "connect_timeout": "3s", "timeout": f"{timeout_s}s"},
            retry_config={"max_retries": retries, "retry_timeout": timedelta(seconds=retry_for_s)},
        )


def _anonymous(s3: settings.S3Settings) -> bool:
    """A server of one's own without keys is public; AWS without keys in the environment means a role."""
    return s3.access_key_id is None and s3.endpoint_url is not None


def other_trouble(url: str, error: Exception) -> Fatal:
    """What a foreign error says before its details; bytes that are lost or damaged are called so."""
    said = re.split(r"\n| \[|: <\?xml", str(error), maxsplit=1)[0].removeprefix("Generic LocalFileSystem error: ")[:300]
    if "shard entry" in said or "DATA_LOSS" in said:
        said = f"stored bytes are missing or damaged ({said}); remove that scan and preprocess it again"
    return Fatal(f"{url}: {said}")


def _found(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match.group(1) if match else None
