"""A finished span as a row: the skeleton of a trace, written in the transaction of what it describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from typing import Any

from tracekit.tracing import semconv


class SpanKind(IntEnum):
    """OTLP's numbers (opentelemetry/proto/trace/v1/trace.proto, `Span.SpanKind`)."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


class StatusCode(IntEnum):
    """OTLP's numbers (`Status.StatusCode`)."""

    UNSET = 0
    OK = 1
    ERROR = 2


AttributeValue = str | bool | int | float | list[str]


@dataclass(frozen=True, slots=True)
class SpanLink:
    """A link to another span; `why` becomes its attribute `tracekit.link`."""

    trace_id: str
    span_id: str
    why: str


@dataclass(frozen=True, slots=True)
class Span:
    """One finished span of the skeleton. Times are the database's."""

    trace_id: str
    span_id: str
    parent_span_id: str | None
    task_id: str | None
    name: str
    kind: SpanKind
    start_time: datetime
    end_time: datetime
    attributes: Mapping[str, AttributeValue | None] = field(default_factory=dict)
    """None values are left out."""
    status: StatusCode = StatusCode.UNSET
    status_message: str = ""
    links: tuple[SpanLink, ...] = ()

    def row(self) -> dict[str, Any]:
        """The columns of `tracekit.spans`, ready for JSON."""
        return {
            "trace_id": self.trace_id,
            "span_id": self.span_id,
            "parent_span_id": self.parent_span_id,
            "task_id": self.task_id,
            "name": self.name,
            "kind": int(self.kind),
            "start_time": self.start_time.isoformat(),
            "end_time": max(self.start_time, self.end_time).isoformat(),
            "status": int(self.status),
            "status_message": self.status_message,
            "attributes": {name: value for name, value in self.attributes.items() if value is not None},
            "links": [
                {"trace_id": link.trace_id, "span_id": link.span_id, "attributes": {semconv.LINK: link.why}}
                for link in self.links
            ],
        }
