"""The way of a worker's turns to the database, which under load they take one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

APART = 0.05
"""Seconds that a turn lets another one have the database for itself. Two that are there together come back together,
and then it has nothing to do while handlers run. One that hangs holds up no other for longer.
"""


class Passage:
    """Who is on the way, and who waits for that."""

    def __init__(self) -> None:
        self._last: object = None
        self._clear = asyncio.Event()
        self._clear.set()
        self._next_waits = False

    @property
    def taken(self) -> bool:
        """Whether the last one to enter has not left yet."""
        return not self._clear.is_set()

    async def clear(self) -> None:
        """Wait until the last one to enter has left, and for `APART` at most."""
        self._next_waits = True
        try:
            async with asyncio.timeout(APART):
                await self._clear.wait()
        except TimeoutError:
            pass
        finally:
            self._next_waits = False

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be on the way."""
        # Only the last one to enter clears it: of one that hangs the others are free.
        self._last = this = object()
        self._clear.clear()
        try:
            yield
        finally:
            if self._last is this:
                self._clear.set()

    async def let_next(self) -> None:
        """On having left: whoever waits enters before this one goes on."""
        if self._next_waits:
            await asyncio.sleep(0)
