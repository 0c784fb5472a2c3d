"""An S3 bucket as a place for a store: clients for obstore, tensorstore and Arrow, and errors in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from functools import lru_cache
from typing import Any

import obstore
from obstore.store import S3Store
from pyarrow import fs

from tomoray import settings
from tomoray.arrow import ArrowFiles
from tomoray.credentials import Access, find_access
from tomoray.errors import Fatal, TomoRayError, Transient

_NO_LIMIT = 1000  # of tries: the time alone decides, for ten tries can be over in two seconds
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
    """An S3 bucket. All buckets of one name and account share one client, so one pool of connections, in a process.

    Args:
        name: the bucket's name.
        account: who asks: empty, `anonymous`, or an AWS profile (`credentials`).
    """

    gap_bytes = 512 * 2**10  # docs/patches.md

    def __init__(self, name: str, account: str = "") -> None:
        self.name = name
        self.account = account

    def __reduce__(self) -> tuple[type[Bucket], tuple[str, str]]:
        return Bucket, (self.name, self.account)

    @property
    def url(self) -> str:
        """`s3://bucket`, or `s3://account@bucket`."""
        return f"s3://{self.account}@{self.name}" if self.account else f"s3://{self.name}"

    @property
    def reader(self) -> S3Store:
        """A patient client: rides out three minutes of trouble unless told otherwise, with pauses of up to 15 s."""
        s3 = settings.s3()
        timeout_s = min(120, s3.patience_s)
        return _client(self.name, self.account, s3, timeout_s=timeout_s, retries=_NO_LIMIT, retry_for_s=s3.patience_s)

    @property
    def writer(self) -> S3Store:
        """The same client."""
        return self.reader

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """Bytes of an object, fewer where it ends."""
        return bytes(obstore.get_range(self.reader, path, start=start, length=length))

    def folders(self, path: str) -> Iterator[str]:
        """Names of what is right below `path` and has something below it."""
        found = obstore.list_with_delimiter(self.reader, path or None)["common_prefixes"]
        return (name.rstrip("/").rpartition("/")[2] for name in found)

    def delete(self, paths: list[str]) -> None:
        """Delete in bulk, a thousand a request; absent objects are no error."""
        obstore.delete(self.writer, paths)

    def clear_partial(self, path: str) -> None:
        """Nothing: an upload that was cut off is no object. A lifecycle rule of the bucket drops its parts."""

    def check(self, path: str, *, writable: bool) -> None:
        """Ask for one key with little patience. The right to write shows at the first write."""
        del writable
        client = _client(self.name, self.account, settings.s3(), timeout_s=3, retries=1, retry_for_s=5)
        next(iter(obstore.list(client, path or None, chunk_size=1)), None)

    def kvstore(self, path: str) -> dict[str, Any]:
        """Spec of tensorstore's `s3` driver, without secrets: tensorstore finds the same credentials by itself."""
        access = _known_access(self.name, self.account, settings.s3())
        spec = {
            "driver": "s3",
            "bucket": self.name,
            "path": path,
            "aws_region": access.region,
            "aws_credentials": dict(access.tensorstore),
        }
        return {**spec, "endpoint": access.endpoint_url} if access.endpoint_url else spec

    def arrow(self, path: str) -> tuple[fs.FileSystem, str]:
        """An Arrow filesystem on the same client, and `bucket/path`.

        Arrow's own S3 client signs uploads with trailing checksums, which Ceph's gateway and others answer with 411
        unless a variable is set in every process.
        """
        return fs.PyFileSystem(ArrowFiles(self)), f"{self.name}/{path}".rstrip("/")

    def translate(self, url: str, error: Exception) -> TomoRayError:
        """What obstore's or tensorstore's error means for `url`: `Transient` or `Fatal`, in one line."""
        text, access = str(error), _known_access(self.name, self.account, settings.s3())
        where = access.endpoint_url or f"AWS {access.region}"
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


@lru_cache(maxsize=64)
def _known_access(bucket: str, account: str, s3: settings.S3Settings) -> Access:
    """Found once for these settings."""
    del s3
    return find_access(bucket, account)


@lru_cache(maxsize=64)
def _client(
    bucket: str, account: str, s3: settings.S3Settings, *, timeout_s: int, retries: int, retry_for_s: int
) -> S3Store:
    access = _known_access(bucket, account, s3)
    names = ("access_key_id", "secret_access_key", "session_token")
    given = {"endpoint": access.endpoint_url, **dict(zip(names, access.keys or (), strict=False))}
    return S3Store(
        bucket,
        region=access.region,
        virtual_hosted_style_request=False,
        skip_signature=access.keys is None and access.provider is None,
        config={  # type: ignore[arg-type]
            **{name: value for name, value in given.items() if value},
            "unsigned_payload": not (access.endpoint_url or "https://").startswith("http://"),  # TLS guards it already
        },
        credential_provider=access.provider,
        client_options={
            "allow_http": True,
            "connect_timeout": "3s",
            "read_timeout": f"{max(1, timeout_s // 2)}s",  # so that a server that fell silent is asked again in time
            "timeout": f"{timeout_s}s",
        },
        retry_config={"max_retries": retries, "retry_timeout": timedelta(seconds=retry_for_s)},
    )


def other_trouble(url: str, error: Exception) -> Fatal:
    """What a foreign error says before its details; bytes that are lost or damaged are called so."""
    said = re.split(r"\n| \[|: <\?xml", str(error), maxsplit=1)[0].removeprefix("Generic LocalFileSystem error: ")[:300]
    if "shard entry" in said or "DATA_LOSS" in said:
        said = f"stored bytes are missing or damaged ({said}); remove that scan and preprocess it again"
    return Fatal(f"{url}: {said}")


def _found(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match.group(1) if match else None
