from __future__ import annotations

from http.server import BaseHTTPRequestHandler

import pytest

from serving.client import Client
from tomoray.errors import Fatal

PROXY = (500, "text/plain", b"Internal Server Error")
GATEWAY = (500, "application/json", b'{"error": {"code": "internal", "message": "the server failed"}}')
MODELS = (200, "application/json", b'{"models": []}')


@pytest.fixture
def answers(answering):
    """What the server will say, an answer a request, and its URL."""
    told = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, kind, body = told.pop(0)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(body)

    with answering(Handler) as port:
        yield told, f"http://127.0.0.1:{port}"


def test_proxy_that_lost_its_gateway_is_asked_again(answers):
    told, url = answers
    told += [PROXY, PROXY, MODELS]
    assert Client(url).models() == []
    assert told == []


def test_what_the_gateway_itself_calls_a_failure_is_one(answers):
    told, url = answers
    told += [GATEWAY, MODELS]
    with pytest.raises(Fatal, match="internal: the server failed"):
        Client(url).models()
    assert told == [MODELS]
