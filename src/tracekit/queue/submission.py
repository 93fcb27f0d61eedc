"""A task on its way into the queue, and the one statement that accepts it.

Everything a new task needs (its row, its first hop, its place in the queue, its first event and spans) is written by
one statement that hangs on the insert of the task: a known idempotency key inserts nothing at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, LiteralString

from tracekit import ids
from tracekit.envelope import Envelope
from tracekit.queue.model import Json, Wakeup
from tracekit.queue.payload import storable
from tracekit.queue.skeleton import send_attributes
from tracekit.tracing import semconv
from tracekit.tracing.spans import AttributeValue, SpanKind


@dataclass(frozen=True, slots=True)
class Received:
    """The request that brought a task in, for its span. `duration` in seconds, up to the enqueue."""

    name: str
    duration: float
    attributes: dict[str, AttributeValue]


@dataclass(frozen=True, slots=True)
class Submission:
    """An envelope, the mode it enters by, and what that mode is given."""

    envelope: Envelope
    mode: str = "router"
    input: Json = None
    received: Received | None = None
    tags: tuple[str, ...] = ()
    review_of: str | None = None
    link: tuple[str, str] | None = None
    """(trace_id, span_id) of what this task is about, such as a dead task's last attempt."""

    def row(self) -> dict[str, Any]:
        """The parameters of `INSERT_TASKS`. Raises `PayloadRefused`."""
        envelope = self.envelope
        return {
            "id": envelope.id,
            "trace_id": envelope.trace_id,
            "parent_span_id": envelope.parent_span_id,
            "trace_state": envelope.trace_state,
            "origin": envelope.origin.value,
            "surface": envelope.surface,
            "requester": envelope.requester,
            "intent": envelope.intent,
            "priority": envelope.priority.rank,
            "destructive": envelope.destructive,
            "idempotency_key": envelope.idempotency_key,
            "ttl": envelope.ttl.total_seconds() if envelope.ttl else None,
            "retry_policy": envelope.retry_policy.model_dump(mode="json"),
            "max_attempts": envelope.retry_policy.max_attempts,
            "data_tier": envelope.data_tier.value,
            "tags": list(self.tags),
            "review_of": self.review_of,
            "mode": self.mode,
            "input": storable(self.input, f"the input of {self.mode}"),
            "spans": self._spans(),
        }

    def wakeup(self) -> Wakeup:
        """What to tell sleeping workers once it is committed."""
        envelope = self.envelope
        traceparent = ids.traceparent(envelope.trace_id, ids.send_span_id(envelope.id, 1))
        return Wakeup(envelope.id, envelope.trace_id, traceparent, self.mode, envelope.priority.rank)

    def _spans(self) -> list[dict[str, Any]]:
        envelope = self.envelope
        root = ids.root_span_id(envelope.id)
        links = []
        if self.link:
            links.append({"trace_id": self.link[0], "span_id": self.link[1], "attributes": {semconv.LINK: "review_of"}})
        spans = [
            {
                "span_id": ids.send_span_id(envelope.id, 1),
                "parent_span_id": root,
                "name": f"send {self.mode}",
                "kind": int(SpanKind.PRODUCER),
                "lead": 0.0,
                "attributes": send_attributes(envelope.id, 1, self.mode),
                "links": links,
            }
        ]
        if self.received:
            spans.append(
                {
                    "span_id": ids.receive_span_id(envelope.id),
                    "parent_span_id": root,
                    "name": self.received.name,
                    "kind": int(SpanKind.SERVER),
                    "lead": self.received.duration,
                    "attributes": {semconv.TASK_ID: envelope.id, **self.received.attributes},
                    "links": [],
                }
            )
        return spans


INSERT_TASKS: LiteralString = """
WITH offered AS (
    SELECT * FROM jsonb_to_recordset(%s::jsonb) AS r(
        id text, trace_id text, parent_span_id text, trace_state text, origin text, surface text, requester text,
        intent text, priority smallint, destructive boolean, idempotency_key text, ttl double precision,
        retry_policy jsonb, max_attempts int, data_tier text, tags text[], review_of text, mode text, input jsonb,
        spans jsonb)
), accepted AS (
    INSERT INTO tracekit.tasks (id, trace_id, parent_span_id, trace_state, origin, surface, requester, intent, priority,
                                destructive, idempotency_key, expires_at, retry_policy, data_tier, tags, review_of,
                                created_at)
    SELECT id, trace_id, parent_span_id, trace_state, origin, surface, requester, intent, priority, destructive,
           idempotency_key, now + make_interval(secs => ttl), retry_policy, data_tier, tags, review_of, now
    FROM offered, clock_timestamp() AS now
    ON CONFLICT (origin, idempotency_key) DO NOTHING
    RETURNING id, created_at, expires_at
), new AS (
    SELECT o.*, a.created_at, a.expires_at FROM accepted AS a JOIN offered AS o USING (id)
), hop AS (
    INSERT INTO tracekit.hops (task_id, hop, mode, input, created_at)
    SELECT id, 1, mode, coalesce(input, 'null'), created_at FROM new
), place AS (
    INSERT INTO tracekit.queue (task_id, hop, mode, priority, state, created_at, ready_at, expires_at, max_attempts)
    SELECT id, 1, mode, priority, 'ready', created_at, created_at, expires_at, max_attempts FROM new
), event AS (
    INSERT INTO tracekit.events (task_id, at, kind, hop, mode, data)
    SELECT id, created_at, 'task.accepted', 1, mode,
           jsonb_build_object('origin', origin, 'surface', surface, 'requester', requester)
    FROM new
), span AS (
    INSERT INTO tracekit.spans (trace_id, span_id, parent_span_id, task_id, name, kind, start_time, end_time,
                                attributes, links)
    SELECT n.trace_id, s.span_id, s.parent_span_id, n.id, s.name, s.kind,
           n.created_at - make_interval(secs => s.lead), n.created_at, s.attributes, s.links
    FROM new AS n, jsonb_to_recordset(n.spans) AS s(span_id text, parent_span_id text, name text, kind smallint,
                                                    lead double precision, attributes jsonb, links jsonb)
)
SELECT id, created_at FROM accepted
"""
