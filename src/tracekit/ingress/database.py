"""Asking the database on behalf of somebody who waits: soon answered or refused, and a short outage is sat out."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any, TypeVar

from tracekit.postgres import is_away

Answer = TypeVar("Answer")

PATIENCE = timedelta(seconds=5)
"""How long a request may wait for the database. Longer sits out longer outages; Home Assistant and Zulip give up on us
after 10 s, and then nobody learns whether the task was accepted."""

RETRY_AFTER = 5
"""Seconds after which a caller may try again."""


async def ask(question: Callable[[], Awaitable[Answer]], *, patience: timedelta = PATIENCE) -> Answer:
    """The answer to `question`, asked again while the database is away, at most for `patience`; then `TimeoutError`.

    After a restart every idle connection of the pool fails once, so the first failure says little. `question` must
    bear being asked twice: the connection may break after its commit.
    """
    return await within(patience, _insist(question))


async def within(time: timedelta, work: Coroutine[Any, Any, Answer]) -> Answer:
    """What `work` returns, or `TimeoutError` after `time`, however long it takes to end what it does.

    To give a statement up, its connection asks the server; one that is frozen or cut off lets it wait for many seconds,
    and whoever asked would be waiting with it.
    """
    doing = asyncio.ensure_future(work)
    try:
        await asyncio.wait({doing}, timeout=time.total_seconds())
        if not doing.done():
            raise TimeoutError
        return doing.result()
    finally:
        if not doing.done():
            _ending.add(doing)
            doing.add_done_callback(_ended)
            doing.cancel()


_ending: set[asyncio.Future[Any]] = set()
"""What nobody waits for any more. A task that nothing refers to may vanish in the middle of its work."""


def _ended(done: asyncio.Future[Any]) -> None:
    _ending.discard(done)
    if not done.cancelled():
        done.exception()  # looked at: nobody else will


async def _insist(question: Callable[[], Awaitable[Answer]]) -> Answer:
    rest = 0.02
    while True:
        try:
            return await question()
        except Exception as error:
            if not is_away(error):
                raise
            await asyncio.sleep(random.uniform(0, rest))
            rest = min(2 * rest, 0.5)
