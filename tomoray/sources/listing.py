"""A long S3 listing in several requests at once, in the order of one.

S3 gives a thousand keys a request, each request after the last key of the one before: a million files are a thousand
answers to wait for. So the keys are cut where folders begin, and the pieces are listed side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise
from queue import Queue
from threading import Event, Thread

from tomoray.storage import ObjectInfo, Store

_PAGE = 1000  # keys of one answer
_AT_ONCE = 8
_PAGES_AHEAD = 32  # of each piece: 8 x 32 x 1000 entries are some 60 MB
_FOLDERS_A_PIECE = 16
_MAX_PIECES = 4096

Page = list[ObjectInfo] | Exception | None  # None: the piece is over


def walk_store(store: Store) -> Iterator[ObjectInfo]:
    """All objects of a store by key, as `store.walk()` gives them; of long listings the next pieces are read ahead."""
    objects = store.walk()
    first = list(islice(objects, _PAGE))
    yield from first
    if len(first) < _PAGE:
        return
    last = first[-1].key
    folders = sorted(name for name in store.folders() if name > last) if "/" in last else []
    if len(folders) < _AT_ONCE:
        yield from objects
        return
    objects.close()
    a_piece = max(_FOLDERS_A_PIECE, len(folders) // _MAX_PIECES)
    # a name without its slash: a piece begins after it and the one before ends with it, whatever else is called so
    cuts = [last, *folders[a_piece::a_piece], None]
    yield from _side_by_side(store, list(pairwise(cuts)))


def _side_by_side(store: Store, pieces: list[tuple[str | None, str | None]]) -> Iterator[ObjectInfo]:
    stop = Event()
    waiting = iter(pieces)
    ahead: list[Queue[Page]] = []

    def start(piece: tuple[str | None, str | None]) -> None:
        pages: Queue[Page] = Queue(_PAGES_AHEAD)
        ahead.append(pages)
        Thread(target=_list_piece, args=(store, *piece, pages, stop), daemon=True).start()

    try:
        for piece in islice(waiting, _AT_ONCE):
            start(piece)
        while ahead:
            while (page := ahead[0].get()) is not None:
                if isinstance(page, Exception):
                    raise page
                yield from page
            ahead.pop(0)
            for piece in islice(waiting, 1):
                start(piece)
    finally:
        stop.set()
        for pages in ahead:
            while not pages.empty():  # wakes who waits to put a page
                pages.get()


def _list_piece(store: Store, after: str | None, until: str | None, pages: Queue[Page], stop: Event) -> None:
    """Put the pages of keys beyond `after`, up to and with `until`, and None in the end."""
    try:
        objects = store.walk(after=after or "")
        while not stop.is_set():
            page = list(islice(objects, _PAGE))
            wanted = [info for info in page if until is None or info.key <= until]
            pages.put(wanted)
            if len(wanted) < len(page) or len(page) < _PAGE:
                break
    except Exception as error:  # raised anew where the listing is read
        pages.put(error)
    pages.put(None)
