"""Writing the ends of attempts: what ends while a commit is under way goes with the next one.

A lone settlement is written at once; under load many share a commit. A handler's slot is free only when its settlement
is written, so a slow database slows the claims, and nothing piles up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import psycopg
import structlog

from tracekit.queue import PayloadRefused, Queue, Settlement
from tracekit.queue.model import Failed
from tracekit.queue.settle import storable_settlement

log = structlog.get_logger()

MOST = 500
"""Settlements in one transaction."""


class Settler:
    """Settles attempts through `queue`. `run` must be kept running."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._waiting: list[tuple[Settlement, asyncio.Future[bool]]] = []
        self._some = asyncio.Event()

    async def settle(self, settlement: Settlement) -> bool:
        """Whether it was written; False: the lease was lost. Waits out a database that is away."""
        try:
            settlement = storable_settlement(settlement)
        except PayloadRefused as refused:
            settlement = Settlement(settlement.position, Failed("InvalidOutcome", str(refused)))
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((settlement, done))
        self._some.set()
        return await done

    async def round(self) -> None:
        """Wait until something has ended, then write all of it. What could not be written stays for the next round."""
        await self._some.wait()
        batch = self._waiting[:MOST]
        try:
            lost = await self._write([settlement for settlement, _ in batch])
        except Exception as error:
            if _passes(error):
                raise
            # One of them holds what cannot be written: find it, so that the others do not fail with it.
            await self._one_by_one(batch)
            return
        self._written(batch, lost)

    def _written(self, batch: Sequence[tuple[Settlement, asyncio.Future[bool]]], lost: set[int]) -> None:
        del self._waiting[: len(batch)]
        if not self._waiting:
            self._some.clear()
        for settlement, done in batch:
            if not done.done():
                done.set_result(id(settlement) not in lost)

    async def _one_by_one(self, batch: Sequence[tuple[Settlement, asyncio.Future[bool]]]) -> None:
        for settlement, done in batch:
            try:
                lost = await self._write([settlement])
            except Exception as refused:
                if _passes(refused):
                    raise
                lost = await self._refuse(settlement, refused)
            self._written([(settlement, done)], lost)

    async def _refuse(self, settlement: Settlement, refused: Exception) -> set[int]:
        log.error("settlement.refused", task_id=settlement.position.task_id, error=str(refused)[:300])
        plain = Failed("InvalidOutcome", f"the outcome cannot be stored: {type(refused).__name__}")
        try:
            lost = await self._write([Settlement(settlement.position, plain)])
        except Exception as error:
            if _passes(error):
                raise
            # Whatever this is, it must not hold up the others; the sweep ends the attempt with its lease.
            log.error("settlement.impossible", task_id=settlement.position.task_id, error=str(error)[:300])
            return {id(settlement)}
        return {id(settlement)} if lost else set()

    async def _write(self, settlements: Sequence[Settlement]) -> set[int]:
        """The `id` of each that was lost."""
        return {id(settlement) for settlement in await self._queue.settle(settlements)}


def _passes(error: Exception) -> bool:
    """Whether the same write may succeed later: the database is away, too slow, or somebody stood in the way. All else
    is the fault of what is written. PostgreSQL counts its limits (class 54) among the operational errors.
    """
    if isinstance(error, psycopg.OperationalError):
        return not (error.sqlstate or "").startswith("54")
    return isinstance(error, psycopg.InterfaceError | TimeoutError | OSError)
