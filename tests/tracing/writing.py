"""Rows that spans are made of: single spans as refusals leave them, and the record of real tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg import AsyncConnection

from tests.queue.driving import LEASE, submission
from tracekit import ids
from tracekit.queue import Done, Settlement
from tracekit.queue.claim import Ask
from tracekit.queue.enqueue import enqueue
from tracekit.queue.submission import Received
from tracekit.queue.turn import take_turn
from tracekit.tracing import semconv
from tracekit.tracing.spans import AttributeValue, SpanKind, StatusCode

START = datetime(2026, 11, 23, 20, 0, tzinfo=UTC)

_INSERT = """
INSERT INTO tracekit.kept_spans (trace_id, span_id, parent_span_id, task_id, source, name, kind, start_time, end_time,
                                 status, status_message, attributes, links)
SELECT trace_id, span_id, parent_span_id, task_id, 'skeleton', name, kind, start_time, end_time, status, status_message,
       attributes, links
FROM jsonb_to_recordset(%s::jsonb) AS s (trace_id text, span_id text, parent_span_id text, task_id text, name text,
     kind smallint, start_time timestamptz, end_time timestamptz, status smallint, status_message text,
     attributes jsonb, links jsonb)
"""

Place = tuple[str, str]
"""A span's (trace_id, span_id)."""


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


RECEIVED = Received("POST /v1/tasks", 0.25, {"http.response.status_code": 202})

OF_ITS_ENVELOPE = 2
"""Spans that a task of `live` has by its envelope: its creation, and the request that brought it."""
OF_ITS_END = 3
"""Spans that it has by the one line of its record: the wait for a worker, the attempt, and the whole task."""


async def live(connection: AsyncConnection[Any], received: Received = RECEIVED) -> list[Place]:
    """A task that comes in and is done at its first attempt, in two transactions of a connection in autocommit; its
    spans in the order of shipping.
    """
    [receipt] = await enqueue(connection, [submission(received=received)])
    turn = await take_turn(connection, [], Ask("w", {"router": 1}, LEASE))
    assert turn.claimed is not None
    [position] = turn.claimed
    assert not (await take_turn(connection, [Settlement(position, Done())], None)).lost
    cursor = await connection.execute(
        "SELECT trace_id, span_id FROM tracekit.spans WHERE task_id = %s ORDER BY xid, seq, start_time, span_id",
        [receipt.task_id],
    )
    return await cursor.fetchall()
