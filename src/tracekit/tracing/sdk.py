"""The OpenTelemetry SDK as tracekit sets it up: what happens inside a hop becomes spans of its task (T6).

With a collector, spans go to it. Without one they are kept in PostgreSQL, and shipped when there is one.
"""

from __future__ import annotations

import os
import threading
import uuid
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.sdk.resources import (
    SERVICE_INSTANCE_ID,
    SERVICE_NAME,
    SERVICE_VERSION,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

import tracekit
from tracekit.tracing.hop import HopSpanProcessor
from tracekit.tracing.keeping import PostgresSpanExporter
from tracekit.tracing.otlp import Collector, collector_from_environment
from tracekit.tracing.redaction import RedactingExporter

ATTRIBUTE_LENGTH = 4096
"""Characters that an attribute's value is cut to, unless `OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT` says otherwise: the SDK
has no limit of its own, and a trace store has."""

SHUTDOWN_S = 3.0
"""How long the process' end waits for the last spans. The SDK alone would wait for 30 s."""


class BoundedBatchProcessor(BatchSpanProcessor):
    """The SDK's batch processor, which ends in time and counts what it drops.

    The SDK's own `shutdown` takes no time-out from a provider, and a full queue is only logged. It reaches into the
    batch processor for both; the SDK is pinned to the version this was written for.
    """

    def __init__(self, exporter: SpanExporter, *, shutdown_timeout: float) -> None:
        super().__init__(exporter)
        self.shutdown_timeout = shutdown_timeout
        self.dropped = 0
        self._counting = threading.Lock()

    def on_end(self, span: ReadableSpan) -> None:
        """Queues the span; a full queue drops its oldest."""
        batches = self._batch_processor
        if len(batches._queue) >= batches._max_queue_size:
            with self._counting:
                self.dropped += 1
        super().on_end(span)

    def shutdown(self) -> None:
        """Exports what is queued, for `shutdown_timeout` seconds at most."""
        self._batch_processor.shutdown(int(self.shutdown_timeout * 1000))


@dataclass(frozen=True, slots=True)
class TracingHandle:
    """What was set up. `collector` is None where spans are kept in PostgreSQL."""

    provider: TracerProvider
    resource: Resource
    collector: Collector | None
    _processor: BoundedBatchProcessor | None = None
    _keeper: PostgresSpanExporter | None = None

    @property
    def dropped(self) -> int:
        """SDK spans lost in this process so far: to a full queue, or to a database that was away for long."""
        return (self._processor.dropped if self._processor else 0) + (self._keeper.dropped if self._keeper else 0)

    def shutdown(self, timeout: float = SHUTDOWN_S) -> None:
        """Exports the last spans, for `timeout` seconds at most; what is not out by then is lost. Call it once, from a
        thread of its own in an event loop. The end of the process does the same, if nobody did.
        """
        if self._processor:
            self._processor.shutdown_timeout = timeout
        self.provider.shutdown()


def configure_tracing(
    service_name: str = "tracekit", dsn: str | None = None, *, make_global: bool = True
) -> TracingHandle:
    """Sets up the SDK; once in a process, since OpenTelemetry has one global tracer provider (`make_global=False`
    leaves it alone). `dsn` is the database that keeps spans while no collector is configured; without either, spans go
    nowhere.

    The environment overrides `service_name` (`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`). Every span is sampled,
    whatever `OTEL_TRACES_SAMPLER` says (T9). Raises CollectorError where the collector's variables cannot be used.
    """
    collector = collector_from_environment()
    resource = _resource(service_name)
    cut = None if "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT" in os.environ else ATTRIBUTE_LENGTH
    provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, span_limits=SpanLimits(max_attribute_length=cut))
    provider.add_span_processor(HopSpanProcessor())
    keeper = PostgresSpanExporter(dsn) if dsn and collector is None else None
    exporter = collector.exporter() if collector else keeper
    processor = None
    if exporter:
        processor = BoundedBatchProcessor(RedactingExporter(exporter), shutdown_timeout=SHUTDOWN_S)
        provider.add_span_processor(processor)
    if make_global:
        trace.set_tracer_provider(provider)
    return TracingHandle(provider, resource, collector, processor, keeper)


def _resource(service_name: str) -> Resource:
    # Resource.create() lets the program's attributes win over the environment's; the user's word is to win.
    ours = {
        SERVICE_NAME: service_name,
        SERVICE_VERSION: tracekit.__version__,
        SERVICE_INSTANCE_ID: str(uuid.uuid4()),
    }
    return Resource.create(ours).merge(OTELResourceDetector().detect())
