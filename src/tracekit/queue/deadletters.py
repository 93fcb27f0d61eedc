"""The dead letter queue: what ran out of attempts, and what the operator does about it (Q15)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from psycopg import AsyncConnection
from psycopg.rows import class_row

from tracekit.queue.changes import Changes
from tracekit.queue.model import QueueError, TaskNotFound
from tracekit.queue.position import COLUMNS, JOINS, WIDTH, position
from tracekit.queue.signals import send_signal
from tracekit.queue.transitions import abandon, redrive, review_key

# A dead task has no row in the queue: this stands in for it, so that the same columns can be read.
_DEAD_POSITION = f"""
SELECT {COLUMNS}, clock_timestamp(), d.died_at, (SELECT max(hop) FROM tracekit.hops WHERE task_id = d.task_id)
FROM tracekit.dead_letters AS d
CROSS JOIN LATERAL (
    SELECT d.task_id, d.hop, d.mode, 'dead'::text AS state, d.died_at AS created_at, d.died_at AS ready_at,
           NULL::timestamptz AS due_at, NULL::timestamptz AS expires_at, d.attempts AS attempt,
           d.attempts AS max_attempts, 0::bigint AS token, NULL::text AS worker, NULL::timestamptz AS claimed_at,
           NULL::int AS wait_attempt
) AS q
{JOINS}
WHERE d.task_id = %s AND d.resolved_at IS NULL
FOR UPDATE OF t, d
"""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One entry of the DLQ."""

    id: int
    task_id: str
    trace_id: str
    hop: int
    mode: str
    reason: str
    error_type: str | None
    error: str | None
    attempts: int
    died_at: datetime
    review_task_id: str | None
    resolution: str | None
    resolved_at: datetime | None
    resolved_by: str | None
    intent: str
    requester: str


async def dead_letters(
    connection: AsyncConnection[Any], *, task_id: str | None = None, resolved: bool = False, limit: int = 100
) -> list[DeadLetter]:
    """Entries, the newest first: the open ones, or with `resolved` all."""
    async with connection.cursor(row_factory=class_row(DeadLetter)) as cursor:
        await cursor.execute(
            "SELECT d.*, t.intent, t.requester FROM tracekit.dead_letters AS d"
            " JOIN tracekit.envelopes AS t ON t.id = d.task_id"
            " WHERE (%(task)s::text IS NULL OR d.task_id = %(task)s) AND (%(all)s OR d.resolved_at IS NULL)"
            " ORDER BY d.died_at DESC LIMIT %(limit)s",
            {"task": task_id, "all": resolved, "limit": limit},
        )
        return await cursor.fetchall()


async def resolve(
    connection: AsyncConnection[Any], task_id: str, resolution: Literal["redriven", "abandoned"], by: str
) -> None:
    """Take a dead task up again, or end it; its review task hears of it. Raises `TaskNotFound`, `QueueError`."""
    async with connection.transaction():
        cursor = await connection.execute(_DEAD_POSITION, [task_id])
        row = await cursor.fetchone()
        if row is None:
            await _refuse(connection, task_id)
            raise AssertionError("unreachable")
        now, died_at, last_hop = row[WIDTH:]
        changes, at = Changes(now), position(row)
        if resolution == "redriven":
            redrive(changes, at, last_hop + 1, died_at, by)
            # The operator has looked at the world: what may or may not have happened is to be done again.
            await connection.execute(
                "DELETE FROM tracekit.effects WHERE task_id = %s AND finished_at IS NULL", [task_id]
            )
        else:
            abandon(changes, at, died_at, by)
        await connection.execute(
            "UPDATE tracekit.dead_letters SET resolution = %s, resolved_at = clock_timestamp(), resolved_by = %s"
            " WHERE (task_id, hop) = (%s, %s)",
            [resolution, by, task_id, at.hop],
        )
        await changes.write(connection)
        await send_signal(
            connection, review_key(task_id, at.hop), {"resolution": resolution}, dedupe_key="resolution", sent_by=by
        )
    changes.count()


async def _refuse(connection: AsyncConnection[Any], task_id: str) -> None:
    cursor = await connection.execute("SELECT state FROM tracekit.tasks WHERE id = %s", [task_id])
    row = await cursor.fetchone()
    if row is None:
        raise TaskNotFound(f"there is no task {task_id}", hint="`tracekit dlq list` shows what lies in the DLQ")
    raise QueueError(f"task {task_id} is {row[0]}, not dead", hint="`tracekit dlq list` shows what lies in the DLQ")
