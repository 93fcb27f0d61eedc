"""A streaming standby takes over from its primary, under load (Q1, Q10)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import pytest

from tests.faults.aftermath import Aftermath, aftermath
from tests.faults.breaking import Proxy, proxied
from tests.faults.conftest import StartWorker
from tests.faults.database import rows, value
from tests.faults.load import MODES, SETTINGS, Load, worked_after
from tests.faults.running import running
from tests.faults.standby import Pair
from tests.queue.driving import accept
from tests.support.processes import eventually
from tracekit.postgres import Pool, migrate, open_pool
from tracekit.queue import Queue

SECOND = timedelta(seconds=1)


@dataclass
class Scene:
    pair: Pair
    dsn: str
    """Of the writable one of both."""
    old: str
    """Of the first server, past whatever is in the way."""
    way: Proxy
    """To the first server, for whoever uses `dsn`."""
    pool: Pool
    load: Load
    after: Aftermath
    listened: float = 0.0

    async def listens(self, workers: int, moved: float) -> None:
        """Wait until that many workers have told the new server that they listen there."""

        async def look() -> bool:
            said = "SELECT count(*) FROM tracekit.workers WHERE listener = 'listening' AND seen_at > to_timestamp(%s)"
            return bool(await value(self.pool, said, moved + 0.5) == workers)

        await eventually(look, f"{workers} workers listen")
        self.listened = time.time() - moved

    async def end_well(self, moved: float, what: str) -> None:
        """What must hold at the end. `moved`: when the new server was writable (Unix time)."""
        await self.load.ends_well(self.after, broken=4)
        self.after.report(
            f"{what}: first attempt ended {await worked_after(self.pool, moved):.1f} s after the promotion,"
            f" first receipt {self.load.accepted_after(moved):.1f} s, known to LISTEN {self.listened:.1f} s after it"
        )
        assert not await value(self.pool, "SELECT pg_is_in_recovery()")


@asynccontextmanager
async def scene(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        pair = await stack.enter_async_context(Pair())
        old = pair.first.create_database("load")
        await migrate(old)
        _, way = await stack.enter_async_context(proxied(old))
        dsn = pair.dsn(old, first_host=str(way.directory))
        pool = await open_pool(dsn, min_size=1, max_size=4, name="load", autocommit=True)
        await stack.enter_async_context(pool)
        load = Load(Queue(pool, timeout=SETTINGS.database_timeout))
        after = await stack.enter_async_context(aftermath(request, pool, dsn))
        yield Scene(pair, dsn, old, way, pool, load, after)


async def test_the_primary_gone_its_standby_promoted_Q1_Q10(
    start_worker: StartWorker, request: pytest.FixtureRequest
) -> None:
    """As a power cut leaves it: what has a receipt is on the standby, and the worker processes move there."""
    async with scene(request) as here:
        workers = await asyncio.gather(*(start_worker(here.dsn, "--lease=3") for _ in range(2)))
        async with here.load.flowing():
            await here.load.until_accepted(60)
            await here.pair.stop_first(immediate=True)
            # There is only a server that is not to be written to.
            await here.load.until_refused()
            await here.pair.promote()
            moved = time.time()
            await here.load.until_accepted(60)
            await here.listens(2, moved)
        await here.end_well(moved, "primary gone")
        assert [worker.returncode for worker in workers] == [None, None]


async def test_a_switchover_in_good_order_the_old_primary_back_as_a_standby_Q1_Q10(
    start_worker: StartWorker, request: pytest.FixtureRequest
) -> None:
    """The old primary is the first host of everybody's DSN: it lets them in, and they leave it alone."""
    async with scene(request) as here:
        workers = await asyncio.gather(*(start_worker(here.dsn, "--lease=3") for _ in range(2)))
        async with here.load.flowing():
            await here.load.until_accepted(60)
            await here.pair.stop_first(immediate=False)
            await here.pair.promote()
            moved = time.time()
            await here.pair.first_follows_second()
            # Whoever has found the new one is sent away, and may try the old one again, which answers.
            await rows(
                here.pool,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid()",
            )
            await here.load.until_accepted(60)
            await here.listens(2, moved)
        await here.end_well(moved, "switched over")
        assert [worker.returncode for worker in workers] == [None, None]


async def test_a_primary_that_is_demoted_with_its_connections_open_is_left_Q10(request: pytest.FixtureRequest) -> None:
    """Nothing closes, every statement but a write succeeds: a connection that may not write any more is no good."""
    async with (
        scene(request) as here,
        running(here.dsn, MODES, SETTINGS, test_interval=SECOND, test_timeout=SECOND),
    ):
        async with here.load.flowing():
            await here.load.until_accepted(60)
            here.pair.demote_first_in_place()
            await here.load.until_refused()
            await here.pair.promote()
            moved = time.time()
            await here.load.until_accepted(60)
            await here.listens(1, moved)
        await here.end_well(moved, "demoted in place")


async def test_a_primary_that_is_fenced_off_and_still_writable_is_left_Q10(request: pytest.FixtureRequest) -> None:
    """Who had a connection finds it dead; who asks for a new one hears nothing at all. It stays the first host of
    everybody's DSN, and must leave them time for the second.
    """
    async with scene(request) as here, running(here.dsn, MODES, SETTINGS, test_interval=SECOND, test_timeout=SECOND):
        async with here.load.flowing():
            await here.load.until_accepted(60)
            here.way.hang()
            await here.pair.promote()
            moved = time.time()
            here.way.cut()
            await here.load.until_accepted(60)
            await here.listens(1, moved)
        await here.end_well(moved, "fenced off")
        # It could have been written to, and was not: a task that is accepted now is on the new server alone.
        task_id = await accept(Queue(here.pool), "fast")
        async with await open_pool(here.old, min_size=1, max_size=1, name="old", autocommit=True) as old:
            assert not await value(old, "SELECT pg_is_in_recovery()")
            assert await rows(old, "SELECT FROM tracekit.tasks WHERE id = %s", task_id) == []
