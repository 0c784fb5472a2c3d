"""Room for so many bytes of work at once, so that a replica is never killed for want of memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Room:
    """Who comes first is let in first; what is larger than the room has it alone.

    Args:
        size_bytes: of the room.
    """

    def __init__(self, size_bytes: int) -> None:
        self._size, self._used = size_bytes, 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def of(self, size_bytes: int) -> AsyncIterator[None]:
        """Room for so many bytes, as soon as there is, until the end of the block."""
        size = min(size_bytes, self._size)
        if self._waiting or self._used + size > self._size:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append((size, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # let in and called off at once
                    self._leave(size)
                else:
                    self._waiting.remove((size, turn))
                    self._let_in()
                raise
        else:
            self._used += size
        try:
            yield
        finally:
            self._leave(size)

    def _leave(self, size: int) -> None:
        self._used -= size
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._used + self._waiting[0][0] <= self._size:
            size, turn = self._waiting.popleft()
            self._used += size
            turn.set_result(None)
