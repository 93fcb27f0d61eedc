"""Settling: the setbacks of attempts, written under their leases' tokens, many in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection

from tracekit.queue.changes import Changes
from tracekit.queue.finish import handed_on
from tracekit.queue.model import Done, HandOff, Park, Settlement, Signal
from tracekit.queue.payload import storable
from tracekit.queue.transitions import end_attempt


def storable_settlement(settlement: Settlement) -> Settlement:
    """`settlement` with its values as JSON, checked before it meets others in a batch. Raises `PayloadRefused`."""
    at = settlement.position
    match settlement.ending:
        case HandOff() as ending:
            return Settlement(at, ending, handed_on(at, ending))
        case Park() as ending:
            value = storable(ending.data, f"what {at.mode} parks with")
            return replace(settlement, ending=replace(ending, data=value))
        case _:
            return settlement


async def settle(connection: AsyncConnection[Any], settlements: Sequence[Settlement]) -> set[int]:
    """Write setbacks in one transaction (Q8), each only if its lease is still held (Q3); the tokens of those.

    What ends a task or hands it on is `finish`'s.
    """
    parks = {s.ending.key for s in settlements if isinstance(s.ending, Park)}
    async with connection.transaction():
        kept = await _lock_keys(connection, sorted(parks)) if parks else {}
        now, held = await _lock_held(connection, settlements)
        changes = Changes(now)
        for settlement in settlements:
            ending = settlement.ending
            if settlement.position.token in held and not isinstance(ending, Done | HandOff):
                signal_id, signal = kept.get(ending.key, (None, None)) if isinstance(ending, Park) else (None, None)
                end_attempt(changes, settlement.position, ending, signal, signal_id)
        await changes.write(connection)
    return held


async def _lock_keys(connection: AsyncConnection[Any], keys: list[str]) -> dict[str, tuple[int, Signal]]:
    """Hold back signals on `keys` until the waits that are about to open can be seen; the first kept one of each."""
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended(key, 0)) FROM unnest(%s::text[]) AS key", [keys]
    )
    cursor = await connection.execute(
        "SELECT DISTINCT ON (key) key, id, payload, sent_by, received_at FROM tracekit.signals"
        " WHERE key = ANY(%s) ORDER BY key, id",
        [keys],
    )
    return {row[0]: (row[1], Signal(row[0], row[2], row[3], row[4])) for row in await cursor.fetchall()}


async def _lock_held(connection: AsyncConnection[Any], settlements: Sequence[Settlement]) -> tuple[datetime, set[int]]:
    # In the order of task ids, as every statement that locks several rows: no two can wait for each other. A row that
    # has a worker is running, and for this no index but the first is of use.
    cursor = await connection.execute(
        "WITH held AS (SELECT token FROM tracekit.queue"
        "  WHERE task_id = ANY(%s::text[]) AND token = ANY(%s::bigint[]) AND worker IS NOT NULL"
        "  ORDER BY task_id FOR UPDATE)"
        " SELECT coalesce(array_agg(token), '{}'), clock_timestamp() FROM held",
        [[s.position.task_id for s in settlements], [s.position.token for s in settlements]],
        prepare=True,
    )
    row = await cursor.fetchone()
    assert row is not None, "an aggregate answers one row"
    return row[1], set(row[0])
