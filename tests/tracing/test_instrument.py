"""T1, T9: what handlers do is traced; what the queue does is not."""

from __future__ import annotations

import asyncio

import httpx
import psycopg
import pytest

from tests.queue.driving import accept, take
from tests.support.otlp import OtlpReceiver
from tests.tracing.hops import hop
from tests.tracing.writing import skeleton, write
from tracekit.postgres import Pool
from tracekit.queue import Queue
from tracekit.tracing.hop import hop_scope
from tracekit.tracing.instrument import instrument_handlers
from tracekit.tracing.otlp import Collector
from tracekit.tracing.sdk import TracingHandle, configure_tracing


@pytest.fixture
def tracing(collector: Collector) -> TracingHandle:
    return configure_tracing(make_global=False)


async def test_t9_only_connections_of_handlers_make_spans(
    dsn: str, pool: Pool, queue: Queue, receiver: OtlpReceiver, tracing: TracingHandle
) -> None:
    instruments = instrument_handlers(tracing.provider)

    def in_thread() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            instruments.connection(connection).execute("SELECT 'sync'")

    with hop_scope(hop()) as scope:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            await instruments.connection(connection).execute("SELECT 'async'")
        await asyncio.to_thread(in_thread)
        await accept(queue)
        await take(queue)
        async with pool.connection() as connection:
            await write(connection, skeleton())
    await asyncio.to_thread(tracing.shutdown)

    spans = receiver.spans()
    assert [span["attributes"]["db.query.text"] for span in spans] == ["SELECT 'async'", "SELECT 'sync'"]
    for span in spans:
        assert (span["trace_id"], span["parent_span_id"]) == (scope.trace_id, scope.span_id)
        assert span["attributes"]["tracekit.task.id"] == scope.task_id
        assert span["attributes"]["db.system.name"] == "postgresql"


async def test_t1_requests_of_handlers_carry_the_trace(receiver: OtlpReceiver, tracing: TracingHandle) -> None:
    instruments = instrument_handlers(tracing.provider)
    seen: list[httpx.Headers] = []

    def service(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers)
        return httpx.Response(204)

    with hop_scope(hop(trace_state="vendor=1")) as scope:
        async with instruments.client(httpx.AsyncClient(transport=httpx.MockTransport(service))) as client:
            await client.get("http://house/lamps")
        with instruments.client(httpx.Client(transport=httpx.MockTransport(service))) as client_in_thread:
            await asyncio.to_thread(client_in_thread.get, "http://house/lamps")
    await asyncio.to_thread(tracing.shutdown)

    spans = receiver.spans()
    assert len(spans) == 2
    for span, headers in zip(spans, seen, strict=True):
        assert (span["trace_id"], span["parent_span_id"]) == (scope.trace_id, scope.span_id)
        assert headers["traceparent"] == f"00-{scope.trace_id}-{span['span_id']}-01"
        assert headers["tracestate"] == "vendor=1"
