"""Enqueueing: tasks into the queue, in one statement, inside whatever transaction the caller has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus

from tracekit.queue.model import Receipt
from tracekit.queue.notify import notify
from tracekit.queue.submission import INSERT_TASKS, Submission


async def enqueue(
    connection: AsyncConnection[Any], submissions: Sequence[Submission], *, wake: bool = False
) -> list[Receipt]:
    """Accept tasks, one receipt for each submission, in order. Raises `PayloadRefused`, and then none is accepted.

    In a transaction of the caller's the tasks become real with its commit. Workers then find them at their next poll;
    `wake` sends a NOTIFY along, which holds a database-wide lock through the commit (see `notify`).
    """
    if not submissions:
        return []
    # In the order of their keys, as others that offer the same ones: no two can wait for each other.
    ordered = sorted(submissions, key=lambda s: (s.envelope.origin, s.envelope.idempotency_key))
    rows = json.dumps([submission.row() for submission in ordered])
    if not connection.autocommit and connection.info.transaction_status is TransactionStatus.IDLE:
        # The caller's transaction begins here. `transaction()` would begin one of its own, and commit it.
        await connection.execute("SELECT 1")
    async with connection.transaction():
        cursor = await connection.execute(INSERT_TASKS, [rows])
        accepted = dict(await cursor.fetchall())
        known = [s for s in submissions if s.envelope.id not in accepted]
        first: dict[tuple[str, str], Receipt] = {}
        if known:
            # A second statement has a newer snapshot: it sees the task that the first one ran into.
            cursor = await connection.execute(
                "SELECT t.origin, t.idempotency_key, t.id, t.trace_id, t.created_at FROM tracekit.tasks AS t"
                " JOIN unnest(%s::text[], %s::text[]) AS k(origin, idempotency_key) USING (origin, idempotency_key)",
                [[s.envelope.origin.value for s in known], [s.envelope.idempotency_key for s in known]],
            )
            async for origin, key, task_id, trace_id, created_at in cursor:
                first[origin, key] = Receipt(task_id, trace_id, True, created_at)
        if wake:
            await notify(connection, [s.wakeup() for s in submissions if s.envelope.id in accepted])
    return [
        Receipt(s.envelope.id, s.envelope.trace_id, False, accepted[s.envelope.id])
        if s.envelope.id in accepted
        else first[s.envelope.origin.value, s.envelope.idempotency_key]
        for s in submissions
    ]
