"""The only reader of the environment."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from tomoray.errors import Usage


@dataclass(frozen=True, kw_only=True, slots=True)
class S3Settings:
    """Where S3 is and who asks, from the usual AWS variables; None leaves the clients' own defaults.

    Attributes:
        patience_s: how long a request is tried again, where the server does not answer or is busy.
    """

    endpoint_url: str | None
    region: str
    access_key_id: str | None
    secret_access_key: str | None = field(repr=False)
    session_token: str | None = field(repr=False)
    patience_s: int = 180


def s3() -> S3Settings:
    """Read `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, `AWS_REGION`, the `AWS_…KEY…` variables, `TOMORAY_S3_PATIENCE`.

    Raises:
        Usage: the patience is no number of seconds from 1 on.
    """
    patience = os.environ.get("TOMORAY_S3_PATIENCE") or "180"
    if not patience.isascii() or not patience.isdecimal() or not int(patience):
        raise Usage(f"TOMORAY_S3_PATIENCE is {patience!r}; wanted whole seconds, 1 or more")
    return S3Settings(
        endpoint_url=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
        access_key_id=os.environ.get("AWS_ACCESS_KEY_ID"),
        secret_access_key=os.environ.get("AWS_SECRET_ACCESS_KEY"),
        session_token=os.environ.get("AWS_SESSION_TOKEN"),
        patience_s=int(patience),
    )


def serving_environment() -> dict[str, str]:
    """Variables of a process that serves, as somebody waits. What the environment says already stays.

    A bucket that is gone is told of in ten seconds. And the process steps back for no other: Ray starts workers with
    niceness 15, which costs a scan that keeps all cores busy a tenth of its time.
    """
    wanted = {"TOMORAY_S3_PATIENCE": "10", "RAY_worker_niceness": "0"}
    return {name: os.environ.get(name) or value for name, value in wanted.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class DicomWebSettings:
    """Who asks a DICOMweb server: a bearer token, or a user with a password, or nobody."""

    token: str | None = field(repr=False)
    user: str | None
    password: str | None = field(repr=False)


def dicomweb() -> DicomWebSettings:
    """Read the `TOMORAY_DICOMWEB_…` variables."""
    return DicomWebSettings(
        token=os.environ.get("TOMORAY_DICOMWEB_TOKEN"),
        user=os.environ.get("TOMORAY_DICOMWEB_USER"),
        password=os.environ.get("TOMORAY_DICOMWEB_PASSWORD"),
    )


def server_token() -> str | None:
    """Of a serving endpoint that is asked, from `TOMORAY_TOKEN`; None where it wants none."""
    return os.environ.get("TOMORAY_TOKEN") or None


def redis_password() -> str | None:
    """Of the queue's Redis, from `TOMORAY_REDIS_PASSWORD`; None where it wants none."""
    return os.environ.get("TOMORAY_REDIS_PASSWORD") or None


def state_folder() -> Path:
    """Where this user's programs keep what must outlive them: `tomoray` in `XDG_STATE_HOME`, or in `~/.local/state`."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "tomoray"


def cache_folder() -> Path:
    """A folder on this machine for what can be made again: `TOMORAY_CACHE`, else `~/.cache/tomoray`."""
    return Path(os.environ.get("TOMORAY_CACHE") or Path.home() / ".cache" / "tomoray")


def ray_address() -> str | None:
    """The Ray cluster to join, from `RAY_ADDRESS`; None starts one on this machine."""
    return os.environ.get("RAY_ADDRESS") or None


def targets_file() -> Path:
    """Where clusters are written down by name: `TOMORAY_TARGETS`, else `~/.config/tomoray/targets.yaml`."""
    named = os.environ.get("TOMORAY_TARGETS")
    return Path(named) if named else Path.home() / ".config" / "tomoray" / "targets.yaml"


def pseudonym_key() -> bytes:
    """The secret that turns identifiers into pseudonyms.

    From the file named by `TOMORAY_KEY_FILE`, else from `~/.config/tomoray/pseudonym.key`, which is made on first
    use (32 random bytes, readable by its owner only). Keep it: with another key the same patient gets another
    pseudonym. It is never written to an archive.

    Raises:
        Usage: the named file does not exist or is shorter than 16 bytes.
    """
    named = os.environ.get("TOMORAY_KEY_FILE")
    path = Path(named) if named else Path.home() / ".config" / "tomoray" / "pseudonym.key"
    if named is None and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
        except FileExistsError:
            pass  # another process made it first; read that one
    if not path.is_file():
        raise Usage(f"TOMORAY_KEY_FILE: no file at {path}; make one with: openssl rand -hex 32 > {path}")
    key = path.read_bytes().strip()
    if len(key) < 16:
        raise Usage(f"the key in {path} has {len(key)} bytes; wanted 16 or more: openssl rand -hex 32 > {path}")
    return key
