"""A worker's turn: what it has finished is written and what it does next is claimed, in one transaction and one round.

So a busy worker waits for the disk once a batch, and a hop that it hands on to itself is its own at once. Setbacks,
which are rare, have a transaction of their own before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg import AsyncConnection, AsyncCursor

from tracekit.queue.claim import Ask, claim
from tracekit.queue.finish import finish, is_finish
from tracekit.queue.model import Position, Settlement
from tracekit.queue.notify import AWAKE, SLEEP, array
from tracekit.queue.position import position
from tracekit.queue.settle import settle


@dataclass(frozen=True, slots=True)
class Turn:
    """What came of a turn."""

    lost: list[Settlement] = field(default_factory=list)
    """Those whose lease was gone: nothing of theirs was written."""
    claimed: list[Position] | None = None
    """None: nothing was asked for, or the turn did not come to it."""


async def take_turn(connection: AsyncConnection[Any], settlements: Sequence[Settlement], ask: Ask | None) -> Turn:
    """Write the ends of attempts (Q8), each if its lease is still held (Q3), then claim what is asked for."""
    # An attempt ends once, by the first of its ends; and of two attempts of a task only the later one can be held. The
    # statements match by task, and are to find one end of each.
    ends: dict[str, Settlement] = {}
    for settlement in settlements:
        at = settlement.position
        if at.task_id not in ends or ends[at.task_id].position.token < at.token:
            ends[at.task_id] = settlement
    setbacks = [s for s in ends.values() if not is_finish(s)]
    # What cannot be said raises before anything is.
    statements = finish([s for s in ends.values() if is_finish(s)])
    held = await settle(connection, setbacks) if setbacks else set()
    if not statements and ask is None:
        return Turn(_lost(settlements, held))
    if not statements and ask is not None and ask.sleep is None:
        return Turn(_lost(settlements, held), await claim(connection, ask))
    answers: list[AsyncCursor[Any]] = []
    asked = connection.cursor(binary=True)
    async with connection.pipeline() as pipeline:
        for statement, parameters, prepare in statements:
            answers.append(await connection.execute(statement, parameters, prepare=prepare))
        if ask is not None:
            if ask.sleep:
                await connection.execute(SLEEP, {"id": ask.worker, "modes": array(ask.sleep), "task": None})
                await pipeline.sync()
            elif ask.sleep is not None:
                await connection.execute(AWAKE, {"id": ask.worker})
            await asked.execute(*ask.statement(), prepare=True)
    for answer in answers:
        held.update(row[0] for row in await answer.fetchall())
    claimed = [position(row) for row in await asked.fetchall()] if ask is not None else None
    return Turn(_lost(settlements, held), claimed)


def _lost(settlements: Sequence[Settlement], held: set[int]) -> list[Settlement]:
    """An attempt ends once, also within a batch."""
    lost = []
    for settlement in settlements:
        if settlement.position.token in held:
            held.discard(settlement.position.token)
        else:
            lost.append(settlement)
    return lost
