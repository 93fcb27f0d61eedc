"""What of an SDK span may leave the process (T10).

Every span loses its credentials. A span of a restricted task keeps only attributes of an allowlist, which names
identifiers, sizes and kinds; its free text goes: URLs, statements, messages, stack traces, the status' message, events,
and its name where the code that started it may have put anything into it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Link, Status
from opentelemetry.util.types import AttributeValue

from tracekit.envelope import DataTier
from tracekit.tracing import semconv
from tracekit.tracing.secrets import redact_text, redact_value

_ALLOWED: Final = frozenset(
    {
        "http.request.method",
        "http.request.resend_count",
        "http.request.body.size",
        "http.response.status_code",
        "http.response.body.size",
        "http.route",
        "url.scheme",
        "server.address",
        "server.port",
        "network.transport",
        "network.protocol.name",
        "network.protocol.version",
        "error.type",
        "exception.type",
        "exception.escaped",
        "db.system.name",
        "db.operation.name",
        "db.response.status_code",
        "rpc.system",
        "gen_ai.operation.name",
        "gen_ai.provider.name",
        "gen_ai.request.model",
        "gen_ai.response.model",
        "gen_ai.response.finish_reasons",
        "gen_ai.agent.name",
        "gen_ai.tool.name",
        # The former names of the same, which libraries still write.
        "http.method",
        "http.status_code",
        "http.flavor",
        "db.system",
        "net.peer.name",
        "net.peer.port",
    }
)
_ALLOWED_PREFIXES: Final = ("tracekit.", "gen_ai.usage.", "messaging.")
# These name their spans by the conventions: by method, operation or model, never by content.
_SCOPES_THAT_NAME_BY_CONVENTION: Final = ("opentelemetry.instrumentation.", "tracekit")


def redact_span(span: ReadableSpan) -> ReadableSpan:
    """`span` as it may be exported or stored."""
    restricted = _is_restricted(span)
    return ReadableSpan(
        name=_restricted_name(span) if restricted else redact_text(span.name),
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=_attributes(span.attributes, restricted),
        events=_events(span.events, restricted),
        links=[Link(link.context, _attributes(link.attributes, restricted)) for link in span.links],
        kind=span.kind,
        status=_status(span.status, restricted),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


class RedactingExporter(SpanExporter):
    """Hands spans on to another exporter, redacted. Runs in the exporting thread, so handlers do not wait for it."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """The other exporter's result."""
        return self._exporter.export([redact_span(span) for span in spans])

    def shutdown(self) -> None:
        """Shuts the other exporter down."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flushes the other exporter."""
        return self._exporter.force_flush(timeout_millis)


def _is_restricted(span: ReadableSpan) -> bool:
    tier = (span.attributes or {}).get(semconv.DATA_TIER)
    # The SDK drops the oldest attributes of a span that has too many, and the tier is among the oldest. A span that
    # lost some and has no tier counts as restricted.
    return tier == DataTier.RESTRICTED or (tier is None and span.dropped_attributes > 0)


def _restricted_name(span: ReadableSpan) -> str:
    scope = span.instrumentation_scope.name if span.instrumentation_scope else ""
    if scope.startswith(_SCOPES_THAT_NAME_BY_CONVENTION):
        return redact_text(span.name)
    return scope or "span"


def _may_stay(name: str) -> bool:
    return name in _ALLOWED or name.startswith(_ALLOWED_PREFIXES)


def _attributes(attributes: Mapping[str, Any] | None, restricted: bool) -> dict[str, AttributeValue]:
    return {
        name: redact_value(name, value)
        for name, value in (attributes or {}).items()
        if not restricted or _may_stay(name)
    }


def _events(events: Sequence[Event], restricted: bool) -> list[Event]:
    return [
        Event(redact_text(event.name), _attributes(event.attributes, restricted), event.timestamp)
        for event in events
        if not restricted or event.name == "exception"
    ]


def _status(status: Status, restricted: bool) -> Status:
    if restricted or not status.description:
        return Status(status.status_code)
    return Status(status.status_code, redact_text(status.description))
