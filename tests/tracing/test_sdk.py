"""T2, T4, T6, T9: what the SDK makes of the inside of a hop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any

import psycopg
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from psycopg.rows import dict_row

from tests.queue.driving import accept, settle, take
from tests.support.otlp import OtlpReceiver
from tests.support.processes import PATIENCE
from tests.tracing.conftest import configured
from tests.tracing.hops import hop
from tests.tracing.shippers import shipper
from tracekit.postgres import Pool
from tracekit.queue import Done, Queue
from tracekit.tracing.hop import HopScope, hop_scope
from tracekit.tracing.keeping import PostgresSpanExporter
from tracekit.tracing.otlp import Collector, CollectorError, collector_from_environment
from tracekit.tracing.sdk import ATTRIBUTE_LENGTH, TracingHandle, configure_tracing

LATE_S = 45.0
"""Far less than an exporter's time-out in these tests, far more than a bounded shutdown."""


def identity(scope: HopScope) -> dict[str, Any]:
    return {
        "tracekit.task.id": scope.task_id,
        "tracekit.hop": scope.hop,
        "tracekit.attempt": scope.attempt,
        "tracekit.mode": scope.mode,
        "tracekit.persona": scope.persona,
        "tracekit.data_tier": "internal",
    }


def kept_rows(dsn: str) -> list[dict[str, Any]]:
    with psycopg.connect(dsn, row_factory=dict_row) as connection:
        return connection.execute("SELECT * FROM tracekit.spans ORDER BY xid, seq").fetchall()


@pytest.fixture
def tracing(collector: Collector) -> Iterator[TracingHandle]:
    """The SDK, exporting to the receiver."""
    handle = configure_tracing(make_global=False)
    yield handle
    handle.shutdown()


@pytest.fixture
def keeping(dsn: str) -> Iterator[TracingHandle]:
    """The SDK without a collector."""
    handle = configure_tracing(dsn=dsn, make_global=False)
    yield handle
    handle.shutdown()


async def test_t6_spans_of_a_handler_are_children_of_the_attempt(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    configured(receiver, monkeypatch, protocol)
    handle = configure_tracing("house", make_global=False)
    tracer = handle.provider.get_tracer("handler", "1.2")

    def in_thread() -> None:
        with tracer.start_as_current_span("thread"):
            pass

    async def in_task() -> None:
        with tracer.start_as_current_span("task"):
            await asyncio.to_thread(in_thread)

    with hop_scope(hop()) as scope:
        with tracer.start_as_current_span("handler"):
            await asyncio.create_task(in_task())
        with ThreadPoolExecutor(1) as pool:
            pool.submit(copy_context().run, in_thread).result()
    with tracer.start_as_current_span("outside"):
        pass
    await asyncio.to_thread(handle.shutdown)

    spans = {span["name"]: span for span in receiver.spans() if span["parent_span_id"] != scope.span_id}
    of_attempt = {span["name"]: span for span in receiver.spans() if span["parent_span_id"] == scope.span_id}
    assert set(of_attempt) == {"handler", "thread"}
    assert spans["task"]["parent_span_id"] == of_attempt["handler"]["span_id"]
    assert spans["thread"]["parent_span_id"] == spans["task"]["span_id"]
    for span in (spans["task"], spans["thread"], *of_attempt.values()):
        assert span["trace_id"] == scope.trace_id
        assert span["attributes"] == identity(scope)
        assert span["scope"] == {"name": "handler", "version": "1.2"}
        assert span["resource"]["service.name"] == "house"
        assert span["resource"]["service.instance.id"]
    assert spans["outside"]["attributes"] == {}
    assert spans["outside"]["trace_id"] != scope.trace_id


async def test_t6_without_a_collector_spans_are_kept_and_shipped_later(
    dsn: str, receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = configure_tracing("house", dsn, make_global=False)
    instance = handle.resource.attributes["service.instance.id"]
    tracer = handle.provider.get_tracer("handler", "1.2")
    other = trace.SpanContext(0xABC, 0xDEF, is_remote=True)
    look = tracer.start_as_current_span("look", kind=trace.SpanKind.CLIENT, links=[trace.Link(other, {"why": "test"})])
    with hop_scope(hop()) as scope, suppress(ValueError), look as span:
        span.set_attributes({"number": 7, "share": 0.5, "yes": True, "names": ["a", "b"], "odd": "nul\0 \ud800"})
        raise ValueError("no such lamp")
    handle.shutdown()

    (row,) = kept_rows(dsn)
    assert (row["source"], row["task_id"], row["trace_id"]) == ("sdk", scope.task_id, scope.trace_id)
    assert (row["parent_span_id"], row["name"], row["kind"], row["status"]) == (scope.span_id, "look", 3, 2)

    sender = shipper(dsn, configured(receiver, monkeypatch))
    assert await sender.ship_once() == 1
    await sender.close()
    (shipped,) = receiver.spans()
    assert (shipped["trace_id"], shipped["parent_span_id"]) == (scope.trace_id, scope.span_id)
    assert (shipped["name"], shipped["kind"]) == ("look", 3)
    assert shipped["attributes"] == {
        **identity(scope),
        "number": 7,
        "share": 0.5,
        "yes": True,
        "names": ["a", "b"],
        "odd": "nul\ufffd ?",
    }
    assert shipped["status"] == {"code": 2, "message": "ValueError: no such lamp"}
    assert [event["name"] for event in shipped["events"]] == ["exception"]
    assert shipped["events"][0]["attributes"]["exception.message"] == "no such lamp"
    assert shipped["links"] == [
        {"trace_id": f"{0xABC:032x}", "span_id": f"{0xDEF:016x}", "attributes": {"why": "test"}}
    ]
    assert shipped["scope"] == {"name": "handler", "version": "1.2"}
    assert shipped["resource"]["service.name"] == "house"
    assert shipped["resource"]["service.instance.id"] == instance
    assert shipped["start_time"] // 1000 * 1000 == shipped["start_time"], "PostgreSQL keeps microseconds"


async def test_t1_t2_a_task_is_one_trace_in_which_every_parent_is_there(
    dsn: str, pool: Pool, queue: Queue, receiver: OtlpReceiver, tracing: TracingHandle, collector: Collector
) -> None:
    task_id = await accept(queue)
    position = await take(queue)
    scope = HopScope(
        task_id=task_id,
        trace_id=position.trace_id,
        hop=position.hop,
        attempt=position.attempt,
        mode=position.mode,
    )
    tracer = tracing.provider.get_tracer("handler")
    with hop_scope(scope), tracer.start_as_current_span("inside"):
        pass
    assert await settle(queue, position, Done(summary="done"))
    sender = shipper(dsn, collector)
    while await sender.ship_once():
        pass
    await sender.close()
    await asyncio.to_thread(tracing.shutdown)

    (spans,) = receiver.by_trace().values()
    known = {span["span_id"] for span in spans}
    assert len(known) == len(spans), "no span id twice"
    roots = [span for span in spans if not span["parent_span_id"]]
    assert len(roots) == 1
    assert all(span["parent_span_id"] in known for span in spans if span not in roots)
    (inside,) = [span for span in spans if span["name"] == "inside"]
    (attempt,) = [span for span in spans if span["span_id"] == inside["parent_span_id"]]
    assert attempt["name"] == "process router"


def test_t4_what_a_dead_worker_exported_has_its_parent(receiver: OtlpReceiver, collector: Collector) -> None:
    """The attempt's id is fixed at the claim, so a span under it is complete before the attempt's own is written."""
    scope = hop()
    program = (
        "import os, sys\n"
        "from tracekit.tracing.hop import HopScope, hop_scope\n"
        "from tracekit.tracing.sdk import configure_tracing\n"
        "handle = configure_tracing()\n"
        f"with hop_scope({scope!r}):\n"
        "    with handle.provider.get_tracer('handler').start_as_current_span('detail'): pass\n"
        "    handle.provider.force_flush()\n"
        "    os.kill(os.getpid(), 9)\n"
    ).replace("<DataTier.INTERNAL: 'internal'>", "'internal'")
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    (detail,) = receiver.spans()
    assert (detail["trace_id"], detail["parent_span_id"]) == (scope.trace_id, scope.span_id)


@pytest.mark.parametrize("sampler", ["always_off", "traceidratio", "parentbased_always_off"])
def test_t9_spans_are_sampled_whatever_the_environment_says(
    dsn: str, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.0")
    handle = configure_tracing(dsn=dsn, make_global=False)
    with hop_scope(hop()), handle.provider.get_tracer("handler").start_as_current_span("kept"):
        pass
    handle.shutdown()
    assert [row["name"] for row in kept_rows(dsn)] == ["kept"]


def test_the_environment_names_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "theirs")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=home,service.instance.id=one")
    found = configure_tracing("ours", make_global=False).resource.attributes
    assert found["service.name"] == "theirs"
    assert found["service.instance.id"] == "one"
    assert found["deployment.environment.name"] == "home"


@pytest.mark.parametrize(("limit", "length"), [(None, ATTRIBUTE_LENGTH), ("100", 100)])
def test_t10_long_values_are_cut(dsn: str, monkeypatch: pytest.MonkeyPatch, limit: str | None, length: int) -> None:
    if limit:
        monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", limit)
    handle = configure_tracing(dsn=dsn, make_global=False)
    with handle.provider.get_tracer("handler").start_as_current_span("long") as span:
        span.set_attribute("text", "a " * 10_000)
    handle.shutdown()
    assert len(kept_rows(dsn)[0]["attributes"]["text"]) == length


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, Collector("http/protobuf", "http://c:4318")),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/t", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://d"},
            Collector("http/protobuf", "http://c/t"),
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            Collector("grpc", "http://c:4317"),
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            Collector("http/protobuf", "http://c:4318"),
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, None),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, Collector("http/protobuf", "http://localhost:4318")),
    ],
)
def test_the_standard_variables_name_the_collector(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: Collector | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert collector_from_environment() == expected


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
    ],
)
def test_what_is_not_supported_is_said(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CollectorError):
        collector_from_environment()


def test_a_disabled_sdk_makes_no_spans(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    handle = configure_tracing(dsn=dsn, make_global=False)
    with hop_scope(hop()), handle.provider.get_tracer("handler").start_as_current_span("none"):
        pass
    handle.shutdown()
    assert kept_rows(dsn) == []


def test_shutdown_is_bounded_while_the_collector_hangs(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    configured(receiver, monkeypatch, protocol)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    receiver.answer("hang")
    handle = configure_tracing(make_global=False)
    with handle.provider.get_tracer("handler").start_as_current_span("last"):
        pass
    begun = time.monotonic()
    handle.shutdown(timeout=0.2)
    assert time.monotonic() - begun < LATE_S
    receiver.answer("ok")


def test_a_process_ends_in_time_though_the_collector_is_dead(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    configured(receiver, monkeypatch, protocol)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    receiver.stop()
    program = (
        "from tracekit.tracing.sdk import configure_tracing\n"
        "handle = configure_tracing()\n"
        "with handle.provider.get_tracer('handler').start_as_current_span('last'): pass\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE, stderr=subprocess.DEVNULL)


def test_shutdown_is_bounded_while_the_database_is_away() -> None:
    handle = configure_tracing(dsn="host=127.0.0.1 port=1 user=nobody", make_global=False)
    with handle.provider.get_tracer("handler").start_as_current_span("last"):
        pass
    begun = time.monotonic()
    handle.shutdown(timeout=0.2)
    assert time.monotonic() - begun < LATE_S
    assert_eventually_dropped(handle)


def assert_eventually_dropped(handle: TracingHandle) -> None:
    """The exporting thread is told to stop waiting, and then counts."""
    processor = handle._processor
    assert processor is not None
    processor._batch_processor._worker_thread.join(LATE_S)
    assert handle.dropped == 1


def test_a_full_queue_drops_and_counts(
    receiver: OtlpReceiver, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "4")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    receiver.answer("hang")
    handle = configure_tracing(make_global=False)
    tracer = handle.provider.get_tracer("handler")
    for _ in range(4):
        tracer.start_span("first").end()
    receiver.wait(requests=1)
    for _ in range(7):
        tracer.start_span("more").end()
    assert handle.dropped == 3
    handle.shutdown(timeout=0.1)
    receiver.answer("ok")


def finished(keeping: TracingHandle, name: str = "detail") -> ReadableSpan:
    span = keeping.provider.get_tracer("handler").start_span(name)
    assert isinstance(span, ReadableSpan)
    return span._readable_span()  # type: ignore[attr-defined,no-any-return]


def test_the_keeper_makes_a_lost_connection_anew(dsn: str, keeping: TracingHandle) -> None:
    exporter = PostgresSpanExporter(dsn)
    assert exporter.export([finished(keeping, "before")]) is SpanExportResult.SUCCESS
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'tracekit spans' AND datname = current_database()"
        )
    assert exporter.export([finished(keeping, "after")]) is SpanExportResult.SUCCESS
    exporter.shutdown()
    assert exporter.dropped == 0
    assert [row["name"] for row in kept_rows(dsn)] == ["before", "after"]


def test_the_keeper_writes_a_batch_again_without_doubling_it(dsn: str, keeping: TracingHandle) -> None:
    exporter = PostgresSpanExporter(dsn)
    batch = [finished(keeping), finished(keeping)]
    assert [exporter.export(batch) for _ in range(2)] == [SpanExportResult.SUCCESS] * 2
    exporter.shutdown()
    assert len(kept_rows(dsn)) == 2


def test_the_keeper_drops_and_counts_when_the_database_is_long_gone(keeping: TracingHandle) -> None:
    exporter = PostgresSpanExporter("host=127.0.0.1 port=1 user=nobody", patience=0.0)
    begun = time.monotonic()
    assert exporter.export([finished(keeping), finished(keeping)]) is SpanExportResult.FAILURE
    assert exporter.export([finished(keeping)]) is SpanExportResult.FAILURE
    assert time.monotonic() - begun < LATE_S
    assert exporter.dropped == 3


def test_one_span_that_cannot_be_stored_does_not_cost_the_others(dsn: str, keeping: TracingHandle) -> None:
    exporter = PostgresSpanExporter(dsn)
    impossible = finished(keeping, "impossible")
    impossible._kind = type("Kind", (), {"value": 2**20})()
    batch = [finished(keeping, "one"), impossible, finished(keeping, "two")]
    assert exporter.export(batch) is SpanExportResult.FAILURE
    exporter.shutdown()
    assert exporter.dropped == 1
    assert [row["name"] for row in kept_rows(dsn)] == ["one", "two"]


def test_the_sdk_is_not_loaded_by_those_who_only_name_attributes() -> None:
    """The queue and the command line import names and spans; they need not wait for the SDK and gRPC."""
    program = (
        "import sys, tracekit.tracing.semconv, tracekit.tracing.spans, tracekit.tracing.context\n"
        "sys.exit(any(name.split('.')[0] in ('opentelemetry', 'grpc') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent).returncode == 0
