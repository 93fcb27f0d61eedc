"""The outbox: what people must be told, delivered at least once after the commit that says it."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import class_row

from tracekit import instruments
from tracekit.queue.model import Json
from tracekit.queue.payload import plain_text

MOST_ATTEMPTS = 12
"""Tries of one notification over some three hours; then it stays in the record, undelivered."""

_LEASE = timedelta(minutes=2)
"""How long a delivery may take before another process tries it."""


@dataclass(frozen=True, slots=True)
class Notification:
    """A row of the outbox. `recipient` is a role: `operator` or `requester`."""

    id: int
    task_id: str
    trace_id: str
    requester: str
    data_tier: str
    recipient: str
    kind: str
    urgent: bool
    title: str
    body: str
    data: dict[str, Json]
    created_at: datetime
    attempts: int


Deliver = Callable[[Notification], Awaitable[Json]]
"""Delivers, and returns a receipt to keep (such as Pushover's). Raises when it could not."""


async def deliver_one(
    connect: Callable[[], AbstractAsyncContextManager[AsyncConnection[Any]]], deliver: Deliver
) -> int:
    """Take one due notification, deliver it outside any transaction, and record how that went."""
    async with connect() as connection, connection.cursor(row_factory=class_row(Notification)) as cursor:
        await cursor.execute(
            "WITH due AS (SELECT id FROM tracekit.outbox WHERE due_at <= now()"
            "  ORDER BY urgent DESC, due_at LIMIT 1 FOR UPDATE SKIP LOCKED)"
            " UPDATE tracekit.outbox AS o SET attempts = attempts + 1, due_at = clock_timestamp() + %s"
            " FROM due, tracekit.envelopes AS t WHERE o.id = due.id AND t.id = o.task_id"
            " RETURNING o.id, o.task_id, t.trace_id, t.requester, t.data_tier, o.recipient, o.kind, o.urgent, o.title,"
            "   o.body, o.data, o.created_at, o.attempts",
            [_LEASE],
        )
        notification = await cursor.fetchone()
    if notification is None:
        return 0
    try:
        receipt = await deliver(notification)
    except Exception as error:
        rest = min(2.0**notification.attempts, 1800.0) * random.uniform(0.5, 1)
        last = notification.attempts >= MOST_ATTEMPTS
        async with connect() as connection:
            await connection.execute(
                "UPDATE tracekit.outbox SET last_error = %s, due_at = CASE WHEN %s THEN NULL"
                " ELSE clock_timestamp() + make_interval(secs => %s) END WHERE id = %s",
                [plain_text(f"{type(error).__name__}: {error}", 500), last, rest, notification.id],
            )
        if last:
            instruments.NOTIFICATIONS_GIVEN_UP.inc()
        return 1
    async with connect() as connection:
        await connection.execute(
            "UPDATE tracekit.outbox SET delivered_at = clock_timestamp(), due_at = NULL, receipt = %s::jsonb,"
            " last_error = NULL WHERE id = %s",
            [json.dumps(receipt), notification.id],
        )
    return 1
