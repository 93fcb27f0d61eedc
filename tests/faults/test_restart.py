"""PostgreSQL stopped, crashed and restarted under load (Q1, Q2, Q10)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.faults.aftermath import Aftermath, aftermath
from tests.faults.breaking import BreakableServer
from tests.faults.database import outcomes, rows, state
from tests.faults.load import MODES, SETTINGS, Load, worked_after
from tests.faults.modes import Lingering, read_ledger
from tests.faults.running import Running, running
from tests.queue.driving import accept
from tests.support.processes import eventually
from tracekit.postgres import open_pool
from tracekit.queue import Queue
from tracekit.queue.listener import ListenerState


@asynccontextmanager
async def under_load(
    breakable: BreakableServer, dsn: str, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Load, Aftermath, Running]]:
    async with AsyncExitStack() as stack:
        stack.push_async_callback(breakable.start)  # for those who come after a test that failed
        pool = await open_pool(dsn, min_size=1, max_size=4, name="load", autocommit=True)
        await stack.enter_async_context(pool)
        after = await stack.enter_async_context(aftermath(request, pool, dsn))
        here = await stack.enter_async_context(running(dsn, [*MODES, Lingering], SETTINGS))
        yield Load(Queue(pool, timeout=SETTINGS.database_timeout)), after, here


async def test_restarts_under_load_lose_nothing_Q1_Q10(
    breakable: BreakableServer, breakable_dsn: str, request: pytest.FixtureRequest
) -> None:
    """Stopped immediate three times, and back as soon as it can be."""
    async with under_load(breakable, breakable_dsn, request) as (load, after, _):
        took = []
        async with load.flowing():
            for _ in range(3):
                await load.until_accepted(40)
                await breakable.stop()
                await breakable.start()
                back = time.time()
                await load.until_accepted(1)
                took.append((load.accepted_after(back), back))
            await load.until_accepted(20)
        await load.ends_well(after, broken=1)
        for accepted, back in took:
            after.report(
                f"restarted: first receipt {accepted:.1f} s after it was back,"
                f" first attempt ended {await worked_after(after.pool, back):.1f} s after it"
            )


async def test_an_outage_longer_than_a_lease_Q1_Q2_Q10(
    breakable: BreakableServer, breakable_dsn: str, request: pytest.FixtureRequest
) -> None:
    """A worker that cannot keep its leases stops working on their hops; they are taken anew when the server is back."""
    async with under_load(breakable, breakable_dsn, request) as (load, after, here):
        async with load.flowing():
            await load.until_accepted(40)
            long = await accept(load.queue, "lingering", input={"seconds": 60.0})

            async def is_running() -> bool:
                return await state(after.pool, long) == "running"

            await eventually(is_running, "the long one is under way")
            stopped = time.time()
            await breakable.stop()

            async def nothing_runs() -> bool:
                return any(step == "cancelled" for _, step, _ in read_ledger(after.ledger))

            await eventually(nothing_runs, "the handler of the lost lease is cancelled")
            away = time.time() - stopped
            await breakable.start()
            back = time.time()
            await load.until_accepted(20)
        load.receipts[long] = stopped
        await load.ends_well(after, broken=1)
        assert (await outcomes(after.pool, long))[0] == "lease_expired"
        assert (await outcomes(after.pool, long))[-1] == "done"
        assert here.listener.state is ListenerState.LISTENING
        after.report(
            f"away for {away:.1f} s with leases of {SETTINGS.lease.total_seconds():g} s: first receipt"
            f" {load.accepted_after(back):.1f} s after it was back,"
            f" first attempt ended {await worked_after(after.pool, back):.1f} s after it"
        )


async def test_a_crashed_backend_takes_everybody_along_Q1_Q10(
    breakable: BreakableServer, breakable_dsn: str, request: pytest.FixtureRequest
) -> None:
    """One server process killed: PostgreSQL ends all of them and recovers, and turns callers away meanwhile."""
    async with under_load(breakable, breakable_dsn, request) as (load, after, _):
        async with load.flowing():
            await load.until_accepted(40)
            [(victim,)] = await rows(
                after.pool,
                "SELECT pid FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid() LIMIT 1",
            )
            crashed = time.time()
            os.kill(victim, signal.SIGKILL)
            await load.until_refused()
            await load.until_accepted(40)
        await load.ends_well(after, broken=1)
        accepted = min(at for at in load.receipts.values() if at > crashed)
        after.report(f"crashed: {accepted - crashed:.1f} s until a receipt was there again")


async def test_connections_ended_one_by_one_by_an_operator_Q1_Q10(
    breakable: BreakableServer, breakable_dsn: str, request: pytest.FixtureRequest
) -> None:
    """`pg_terminate_backend` in the middle of statements, again and again."""
    async with under_load(breakable, breakable_dsn, request) as (load, after, _):
        ended = 0
        async with (
            load.flowing(),
            await psycopg.AsyncConnection.connect(breakable.server.dsn, autocommit=True) as operator,
        ):
            for _ in range(6):
                await load.until_accepted(10)
                done = await operator.execute(
                    "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s",
                    [conninfo_to_dict(breakable_dsn)["dbname"]],
                )
                row = await done.fetchone()
                assert row is not None
                ended += row[0]
            await load.until_accepted(10)
        await load.ends_well(after, broken=1)
        after.report(f"{ended} connections ended by an operator")
