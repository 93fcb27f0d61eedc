"""Sweeping: what time does to tasks when nobody else acts on them.

Any process may sweep, and any number at once: each takes rows that no other holds. One sweep ends what is due, in
batches, and says how many tasks moved.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, LiteralString

from psycopg import AsyncConnection

from tracekit.queue.changes import Changes
from tracekit.queue.model import LeaseExpired, Position
from tracekit.queue.notify import FORGET, FORGOTTEN_AFTER
from tracekit.queue.position import COLUMNS, JOINS, WIDTH, position
from tracekit.queue.transitions import close_wait, end_attempt, expire, resume

BATCH = 200

# `statement_timestamp`, not `clock_timestamp`: no index can be searched for what changes while it is searched.
_EXPIRED: LiteralString = f"""
SELECT {COLUMNS}, clock_timestamp() FROM tracekit.queue AS q {JOINS}
WHERE q.expires_at <= statement_timestamp() AND q.state <> 'running'
ORDER BY q.expires_at LIMIT {BATCH} FOR UPDATE OF q SKIP LOCKED
"""

_DUE: LiteralString = f"""
SELECT {COLUMNS}, clock_timestamp(), w.on_deadline FROM tracekit.queue AS q {JOINS}
WHERE q.due_at <= statement_timestamp() AND q.state <> 'ready'
ORDER BY q.due_at LIMIT {BATCH} FOR UPDATE OF q SKIP LOCKED
"""


async def sweep(connection: AsyncConnection[Any]) -> int:
    """One batch of each: tasks past their ttl (Q7), then leases, deadlines and rests that are over (Q2, Q14).

    Returns how many tasks it moved; where that is not 0 there may be more.
    """
    async with connection.transaction():
        expired = await (await connection.execute(_EXPIRED)).fetchall()
        if expired:
            changes = Changes(expired[0][WIDTH])
            for at in map(position, expired):
                assert at.expires_at is not None
                expire(changes, at, f"its time to live ended at {at.expires_at:%Y-%m-%d %H:%M:%S %Z}")
            await changes.write(connection)
    if expired:
        changes.count()

    async with connection.transaction():
        due = await (await connection.execute(_DUE)).fetchall()
        if due:
            changes = Changes(due[0][WIDTH])
            for row in due:
                _act(changes, position(row), row[WIDTH + 1])
            await changes.write(connection)
    if due:
        changes.count()
    return len(expired) + len(due)


GONE_AFTER = timedelta(days=1)
"""A worker that has not been seen for as long is gone. Each start of one has a row of its own."""

_FORGET_WORKERS: LiteralString = "DELETE FROM tracekit.workers WHERE seen_at < statement_timestamp() - %s"


async def forget(connection: AsyncConnection[Any]) -> None:
    """Strike out who went without a word: sleepers, whom every writer would go on to notify, and workers."""
    await connection.execute(FORGET, [FORGOTTEN_AFTER])
    await connection.execute(_FORGET_WORKERS, [GONE_AFTER])


def _act(changes: Changes, at: Position, on_deadline: str | None) -> None:
    match at.state:
        case "running":
            end_attempt(changes, at, LeaseExpired(), None, None)
        case "parked" if on_deadline == "expire":
            assert at.due_at is not None
            assert at.resumption is not None
            expire(changes, at, f"no {at.resumption.kind} came by {at.due_at:%Y-%m-%d %H:%M:%S %Z}")
        case "parked":
            close_wait(changes, at, "deadline", None, None)
            resume(changes, at)
        case _:
            changes.move(at, "ready", expires_at=at.expires_at, wait_attempt=at.wait_attempt)
