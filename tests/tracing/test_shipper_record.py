"""T6: a row of the record is several spans; they are shipped together, each once, whatever happens to one of them."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.otlp import OtlpReceiver
from tests.tracing.backlog import shipping_state
from tests.tracing.conftest import configured
from tests.tracing.shippers import process, running, shipper
from tests.tracing.writing import OF_ITS_END, OF_ITS_ENVELOPE, RECEIVED, live, write_many
from tracekit.postgres import Pool
from tracekit.queue.submission import Received
from tracekit.tracing.otlp import Collector

POISON = Received("poison", RECEIVED.duration, RECEIVED.attributes)
"""A request by a name that the receiver takes no span of."""


@pytest.mark.parametrize(
    ("batch_rows", "batch_bytes"), [(1, 2**20), (512, 1)], ids=["one row a batch", "one byte a batch"]
)
async def test_t6_a_row_of_several_spans_is_shipped_whole_and_once(
    dsn: str, pool: Pool, receiver: OtlpReceiver, collector: Collector, batch_rows: int, batch_bytes: int
) -> None:
    sender = shipper(dsn, collector, batch_rows=batch_rows, batch_bytes=batch_bytes)
    async with pool.connection() as connection:
        first, kept, second = await live(connection), await write_many(connection, 1), await live(connection)
        shipped = []
        while count := await sender.ship_once():
            shipped.append(count)
        await sender.close()
        state = await shipping_state(connection)
    assert shipped == [OF_ITS_ENVELOPE, OF_ITS_END, 1, OF_ITS_ENVELOPE, OF_ITS_END]
    assert [(span["trace_id"], span["span_id"]) for span in receiver.spans()] == first + kept + second
    assert (state.pending, state.shipped) == (0, 2 * (OF_ITS_ENVELOPE + OF_ITS_END) + 1)


async def test_t6_several_rows_of_the_record_go_in_one_batch(
    dsn: str, pool: Pool, receiver: OtlpReceiver, collector: Collector
) -> None:
    async with pool.connection() as connection:
        places = [place for _ in range(5) for place in await live(connection)]
    sender = shipper(dsn, collector)
    assert await sender.ship_once() == 5 * (OF_ITS_ENVELOPE + OF_ITS_END)
    await sender.close()
    assert receiver.times_received() == dict.fromkeys(places, 1)


async def test_t6_a_refused_span_costs_none_of_its_row(
    dsn: str, pool: Pool, receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    """The poison is one of the two spans of an envelope, and the collector refuses any batch that it is in."""
    sender = shipper(dsn, configured(receiver, monkeypatch, protocol))
    receiver.answer("refuse-named")
    async with pool.connection() as connection:
        before, poisoned, after = await live(connection), await live(connection, POISON), await live(connection)
        cursor = await connection.execute("SELECT trace_id, span_id FROM tracekit.spans WHERE name = 'poison'")
        (poison,) = await cursor.fetchall()
        while await sender.ship_once():
            pass
        await sender.close()
        assert (await shipping_state(connection)).pending == 0
    wanted = {*before, *poisoned, *after} - {poison}
    assert len(wanted) == 3 * (OF_ITS_ENVELOPE + OF_ITS_END) - 1
    assert receiver.times_received() == dict.fromkeys(wanted, 1)
    assert (sender.shipped, sender.rejected, sender.failures) == (len(wanted) + 1, 1, 0)


async def test_t6_a_row_too_large_for_the_collector_goes_span_by_span(
    dsn: str, pool: Pool, receiver: OtlpReceiver, collector: Collector
) -> None:
    sender = shipper(dsn, collector)
    receiver.answer("refuse-large")
    async with pool.connection() as connection:
        places = [*await live(connection), *await live(connection)]
    while await sender.ship_once():
        pass
    await sender.close()
    assert receiver.times_received() == dict.fromkeys(places, 1)
    assert sender.rejected == 0


async def test_t6_a_damaged_span_costs_none_of_its_row(
    dsn: str, pool: Pool, receiver: OtlpReceiver, collector: Collector
) -> None:
    """A caller's span id that is none makes a root span that can be no span: its wait and its attempt go out."""
    sender = shipper(dsn, collector)
    async with pool.connection() as connection:
        places = await live(connection)
        await connection.execute("UPDATE tracekit.envelopes SET parent_span_id = 'no span'")
        cursor = await connection.execute("SELECT trace_id, span_id FROM tracekit.spans WHERE name = 'task manual'")
        (damaged,) = await cursor.fetchall()
    assert await sender.ship_once() == len(places)
    await sender.close()
    assert receiver.times_received() == dict.fromkeys({*places} - {damaged}, 1)
    assert sender.rejected == 1


async def test_t6_a_killed_shipper_repeats_at_most_the_rows_under_way(
    dsn: str, pool: Pool, receiver: OtlpReceiver, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    of_a_task = OF_ITS_ENVELOPE + OF_ITS_END
    async with pool.connection() as connection:
        with process(dsn, 1) as first:
            done = await live(connection)
            await asyncio.to_thread(receiver.wait, spans=of_a_task)
            # The collector keeps the next row and the shipper does not hear of it.
            receiver.answer("keep-and-hang")
            under_way = await live(connection)
            await asyncio.to_thread(receiver.wait, spans=of_a_task + OF_ITS_ENVELOPE)
            first.kill()
            await asyncio.to_thread(first.wait)
        receiver.answer("ok")
        async with running(shipper(dsn, collector, batch_rows=1)):
            await asyncio.to_thread(receiver.wait, spans=2 * of_a_task + OF_ITS_ENVELOPE)
        assert (await shipping_state(connection)).pending == 0
    once, twice = [*done, *under_way[OF_ITS_ENVELOPE:]], under_way[:OF_ITS_ENVELOPE]
    assert receiver.times_received() == {**dict.fromkeys(once, 1), **dict.fromkeys(twice, 2)}
