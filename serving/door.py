"""Who asks, and what they may: bearer tokens from a file, JSON Web Tokens of an identity provider, rate limits.

Where neither is configured the server is for this machine only: it answers loopback connections that call it by a
loopback name, so that no page of another site can make a browser ask in its stead (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
import requests
from fastapi import Request

from serving.failures import HttpError
from tomoray.errors import Transient, Usage
from tomoray.serving_config import AuthConfig, LimitsConfig, OidcConfig
from tomoray.tokens import Token, digest, read_tokens

OIDC_PREFIX = "tomoray:"  # of scopes; an identity provider has those of others too
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_MOST_CALLERS = 10_000
_TIMEOUT_S = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        name: the token's name, or a pseudonym of who the identity provider says it is.
        scopes: `infer`, `infer:MODEL`, `metrics`.
    """

    name: str
    scopes: Collection[str]

    def may_use(self, model: str) -> bool:
        """True where the caller may ask this model."""
        return "infer" in self.scopes or f"infer:{model}" in self.scopes

    def require(self, scope: str) -> None:
        """Raise `HttpError` 403 where the caller has not this scope."""
        if scope not in self.scopes:
            raise HttpError(403, "not_allowed", f"this token lacks the scope {scope}")


class Door:
    """Admits requests, or not."""

    def __init__(self, auth: AuthConfig, limits: LimitsConfig) -> None:
        self._auth = auth
        self._tokens = _TokenFile(Path(auth.tokens)) if auth.tokens else None
        self._provider = _Provider(auth.oidc) if auth.oidc else None
        self._rates = _Rates(limits.requests_per_minute)

    async def admit(self, request: Request) -> Caller:
        """Who asks.

        Raises:
            HttpError: 401 nobody that is known; 403 not from here; 429 too often.
            Transient: the identity provider does not answer.
        """
        caller = await self._caller(request)
        self._rates.count(caller.name)
        return caller

    async def _caller(self, request: Request) -> Caller:
        if self._tokens is None and self._provider is None:
            if not self._auth.proxied:
                _require_loopback(request)
            return Caller(name="anybody", scopes=("infer", "metrics"))
        kind, _, text = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not text:
            raise _unauthorized("wanted Authorization: Bearer TOKEN")
        token = self._tokens.find(text) if self._tokens else None
        if token is not None:
            if token.expired:
                raise _unauthorized("the token has expired")
            return Caller(name=token.name, scopes=token.scopes)
        if self._provider is not None and text.count(".") == 2:
            return await asyncio.to_thread(self._provider.caller, text)
        raise _unauthorized("the token is not known")


class _TokenFile:
    """Tokens by digest, read again when the file has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._known: dict[str, Token] = {}
        self.find("")  # a file that is none is told at the start

    def find(self, text: str) -> Token | None:
        """The token that `text` is."""
        try:
            found = self._path.stat()
        except OSError as error:
            raise Usage(f"{self._path}: {error.strerror}; make it with: tomoray token NAME --file …") from error
        stamp = (found.st_mtime_ns, found.st_ino)
        if stamp != self._stamp:
            self._known = {token.sha256: token for token in read_tokens(self._path)}
            self._stamp = stamp
        return self._known.get(digest(text))


class _Provider:
    """An identity provider and its keys, which are fetched when they are needed and kept for five minutes."""

    def __init__(self, config: OidcConfig) -> None:
        self._config = config
        self._keys: jwt.PyJWKClient | None = None

    def caller(self, text: str) -> Caller:
        """Whom the provider says this is. Raises `HttpError` 401; `Transient` where the provider does not answer."""
        config = self._config
        try:
            key = self._key_client().get_signing_key_from_jwt(text)
            claims = jwt.decode(
                text,
                key,
                algorithms=list(_ALGORITHMS),  # never the one that the token itself names: it could be none, or HMAC
                audience=config.audience,
                issuer=config.issuer,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWKClientConnectionError as error:
            raise Transient("the identity provider does not answer; try again") from error
        except jwt.PyJWTError as error:
            raise _unauthorized(f"the token is not good ({type(error).__name__})") from error
        said = claims.get(config.scopes, [])
        scopes = said.split() if isinstance(said, str) else [str(scope) for scope in said]
        subject = hashlib.sha256(f"{claims['iss']}\0{claims['sub']}".encode()).hexdigest()[:20]
        return Caller(
            name=f"oidc-{subject}",
            scopes=[scope.removeprefix(OIDC_PREFIX) for scope in scopes if scope.startswith(OIDC_PREFIX)],
        )

    def _key_client(self) -> jwt.PyJWKClient:
        if self._keys is None:
            self._keys = jwt.PyJWKClient(self._config.jwks or self._discovered(), timeout=_TIMEOUT_S)
        return self._keys

    def _discovered(self) -> str:
        place = f"{self._config.issuer.rstrip('/')}/.well-known/openid-configuration"
        try:
            found: dict[str, Any] = requests.get(place, timeout=_TIMEOUT_S, allow_redirects=False).json()
            return str(found["jwks_uri"])
        except (requests.RequestException, ValueError, KeyError, TypeError) as error:
            raise Transient("the identity provider does not say where its keys are; try again") from error


@dataclass(slots=True)
class _Rates:
    """A bucket for each caller, which fills in a minute and holds a minute's requests."""

    per_minute: int
    _left: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)  # tokens, and when counted

    def count(self, caller: str) -> None:
        """Count a request. Raises `HttpError` 429 where the caller has none left."""
        if not self.per_minute:
            return
        now = time.monotonic()
        left, counted = self._left.pop(caller, (float(self.per_minute), now))
        left = min(float(self.per_minute), left + (now - counted) * self.per_minute / 60)
        self._left[caller] = (left - 1 if left >= 1 else left, now)
        if len(self._left) > _MOST_CALLERS:
            self._left.popitem(last=False)
        if left < 1:
            wait_s = max(1, round((1 - left) * 60 / self.per_minute))
            raise HttpError(
                429, "too_often", f"more than {self.per_minute} requests a minute", {"Retry-After": str(wait_s)}
            )


def _require_loopback(request: Request) -> None:
    host = request.client.host if request.client else ""
    if not _is_loopback(host):
        raise HttpError(
            403, "auth_not_configured", "without auth in its config this server is for its own machine only"
        )
    called = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    if not (called == "localhost" or _is_loopback(called)):
        raise HttpError(403, "auth_not_configured", "without auth in its config this server goes by localhost only")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _unauthorized(message: str) -> HttpError:
    return HttpError(401, "unauthorized", message, {"WWW-Authenticate": "Bearer"})
