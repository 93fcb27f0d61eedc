"""Asking the database on behalf of somebody who waits: soon answered or refused, and a short outage is sat out."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

import psycopg

Answer = TypeVar("Answer")

PATIENCE = timedelta(seconds=5)
"""How long a request may wait for the database. Longer sits out longer outages; Home Assistant and Zulip give up on us
after 10 s, and then nobody learns whether the task was accepted."""

RETRY_AFTER = 5
"""Seconds after which a caller may try again."""

AWAY: tuple[type[Exception], ...] = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.ReadOnlySqlTransaction,
    TimeoutError,
)
"""How a database that is stopped, restarted, switched over or cut off shows."""


async def ask(question: Callable[[], Awaitable[Answer]], *, patience: timedelta = PATIENCE) -> Answer:
    """The answer to `question`, asked again while the database is away, at most for `patience`; then `TimeoutError`.

    After a restart every idle connection of the pool fails once, so the first failure says little. `question` must
    bear being asked twice: the connection may break after its commit.
    """
    rest = 0.02
    async with asyncio.timeout(patience.total_seconds()):
        while True:
            try:
                return await question()
            except AWAY:
                await asyncio.sleep(random.uniform(0, rest))
                rest = min(2 * rest, 0.5)
