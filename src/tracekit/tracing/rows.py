"""SDK spans as rows of `tracekit.kept_spans`, and rows of `tracekit.spans` as SDK spans.

A row has no columns for the instrumentation scope and the resource. A skeleton span's are tracekit's own; an SDK span
keeps its scope and its process as attributes, under the names that OpenTelemetry gives them for such formats, and gets
them back when it is shipped.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    format_span_id,
    format_trace_id,
)
from opentelemetry.util.types import AttributeValue

from tracekit.tracing import semconv

SCOPE_NAME: Final = "otel.scope.name"
SCOPE_VERSION: Final = "otel.scope.version"
_OF_RESOURCE: Final = (SERVICE_NAME, SERVICE_INSTANCE_ID)
_OF_SCOPE: Final = (SCOPE_NAME, SCOPE_VERSION)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_INT64: Final = range(-(2**63), 2**63)
# The API counts its kinds from 0; OTLP and the table from 1, where 0 means unspecified.
_KINDS: Final = {kind.value + 1: kind for kind in SpanKind}


@dataclass(frozen=True, slots=True)
class SpanRow:
    """A row of `tracekit.spans`, as it is read to be shipped."""

    trace_id: str
    span_id: str
    parent_span_id: str | None
    source: str
    name: str
    kind: int
    start_time: datetime
    end_time: datetime
    status: int
    status_message: str
    attributes: dict[str, Any]
    links: list[dict[str, Any]]
    events: list[dict[str, Any]]


def sdk_row(span: ReadableSpan) -> dict[str, Any]:
    """The columns of a finished SDK span, ready for JSON."""
    context = span.context
    attributes = dict(span.attributes or {})
    of_process = {name: span.resource.attributes[name] for name in _OF_RESOURCE if name in span.resource.attributes}
    scope = span.instrumentation_scope
    of_scope = {SCOPE_NAME: scope.name, SCOPE_VERSION: scope.version} if scope else {}
    start = span.start_time or span.end_time or 0
    task_id = attributes.get(semconv.TASK_ID)
    return {
        "trace_id": format_trace_id(context.trace_id),
        "span_id": format_span_id(context.span_id),
        "parent_span_id": format_span_id(span.parent.span_id) if span.parent else None,
        "task_id": task_id if isinstance(task_id, str) else None,
        "name": _text(span.name),
        "kind": span.kind.value + 1,
        "start_time": _time(start).isoformat(),
        "end_time": _time(max(start, span.end_time or 0)).isoformat(),
        "status": span.status.status_code.value,
        "status_message": _text(span.status.description or ""),
        "attributes": _plain({**attributes, **of_process, **of_scope}),
        "links": [
            {
                "trace_id": format_trace_id(link.context.trace_id),
                "span_id": format_span_id(link.context.span_id),
                "attributes": _plain(link.attributes or {}),
            }
            for link in span.links
        ],
        "events": [
            {
                "name": _text(event.name),
                "time": _time(event.timestamp).isoformat(),
                "attributes": _plain(event.attributes or {}),
            }
            for event in span.events
        ],
    }


def readable_span(row: SpanRow, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    """The span of a row, for an exporter. `resource` and `scope` are those of spans that bring none.

    Raises ValueError, TypeError or KeyError for a row that describes no span.
    """
    attributes = _read(row.attributes)
    of_sdk = row.source == "sdk"
    if of_sdk:
        of_process = {name: attributes.pop(name) for name in _OF_RESOURCE if name in attributes}
        of_scope = {name: attributes.pop(name) for name in _OF_SCOPE if name in attributes}
        resource = resource.merge(Resource(of_process))
        scope = InstrumentationScope(str(of_scope.get(SCOPE_NAME, "")), _optional(of_scope.get(SCOPE_VERSION)))
    parent = None
    if row.parent_span_id:
        # A skeleton span's parent may have been begun by any process.
        parent = _place(row.trace_id, row.parent_span_id, is_remote=not of_sdk)
    status = StatusCode(row.status)
    return ReadableSpan(
        name=row.name,
        context=_place(row.trace_id, row.span_id),
        parent=parent,
        resource=resource,
        attributes=attributes,
        events=[Event(e["name"], _read(e.get("attributes")), _nanoseconds(e["time"])) for e in row.events],
        links=[
            Link(_place(li["trace_id"], li["span_id"], is_remote=True), _read(li.get("attributes"))) for li in row.links
        ],
        kind=_KINDS.get(row.kind, SpanKind.INTERNAL),
        status=Status(status, (row.status_message or None) if status is StatusCode.ERROR else None),
        start_time=_nanoseconds(row.start_time),
        end_time=_nanoseconds(row.end_time),
        instrumentation_scope=scope,
    )


def _place(trace_id: str, span_id: str, *, is_remote: bool = False) -> SpanContext:
    place = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote, TraceFlags(TraceFlags.SAMPLED))
    if not place.is_valid:
        raise ValueError(f"not a span's place: trace {trace_id!r}, span {span_id!r}")
    return place


def _time(nanoseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=nanoseconds // 1000)


def _nanoseconds(moment: datetime | str) -> int:
    at = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    return (at - _EPOCH) // timedelta(microseconds=1) * 1000


def _optional(value: Any) -> str | None:
    return None if value is None else str(value)


def _text(text: str) -> str:
    """PostgreSQL stores no NUL, and UTF-8 has no lone surrogates."""
    return text.replace("\0", "\ufffd").encode(errors="replace").decode()


def _plain(value: Any) -> Any:
    """An attribute's value as JSON can hold it; attributes that are None are left out."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        # JSON has no NaN and no infinities.
        return value if value - value == 0 else str(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {_text(str(key)): _plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, Sequence):
        return [_plain(inner) for inner in value]
    return _text(str(value))


def _read(attributes: Mapping[str, Any] | None) -> dict[str, AttributeValue]:
    return {name: _exportable(value) for name, value in (attributes or {}).items() if value is not None}


def _exportable(value: Any) -> Any:
    # JSON's integers have no bounds; OTLP's have 64 bits.
    if isinstance(value, int) and not isinstance(value, bool) and value not in _INT64:
        return str(value)
    if isinstance(value, list):
        return [_exportable(inner) for inner in value]
    if isinstance(value, dict):
        return {name: _exportable(inner) for name, inner in value.items()}
    return value
