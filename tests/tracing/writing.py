"""Rows of `tracekit.spans`, as the queue writes them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg import AsyncConnection

from tracekit import ids
from tracekit.tracing.spans import Span, SpanKind

START = datetime(2026, 11, 23, 20, 0, tzinfo=UTC)

_INSERT = """
INSERT INTO tracekit.spans (trace_id, span_id, parent_span_id, task_id, name, kind, start_time, end_time, status,
                            status_message, attributes, links)
SELECT trace_id, span_id, parent_span_id, task_id, name, kind, start_time, end_time, status, status_message, attributes,
       links
FROM jsonb_to_recordset(%s::jsonb) AS s (trace_id text, span_id text, parent_span_id text, task_id text, name text,
     kind smallint, start_time timestamptz, end_time timestamptz, status smallint, status_message text,
     attributes jsonb, links jsonb)
"""

Place = tuple[str, str]
"""A span's (trace_id, span_id)."""


def skeleton(name: str = "process router", **fields: Any) -> Span:
    """A skeleton span of a task of its own."""
    task_id = ids.new_task_id()
    values: dict[str, Any] = {
        "trace_id": ids.new_trace_id(),
        "span_id": ids.attempt_span_id(task_id, 1, 1),
        "parent_span_id": ids.send_span_id(task_id, 1),
        "task_id": task_id,
        "name": name,
        "kind": SpanKind.CONSUMER,
        "start_time": START,
        "end_time": START + timedelta(seconds=1),
    }
    return Span(**{**values, **fields})


async def write(connection: AsyncConnection[Any], *spans: Span) -> list[Place]:
    """Inserts spans in the connection's transaction, or in one of their own."""
    await connection.execute(_INSERT, [json.dumps([span.row() for span in spans])])
    return [(span.trace_id, span.span_id) for span in spans]


async def write_many(connection: AsyncConnection[Any], count: int, *, transactions: int = 1) -> list[Place]:
    """`count` spans in each of so many transactions, on a connection in autocommit."""
    places = []
    for _ in range(transactions):
        places += await write(connection, *(skeleton() for _ in range(count)))
    return places
