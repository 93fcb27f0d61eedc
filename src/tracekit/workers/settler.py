"""Turns that come to an end whatever is written in them: one that the database refuses costs none of the others."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from tracekit.postgres import is_away
from tracekit.queue import PayloadRefused, Queue, Settlement
from tracekit.queue.claim import Ask
from tracekit.queue.model import Failed
from tracekit.queue.settle import storable_settlement
from tracekit.queue.turn import Turn

log = structlog.get_logger()


def checked(settlement: Settlement) -> Settlement:
    """`settlement`, or a failure in its place where its values cannot be kept."""
    try:
        return storable_settlement(settlement)
    except PayloadRefused as refused:
        return Settlement(settlement.position, Failed("InvalidOutcome", str(refused)))


async def take_turn(queue: Queue, batch: Sequence[Settlement], ask: Ask | None) -> Turn:
    """`Queue.turn`. Raises only what may pass: the same turn may succeed later."""
    try:
        return await queue.turn(batch, ask)
    except Exception as error:
        if is_away(error) or not batch:
            raise
    # One of them holds what cannot be written: find it, so that the others do not fail with it.
    lost = [settlement for one in batch for settlement in await _alone(queue, one)]
    return Turn(lost)


async def _alone(queue: Queue, settlement: Settlement) -> list[Settlement]:
    try:
        return await queue.settle([settlement])
    except Exception as refused:
        if is_away(refused):
            raise
        log.error("settlement.refused", task_id=settlement.position.task_id, error=str(refused)[:300])
        plain = Failed("InvalidOutcome", f"the outcome cannot be stored: {type(refused).__name__}")
    try:
        return [settlement] if await queue.settle([Settlement(settlement.position, plain)]) else []
    except Exception as error:
        if is_away(error):
            raise
        # Whatever this is, it must not hold up the others; the sweep ends the attempt with its lease.
        log.error("settlement.impossible", task_id=settlement.position.task_id, error=str(error)[:300])
        return [settlement]
