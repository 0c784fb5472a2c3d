"""Progress bars on stderr, so that stdout stays for results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True)


class Advance(Protocol):
    """Tell the bar how many items were just done, and what to write behind it."""

    def __call__(self, done: int, note: str = "") -> None:
        """`done` more items, and `note` in place of the last one."""


@contextmanager
def track(what: str, total: int | None) -> Iterator[Advance]:
    """Show a bar named `what`; call the yielded function with the number of items just done.

    `total` None: it is not known yet. Safe where stderr is not a terminal: then one line is printed at the end.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total, note="")

        def advance(done: int, note: str = "") -> None:
            progress.update(task, advance=done, note=note)

        yield advance
