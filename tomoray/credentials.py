"""Who asks S3, and where it is: this process, nobody, or a named profile of the AWS config files.

The account is the part of a URL before the `@`: `s3://anonymous@bucket` is asked unsigned, `s3://PROFILE@bucket` as
that profile, `s3://bucket` with what this process has. Credentials are looked up in each process and are renewed
before they run out; a URL, a pickle and an error hold names only.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import botocore.session
from botocore.exceptions import BotoCoreError
from obstore.auth.boto3 import Boto3CredentialProvider

from tomoray import settings
from tomoray.errors import Fatal, Usage

ANONYMOUS = "anonymous"
# botocore renews what has ten minutes left, obstore asks again five minutes before this is over
_VALID_FOR = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """How a bucket is asked.

    Attributes:
        endpoint_url: None is Amazon's own.
        keys: access key id, secret and token (may be empty) that do not change.
        provider: gives credentials that change. Without `keys` and `provider` requests are unsigned.
        tensorstore: the `aws_credentials` of tensorstore's `s3` driver.
    """

    endpoint_url: str | None
    region: str
    keys: tuple[str, str, str] | None
    provider: Boto3CredentialProvider | None
    tensorstore: dict[str, Any]


def find_access(bucket: str, account: str) -> Access:
    """How `bucket` is asked on behalf of `account`.

    With an empty account: the keys in the environment; else what boto finds (`AWS_PROFILE`, a web identity as EKS
    gives it, the credentials file, a container's role, and on Amazon the machine's); else, on an endpoint of one's own,
    nobody.

    Raises:
        Usage: no such profile.
        Fatal: no credentials, or they cannot be had.
    """
    s3 = settings.s3()
    if account == ANONYMOUS:
        region = s3.region if s3.endpoint_url else _public_region(bucket, s3.region)
        return _plain(ANONYMOUS, s3.endpoint_url, region)
    if not account and s3.access_key_id and s3.secret_access_key:
        keys = (s3.access_key_id, s3.secret_access_key, s3.session_token or "")
        return _plain("environment", s3.endpoint_url, s3.region, keys)
    try:
        return _from_boto(account, s3)
    except BotoCoreError as error:
        who = f"profile {account!r}" if account else "this process"
        raise Fatal(
            f"s3://{bucket}: {who} cannot get credentials ({type(error).__name__}); check AWS_… and the profile"
        ) from error


def _from_boto(account: str, s3: settings.S3Settings) -> Access:
    session = botocore.session.Session(profile=account or None)
    if account and account not in session.available_profiles:
        raise Usage(f"there is no AWS profile {account!r}; known: {', '.join(session.available_profiles) or 'none'}")
    if s3.endpoint_url and not account:
        # the role of the machine is Amazon's, and asking for it outside of Amazon takes seconds
        session.get_component("credential_provider").remove("iam-role")
    if session.get_credentials() is None:
        if s3.endpoint_url and not account:
            return _plain(ANONYMOUS, s3.endpoint_url, s3.region)
        raise Fatal(
            f"no credentials for S3{f' in profile {account!r}' if account else ''}; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, name a profile (s3://PROFILE@bucket), or ask unsigned (s3://anonymous@bucket)"
        )
    region = (session.get_config_variable("region") if account else None) or s3.region
    client = session.create_client("s3", region_name=region)
    endpoint_url = client.meta.endpoint_url if account else s3.endpoint_url
    if endpoint_url and endpoint_url.endswith(".amazonaws.com"):
        endpoint_url = None
    provider = Boto3CredentialProvider(session, ttl=_VALID_FOR)
    tensorstore = {"type": "default"}
    if account:  # tensorstore finds neither file by itself; its default would prefer keys in the environment
        files = ("credentials_file", "config_file")
        paths = {name: str(Path(session.get_config_variable(name)).expanduser()) for name in files}
        tensorstore = {"type": "profile", "profile": account, **paths}
    return Access(endpoint_url=endpoint_url, region=region, keys=None, provider=provider, tensorstore=tensorstore)


def _plain(kind: str, endpoint_url: str | None, region: str, keys: tuple[str, str, str] | None = None) -> Access:
    return Access(endpoint_url=endpoint_url, region=region, keys=keys, provider=None, tensorstore={"type": kind})


@lru_cache(maxsize=64)
def _public_region(bucket: str, otherwise: str) -> str:
    """Where on Amazon a public bucket lies: it says so to anybody, also in its refusals."""
    request = urllib.request.Request(f"https://s3.amazonaws.com/{bucket}", method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:  # noqa: S310 (the scheme is ours)
            said = reply.headers
    except urllib.error.HTTPError as error:
        said = error.headers
    except OSError:
        return otherwise
    return str(said.get("x-amz-bucket-region") or otherwise)
