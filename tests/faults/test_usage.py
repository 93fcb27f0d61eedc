"""A database that goes away while money is spent: what was spent is booked when it is back, once."""

from __future__ import annotations

import asyncio
from decimal import Decimal

from tests.cost.driving import all_counted, all_spent, spent, usage
from tests.cost.hops import hop_of
from tests.faults.breaking import BreakableServer
from tests.queue.driving import accept, take
from tests.support.processes import eventually
from tracekit.postgres import open_pool
from tracekit.queue import Queue


async def test_c1_q10_usage_is_booked_when_the_database_is_back_and_once(
    breakable: BreakableServer, breakable_dsn: str
) -> None:
    pool = await open_pool(breakable_dsn, min_size=1, max_size=4, name="usage", autocommit=True)
    async with pool:
        queue = Queue(pool)
        task_id = await accept(queue)
        hop = hop_of(queue, await take(queue))
        await breakable.stop()
        stopped = asyncio.Event()

        async def spend() -> None:
            stopped.set()
            await hop.usage(usage())

        spending = asyncio.create_task(spend())
        await stopped.wait()
        # Told to stop in the meantime, it has still spent it.
        spending.cancel()
        await asyncio.wait([spending])
        assert spending.cancelled()
        await breakable.start()
        await hop.usage(usage(key="other"))

        async def both() -> bool:
            return (await spent(queue, task_id)).calls == 2

        await eventually(both, "what was spent while the database was away is booked")
        assert (await spent(queue, task_id)).cost == 2 * Decimal("0.00033")
        assert await all_counted(queue) == await all_spent(queue)
