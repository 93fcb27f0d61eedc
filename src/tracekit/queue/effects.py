"""Effects: what a handler does to the world, once a task and step (Q5).

An effect is begun, done and recorded. A worker that dies between the deed and the record leaves an effect that is begun
and nothing more: nobody can know whether it happened. Only the handler's author can say what is right then, so
`uncertain` is theirs to choose: `"rerun"` for what can be done twice (turning a light on), `"raise"` for what cannot.
"""

from __future__ import annotations

import json
from typing import Any

from psycopg import AsyncConnection

from tracekit.queue.changes import Changes
from tracekit.queue.model import Json, LeaseLost, Position, QueueError
from tracekit.queue.payload import storable


class EffectUncertain(QueueError):
    """The effect was begun by an attempt that did not live to record it."""

    def __init__(self, task_id: str, step: str) -> None:
        super().__init__(
            f"step {step!r} of task {task_id} was begun by an attempt that died: it may or may not have happened",
            hint="look at the world, then `tracekit dlq redrive` or `abandon` the task",
        )


async def begin(connection: AsyncConnection[Any], at: Position, step: str, *, uncertain: str) -> tuple[bool, Json]:
    """`(True, result)` where the step is recorded already, else `(False, None)`: go on and do it.

    Raises `LeaseLost`, and `EffectUncertain` where `uncertain` is `"raise"`.
    """
    async with connection.transaction():
        await _hold(connection, at)
        cursor = await connection.execute(
            "SELECT finished_at, result FROM tracekit.effects WHERE (task_id, step) = (%s, %s)", [at.task_id, step]
        )
        row = await cursor.fetchone()
        if row is not None and row[0] is not None:
            return True, row[1]
        if row is not None and uncertain == "raise":
            raise EffectUncertain(at.task_id, step)
        await connection.execute(
            "INSERT INTO tracekit.effects (task_id, step, hop, attempt, started_at)"
            " VALUES (%s, %s, %s, %s, clock_timestamp())"
            " ON CONFLICT (task_id, step) DO UPDATE SET hop = excluded.hop, attempt = excluded.attempt,"
            "   started_at = excluded.started_at",
            [at.task_id, step, at.hop, at.attempt],
        )
    return False, None


async def record(connection: AsyncConnection[Any], at: Position, step: str, result: Json) -> None:
    """The step is done, with `result`; what is recorded already stays. Raises `LeaseLost`, `PayloadRefused`."""
    storable(result, f"the result of step {step!r}")
    async with connection.transaction():
        now = await _hold(connection, at)
        cursor = await connection.execute(
            "UPDATE tracekit.effects SET finished_at = clock_timestamp(), result = %s::jsonb"
            " WHERE (task_id, step) = (%s, %s) AND finished_at IS NULL",
            [json.dumps(result), at.task_id, step],
        )
        if cursor.rowcount:
            changes = Changes(now)
            changes.line(at, "effect.recorded", step=step)
            await changes.write(connection)


async def undo(connection: AsyncConnection[Any], at: Position, step: str) -> None:
    """The step is known not to have happened: forget that it was begun. Raises `LeaseLost`."""
    async with connection.transaction():
        await _hold(connection, at)
        await connection.execute(
            "DELETE FROM tracekit.effects WHERE (task_id, step) = (%s, %s) AND finished_at IS NULL", [at.task_id, step]
        )


async def _hold(connection: AsyncConnection[Any], at: Position) -> Any:
    cursor = await connection.execute(
        "SELECT clock_timestamp() FROM tracekit.queue"
        " WHERE (task_id, token) = (%s, %s) AND state = 'running' FOR UPDATE",
        [at.task_id, at.token],
    )
    row = await cursor.fetchone()
    if row is None:
        raise LeaseLost(at.task_id)
    return row[0]
