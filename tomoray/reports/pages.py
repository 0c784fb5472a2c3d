"""Self-contained HTML pages: one file, styled, without scripts, that loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib import resources
from pathlib import Path

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_FOOTER = "<footer>Identifiers are keyed pseudonyms. Not a medical device; for research.</footer>"


def render_page(title: str, body: Iterable[str], *, styles: Iterable[str] = ("report.css",)) -> str:
    """The text of a page.

    Args:
        title: as text.
        body: pieces of HTML; empty ones are left out.
        styles: names of style sheets that come with TomoRay.
    """
    style = "\n".join((resources.files("tomoray.reports") / name).read_text(encoding="utf-8") for name in styles)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>\n{style}</style></head>\n<body><main>"
        + "\n".join(part for part in (*body, _FOOTER) if part)
        + "</main></body></html>\n"
    )


def write_page(path: str | Path, page: str) -> Path:
    """Write a page as `path` (made whole, then renamed; its folder is made) and return it. Safe to repeat."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    return partial.replace(path)


def section(title: str, content: str, note: str = "") -> str:
    """Content under a heading, and a line of text between them."""
    lead = f'<p class="lead note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{lead}{content}</section>"
