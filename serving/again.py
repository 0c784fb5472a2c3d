"""Before the gateway, in Ray Serve's proxy: what a gateway was asked when it was killed is asked of the next one.

Where the replica that worked on a request is gone, Ray Serve says nothing, raises, or answers 500 in plain text. Here
such a request goes to another replica if nothing changes by asking twice: it reads, its body is small, and a job has an
`Idempotency-Key`. All others are told 503, and to come back. The proxy finds `middlewares` by the variable
`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`, and waits for it: nothing is imported here that takes long.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import MutableMapping
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

WITHIN_S = 30.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 2.0
_MOST_BYTES = 64 * 1024
_GONE = {"error": {"code": "gateway_unavailable", "message": "the server lost the request on its way; send it again"}}


def middlewares() -> list[Middleware]:
    """What Ray Serve is to put around its proxy."""
    return [Middleware(AskAgain)]


class AskAgain:
    """ASGI middleware. What the gateway itself answers, 5xx or not, goes through as it is."""

    def __init__(self, app: ASGIApp, within_s: float = WITHIN_S) -> None:
        self._app, self._within_s = app, within_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        asked = _Asked(receive)
        await asked.begin()
        until, wait_s = 0.0, _FIRST_WAIT_S
        while True:
            answer = _Answer(send)
            try:
                await self._app(dict(scope), asked.from_the_start(), answer)
            except Exception:  # of Ray, by which time it has logged more of it
                if answer.begun:
                    raise
            if answer.begun or asked.gone:
                return
            until = until or time.monotonic() + self._within_s
            if not (asked.whole and _may_be_asked_twice(scope)) or time.monotonic() + wait_s > until:
                break
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        body = json.dumps(_GONE).encode()
        headers = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class _Answer:
    """A `Send` that keeps back Ray Serve's own account of a replica that is gone.

    Attributes:
        begun: some other answer has gone out.
    """

    def __init__(self, send: Send) -> None:
        self._send, self._lost, self.begun = send, False, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            ours = _header(message, b"content-type").startswith(b"application/json")
            self._lost = message["status"] in (500, 503) and not ours
        if not self._lost:
            self.begun = True
            await self._send(message)


class _Asked:
    """A request as it comes in, to be read more than once.

    Attributes:
        whole: its body is all there, and small.
        gone: who asked has left.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive, self._begun = receive, list[Message]()
        self.whole, self.gone = False, False

    async def begin(self) -> None:
        """Read a small body, or the beginning of a larger one."""
        size, more = 0, True
        while more and size <= _MOST_BYTES:
            self._begun.append(await self._next())
            size += len(self._begun[-1].get("body", b""))
            more = self._begun[-1].get("more_body", False)
        self.whole = not more and size <= _MOST_BYTES

    def from_the_start(self) -> Receive:
        """What was read already, and then the rest."""
        waiting = deque(self._begun)

        async def next_message() -> Message:
            return waiting.popleft() if waiting else await self._next()

        return next_message

    async def _next(self) -> Message:
        message = await self._receive()
        self.gone = self.gone or message["type"] == "http.disconnect"
        return message


def _may_be_asked_twice(scope: Scope) -> bool:
    if scope["method"] == "POST":
        return scope["path"] != "/v1/jobs" or bool(_header(scope, b"idempotency-key"))
    return scope["method"] in ("GET", "HEAD")


def _header(message: MutableMapping[str, Any], name: bytes) -> bytes:
    return next((bytes(value) for key, value in message.get("headers", ()) if bytes(key).lower() == name), b"")
