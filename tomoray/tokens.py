"""Bearer tokens of a server: made here, shown once, kept as digests only.

The file is JSON, for its owner only: `{"tokens": [{"name", "sha256", "scopes", "expires"}, …]}`. A token has 256 random
bits, so that SHA-256 without salt or work factor is as good as any.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from tomoray.config import Config
from tomoray.errors import Usage

PREFIX = "tomoray_"
SCOPE = r"^(infer(:[A-Za-z0-9][A-Za-z0-9._-]{0,63})?|metrics)$"


class Token(Config):
    """What is kept of a token.

    Attributes:
        scopes: `infer` (every model), `infer:MODEL`, `metrics`.
        expires: seconds since 1970.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: list[Annotated[str, Field(pattern=SCOPE)]]
    expires: float

    @property
    def expired(self) -> bool:
        """True once nobody may use it."""
        return time.time() >= self.expires


_TOKENS: TypeAdapter[list[Token]] = TypeAdapter(list[Token])


def digest(token: str) -> str:
    """What is kept of a token's text."""
    return hashlib.sha256(token.encode()).hexdigest()


def add_token(path: Path, name: str, scopes: Sequence[str], days: float) -> str:
    """Make a token, and keep its digest in the file at `path`, which is made where there is none. The token itself.

    Raises:
        Usage: the name is taken, or name or scopes are none; or the file is no file of tokens.
    """
    tokens = read_tokens(path) if path.exists() else []
    if any(token.name == name for token in tokens):
        raise Usage(f"{path} has a token {name!r} already; choose another name, or revoke that one")
    text = PREFIX + secrets.token_urlsafe(32)
    try:
        new = Token(name=name, sha256=digest(text), scopes=list(scopes), expires=time.time() + days * 86400)
    except ValidationError as error:
        wanted = "a name of letters, digits, '.', '_' and '-'; scopes infer, infer:MODEL or metrics"
        raise Usage(f"wanted {wanted}") from error
    _write(path, [*tokens, new])
    return text


def revoke_token(path: Path, name: str) -> None:
    """Forget a token: from now on nobody may use it. Raises `Usage` where there is none of that name."""
    tokens = read_tokens(path)
    left = [token for token in tokens if token.name != name]
    if len(left) == len(tokens):
        raise Usage(f"{path} has no token {name!r}; it has: {', '.join(token.name for token in tokens) or 'none'}")
    _write(path, left)


def read_tokens(path: Path) -> list[Token]:
    """The tokens of a file. Raises `Usage` where it is none."""
    try:
        return _TOKENS.validate_python(json.loads(path.read_bytes())["tokens"])
    except OSError as error:
        raise Usage(f"{path}: {error.strerror}; make it with: tomoray token NAME --file {path}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Usage(f"{path} is no file of tokens; make one with: tomoray token NAME --file {path}") from error


def _write(path: Path, tokens: Sequence[Token]) -> None:
    document: dict[str, Any] = {"tokens": [token.model_dump() for token in tokens]}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(document, file, indent=2)
        partial.replace(path)
    except OSError as error:
        raise Usage(f"{path}: {error.strerror}; choose another --file") from error
