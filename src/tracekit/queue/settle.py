"""Settling: the ends of attempts, written under their leases' tokens, many in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection

from tracekit.queue.changes import Changes
from tracekit.queue.model import HandOff, Park, Settlement, Signal, Wakeup
from tracekit.queue.payload import storable
from tracekit.queue.transitions import end_attempt


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of a batch. `lost` are the settlements whose lease was gone: nothing of theirs was written."""

    lost: list[Settlement]
    wakeups: list[Wakeup]


def storable_settlement(settlement: Settlement) -> Settlement:
    """`settlement` with its values as plain JSON data, checked before it meets others in a batch.

    Raises `PayloadRefused`.
    """
    mode = settlement.position.mode
    match settlement.ending:
        case HandOff() as ending:
            value = storable(ending.input, f"what {mode} hands to {ending.mode}")
            return replace(settlement, ending=replace(ending, input=value))
        case Park() as ending:
            value = storable(ending.data, f"what {mode} parks with")
            return replace(settlement, ending=replace(ending, data=value))
        case _:
            return settlement


async def settle(connection: AsyncConnection[Any], settlements: Sequence[Settlement]) -> Settled:
    """Write the ends of attempts in one transaction (Q8), each only if its lease is still held (Q3)."""
    parks = {s.ending.key for s in settlements if isinstance(s.ending, Park)}
    async with connection.transaction():
        kept = await _lock_keys(connection, sorted(parks)) if parks else {}
        now, held = await _lock_held(connection, settlements)
        changes = Changes(now)
        lost = []
        for settlement in settlements:
            if settlement.position.token not in held:
                lost.append(settlement)
                continue
            held.remove(settlement.position.token)  # an attempt ends once, also within a batch
            ending = settlement.ending
            signal_id, signal = kept.get(ending.key, (None, None)) if isinstance(ending, Park) else (None, None)
            end_attempt(changes, settlement.position, ending, signal, signal_id)
        await changes.write(connection)
    return Settled(lost, changes.wakeups)


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
    # In the order of task ids, as every statement that locks several rows: no two can wait for each other.
    cursor = await connection.execute(
        "WITH held AS ("
        "  SELECT q.token FROM tracekit.queue AS q"
        "  JOIN unnest(%s::text[], %s::bigint[]) AS mine(task_id, token) USING (task_id, token)"
        "  WHERE q.state = 'running' ORDER BY q.task_id FOR UPDATE OF q)"
        " SELECT coalesce(array_agg(token), '{}'), clock_timestamp() FROM held",
        [[s.position.task_id for s in settlements], [s.position.token for s in settlements]],
    )
    row = await cursor.fetchone()
    assert row is not None, "an aggregate answers one row"
    return row[1], set(row[0])
