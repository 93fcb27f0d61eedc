"""A network between the workers and their database that cuts, delays, halves and swallows what it carries (Q1, Q10)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import pytest
from psycopg.conninfo import make_conninfo

from tests.faults.aftermath import Aftermath, aftermath
from tests.faults.database import value
from tests.faults.load import MODES, SETTINGS, Load, worked_after
from tests.faults.network import FAIR, Network, Weather, network
from tests.faults.running import Running, running
from tests.support.processes import eventually
from tracekit.postgres import Pool, connect, open_pool
from tracekit.queue import Queue
from tracekit.queue.listener import ListenerState

SEED = 20_261_123
SECOND = timedelta(seconds=1)

LIMIT = 3
"""Seconds that a transaction may be idle, as the DSN says. The default would be long for a test."""

STORM = Weather(cut=0.01, halve=0.2, delay=0.2, latest=0.03)
"""Some statements take four portions: a connection lives for some dozens of them."""


@asynccontextmanager
async def over_a_network(
    dsn: str, pool: Pool, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Load, Aftermath, Running, Network]]:
    """A worker and its clients, which reach the database over a network. `pool` does so by a way that holds."""
    async with AsyncExitStack() as stack:
        after = await stack.enter_async_context(aftermath(request, pool, dsn))
        limited = make_conninfo(dsn, options=f"-c idle_in_transaction_session_timeout={LIMIT * 1000}")
        over, between = await stack.enter_async_context(network(limited, seed=SEED))
        clients = await open_pool(over, min_size=1, max_size=4, name="load", autocommit=True)
        await stack.enter_async_context(clients)
        here = await stack.enter_async_context(
            running(over, MODES, SETTINGS, test_interval=SECOND, test_timeout=SECOND)
        )
        yield Load(Queue(clients, timeout=SETTINGS.database_timeout)), after, here, between


async def test_a_network_that_cuts_delays_and_halves_loses_nothing_Q1_Q3_Q10(
    dsn: str, pool: Pool, request: pytest.FixtureRequest
) -> None:
    """Wherever a statement is cut: before it arrived, before its commit, before its answer."""
    async with over_a_network(dsn, pool, request) as (load, after, _, between):
        calm = time.time()
        async with load.flowing():
            for _ in range(3):
                between.weather = STORM
                await load.until_accepted(60)
                between.weather = FAIR
                calm = time.time()
                await load.until_accepted(5)
        await load.ends_well(after, broken=between.cuts)
        after.report(
            f"storm (seed {SEED}): {between.cuts} connections cut;"
            f" first attempt ended {await worked_after(pool, calm):.1f} s after the last"
        )
    assert between.cuts > 10


async def test_connections_that_die_silently_are_left_for_new_ones_Q10(
    dsn: str, pool: Pool, request: pytest.FixtureRequest
) -> None:
    """As after a firewall forgot them all: no end is told, and whoever connects anew gets through."""
    async with over_a_network(dsn, pool, request) as (load, after, here, between):
        silenced = time.time()
        async with load.flowing():
            await load.until_accepted(40)
            between.silence()
            silenced = time.time()
            await load.until_accepted(40)
        noticed = load.accepted_after(silenced)

        async def listens() -> bool:
            said = "SELECT count(*) FROM tracekit.workers WHERE listener = 'listening' AND seen_at > to_timestamp(%s)"
            return here.listener.state is ListenerState.LISTENING and await value(pool, said, silenced + noticed) == 1

        await eventually(listens, "it listens on a new connection")
        heard = time.time() - silenced
        await load.ends_well(after, broken=1)
        after.report(
            f"silence: first receipt {noticed:.1f} s, first attempt ended {await worked_after(pool, silenced):.1f} s,"
            f" LISTEN again known {heard:.1f} s after it"
        )


async def test_a_client_that_vanishes_before_its_commit_holds_nothing_up_for_long_Q2_Q10(
    dsn: str, pool: Pool, request: pytest.FixtureRequest
) -> None:
    """Its transaction stays open at the server, with the locks of its hops and keys, until the server ends it."""
    async with over_a_network(dsn, pool, request) as (load, after, _, between):
        vanished = time.time()
        async with load.flowing():
            await load.until_accepted(20)
            between.swallow(b"COMMIT", times=4)
            vanished = time.time()

            async def swallowed() -> bool:
                return between.to_swallow == 0

            await eventually(swallowed, "four clients have vanished")
            await load.until_accepted(40)
        await load.ends_well(after, broken=1)
        after.report(
            f"four vanished before their commits (idle limit {LIMIT} s):"
            f" all that was accepted had ended {time.time() - vanished:.1f} s after"
        )


async def test_the_server_ends_a_transaction_whose_client_is_silent_Q2(dsn: str) -> None:
    """By default, and in time for its hops to be claimed again within the bound of Q2, a lease of a minute included."""
    async with await connect(dsn) as connection:
        asked = "SELECT setting::int FROM pg_settings WHERE name = 'idle_in_transaction_session_timeout'"
        [(milliseconds,)] = await (await connection.execute(asked)).fetchall()
    assert 0 < milliseconds <= 60_000
