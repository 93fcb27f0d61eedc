"""The audit: does the record of a window hold together (T11)?

Every check is a set of rows that should be empty, each naming a task and what is missing or too much. One statement
asks them all, so they see one moment of the database, live tasks included; what is found is read in portions.

The ids of a task's own spans follow from what they are spans of (`tracekit.ids`), so the statement knows which ids must
be there without reading any attributes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import class_row

SDK_LAG = timedelta(seconds=30)
"""Spans that the SDK made reach the record in batches, a child before its parent: what is younger than this may still
be incomplete. The task's own spans are written with what they describe, and need no such allowance."""

_PORTION = 500


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not hold together."""

    task_id: str
    trace_id: str
    check: str
    """What kind of thing it is, such as `root-missing`."""
    detail: str


@dataclass(frozen=True, slots=True)
class Extent:
    """What was looked at."""

    tasks: int
    ended: int
    open: int
    dead: int
    hops: int
    attempts: int
    spans: int


# A task is in the window if it was alive in it: created before its end, and not ended before its beginning. Tasks
# that are alive now are in every window that begins in the past.
_SCOPE: LiteralString = """
scope AS MATERIALIZED (
    SELECT id, trace_id, parent_span_id, state, review_of, ended_at
    FROM tracekit.tasks
    WHERE (%(since)s::timestamptz IS NULL OR state IN ('open', 'dead') OR ended_at >= %(since)s::timestamptz)
      AND created_at < coalesce(%(until)s::timestamptz, 'infinity')
)"""

_SPAN_ID: LiteralString = "left(encode(sha256(convert_to({what}, 'UTF8')), 'hex'), 16)"
_ROOT: LiteralString = _SPAN_ID.format(what="t.id || '/root'")
_SEND: LiteralString = _SPAN_ID.format(what="h.task_id || '/send/' || h.hop")
_QUEUE: LiteralString = _SPAN_ID.format(what="e.task_id || '/queue/' || e.hop || '/' || e.attempt")
_ATTEMPT: LiteralString = _SPAN_ID.format(what="e.task_id || '/attempt/' || e.hop || '/' || e.attempt")
_RUNNING: LiteralString = _SPAN_ID.format(what="q.task_id || '/attempt/' || q.hop || '/' || q.attempt")
_WAIT: LiteralString = _SPAN_ID.format(what="w.task_id || '/wait/' || w.hop || '/' || w.attempt")
_DLQ: LiteralString = _SPAN_ID.format(what="d.task_id || '/dlq/' || d.hop")
_OTHER_ROOT: LiteralString = _SPAN_ID.format(what="o.id || '/root'")

_TABLES: LiteralString = """,
counted AS MATERIALIZED (
    SELECT e.task_id, e.hop, e.attempt, count(*) AS times
    FROM scope AS t JOIN tracekit.events AS e ON e.task_id = t.id
    WHERE e.kind = 'attempt.ended'
    GROUP BY e.task_id, e.hop, e.attempt
), per_hop AS MATERIALIZED (
    SELECT task_id, hop, count(*) AS attempts, max(attempt) AS last FROM counted GROUP BY task_id, hop
), visited AS MATERIALIZED (
    SELECT h.task_id, h.hop, h.mode, max(h.hop) OVER task AS last_hop, count(*) OVER task AS hops
    FROM scope AS t JOIN tracekit.hops AS h ON h.task_id = t.id
    WINDOW task AS (PARTITION BY h.task_id)
), milestones AS MATERIALIZED (
    SELECT e.task_id, count(*) FILTER (WHERE e.kind = 'task.accepted') AS accepted,
           count(*) FILTER (WHERE e.kind = 'task.ended') AS ended,
           max(e.attempt) FILTER (WHERE e.kind = 'task.ended') AS last_attempt
    FROM scope AS t JOIN tracekit.events AS e ON e.task_id = t.id
    WHERE e.kind IN ('task.accepted', 'task.ended')
    GROUP BY e.task_id
)"""

_CHECKS: tuple[LiteralString, ...] = (
    # --- the task's state and its place ---
    """
    SELECT t.id, t.trace_id, 'queue-leftover', 'is ' || t.state || ' and still has a row in the queue'
    FROM scope AS t JOIN tracekit.queue AS q ON q.task_id = t.id WHERE t.state <> 'open'
    """,
    """
    SELECT t.id, t.trace_id, 'queue-missing', 'is open and has no row in the queue: nobody will ever take it'
    FROM scope AS t WHERE t.state = 'open' AND NOT EXISTS (SELECT FROM tracekit.queue AS q WHERE q.task_id = t.id)
    """,
    """
    SELECT t.id, t.trace_id, 'end-time', 'is ' || t.state || CASE WHEN t.ended_at IS NULL
           THEN ' and has no time of its end' ELSE ' and has a time of its end' END
    FROM scope AS t WHERE (t.state IN ('open', 'dead')) = (t.ended_at IS NOT NULL)
    """,
    """
    SELECT t.id, t.trace_id, 'event-accepted', coalesce(m.accepted, 0) || ' events say that it was accepted'
    FROM scope AS t LEFT JOIN milestones AS m ON m.task_id = t.id WHERE coalesce(m.accepted, 0) <> 1
    """,
    """
    SELECT t.id, t.trace_id, 'event-ended', 'is ' || t.state || ' and ' || coalesce(m.ended, 0)
           || ' events say that it ended'
    FROM scope AS t LEFT JOIN milestones AS m ON m.task_id = t.id
    WHERE coalesce(m.ended, 0) <> CASE WHEN t.state IN ('open', 'dead') THEN 0 ELSE 1 END
    """,
    # --- the root ---
    f"""
    SELECT t.id, t.trace_id, 'root-missing', 'is ' || t.state || ' and has no root span ' || {_ROOT}
    FROM scope AS t
    LEFT JOIN tracekit.spans AS s ON (s.trace_id, s.span_id) = (t.trace_id, {_ROOT})
    WHERE t.state NOT IN ('open', 'dead') AND s.span_id IS NULL
    """,
    f"""
    SELECT t.id, t.trace_id, 'root-early', 'is ' || t.state || ' and has a root span already: ' || s.span_id
    FROM scope AS t JOIN tracekit.spans AS s ON (s.trace_id, s.span_id) = (t.trace_id, {_ROOT})
    WHERE t.state IN ('open', 'dead')
    """,
    f"""
    SELECT t.id, t.trace_id, 'root-second', 'has a second span without a parent: ' || s.span_id || ' ' || s.name
    FROM scope AS t JOIN tracekit.spans AS s ON s.task_id = t.id
    WHERE s.parent_span_id IS NULL AND s.span_id <> {_ROOT}
    """,
    f"""
    SELECT t.id, t.trace_id, 'root-parent', 'its root span has the parent ' || coalesce(s.parent_span_id, '(none)')
           || ', its caller was ' || coalesce(t.parent_span_id, '(none)')
    FROM scope AS t JOIN tracekit.spans AS s ON (s.trace_id, s.span_id) = (t.trace_id, {_ROOT})
    WHERE s.parent_span_id IS DISTINCT FROM t.parent_span_id
    """,
    """
    SELECT t.id, t.trace_id, 'trace-other', 'has a span in another trace: ' || s.trace_id || ' ' || s.span_id
    FROM scope AS t JOIN tracekit.spans AS s ON s.task_id = t.id WHERE s.trace_id <> t.trace_id
    """,
    # --- no orphans ---
    # A parent that is not there yet may be the root of a task that has not ended, the attempt that is running, or what
    # the SDK has not handed over yet; or it is the caller's.
    f"""
    SELECT t.id, t.trace_id, 'orphan', s.source || ' span ' || s.span_id || ' ' || s.name || ' has the parent '
           || s.parent_span_id || ', which is not there'
    FROM scope AS t
    JOIN tracekit.spans AS s ON s.task_id = t.id
    LEFT JOIN tracekit.spans AS p ON (p.trace_id, p.span_id) = (s.trace_id, s.parent_span_id)
    WHERE s.parent_span_id IS NOT NULL AND p.span_id IS NULL
      AND s.parent_span_id IS DISTINCT FROM t.parent_span_id
      AND NOT (t.state IN ('open', 'dead') AND s.parent_span_id = {_ROOT})
      AND NOT EXISTS (SELECT FROM tracekit.tasks AS o WHERE o.trace_id = s.trace_id AND o.state IN ('open', 'dead')
                      AND s.parent_span_id = {_OTHER_ROOT})
      AND NOT EXISTS (SELECT FROM tracekit.queue AS q WHERE q.task_id = t.id AND q.state = 'running'
                      AND (s.parent_span_id = {_RUNNING} OR s.source = 'sdk' AND s.start_time >= q.claimed_at))
      AND NOT (s.source = 'sdk' AND s.end_time > clock_timestamp() - %(lag)s)
    """,
    # --- hops ---
    """
    SELECT t.id, t.trace_id, 'hop-missing', 'has no hops'
    FROM scope AS t WHERE NOT EXISTS (SELECT FROM tracekit.hops AS h WHERE h.task_id = t.id)
    """,
    """
    SELECT t.id, t.trace_id, 'hop-missing', 'has ' || v.hops || ' hops, the last of which is number ' || v.last_hop
    FROM scope AS t JOIN visited AS v ON v.task_id = t.id WHERE v.hop = v.last_hop AND v.hops <> v.last_hop
    """,
    """
    SELECT t.id, t.trace_id, 'hop-place', 'stands in the queue at hop ' || q.hop || ', its last hop is ' || v.last_hop
    FROM scope AS t JOIN tracekit.queue AS q ON q.task_id = t.id
    JOIN visited AS v ON v.task_id = t.id AND v.hop = v.last_hop WHERE q.hop <> v.last_hop
    """,
    f"""
    SELECT t.id, t.trace_id, 'send-missing', 'hop ' || h.hop || ' (' || h.mode || ') has no send span ' || {_SEND}
    FROM scope AS t JOIN visited AS h ON h.task_id = t.id
    LEFT JOIN tracekit.spans AS s ON (s.trace_id, s.span_id) = (t.trace_id, {_SEND})
    WHERE s.span_id IS NULL
    """,
    # --- attempts ---
    # What counts them: the queue for the hop where the task is, the DLQ for one that died, the task's last event for
    # the one that it ended in. Every earlier hop has handed off, so it had one at least.
    """
    SELECT t.id, t.trace_id, 'attempt-missing', 'hop ' || h.hop || ' (' || h.mode || ') counts '
           || coalesce(c.counted || ' ended attempts', 'at least one attempt') || ', the record has '
           || coalesce(p.attempts, 0) || CASE WHEN p.last <> p.attempts THEN ' up to number ' || p.last ELSE '' END
    FROM scope AS t
    JOIN visited AS h ON h.task_id = t.id
    LEFT JOIN per_hop AS p ON (p.task_id, p.hop) = (h.task_id, h.hop)
    LEFT JOIN tracekit.queue AS q ON (q.task_id, q.hop) = (h.task_id, h.hop)
    LEFT JOIN tracekit.dead_letters AS d ON (d.task_id, d.hop) = (h.task_id, h.hop)
    LEFT JOIN milestones AS m ON m.task_id = t.id AND m.ended > 0 AND h.hop = h.last_hop
    CROSS JOIN LATERAL (SELECT coalesce(
        CASE WHEN q.state = 'running' THEN q.attempt - 1 ELSE q.attempt END, d.attempts, m.last_attempt
    ) AS counted) AS c
    WHERE coalesce(p.attempts, 0) <> coalesce(p.last, 0)
       OR coalesce(p.attempts, 0) <> coalesce(
           c.counted, greatest(p.attempts, CASE WHEN h.hop < h.last_hop THEN 1 ELSE 0 END))
    """,
    """
    SELECT t.id, t.trace_id, 'attempt-doubled', 'attempt ' || e.attempt || ' of hop ' || e.hop || ' ended '
           || e.times || ' times'
    FROM scope AS t JOIN counted AS e ON e.task_id = t.id WHERE e.times > 1
    """,
    """
    SELECT t.id, t.trace_id, 'attempt-stray', 'attempts are recorded of hop ' || p.hop || ', which is not there'
    FROM scope AS t JOIN per_hop AS p ON p.task_id = t.id
    WHERE NOT EXISTS (SELECT FROM tracekit.hops AS h WHERE (h.task_id, h.hop) = (p.task_id, p.hop))
    """,
    f"""
    SELECT t.id, t.trace_id, 'attempt-span-missing', 'attempt ' || e.attempt || ' of hop ' || e.hop
           || ' has no span ' || {_ATTEMPT}
    FROM scope AS t JOIN counted AS e ON e.task_id = t.id
    LEFT JOIN tracekit.spans AS s ON (s.trace_id, s.span_id) = (t.trace_id, {_ATTEMPT})
    WHERE s.span_id IS NULL
    """,
    f"""
    SELECT t.id, t.trace_id, 'queue-span-missing', 'the queue wait before attempt ' || e.attempt || ' of hop ' || e.hop
           || ' has no span ' || {_QUEUE}
    FROM scope AS t JOIN counted AS e ON e.task_id = t.id
    LEFT JOIN tracekit.spans AS s ON (s.trace_id, s.span_id) = (t.trace_id, {_QUEUE})
    WHERE s.span_id IS NULL
    """,
    # --- waits ---
    # A wait whose signal had come before it took no time, and has no span.
    f"""
    SELECT t.id, t.trace_id, 'wait-span-missing', 'the wait for ' || w.kind || ' of attempt ' || w.attempt || ' of hop '
           || w.hop || ' has no span ' || {_WAIT}
    FROM scope AS t JOIN tracekit.waits AS w ON w.task_id = t.id
    LEFT JOIN tracekit.spans AS s ON (s.trace_id, s.span_id) = (t.trace_id, {_WAIT})
    WHERE w.closed_at > w.opened_at AND s.span_id IS NULL
    """,
    """
    SELECT t.id, t.trace_id, 'wait-open', 'the wait for ' || w.kind || ' of attempt ' || w.attempt || ' of hop '
           || w.hop || ' is open, and the task does not wait on it'
    FROM scope AS t JOIN tracekit.waits AS w ON w.task_id = t.id
    WHERE w.closed_at IS NULL AND NOT EXISTS (
        SELECT FROM tracekit.queue AS q
        WHERE q.state = 'parked' AND (q.task_id, q.hop, q.wait_attempt) = (w.task_id, w.hop, w.attempt))
    """,
    """
    SELECT t.id, t.trace_id, 'wait-missing', 'is parked in hop ' || q.hop || ' on no open wait'
    FROM scope AS t JOIN tracekit.queue AS q ON q.task_id = t.id
    WHERE q.state = 'parked' AND NOT EXISTS (
        SELECT FROM tracekit.waits AS w
        WHERE w.closed_at IS NULL AND (w.task_id, w.hop, w.attempt) = (q.task_id, q.hop, q.wait_attempt))
    """,
    # --- the DLQ ---
    """
    SELECT t.id, t.trace_id, 'dlq-missing', 'is dead and has no open entry in the DLQ'
    FROM scope AS t WHERE t.state = 'dead' AND NOT EXISTS (
        SELECT FROM tracekit.dead_letters AS d WHERE d.task_id = t.id AND d.resolved_at IS NULL)
    """,
    """
    SELECT t.id, t.trace_id, 'dlq-leftover', 'is ' || t.state || ' and has an open entry in the DLQ'
    FROM scope AS t JOIN tracekit.dead_letters AS d ON d.task_id = t.id
    WHERE t.state <> 'dead' AND d.resolved_at IS NULL
    """,
    """
    SELECT t.id, t.trace_id, 'review-missing', 'its death in hop ' || d.hop || ' has no review task'
           || coalesce(' ' || d.review_task_id, '')
    FROM scope AS t JOIN tracekit.dead_letters AS d ON d.task_id = t.id
    WHERE t.review_of IS NULL AND NOT EXISTS (
        SELECT FROM tracekit.tasks AS r WHERE r.id = d.review_task_id AND r.review_of = t.id)
    """,
    f"""
    SELECT t.id, t.trace_id, 'dlq-span-missing', 'the time that hop ' || d.hop || ' lay in the DLQ has no span '
           || {_DLQ}
    FROM scope AS t JOIN tracekit.dead_letters AS d ON d.task_id = t.id
    LEFT JOIN tracekit.spans AS s ON (s.trace_id, s.span_id) = (t.trace_id, {_DLQ})
    WHERE d.resolved_at IS NOT NULL AND s.span_id IS NULL
    """,
)

_AUDIT: LiteralString = (
    "WITH "
    + _SCOPE
    + _TABLES
    + " SELECT * FROM ("
    + " UNION ALL ".join(_CHECKS)
    + ') AS f(task_id, trace_id, "check", detail) ORDER BY task_id, "check", detail'
)

_EXTENT: LiteralString = (
    "WITH "
    + _SCOPE
    + """
SELECT (SELECT count(*) FROM scope) AS tasks,
       (SELECT count(*) FROM scope WHERE state NOT IN ('open', 'dead')) AS ended,
       (SELECT count(*) FROM scope WHERE state = 'open') AS open,
       (SELECT count(*) FROM scope WHERE state = 'dead') AS dead,
       (SELECT count(*) FROM tracekit.hops AS h JOIN scope AS t ON t.id = h.task_id) AS hops,
       (SELECT count(*) FROM tracekit.events AS e JOIN scope AS t ON t.id = e.task_id
        WHERE e.kind = 'attempt.ended') AS attempts,
       (SELECT count(*) FROM tracekit.spans AS s JOIN scope AS t ON t.id = s.task_id) AS spans
"""
)


async def audit(
    connection: AsyncConnection[Any],
    *,
    since: datetime | timedelta | None = None,
    until: datetime | None = None,
    lag: timedelta = SDK_LAG,
) -> AsyncGenerator[Finding | Extent, None]:
    """Check the record of all tasks that were alive in the window: first its extent, then what does not hold together.

    `since`: a moment, or how long before the database's now; None: from the beginning. Findings come by task, in
    portions: however many there are, few are in memory. Nothing is changed.
    """
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        # The statement is large and runs once: compiling it would take longer than it does.
        await connection.execute("SET LOCAL jit = off")
        await connection.execute("SET LOCAL work_mem = '64MB'")
        if isinstance(since, timedelta):
            cursor = await connection.execute("SELECT clock_timestamp() - %s::interval", [since])
            row = await cursor.fetchone()
            assert row is not None, "a SELECT without FROM answers one row"
            since = row[0]
        window = {"since": since, "until": until, "lag": lag}
        async with connection.cursor(row_factory=class_row(Extent)) as counted:
            await counted.execute(_EXTENT, window)
            extent = await counted.fetchone()
            assert extent is not None, "counts answer one row"
            yield extent
        async with connection.cursor(name="audit", row_factory=class_row(Finding)) as findings:
            findings.itersize = _PORTION
            await findings.execute(_AUDIT, window)
            async for finding in findings:
                yield finding
