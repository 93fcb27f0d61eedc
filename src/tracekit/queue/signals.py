"""Signals: facts that end waits. An approval, a CI result and a Flux reconcile are all one of these."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection

from tracekit.queue.changes import Changes
from tracekit.queue.model import Json, Signal
from tracekit.queue.payload import storable
from tracekit.queue.position import COLUMNS, JOINS, WIDTH, position
from tracekit.queue.transitions import close_wait, resume


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a signal."""

    accepted: bool
    """False: this fact was known already, and nothing was changed."""
    first: Signal
    """The fact as it stands: the one sent, or the one that came first."""
    resumed: list[str]
    """Ids of the tasks that it woke. Empty: it is kept for a wait to come."""


async def send_signal(
    connection: AsyncConnection[Any], key: str, payload: Json, *, dedupe_key: str, sent_by: str
) -> Sent:
    """Keep a fact about `key` and end every wait on it.

    The same `(key, dedupe_key)` counts once (Q14). Raises `PayloadRefused`.
    """
    storable(payload, "the signal's payload")
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [key])
        cursor = await connection.execute(
            "INSERT INTO tracekit.signals (key, dedupe_key, payload, sent_by) VALUES (%s, %s, %s::jsonb, %s)"
            " ON CONFLICT (key, dedupe_key) DO NOTHING RETURNING id, received_at",
            [key, dedupe_key, json.dumps(payload), sent_by],
        )
        row = await cursor.fetchone()
        if row is None:
            cursor = await connection.execute(
                "SELECT payload, sent_by, received_at FROM tracekit.signals WHERE (key, dedupe_key) = (%s, %s)",
                [key, dedupe_key],
            )
            known = await cursor.fetchone()
            assert known is not None, "signals are not deleted while their key is locked"
            return Sent(False, Signal(key, *known), [])
        signal_id, received_at = row
        signal = Signal(key, payload, sent_by, received_at)
        # The rows are locked before they are read with the rest: a sweep may just have ended the same wait.
        cursor = await connection.execute(
            "SELECT q.task_id FROM tracekit.queue AS q"
            " JOIN tracekit.waits AS w ON (w.task_id, w.hop, w.attempt) = (q.task_id, q.hop, q.wait_attempt)"
            " WHERE w.key = %s AND w.closed_at IS NULL AND q.state = 'parked'"
            " ORDER BY q.task_id FOR UPDATE OF q",
            [key],
        )
        locked = [row[0] for row in await cursor.fetchall()]
        cursor = await connection.execute(
            f"SELECT {COLUMNS}, clock_timestamp() FROM tracekit.queue AS q {JOINS}"
            " WHERE q.task_id = ANY(%s) AND q.state = 'parked' AND w.key = %s AND w.closed_at IS NULL",
            [locked, key],
        )
        waiting = await cursor.fetchall()
        changes = Changes(waiting[0][WIDTH] if waiting else received_at)
        for found in waiting:
            at = position(found)
            close_wait(changes, at, "signal", signal, signal_id)
            resume(changes, at)
        await changes.write(connection)
    return Sent(True, signal, [found["task_id"] for found in changes.moves])
