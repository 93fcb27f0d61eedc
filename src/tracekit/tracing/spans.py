"""What a span may be, in OTLP's numbers. Those of the skeleton are a view of the record (`0002_record.sql`)."""

from enum import IntEnum


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
