from __future__ import annotations

import asyncio
import json
import os

import pytest
from ray._common.utils import import_attr
from ray.serve._private.http_util import validate_http_proxy_callback_return

from cluster import PROXY
from serving.again import AskAgain

RAISED, SILENT = "raised", "silent"
LOST = (500, "text/plain", b"Internal Server Error")
FOUND = (200, "application/json", b"{}")
OURS = (503, "application/json", b'{"error": {}}')


class Proxy:
    """As Ray Serve's proxy: reads the body, answers with the next of `answers`."""

    def __init__(self, *answers):
        self.answers, self.bodies = list(answers), []

    async def __call__(self, scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message.get("more_body", False)
        self.bodies.append(body)
        told = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if told is RAISED:
            raise RuntimeError("the actor died")
        if told is SILENT:
            return
        status, kind, answer = told
        await send({"type": "http.response.start", "status": status, "headers": [(b"Content-Type", kind.encode())]})
        await send({"type": "http.response.body", "body": answer[:1], "more_body": True})
        await send({"type": "http.response.body", "body": answer[1:]})


def ask(proxy, method="GET", path="/v1/jobs/7", parts=(b"",), headers=(), within_s=5.0):
    """Status and body of the reply."""
    asked, sent = list(parts), []

    async def receive():
        return {"type": "http.request", "body": asked.pop(0), "more_body": bool(asked)}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    asyncio.run(AskAgain(proxy, within_s)(scope, receive, send))
    (start,) = [message for message in sent if message["type"] == "http.response.start"]
    return start["status"], b"".join(message.get("body", b"") for message in sent)


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/v1/jobs/7", ()),
        ("POST", "/v1/segment", ()),
        ("POST", "/v1/jobs", [(b"Idempotency-Key", b"k")]),
    ],
)
def test_what_changes_nothing_is_asked_again_with_the_same_body(method, path, headers):
    proxy = Proxy(LOST, SILENT, RAISED, FOUND)
    assert ask(proxy, method, path, [b"{", b"}"], headers) == (200, b"{}")
    assert proxy.bodies == [b"{}"] * 4


@pytest.mark.parametrize(
    ("method", "path", "parts"),
    [
        ("DELETE", "/v1/jobs/7", [b""]),
        ("POST", "/v1/jobs", [b"{}"]),
        ("POST", "/v1/segment", [bytes(40_000), bytes(40_000), b"end"]),
    ],
    ids=["removes", "job without a key", "study"],
)
def test_anything_else_is_told_to_come_back(method, path, parts):
    proxy = Proxy(LOST, FOUND)
    status, body = ask(proxy, method, path, parts)
    assert (status, json.loads(body)["error"]["code"]) == (503, "gateway_unavailable")
    assert proxy.bodies == [b"".join(parts)]


def test_it_gives_up_after_a_while():
    proxy = Proxy(LOST)
    assert ask(proxy, within_s=1.0)[0] == 503
    assert len(proxy.bodies) == 3


def test_what_the_gateway_answers_goes_through():
    for answer in (FOUND, OURS, (404, "text/plain", b"no route")):
        proxy = Proxy(answer)
        assert ask(proxy) == (answer[0], answer[2])
        assert len(proxy.bodies) == 1


def test_nobody_asks_again_for_who_has_left():
    asked, times = [{"type": "http.request", "body": b"", "more_body": False}], []

    async def receive():
        return asked.pop(0) if asked else {"type": "http.disconnect"}

    async def cancelled(scope, receive, send):
        times.append(await receive())
        assert (await receive())["type"] == "http.disconnect"

    async def send(message):
        raise AssertionError(f"nobody is there to be told {message}")

    scope = {"type": "http", "method": "GET", "path": "/v1/jobs/7", "headers": []}
    asyncio.run(AskAgain(cancelled)(scope, receive, send))
    assert len(times) == 1


def test_answer_that_breaks_off_is_no_other_answer():
    async def breaks_off(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("the actor died")

    with pytest.raises(RuntimeError):
        ask(breaks_off)


def test_what_is_not_ours_goes_through():
    assert ask(Proxy(LOST, FOUND), path="/-/healthz") == (500, b"Internal Server Error")


def test_ray_serve_finds_it_where_our_clusters_name_it():
    (name,) = PROXY
    found = import_attr(os.environ[name])()
    assert [each.cls for each in validate_http_proxy_callback_return(found)] == [AskAgain]
