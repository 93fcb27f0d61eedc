"""Sweeping: what time does to tasks when nobody else acts on them.

Any process may sweep, and any number at once: each takes rows that no other holds. One sweep ends what is due, in
batches, and says which hops became ready.
"""

from __future__ import annotations

from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from tracekit.queue.changes import Changes
from tracekit.queue.model import LeaseExpired, Position, Wakeup
from tracekit.queue.position import COLUMNS, JOINS, position
from tracekit.queue.transitions import close_wait, end_attempt, expire, resume

BATCH = 200

# `statement_timestamp`, not `clock_timestamp`: no index can be searched for what changes while it is searched.
_EXPIRED: LiteralString = f"""
SELECT clock_timestamp() AS now, {COLUMNS} FROM tracekit.queue AS q {JOINS}
WHERE q.expires_at <= statement_timestamp() AND q.state <> 'running'
ORDER BY q.expires_at LIMIT {BATCH} FOR UPDATE OF q SKIP LOCKED
"""

_DUE: LiteralString = f"""
SELECT clock_timestamp() AS now, w.on_deadline, {COLUMNS} FROM tracekit.queue AS q {JOINS}
WHERE q.due_at <= statement_timestamp() AND q.state <> 'ready'
ORDER BY q.due_at LIMIT {BATCH} FOR UPDATE OF q SKIP LOCKED
"""


async def sweep(connection: AsyncConnection[Any]) -> tuple[int, list[Wakeup]]:
    """One batch of each: tasks past their ttl (Q7), then leases, deadlines and rests that are over (Q2, Q14).

    Returns how many tasks it moved; where that is not 0 there may be more.
    """
    async with connection.transaction():
        rows = await _rows(connection, _EXPIRED)
        changes = Changes(rows[0].pop("now")) if rows else None
        for row in rows:
            row.pop("now", None)
            at = position(row)
            assert changes is not None
            assert at.expires_at is not None
            expire(changes, at, f"its time to live ended at {at.expires_at:%Y-%m-%d %H:%M:%S %Z}")
        if changes:
            await changes.write(connection)
    moved, wakeups = len(rows), changes.wakeups if changes else []

    async with connection.transaction():
        rows = await _rows(connection, _DUE)
        changes = Changes(rows[0].pop("now")) if rows else None
        for row in rows:
            row.pop("now", None)
            on_deadline = row.pop("on_deadline")
            assert changes is not None
            _act(changes, position(row), on_deadline)
        if changes:
            await changes.write(connection)
            wakeups = [*wakeups, *changes.wakeups]
    return moved + len(rows), wakeups


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


async def _rows(connection: AsyncConnection[Any], statement: LiteralString) -> list[dict[str, Any]]:
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(statement)
        return await cursor.fetchall()
