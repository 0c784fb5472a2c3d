"""The files of the page at `/`."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fastapi import FastAPI

from serving.page import add_page


def get(built, path):
    """GET of a page with files in `built`."""
    api = FastAPI()
    add_page(api, built)

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://x") as client:
            return await client.get(path)

    return asyncio.run(ask())


def test_page_that_was_not_built_says_how(tmp_path):
    reply = get(tmp_path / "nothing", "/")
    assert (reply.status_code, reply.text) == (404, "The page was not built: make page. The API is at /openapi.json.\n")


@pytest.mark.parametrize("path", ["/page/secret", "/page/..%2Fsecret", "/page/%2e%2e/secret"])
def test_only_files_of_the_page_are_answered(tmp_path, path):
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "main.js").write_text("1")
    (tmp_path / "secret").write_text("2")
    assert get(tmp_path / "dist", "/page/main.js").text == "1"
    assert get(tmp_path / "dist", path).status_code == 404
