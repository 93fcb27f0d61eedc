"""Work that comes in while something breaks, and what must hold of it when all is well again."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import psycopg

from tests.faults.aftermath import Aftermath
from tests.faults.database import value
from tests.faults.modes import Chain, Effectful, Fast
from tests.queue.driving import AT_ONCE, submission
from tests.support.processes import eventually
from tracekit.config import WorkerSettings
from tracekit.postgres import Pool
from tracekit.queue import Queue
from tracekit.workers.mode import Mode

MODES: tuple[type[Mode[Any]], ...] = (Fast, Chain, Effectful)
"""What a worker serves that takes a `Load`."""

SETTINGS = WorkerSettings(
    concurrency=4,
    lease=timedelta(seconds=3),
    heartbeat=timedelta(milliseconds=500),
    poll_interval=timedelta(milliseconds=200),
    sweep_interval=timedelta(milliseconds=200),
    grace=timedelta(seconds=2),
    database_timeout=timedelta(seconds=2),
)

DATABASE_ERRORS = (psycopg.Error, TimeoutError, OSError)

PACE = 0.03
"""Seconds between the offers of a lane: a steady stream, which a small machine works off beside the test."""

_INNOCENT = AT_ONCE.model_copy(update={"max_attempts": 25})
"""An outage may take any number of attempts from a task that did nothing wrong."""


class Load:
    """A client that offers task after task, and each of them until it has a receipt, under the same key."""

    def __init__(self, queue: Queue, *, lanes: int = 2, text: str = "") -> None:
        self.queue = queue
        self._lanes = lanes
        self._text = text
        self._stop = False
        self.receipts: dict[str, float] = {}
        """Task ids, and when (Unix time) their receipt was there."""
        self.refusals: Counter[str] = Counter()
        """How often an offer failed, by the error's type."""
        self.last_refusal: Exception | None = None

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """Offers during the block; after it, until what was offered has its receipt."""
        self._stop = False
        lanes = [asyncio.create_task(self._lane(number)) for number in range(self._lanes)]
        try:
            yield
        except BaseException:
            for lane in lanes:
                lane.cancel()
            raise
        finally:
            self._stop = True
            await asyncio.gather(*lanes, return_exceptions=True)

    async def until_accepted(self, count: int) -> None:
        """Wait until `count` more have a receipt."""
        wanted = len(self.receipts) + count

        async def so_many() -> bool:
            return len(self.receipts) >= wanted

        await eventually(so_many, f"{count} more are accepted")

    async def until_refused(self) -> None:
        """Wait until one more offer has failed."""
        seen = self.refusals.total()

        async def refused() -> bool:
            return self.refusals.total() > seen

        await eventually(refused, "an offer is refused")

    async def ends_well(self, after: Aftermath, *, broken: int) -> None:
        """Wait until all that has a receipt has ended; then everything that `after` knows must hold.

        `broken`: how often the shipper may have lost its connection, and with it the word that a batch had gone out.
        """
        with suppress(*DATABASE_ERRORS):
            await after.pool.check()
        after.ends |= dict.fromkeys(self.receipts, "done")
        await after.until_ended()
        # What was committed and never answered was offered again and answered then: all that is there has a receipt.
        await after.check(shippers_cut=broken)
        print(f"{len(self.receipts)} tasks; offers that failed: {dict(self.refusals)}")

    def accepted_after(self, moment: float) -> float:
        """Seconds from a moment to the first receipt after it."""
        return min(at for at in self.receipts.values() if at > moment) - moment

    async def _lane(self, number: int) -> None:
        count = 0
        while not self._stop:
            mode, work = [("fast", {}), ("chain", {"hops": 2}), ("effectful", {})][count % 3]
            await self._insist(f"load-{id(self)}-{number}-{count}", mode, {**work, "text": self._text})
            count += 1
            await asyncio.sleep(PACE)

    async def _insist(self, key: str, mode: str, work: dict[str, Any]) -> None:
        while True:
            try:
                offer = submission(mode, work, key=key, retry_policy=_INNOCENT)
                [receipt] = await self.queue.enqueue([offer])
            except DATABASE_ERRORS as error:
                self.refusals[type(error).__name__] += 1
                self.last_refusal = error
                await asyncio.sleep(0.1)
            else:
                self.receipts[receipt.task_id] = time.time()
                return


async def worked_after(pool: Pool, moment: float) -> float:
    """Seconds from a moment (Unix time) to the first end of an attempt after it, by the database's clock."""
    first = await value(
        pool,
        "SELECT extract(epoch FROM min(at))::float8 FROM tracekit.events"
        " WHERE kind = 'attempt.ended' AND at > to_timestamp(%s)",
        moment,
    )
    return float(first) - moment
