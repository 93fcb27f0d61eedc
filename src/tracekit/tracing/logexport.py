"""Log lines to the collector, beside stderr, where `OTEL_LOGS_EXPORTER=otlp` asks for them.

A line's body is the JSON that stderr shows, redacted alike (T10), so a query finds the same in a store that reads
stderr and in one that the collector fills. Its trace, span and severity are also the record's own, and its task, mode
and persona are attributes (T8): a store can find lines by them without parsing any.

It is best effort: the queue is the SDK's, in memory, and drops its oldest; what is dropped is still on stderr.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, Context, get_value
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogExporter
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpLogExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource

from tracekit.tracing.logs import json_formatter
from tracekit.tracing.otlp import logs_protocol_from_environment

SHUTDOWN_S = 3.0
"""How long the process' end waits for the last lines. The SDK alone would wait for 30 s."""

_ATTRIBUTES = ("task_id", "mode", "persona", "logger")
_SEVERITIES = (
    (logging.CRITICAL, SeverityNumber.FATAL),
    (logging.ERROR, SeverityNumber.ERROR),
    (logging.WARNING, SeverityNumber.WARN),
    (logging.INFO, SeverityNumber.INFO),
)


@dataclass(frozen=True, slots=True)
class LogExport:
    """The export of a process' lines, until `shutdown`."""

    _handler: logging.Handler
    _processor: _Batches

    def shutdown(self) -> None:
        """Sends what is queued, for `SHUTDOWN_S` at most, and nothing more afterwards. Call it from a thread."""
        logging.getLogger().removeHandler(self._handler)
        self._processor.shutdown()


def export_logs(resource: Resource) -> LogExport | None:
    """Sends what the root logger gets from now on to the collector, as lines of `resource`; None where nobody asks.

    Call it after `configure_logging`, whose levels hold here too. Raises CollectorError where the collector's variables
    cannot be used.
    """
    protocol = logs_protocol_from_environment()
    if protocol is None:
        return None
    processor = _Batches(GrpcLogExporter() if protocol == "grpc" else HttpLogExporter())
    provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_log_record_processor(processor)
    handler = _Exporting(provider)
    logging.getLogger().addHandler(handler)
    return LogExport(handler, processor)


class _Batches(BatchLogRecordProcessor):
    """The SDK's batch processor, which ends in time: its own `shutdown` takes no time-out. The SDK is pinned to the
    version this was written for.
    """

    def shutdown(self) -> None:
        self._batch_processor.shutdown(int(SHUTDOWN_S * 1000))


class _Exporting(logging.Handler):
    def __init__(self, provider: LoggerProvider) -> None:
        super().__init__()
        self._logger = provider.get_logger("tracekit")
        self.setFormatter(json_formatter())

    def emit(self, record: logging.LogRecord) -> None:
        # What the export itself logs would be exported, and logged, without end.
        if get_value(_SUPPRESS_INSTRUMENTATION_KEY) or record.name.startswith("opentelemetry."):
            return
        try:
            line = self.format(record)
            fields = json.loads(line)
            self._logger.emit(
                LogRecord(
                    timestamp=int(record.created * 1e9),
                    context=_context(fields.get("trace_id"), fields.get("span_id")),
                    severity_text=record.levelname,
                    severity_number=_severity(record.levelno),
                    body=line,
                    attributes={name: fields[name] for name in _ATTRIBUTES if isinstance(fields.get(name), str)},
                )
            )
        except Exception:
            self.handleError(record)


def _context(trace_id: str | None, span_id: str | None) -> Context:
    """The place that the line says it has; whatever span is current says no more."""
    span = trace.INVALID_SPAN
    if trace_id and span_id:
        flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
        span = trace.NonRecordingSpan(trace.SpanContext(int(trace_id, 16), int(span_id, 16), False, flags))
    return trace.set_span_in_context(span, Context())


def _severity(level: int) -> SeverityNumber:
    return next((number for least, number in _SEVERITIES if level >= least), SeverityNumber.DEBUG)
