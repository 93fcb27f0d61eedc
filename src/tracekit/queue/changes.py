"""The rows that one transaction writes, gathered first and written together.

A transition (a hop's end, a deadline, a redrive) is worked out in memory and lands here; `write` then sends one
statement a table, in one pipeline. So the state, its events, its spans and its notifications cannot part.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, LiteralString

from psycopg import AsyncConnection

from tracekit import ids
from tracekit.queue.model import EndState, Json, Notice, Position, Wakeup
from tracekit.queue.submission import INSERT_TASKS, Submission
from tracekit.tracing.spans import Span

Row = dict[str, Any]


@dataclass(slots=True)
class Changes:
    """Everything that a transaction adds and moves. `now` is the database's time for all of it."""

    now: datetime
    events: list[Row] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    notices: list[Row] = field(default_factory=list)
    hops: list[Row] = field(default_factory=list)
    moves: list[Row] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    endings: list[Row] = field(default_factory=list)
    raised: list[Row] = field(default_factory=list)
    waits: list[Row] = field(default_factory=list)
    closed_waits: list[Row] = field(default_factory=list)
    dead_letters: list[Row] = field(default_factory=list)
    submissions: list[Submission] = field(default_factory=list)
    wakeups: list[Wakeup] = field(default_factory=list)

    def event(self, position: Position, kind: str, **data: Json) -> None:
        """One line of the task's record, at its current hop and attempt."""
        self.events.append(
            {
                "task_id": position.task_id,
                "at": self.now.isoformat(),
                "kind": kind,
                "hop": position.hop,
                "mode": position.mode,
                "attempt": position.attempt,
                "data": {name: value for name, value in data.items() if value is not None},
            }
        )

    def notice(self, task_id: str, notice: Notice) -> None:
        """A notification, delivered after the commit."""
        self.notices.append(
            {
                "task_id": task_id,
                "recipient": notice.recipient,
                "kind": notice.kind,
                "urgent": notice.urgent,
                "title": notice.title,
                "body": notice.body,
                "data": notice.data,
                "created_at": self.now.isoformat(),
            }
        )

    def new_hop(self, position: Position, hop: int, mode: str, persona: str | None, input: Json) -> None:
        """The record of a hop that `position`'s task goes on to."""
        self.hops.append(
            {
                "task_id": position.task_id,
                "hop": hop,
                "mode": mode,
                "persona": persona,
                "input": input,
                "created_at": self.now.isoformat(),
            }
        )

    def move(
        self,
        position: Position,
        state: str,
        *,
        hop: int | None = None,
        mode: str | None = None,
        due_at: datetime | None = None,
        expires_at: datetime | None = None,
        attempt: int | None = None,
        max_attempts: int | None = None,
        wait_attempt: int | None = None,
    ) -> None:
        """Where the task is next. What is not given stays, but `due_at` and `wait_attempt`, which are said each time,
        and `expires_at`, which the caller decides.
        """
        next_hop = position.hop if hop is None else hop
        next_mode = position.mode if mode is None else mode
        created_at = position.hop_created_at if hop is None else self.now
        self.moves.append(
            {
                "task_id": position.task_id,
                "hop": next_hop,
                "mode": next_mode,
                "state": state,
                "created_at": created_at.isoformat(),
                "ready_at": (due_at if state == "scheduled" and due_at else self.now).isoformat(),
                "due_at": due_at and due_at.isoformat(),
                "expires_at": expires_at and expires_at.isoformat(),
                "attempt": position.attempt if attempt is None else attempt,
                "max_attempts": position.max_attempts if max_attempts is None else max_attempts,
                "wait_attempt": wait_attempt,
            }
        )
        if state == "ready":
            self.wake(position, next_hop, next_mode)

    def wake(self, position: Position, hop: int, mode: str | None) -> None:
        """Say after the commit that a hop is ready, or (mode None) that the task has ended."""
        span_id = position.root_span_id if mode is None else ids.send_span_id(position.task_id, hop)
        traceparent = ids.traceparent(position.trace_id, span_id)
        self.wakeups.append(Wakeup(position.task_id, position.trace_id, traceparent, mode, position.rank))

    def end(self, position: Position, outcome: EndState, summary: str) -> None:
        """The task ends: out of the queue, its state final."""
        self.removed.append(position.task_id)
        self._ending(position, outcome, summary, self.now)
        self.wake(position, position.hop, None)

    def bury(self, position: Position) -> None:
        """The task lies in the DLQ: out of the queue, not ended."""
        self.removed.append(position.task_id)
        self._ending(position, "dead", None, None)
        self.wake(position, position.hop, None)

    def resolve_dead(self, position: Position, outcome: EndState | None, summary: str | None) -> None:
        """A dead task is open again (None) or has ended."""
        self._ending(position, outcome or "open", summary, self.now if outcome else None)

    def _ending(self, position: Position, state: str, summary: str | None, at: datetime | None) -> None:
        self.endings.append(
            {"task_id": position.task_id, "state": state, "summary": summary, "ended_at": at and at.isoformat()}
        )

    def raise_flags(self, position: Position, destructive: bool, tags: tuple[str, ...], longer: timedelta) -> None:
        """Raise the task's own flags: never lower them."""
        if destructive or tags or longer:
            self.raised.append(
                {
                    "task_id": position.task_id,
                    "destructive": destructive,
                    "tags": list(tags),
                    "longer": longer.total_seconds(),
                }
            )

    async def write(self, connection: AsyncConnection[Any]) -> None:
        """Send everything, inside the caller's transaction."""
        batches: list[tuple[LiteralString, list[Any]]] = [
            (INSERT_TASKS, [submission.row() for submission in self.submissions]),
            (_INSERT_HOPS, self.hops),
            (_INSERT_WAITS, self.waits),
            (_CLOSE_WAITS, self.closed_waits),
            (_INSERT_DEAD_LETTERS, self.dead_letters),
            (_MOVE, self.moves),
            (_RAISE, self.raised),
            (_END_TASKS, self.endings),
            (_INSERT_OUTBOX, self.notices),
            (_INSERT_EVENTS, self.events),
            (_INSERT_SPANS, [span.row() for span in self.spans]),
        ]
        async with connection.pipeline():
            if self.removed:
                await connection.execute("DELETE FROM tracekit.queue WHERE task_id = ANY(%s)", [self.removed])
            for statement, rows in batches:
                if rows:
                    await connection.execute(statement, [json.dumps(rows)])


_INSERT_HOPS: LiteralString = """
INSERT INTO tracekit.hops (task_id, hop, mode, persona, input, created_at)
SELECT task_id, hop, mode, persona, coalesce(input, 'null'), created_at
FROM jsonb_to_recordset(%s::jsonb) AS r(task_id text, hop int, mode text, persona text, input jsonb,
                                        created_at timestamptz)
"""

_INSERT_WAITS: LiteralString = """
INSERT INTO tracekit.waits (task_id, hop, attempt, kind, key, data, deadline, on_deadline, opened_at, closed_at,
                            resolution, signal_id)
SELECT task_id, hop, attempt, kind, key, coalesce(data, 'null'), deadline, on_deadline, opened_at, closed_at,
       resolution, signal_id
FROM jsonb_to_recordset(%s::jsonb) AS r(task_id text, hop int, attempt int, kind text, key text, data jsonb,
     deadline timestamptz, on_deadline text, opened_at timestamptz, closed_at timestamptz, resolution text,
     signal_id bigint)
"""

_CLOSE_WAITS: LiteralString = """
UPDATE tracekit.waits AS w
SET closed_at = r.closed_at, resolution = r.resolution, signal_id = r.signal_id
FROM jsonb_to_recordset(%s::jsonb) AS r(task_id text, hop int, attempt int, closed_at timestamptz, resolution text,
                                        signal_id bigint)
WHERE (w.task_id, w.hop, w.attempt) = (r.task_id, r.hop, r.attempt) AND w.closed_at IS NULL
"""

_INSERT_DEAD_LETTERS: LiteralString = """
INSERT INTO tracekit.dead_letters (task_id, hop, mode, reason, error_type, error, attempts, trace_id, died_at,
                                   review_task_id)
SELECT task_id, hop, mode, reason, error_type, error, attempts, trace_id, died_at, review_task_id
FROM jsonb_to_recordset(%s::jsonb) AS r(task_id text, hop int, mode text, reason text, error_type text, error text,
     attempts int, trace_id text, died_at timestamptz, review_task_id text)
"""

# A redriven task has no row in the queue any more, any other has: one statement serves both.
_MOVE: LiteralString = """
INSERT INTO tracekit.queue AS q (task_id, hop, mode, priority, state, created_at, ready_at, due_at, expires_at, attempt,
                                 max_attempts, wait_attempt)
SELECT r.task_id, r.hop, r.mode, t.priority, r.state, r.created_at, r.ready_at, r.due_at, r.expires_at, r.attempt,
       r.max_attempts, r.wait_attempt
FROM jsonb_to_recordset(%s::jsonb) AS r(task_id text, hop int, mode text, state text, created_at timestamptz,
     ready_at timestamptz, due_at timestamptz, expires_at timestamptz, attempt int, max_attempts int, wait_attempt int)
JOIN tracekit.tasks AS t ON t.id = r.task_id
ON CONFLICT (task_id) DO UPDATE
SET hop = excluded.hop, mode = excluded.mode, state = excluded.state, created_at = excluded.created_at,
    ready_at = excluded.ready_at, due_at = excluded.due_at, expires_at = excluded.expires_at,
    attempt = excluded.attempt, max_attempts = excluded.max_attempts, wait_attempt = excluded.wait_attempt,
    worker = NULL, claimed_at = NULL
"""

_RAISE: LiteralString = """
UPDATE tracekit.tasks AS t
SET destructive = t.destructive OR r.destructive,
    tags = ARRAY(SELECT DISTINCT tag FROM unnest(t.tags || r.tags) AS tag ORDER BY tag),
    expires_at = t.expires_at + make_interval(secs => r.longer)
FROM jsonb_to_recordset(%s::jsonb) AS r(task_id text, destructive boolean, tags text[], longer double precision)
WHERE t.id = r.task_id
"""

_END_TASKS: LiteralString = """
UPDATE tracekit.tasks AS t
SET state = r.state, summary = coalesce(r.summary, t.summary), ended_at = r.ended_at
FROM jsonb_to_recordset(%s::jsonb) AS r(task_id text, state text, summary text, ended_at timestamptz)
WHERE t.id = r.task_id
"""

_INSERT_OUTBOX: LiteralString = """
INSERT INTO tracekit.outbox (task_id, recipient, kind, urgent, title, body, data, created_at, due_at)
SELECT task_id, recipient, kind, urgent, title, body, data, created_at, created_at
FROM jsonb_to_recordset(%s::jsonb) AS r(task_id text, recipient text, kind text, urgent boolean, title text, body text,
                                        data jsonb, created_at timestamptz)
"""

_INSERT_EVENTS: LiteralString = """
INSERT INTO tracekit.events (task_id, at, kind, hop, mode, attempt, data)
SELECT task_id, at, kind, hop, mode, attempt, data
FROM jsonb_to_recordset(%s::jsonb) AS r(task_id text, at timestamptz, kind text, hop int, mode text, attempt int,
                                        data jsonb)
"""

_INSERT_SPANS: LiteralString = """
INSERT INTO tracekit.spans (trace_id, span_id, parent_span_id, task_id, name, kind, start_time, end_time, status,
                            status_message, attributes, links)
SELECT trace_id, span_id, parent_span_id, task_id, name, kind, start_time, end_time, status, status_message,
       attributes, links
FROM jsonb_to_recordset(%s::jsonb) AS r(trace_id text, span_id text, parent_span_id text, task_id text, name text,
     kind smallint, start_time timestamptz, end_time timestamptz, status smallint, status_message text,
     attributes jsonb, links jsonb)
"""
