"""T6 under bad luck: killed shippers, several at once, a database that goes away, a restored dump."""

from __future__ import annotations

import asyncio
import subprocess
from collections import Counter

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.faults.breaking import BreakableServer
from tests.support.otlp import OtlpReceiver
from tests.support.pooler import Pooler
from tests.support.postgres import ThrowawayServer
from tests.support.processes import eventually
from tests.tracing.backlog import shipping_state
from tests.tracing.shippers import process, running, shipper
from tests.tracing.writing import live, write_many
from tracekit.postgres import Pool, connect, default_provider, migrate
from tracekit.tracing.otlp import Collector
from tracekit.tracing.shipping import _SOURCES, Turn


async def test_t6_a_killed_shipper_repeats_at_most_the_batch_under_way(
    dsn: str, pool: Pool, receiver: OtlpReceiver, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    async with pool.connection() as connection:
        places = await write_many(connection, 20, transactions=10)
        with process(dsn, 50) as first:
            await asyncio.to_thread(receiver.wait, spans=200)
            # The collector keeps the next batch and the shipper does not hear of it.
            receiver.answer("keep-and-hang")
            places += await write_many(connection, 200)
            await asyncio.to_thread(receiver.wait, spans=250)
            first.kill()
            await asyncio.to_thread(first.wait)
        receiver.answer("ok")
        async with running(shipper(dsn, collector, batch_rows=50)):
            await asyncio.to_thread(receiver.wait, spans=450)
        assert (await shipping_state(connection)).pending == 0

    times = receiver.times_received()
    assert set(times) == set(places), "none is lost"
    repeated = [place for place in places if times[place] > 1]
    assert repeated == places[200:250]
    assert Counter(times.values()) == {1: 350, 2: 50}


async def test_t6_many_shippers_ship_each_span_once(
    dsn: str, pool: Pool, receiver: OtlpReceiver, collector: Collector
) -> None:
    async def writer() -> list[tuple[str, str]]:
        async with pool.connection() as connection:
            return await write_many(connection, 3, transactions=50)

    with process(dsn, 7):
        async with running(shipper(dsn, collector, batch_rows=11)), running(shipper(dsn, collector, batch_rows=13)):
            written = await asyncio.gather(*(writer() for _ in range(6)))
            await asyncio.to_thread(receiver.wait, spans=900)
    assert receiver.times_received() == dict.fromkeys((place for places in written for place in places), 1)


async def test_t6_only_one_ships_at_a_time(
    dsn: str, pool: Pool, receiver: OtlpReceiver, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    async with pool.connection() as connection:
        places = await write_many(connection, 1)
    first, second = shipper(dsn, collector), shipper(dsn, collector)
    receiver.answer("hang")
    shipping = asyncio.create_task(first.ship_once())
    await asyncio.to_thread(receiver.wait, requests=1)
    assert await second.ship_once() == 0
    shipping.cancel()
    await asyncio.gather(shipping, return_exceptions=True)
    receiver.answer("ok")
    assert await second.ship_once() == 1, "the right to ship ends with the one who had it"
    await first.close()
    await second.close()
    assert receiver.times_received() == dict.fromkeys(places, 1)


async def test_t6_the_server_ends_the_turn_of_one_who_vanished(
    dsn: str, pool: Pool, receiver: OtlpReceiver, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that loses power closes no connection. Here: a process that is stopped, and never goes on."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    async with pool.connection() as connection:
        await write_many(connection, 1)
    gone = await connect(dsn)
    assert await Turn.begin(gone, step_timeout=10, idle=0.05) is not None
    async with running(shipper(dsn, collector)):
        await asyncio.to_thread(receiver.wait, spans=1)
    with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
        await gone.execute("SELECT 1")
    await gone.close()


async def test_t6_a_lost_connection_is_made_anew(
    dsn: str, pool: Pool, receiver: OtlpReceiver, collector: Collector
) -> None:
    async with pool.connection() as connection, running(shipper(dsn, collector)) as sender:
        places = await write_many(connection, 2)

        async def passed() -> bool:
            return (await shipping_state(connection)).pending == 0

        # Between turns: what the collector has and the cursor has not passed would go out again.
        await eventually(passed, "the cursor has passed them")
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'tracekit shipper' AND datname = current_database()"
        )
        places += await write_many(connection, 2)
        await asyncio.to_thread(receiver.wait, spans=4)
    assert receiver.times_received() == dict.fromkeys(places, 1)
    assert sender.failures >= 1


async def test_t6_an_immediate_stop_of_postgresql_repeats_at_most_the_batch_under_way(
    receiver: OtlpReceiver, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    with ThrowawayServer() as server:
        dsn = server.create_database()
        await migrate(dsn)
        connection = await connect(dsn, autocommit=True)
        places = await write_many(connection, 40, transactions=5)
        await connection.close()
        async with running(shipper(dsn, collector, batch_rows=50)) as sender:
            await asyncio.to_thread(receiver.wait, spans=200)
            receiver.answer("keep-and-hang")
            connection = await connect(dsn, autocommit=True)
            places += await write_many(connection, 100)
            await connection.close()
            await asyncio.to_thread(receiver.wait, spans=250)
            breakable = BreakableServer(server)
            await breakable.stop()
            receiver.answer("ok")
            await breakable.start()
            await asyncio.to_thread(receiver.wait, spans=350)
        assert sender.failures >= 1
    times = receiver.times_received()
    assert set(times) == set(places)
    assert [place for place in places if times[place] > 1] == places[200:250]


async def test_t6_each_once_through_a_pooler_in_transaction_mode(
    dsn: str, pool: Pool, receiver: OtlpReceiver, collector: Collector
) -> None:
    async with (
        Pooler(dsn) as pooler,
        running(shipper(pooler.dsn, collector, batch_rows=7)),
        running(shipper(pooler.dsn, collector, batch_rows=11)),
        pool.connection() as connection,
    ):
        places = await write_many(connection, 3, transactions=100)
        await asyncio.to_thread(receiver.wait, spans=300)
    assert receiver.times_received() == dict.fromkeys(places, 1)


async def test_t6_a_restored_dump_is_shipped_on_from_where_it_was(
    dsn: str, pool: Pool, receiver: OtlpReceiver, collector: Collector
) -> None:
    """The server that a dump is restored to has counted fewer transactions than the one it came from. It is so in each
    of the three tables that spans are made of.
    """
    async with pool.connection() as connection:
        await connection.execute(
            "DO $$ BEGIN FOR i IN 1..3000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$"
        )
        shipped = [*await write_many(connection, 4, transactions=3), *await live(connection)]
        sender = shipper(dsn, collector)
        assert await sender.ship_once() == len(shipped)
        await sender.close()
        waiting = [*await write_many(connection, 3, transactions=2), *await live(connection)]

    with ThrowawayServer() as elsewhere:
        restored = elsewhere.create_database("restored")
        copy_database(dsn, restored)
        there = await connect(restored, autocommit=True)
        fresh = [*await write_many(there, 2), *await live(there)]
        ahead = await there.execute(
            "WITH here AS (SELECT pg_snapshot_xmax(pg_current_snapshot()) AS next) SELECT"
            " (SELECT xid FROM tracekit.span_shipping) > next, (SELECT max(xid) FROM tracekit.envelopes) > next,"
            " (SELECT max(xid) FROM tracekit.record) > next, (SELECT max(xid) FROM tracekit.kept_spans) > next"
            " FROM here"
        )
        assert await ahead.fetchone() == (True,) * 4, "or this test shows nothing"

        sender = shipper(restored, collector)
        while await sender.ship_once():
            pass
        later = [*await write_many(there, 2), *await live(there)]
        fresh += later
        assert await sender.ship_once() == len(later)
        await sender.close()
        assert (await shipping_state(there)).pending == 0

        # And once more: what was adopted is not foreign any more.
        again = shipper(restored, collector)
        assert await again.ship_once() == 0
        await again.close()
        await there.close()
    assert receiver.times_received() == dict.fromkeys(shipped + waiting + fresh, 1)


async def test_t6_spans_restored_without_their_cursor_are_all_shipped(
    dsn: str, pool: Pool, receiver: OtlpReceiver, collector: Collector
) -> None:
    async with pool.connection() as connection:
        places = [*await write_many(connection, 3), *await live(connection)]
        for table in _SOURCES:
            await connection.execute(f"UPDATE {table} SET xid = (xid::text::bigint + 1000000)::text::xid8")
        places += [*await write_many(connection, 2), *await live(connection)]
    sender = shipper(dsn, collector)
    while await sender.ship_once():
        pass
    await sender.close()
    assert receiver.times_received() == dict.fromkeys(places, 1)


def copy_database(source: str, target: str) -> None:
    """As an operator does it, by docs/operations.md."""
    provider = default_provider().find()
    assert provider is not None
    password = conninfo_to_dict(source).get("password")
    assert password is None, "the throw-away server trusts its socket"
    dump = provider.bin_dir / "pg_dump"
    restore = provider.bin_dir / "pg_restore"
    with psycopg.connect(target):
        archive = subprocess.run([dump, "--format=custom", source], check=True, capture_output=True).stdout
        subprocess.run([restore, "--no-owner", "--no-acl", f"--dbname={target}"], input=archive, check=True)
