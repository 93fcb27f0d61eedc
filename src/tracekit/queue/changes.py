"""The rows that one transaction writes, gathered first and written together.

A transition (a failure, a deadline, a redrive) is worked out in memory and lands here; `write` then sends one statement
a table, in one pipeline. So the state, its line in the record and its notifications cannot part.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, LiteralString

from psycopg import AsyncConnection

from tracekit import instruments
from tracekit.envelope import Priority
from tracekit.queue.model import EndState, Json, Notice, Position, Wakeup
from tracekit.queue.notify import tell, wakeup
from tracekit.queue.submission import ACCEPT, Submission, offer

Row = dict[str, Any]


@dataclass(slots=True)
class Changes:
    """Everything that a transaction adds and moves. `now` is the database's time for all of it."""

    now: datetime
    lines: list[Row] = field(default_factory=list)
    notices: list[Row] = field(default_factory=list)
    moves: list[Row] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    raised: list[Row] = field(default_factory=list)
    waits: list[Row] = field(default_factory=list)
    closed_waits: list[Row] = field(default_factory=list)
    dead_letters: list[Row] = field(default_factory=list)
    submissions: list[Submission] = field(default_factory=list)
    wakeups: list[Wakeup] = field(default_factory=list)
    ended: list[tuple[Position, EndState]] = field(default_factory=list)

    def line(self, position: Position, kind: str, columns: Row | None = None, **data: Json) -> None:
        """One line of the task's record, at its current hop and attempt. `columns` of the table beside `data`."""
        kept = {name: value for name, value in data.items() if value is not None}
        self.lines.append(
            {
                "task_id": position.task_id,
                "at": self.now.isoformat(),
                "kind": kind,
                "hop": position.hop,
                "mode": position.mode,
                "attempt": position.attempt,
                "persona": position.persona,
                "data": kept or None,
                **(columns or {}),
            }
        )

    def notice(self, task_id: str, notice: Notice) -> None:
        """A notification, delivered after the commit."""
        self.notices.append({**notice.row(task_id), "created_at": self.now.isoformat()})

    def move(
        self,
        position: Position,
        state: str,
        *,
        hop: int | None = None,
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
        created_at = position.hop_created_at if hop is None else self.now
        self.moves.append(
            {
                "task_id": position.task_id,
                "hop": next_hop,
                "mode": position.mode,
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
            self.wake(position, next_hop, position.mode)

    def wake(self, position: Position, hop: int, mode: str | None) -> None:
        """Say with the commit that a hop is ready, or (mode None) that the task has ended."""
        self.wakeups.append(wakeup(position.task_id, position.trace_id, position.rank, hop, mode))

    def end(self, position: Position, outcome: EndState, summary: str | None, columns: Row, **data: Json) -> None:
        """The task ends by no attempt: out of the queue, and the last line of its record."""
        self.removed.append(position.task_id)
        self.ended.append((position, outcome))
        self.line(position, "task.ended", {"end_state": outcome, "summary": summary, **columns}, **data)
        self.wake(position, position.hop, None)

    def bury(self, position: Position) -> None:
        """The task lies in the DLQ: out of the queue, not ended."""
        self.removed.append(position.task_id)
        self.wake(position, position.hop, None)

    def extend_ttl(self, position: Position, by: timedelta) -> None:
        """The task's own ttl moves."""
        self.raised.append({"task_id": position.task_id, "longer": by.total_seconds()})

    async def write(self, connection: AsyncConnection[Any]) -> None:
        """Send everything, inside the caller's transaction."""
        batches: list[tuple[LiteralString, list[Any]]] = [
            (_INSERT_WAITS, self.waits),
            (_CLOSE_WAITS, self.closed_waits),
            (_INSERT_DEAD_LETTERS, self.dead_letters),
            (_INSERT_LINES, self.lines),
            (_MOVE, self.moves),
            (_EXTEND, self.raised),
            (_INSERT_OUTBOX, self.notices),
        ]
        async with connection.pipeline():
            if self.removed:
                await connection.execute("DELETE FROM tracekit.queue WHERE task_id = ANY(%s)", [self.removed])
            if self.submissions:
                await connection.execute(ACCEPT, offer(self.submissions))
            for statement, rows in batches:
                if rows:
                    await connection.execute(statement, [json.dumps(rows)])
            await tell(connection, self.wakeups)
        # psycopg ends a pipeline with a flush after its Sync, which leaves PostgreSQL's limit for idle transactions
        # unarmed: a client that vanished before its commit would hold its hops for as long as TCP lets it.
        await connection.execute("SELECT")

    def count(self) -> None:
        """Once it is committed: count the tasks that ended, and who was asked for them in vain."""
        for position, state in self.ended:
            instruments.TASKS_ENDED.labels(state, str(position.destructive).lower()).inc()
            wait = position.resumption
            if position.state == "parked" and wait is not None and wait.kind == "approval":
                instruments.approval_is_over(
                    state, position.priority is Priority.URGENT, (self.now - wait.opened_at).total_seconds()
                )


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

_INSERT_LINES: LiteralString = """
INSERT INTO tracekit.record (task_id, at, kind, hop, mode, attempt, persona, worker, outcome, ready_at, claimed_at,
                             next_hop, next_mode, next_persona, next_input, end_state, summary, data)
SELECT task_id, at, kind, hop, mode, attempt, persona, worker, outcome, ready_at, claimed_at, next_hop, next_mode,
       next_persona, next_input, end_state, summary, data
FROM jsonb_to_recordset(%s::jsonb) AS r(task_id text, at timestamptz, kind text, hop int, mode text, attempt int,
     persona text, worker text, outcome text, ready_at timestamptz, claimed_at timestamptz, next_hop int,
     next_mode text, next_persona text, next_input json, end_state text, summary text, data jsonb)
"""

# A redriven task has no row in the queue any more, any other has: one statement serves both.
_MOVE: LiteralString = """
INSERT INTO tracekit.queue AS q (task_id, hop, mode, priority, state, created_at, ready_at, due_at, expires_at, attempt,
                                 max_attempts, wait_attempt)
SELECT r.task_id, r.hop, r.mode, t.priority, r.state, r.created_at, r.ready_at, r.due_at, r.expires_at, r.attempt,
       r.max_attempts, r.wait_attempt
FROM jsonb_to_recordset(%s::jsonb) AS r(task_id text, hop int, mode text, state text, created_at timestamptz,
     ready_at timestamptz, due_at timestamptz, expires_at timestamptz, attempt int, max_attempts int, wait_attempt int)
CROSS JOIN LATERAL (SELECT priority FROM tracekit.envelopes WHERE id = r.task_id LIMIT 1) AS t
ON CONFLICT (task_id) DO UPDATE
SET hop = excluded.hop, mode = excluded.mode, state = excluded.state, created_at = excluded.created_at,
    ready_at = excluded.ready_at, due_at = excluded.due_at, expires_at = excluded.expires_at,
    attempt = excluded.attempt, max_attempts = excluded.max_attempts, wait_attempt = excluded.wait_attempt,
    worker = NULL, claimed_at = NULL
"""

_EXTEND: LiteralString = """
UPDATE tracekit.envelopes AS t SET expires_at = t.expires_at + make_interval(secs => r.longer)
FROM jsonb_to_recordset(%s::jsonb) AS r(task_id text, longer double precision)
WHERE t.id = r.task_id
"""

_INSERT_OUTBOX: LiteralString = """
INSERT INTO tracekit.outbox (task_id, recipient, kind, urgent, title, body, data, created_at, due_at)
SELECT task_id, recipient, kind, urgent, title, body, data, created_at, created_at
FROM jsonb_to_recordset(%s::jsonb) AS r(task_id text, recipient text, kind text, urgent boolean, title text, body text,
                                        data jsonb, created_at timestamptz)
"""
