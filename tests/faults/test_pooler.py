"""PgBouncer in transaction mode before the pool, killed and started again, and its server likewise (Q1, Q10)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tests.faults.aftermath import Aftermath, aftermath
from tests.faults.breaking import BreakableServer
from tests.faults.load import MODES, SETTINGS, Load, worked_after
from tests.faults.running import running
from tests.support.pooler import Pooler
from tracekit.postgres import open_pool
from tracekit.queue import Queue


@asynccontextmanager
async def through_a_pooler(
    breakable: BreakableServer, dsn: str, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Load, Aftermath, Pooler]]:
    """A worker and its clients behind a pooler; LISTEN goes past it."""
    async with AsyncExitStack() as stack:
        stack.push_async_callback(breakable.start)  # for those who come after a test that failed
        direct = await open_pool(dsn, min_size=1, max_size=2, name="test", autocommit=True)
        await stack.enter_async_context(direct)
        after = await stack.enter_async_context(aftermath(request, direct, dsn))
        pooler = await stack.enter_async_context(Pooler(dsn))
        pool = await open_pool(
            pooler.dsn, min_size=1, max_size=4, name="load", autocommit=True, transaction_pooler=True
        )
        await stack.enter_async_context(pool)
        await stack.enter_async_context(running(pooler.dsn, MODES, SETTINGS, listen_dsn=dsn, transaction_pooler=True))
        yield Load(Queue(pool, timeout=SETTINGS.database_timeout)), after, pooler


async def test_a_pooler_killed_under_load_loses_nothing_Q1_Q10(
    breakable: BreakableServer, breakable_dsn: str, request: pytest.FixtureRequest
) -> None:
    """Three times. The server and the listener never notice."""
    async with through_a_pooler(breakable, breakable_dsn, request) as (load, after, pooler):
        moments = []
        async with load.flowing():
            for _ in range(3):
                await load.until_accepted(30)
                await pooler.kill()
                await load.until_refused()
                await pooler.start()
                moments.append(time.time())
                await load.until_accepted(1)
            await load.until_accepted(20)
        await load.ends_well(after, broken=1)
        for back in moments:
            after.report(
                f"pooler restarted: first receipt {load.accepted_after(back):.1f} s after it was back,"
                f" first attempt ended {await worked_after(after.pool, back):.1f} s after it"
            )


async def test_a_server_restarted_behind_its_pooler_loses_nothing_Q1_Q10(
    breakable: BreakableServer, breakable_dsn: str, request: pytest.FixtureRequest
) -> None:
    """The pooler stays, and says of the server what it thinks it knows: its words are no SQLSTATEs of PostgreSQL's."""
    async with through_a_pooler(breakable, breakable_dsn, request) as (load, after, _):
        async with load.flowing():
            await load.until_accepted(30)
            await breakable.stop()
            await load.until_refused()
            await breakable.start()
            back = time.time()
            await load.until_accepted(20)
        await load.ends_well(after, broken=1)
        after.report(
            f"server restarted behind its pooler: first receipt {load.accepted_after(back):.1f} s after it was back,"
            f" first attempt ended {await worked_after(after.pool, back):.1f} s after it"
        )
