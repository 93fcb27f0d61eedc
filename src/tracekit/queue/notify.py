"""NOTIFY: waking sleepers, off the write path (Q9).

NOTIFY inside a transaction takes a database-wide lock until its commit is on disk (PostgreSQL,
`PreCommit_Notify`), so a busy queue that notifies in every transaction commits one at a time. Here the writer commits
first and leaves its wake-ups with this notifier, which sends all that have gathered since its last round in one
statement of its own. A process that dies in between loses some wake-ups and nothing else: workers poll.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from typing import Any

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from tracekit.queue.model import Wakeup

CHANNEL = "tracekit"
MAX_PAYLOAD = 7_999
"""Bytes of one NOTIFY (PostgreSQL refuses 8,000)."""

_MOST_WAITING = 10_000
"""Wake-ups kept while the database is away. Sleepers poll, so losing the rest costs a poll interval."""


def payloads(wakeups: Iterable[Wakeup]) -> Iterator[str]:
    """Wake-ups as JSON arrays of at most `MAX_PAYLOAD` bytes each."""
    batch: list[str] = []
    size = 2
    for wakeup in wakeups:
        item = json.dumps(
            {
                "task": wakeup.task_id,
                "trace_id": wakeup.trace_id,
                "traceparent": wakeup.traceparent,
                "mode": wakeup.mode,
                "priority": wakeup.rank,
            },
            separators=(",", ":"),
        )
        if batch and size + len(item) + 1 > MAX_PAYLOAD:
            yield f"[{','.join(batch)}]"
            batch, size = [], 2
        batch.append(item)
        size += len(item) + 1
    if batch:
        yield f"[{','.join(batch)}]"


async def notify(connection: AsyncConnection[Any], wakeups: Iterable[Wakeup]) -> None:
    """Send wake-ups now. Inside a transaction they go out with its commit, at the price told above."""
    texts = list(payloads(wakeups))
    if texts:
        await connection.execute("SELECT pg_notify(%s, p) FROM unnest(%s::text[]) AS p", [CHANNEL, texts])


class Notifier:
    """Sends what `announce` was given, in rounds: at once when idle, gathered while a round is under way.

    `timeout` in seconds bounds a round: wake-ups are worth no longer wait.
    """

    def __init__(self, pool: AsyncConnectionPool[Any], *, timeout: float = 30.0) -> None:
        self._pool = pool
        self._timeout = timeout
        self._waiting: list[Wakeup] = []
        self._some = asyncio.Event()
        self._sending = asyncio.Lock()

    def announce(self, wakeups: Iterable[Wakeup]) -> None:
        """Wake sleepers soon. Never blocks, never fails."""
        if len(self._waiting) < _MOST_WAITING:
            self._waiting.extend(wakeups)
        self._some.set()

    async def round(self) -> None:
        """Wait until there is something to send, then send all of it."""
        await self._some.wait()
        await self.flush()

    async def flush(self) -> None:
        """Send what there is; on return, what was announced before is sent. For a process that is about to go."""
        async with self._sending:
            self._some.clear()
            batch, self._waiting = self._waiting, []
            if batch:
                async with asyncio.timeout(self._timeout), self._pool.connection() as connection:
                    await notify(connection, batch)
