"""T6: the skeleton is shipped over OTLP; each span once, in order, none lost."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource

from tests.support.otlp import OtlpReceiver
from tests.support.processes import patience
from tests.tracing.backlog import shipping_state
from tests.tracing.conftest import configured
from tests.tracing.shippers import running, shipper
from tests.tracing.writing import START, SpanLink, skeleton, write, write_many
from tracekit.postgres import Pool, connect
from tracekit.tracing.otlp import Collector
from tracekit.tracing.shipper import DeliveryError
from tracekit.tracing.spans import SpanKind, StatusCode


async def test_t6_a_row_arrives_as_it_was_written(
    dsn: str, pool: Pool, receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    collector = configured(receiver, monkeypatch, protocol)
    link = SpanLink("ab" * 16, "cd" * 8, "retry_of")
    written = skeleton(
        "process executor",
        end_time=START + timedelta(microseconds=1_234_567),
        attributes={"tracekit.hop": 3, "tracekit.destructive": True, "tracekit.wait.kind": "approval"},
        status=StatusCode.ERROR,
        status_message="it broke",
        links=(link,),
    )
    async with pool.connection() as connection:
        await write(connection, written)
    sender = shipper(dsn, collector, resource=Resource({"service.name": "house", "service.instance.id": "i-1"}))
    assert await sender.ship_once() == 1
    assert await sender.ship_once() == 0
    await sender.close()

    (span,) = receiver.spans()
    start = int(START.timestamp()) * 10**9
    assert (span["trace_id"], span["span_id"], span["parent_span_id"]) == (
        written.trace_id,
        written.span_id,
        written.parent_span_id,
    )
    assert (span["name"], span["kind"]) == ("process executor", SpanKind.CONSUMER)
    assert (span["start_time"], span["end_time"]) == (start, start + 1_234_567_000)
    assert span["attributes"] == {"tracekit.hop": 3, "tracekit.destructive": True, "tracekit.wait.kind": "approval"}
    assert span["status"] == {"code": StatusCode.ERROR, "message": "it broke"}
    assert span["links"] == [
        {"trace_id": link.trace_id, "span_id": link.span_id, "attributes": {"tracekit.link": "retry_of"}}
    ]
    assert span["scope"]["name"] == "tracekit"
    assert span["resource"] == {"service.name": "house"}, "the skeleton belongs to no single process"


async def test_t6_headers_and_compression_are_the_standard_variables(
    dsn: str, pool: Pool, receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=household")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    sender = shipper(dsn, configured(receiver, monkeypatch, protocol))
    async with pool.connection() as connection:
        await write_many(connection, 3)
    assert await sender.ship_once() == 3
    await sender.close()
    headers = receiver.spans()[0]["request_headers"]
    assert headers["x-tenant"] == "household"
    assert protocol == "grpc" or headers["content-encoding"] == "gzip"


async def test_t6_a_dead_collector_loses_and_doubles_nothing(
    dsn: str, pool: Pool, receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    collector = configured(receiver, monkeypatch, protocol)
    receiver.stop()
    async with pool.connection() as connection:
        places = await write_many(connection, 60, transactions=5)
        sender = shipper(dsn, collector, batch_rows=50)
        with pytest.raises(DeliveryError):
            await sender.ship_once()
        waiting = await shipping_state(connection)
    assert (waiting.pending, waiting.shipped, waiting.shipped_at) == (300, 0, None)
    assert waiting.oldest_seconds is not None

    receiver.start()
    async with running(sender):
        await asyncio.to_thread(receiver.wait, spans=300)
    assert receiver.times_received() == dict.fromkeys(places, 1)
    async with pool.connection() as connection:
        done = await shipping_state(connection)
    assert (done.pending, done.oldest_seconds, done.shipped) == (0, None, 300)
    assert sender.shipped == 300


async def test_t6_an_unavailable_collector_is_retried_until_it_takes_all(
    dsn: str, pool: Pool, receiver: OtlpReceiver, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
    receiver.answer("unavailable")
    async with pool.connection() as connection:
        places = await write_many(connection, 10)
    async with running(shipper(dsn, collector)) as sender:
        await asyncio.to_thread(receiver.wait, requests=4)
        receiver.answer("ok")
        await asyncio.to_thread(receiver.wait, spans=10)
    assert receiver.times_received() == dict.fromkeys(places, 1)
    assert sender.failures >= 3
    assert sender.last_error == ""


async def test_t6_a_transaction_that_commits_late_is_not_passed_over(
    dsn: str, pool: Pool, receiver: OtlpReceiver, collector: Collector
) -> None:
    sender = shipper(dsn, collector)
    slow = await connect(dsn)
    early = await write(slow, skeleton("early"))
    async with pool.connection() as connection:
        late = await write(connection, skeleton("late"))
        assert await sender.ship_once() == 0, "a row that may yet be preceded by another is not shipped"
        assert (await shipping_state(connection)).pending == 1
    await slow.commit()
    await slow.close()
    assert await sender.ship_once() == 2
    await sender.close()
    assert [(span["trace_id"], span["span_id"]) for span in receiver.spans()] == early + late


async def test_t6_a_collector_that_hangs_does_not_hold_back_vacuum(
    dsn: str, pool: Pool, receiver: OtlpReceiver, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor the cursor: a transaction with an xid or a snapshot would, in the whole cluster."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "30")
    receiver.answer("hang")
    async with pool.connection() as connection:
        await write_many(connection, 1)
        async with running(shipper(dsn, collector)):
            await asyncio.to_thread(receiver.wait, requests=1)
            held = await connection.execute(
                "SELECT state, backend_xid, backend_xmin FROM pg_stat_activity "
                "WHERE application_name = 'tracekit shipper' AND datname = current_database()"
            )
            assert await held.fetchall() == [("idle in transaction", None, None)]
            receiver.answer("ok")


async def test_t6_batches_are_bounded_by_rows_and_by_bytes(
    dsn: str, pool: Pool, receiver: OtlpReceiver, collector: Collector
) -> None:
    async with pool.connection() as connection:
        await write(connection, *(skeleton(attributes={"tracekit.outcome": "x" * 10_000}) for _ in range(10)))
    sender = shipper(dsn, collector, batch_rows=4, batch_bytes=25_000)
    assert [await sender.ship_once() for _ in range(5)] == [3, 3, 3, 1, 0]
    await sender.close()
    by_rows = shipper(dsn, collector, batch_rows=4)
    async with pool.connection() as connection:
        await write_many(connection, 10)
    assert [await by_rows.ship_once() for _ in range(4)] == [4, 4, 2, 0]
    await by_rows.close()


async def test_t6_without_a_collector_shipping_is_idle_and_the_cursor_stays(
    dsn: str, pool: Pool, receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = configured(receiver, monkeypatch)
    async with pool.connection() as connection:
        first = await write_many(connection, 5)
        sender = shipper(dsn, collector)
        assert await sender.ship_once() == 5
        await sender.close()
        second = await write_many(connection, 7)

        idle = shipper(dsn, None)
        async with running(idle):
            idle.wake()
            assert await idle.ship_once() == 0
        state = await shipping_state(connection)
    assert (state.pending, state.shipped) == (7, 5)

    again = shipper(dsn, collector)
    assert await again.ship_once() == 7
    await again.close()
    assert receiver.times_received() == dict.fromkeys(first + second, 1)


async def test_t6_wake_ships_at_once(dsn: str, pool: Pool, receiver: OtlpReceiver, collector: Collector) -> None:
    async with pool.connection() as connection, running(shipper(dsn, collector, interval=3600)) as sender:
        await write_many(connection, 1)
        sender.wake()
        await asyncio.to_thread(receiver.wait, spans=1)
        await write_many(connection, 1)
        sender.wake()
        await asyncio.to_thread(receiver.wait, spans=2)


async def test_t6_spans_that_the_collector_rejects_are_counted_and_not_sent_again(
    dsn: str,
    pool: Pool,
    receiver: OtlpReceiver,
    monkeypatch: pytest.MonkeyPatch,
    protocol: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sender = shipper(dsn, configured(receiver, monkeypatch, protocol))
    receiver.answer("reject")
    async with pool.connection() as connection:
        await write_many(connection, 4)
    assert await sender.ship_once() == 4
    assert await sender.ship_once() == 0
    await sender.close()
    assert (sender.shipped, sender.rejected) == (4, 1)
    assert len(receiver.spans()) == 3


async def test_t6_one_span_that_is_never_taken_does_not_hold_up_the_others(
    dsn: str, pool: Pool, receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    sender = shipper(dsn, configured(receiver, monkeypatch, protocol))
    receiver.answer("refuse-named")
    async with pool.connection() as connection:
        before = await write_many(connection, 20)
        await write(connection, skeleton("poison"))
        after = await write_many(connection, 20)
    while await sender.ship_once():
        pass
    await sender.close()
    assert receiver.times_received() == dict.fromkeys(before + after, 1)
    assert (sender.shipped, sender.rejected, sender.failures) == (41, 1, 0)


async def test_t6_a_batch_too_large_for_the_collector_goes_in_parts(
    dsn: str, pool: Pool, receiver: OtlpReceiver, collector: Collector
) -> None:
    sender = shipper(dsn, collector)
    receiver.answer("refuse-large")
    async with pool.connection() as connection:
        places = await write_many(connection, 9)
    while await sender.ship_once():
        pass
    await sender.close()
    assert receiver.times_received() == dict.fromkeys(places, 1)
    assert sender.rejected == 0


async def test_t6_a_server_that_refuses_everything_is_no_reason_to_give_spans_up(
    dsn: str, pool: Pool, receiver: OtlpReceiver, collector: Collector
) -> None:
    """Such as an endpoint that leads to some other web server, which says 400 to whatever it does not know."""
    sender = shipper(dsn, collector)
    receiver.answer("refuse")
    async with pool.connection() as connection:
        places = await write_many(connection, 3)
        with pytest.raises(DeliveryError):
            await sender.ship_once()
        assert (await shipping_state(connection)).pending == 3
    receiver.answer("ok")
    while await sender.ship_once():
        pass
    await sender.close()
    assert receiver.times_received() == dict.fromkeys(places, 1)


@pytest.mark.parametrize(
    "damage",
    ["trace_id = 'not hexadecimal'", "span_id = repeat('0', 16)", "status = 9", "events = '[{}]'", "links = '[{}]'"],
)
async def test_t6_a_damaged_row_does_not_hold_up_the_others(
    dsn: str, pool: Pool, receiver: OtlpReceiver, collector: Collector, damage: Any
) -> None:
    async with pool.connection() as connection:
        await write(connection, skeleton("damaged"))
        await connection.execute(f"UPDATE tracekit.kept_spans SET {damage}")
        places = await write_many(connection, 2)
    sender = shipper(dsn, collector)
    assert await sender.ship_once() == 3
    await sender.close()
    assert receiver.times_received() == dict.fromkeys(places, 1)
    assert sender.rejected == 1


async def test_a_stop_does_not_wait_for_a_collector_that_hangs(
    dsn: str, pool: Pool, receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    collector = configured(receiver, monkeypatch, protocol)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    receiver.answer("hang")
    async with pool.connection() as connection:
        places = await write_many(connection, 3)
    async with patience(), running(shipper(dsn, collector, grace=0.05)):
        await asyncio.to_thread(receiver.wait, requests=1)
    receiver.answer("ok")
    again = shipper(dsn, collector)
    assert await again.ship_once() == 3
    await again.close()
    assert receiver.times_received() == dict.fromkeys(places, 1)


async def test_t6_a_stop_ships_what_is_ready(
    dsn: str, pool: Pool, receiver: OtlpReceiver, collector: Collector
) -> None:
    async with pool.connection() as connection, running(shipper(dsn, collector, interval=3600, batch_rows=2)) as sender:
        first = await write_many(connection, 1)
        sender.wake()
        await asyncio.to_thread(receiver.wait, spans=1)
        last = await write_many(connection, 5)
    assert receiver.times_received() == dict.fromkeys(first + last, 1)
