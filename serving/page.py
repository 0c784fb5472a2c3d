"""The page at `/`: what `make page` built of serving/viewer, as files that may ask nobody but this server."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, PlainTextResponse, Response

BUILT = Path(__file__).parent / "viewer" / "dist"
# NiiVue keeps its font and its light in data: images
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # asked for again each time, sent again only where it changed
}


def add_page(api: FastAPI, built: Path = BUILT) -> None:
    """Let `api` answer GET `/` and the files that it names, to everybody: they hold no secret.

    Where the page was not built, `/` says in plain text how to.
    """

    async def index() -> Response:
        return await file("index.html")

    async def file(name: str) -> Response:
        if not built.is_dir():
            return PlainTextResponse("The page was not built: make page. The API is at /openapi.json.\n", 404)
        there = {path.name: path for path in built.iterdir()}
        return FileResponse(there[name], headers=_HEADERS) if name in there else PlainTextResponse("Not found.\n", 404)

    api.get("/", include_in_schema=False)(index)
    api.get("/page/{name}", include_in_schema=False)(file)
