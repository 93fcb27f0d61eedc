"""The checks of the audit, as one statement (see `audit`).

`AUDIT` has the columns of `Finding`, `EXTENT` those of `Extent`. Both take `since`, `until` and `lag`.
"""

from __future__ import annotations

from typing import LiteralString

# A task is in the window if it was alive in it: created before its end, and not ended before its beginning. Tasks
# that are alive now are in every window that begins in the past.
_SCOPE: LiteralString = """
scope AS MATERIALIZED (
    SELECT e.id, e.trace_id, e.parent_span_id, e.review_of, e.mode, e.xid, e.seq, r.seq AS end_seq,
           r.attempt AS end_attempt, tracekit.span_id(e.id || '/root') AS root,
           CASE WHEN r.end_state IS NOT NULL THEN r.end_state
                WHEN EXISTS (SELECT FROM tracekit.dead_letters AS d WHERE d.task_id = e.id AND d.resolved_at IS NULL)
                THEN 'dead' ELSE 'open' END AS state
    FROM tracekit.envelopes AS e
    LEFT JOIN tracekit.record AS r ON r.task_id = e.id AND r.end_state IS NOT NULL
    WHERE e.created_at < coalesce(%(until)s::timestamptz, 'infinity')
      AND (%(since)s::timestamptz IS NULL OR r.at IS NULL OR r.at >= %(since)s::timestamptz)
)"""

# Lines with what is wrong with each by itself. A line's place is where the line before it left the task.
_TABLES: LiteralString = """,
lines AS MATERIALIZED (
    SELECT r.task_id, r.seq, r.kind, r.hop, r.attempt, r.outcome, r.next_hop, r.next_mode, r.end_state,
           CASE
               WHEN r.seq < t.seq THEN 'line-order comes before the envelope'
               WHEN r.seq > t.end_seq THEN 'line-order comes after the end'
               WHEN r.kind = 'task.ended' AND r.end_state IS NULL THEN 'event-ended does not say how'
               WHEN r.kind NOT IN ('task.ended', 'attempt.ended') AND r.end_state IS NOT NULL
                    OR r.kind = 'attempt.ended' AND r.end_state <> r.outcome
               THEN 'event-ended ends the task ' || r.end_state
               WHEN r.kind = 'attempt.ended' AND num_nulls(r.worker, r.outcome, r.ready_at, r.claimed_at) > 0
               THEN 'line-incomplete lacks a worker, an outcome or a time'
               WHEN r.kind <> 'attempt.ended' AND num_nonnulls(r.outcome, r.claimed_at) > 0
               THEN 'line-incomplete tells of an attempt'
               WHEN num_nulls(r.next_hop, r.next_mode) = 1 THEN 'line-incomplete makes half a hop'
               WHEN r.next_hop <> r.hop + 1 THEN 'hop-missing makes hop ' || r.next_hop
               WHEN r.kind = 'wait.closed' AND (r.data ?& '{wait,resolution}') IS NOT TRUE
               THEN 'line-incomplete lacks what was waited for, or how that ended'
               WHEN r.kind = 'wait.closed' AND (r.data ? 'opened_at') <> (r.data ? 'parked_by')
               THEN 'line-incomplete lacks which attempt parked, or when'
               WHEN (r.kind = 'task.redriven' OR r.kind = 'task.ended' AND r.end_state = 'abandoned') AND r.xid > '2'
                    AND (r.data ? 'dead_since') IS NOT TRUE
               THEN 'line-incomplete lacks since when it was dead'
               WHEN (r.hop, r.mode) <> (coalesce(lag(r.next_hop) OVER task, lag(r.hop) OVER task, 1),
                                        coalesce(lag(r.next_mode) OVER task, lag(r.mode) OVER task, t.mode))
               THEN 'line-place comes where the task was in another hop or mode'
           END AS fault
    FROM scope AS t JOIN tracekit.record AS r ON r.task_id = t.id
    WINDOW task AS (PARTITION BY r.task_id ORDER BY r.seq)
), counted AS MATERIALIZED (
    SELECT task_id, hop, attempt, count(*) AS times FROM lines WHERE kind = 'attempt.ended'
    GROUP BY task_id, hop, attempt
), per_hop AS MATERIALIZED (
    SELECT task_id, hop, count(*) AS attempts, max(attempt) AS last FROM counted GROUP BY task_id, hop
), made AS MATERIALIZED (
    SELECT task_id, seq, next_hop AS hop, next_mode AS mode FROM lines WHERE next_hop IS NOT NULL
), places AS MATERIALIZED (
    SELECT t.id AS task_id, coalesce(m.hops, 0) + 1 AS hops, coalesce(m.last_hop, 1) AS last_hop, t.end_attempt
    FROM scope AS t
    LEFT JOIN (SELECT task_id, count(*) AS hops, max(hop) AS last_hop FROM made GROUP BY task_id) AS m
        ON m.task_id = t.id
), visited AS MATERIALIZED (
    SELECT id AS task_id, 1 AS hop, mode FROM scope UNION ALL SELECT task_id, hop, mode FROM made
), projected AS MATERIALIZED (
    SELECT t.id AS task_id, s.trace_id, s.span_id, s.parent_span_id, s.source, CASE
               WHEN s.trace_id <> t.trace_id THEN 'trace-other'
               WHEN s.span_id IS DISTINCT FROM t.root THEN CASE WHEN s.parent_span_id IS NULL THEN 'root-second' END
               WHEN t.state IN ('open', 'dead') THEN 'root-early'
               WHEN s.parent_span_id IS DISTINCT FROM t.parent_span_id THEN 'root-parent'
           END AS fault
    FROM scope AS t {spans}
), expected AS (
    SELECT id AS task_id, root AS span_id, 'root-missing' AS "check", 'is ' || state AS what
    FROM scope WHERE state NOT IN ('open', 'dead')
    UNION ALL
    SELECT task_id, tracekit.span_id(task_id || '/send/' || hop), 'send-missing', 'hop ' || hop || ' (' || mode || ')'
    FROM visited
    UNION ALL
    SELECT task_id, tracekit.span_id(task_id || '/attempt/' || hop || '/' || attempt), 'attempt-span-missing',
           'attempt ' || attempt || ' of hop ' || hop
    FROM counted
    UNION ALL
    SELECT task_id, tracekit.span_id(task_id || '/queue/' || hop || '/' || attempt), 'queue-span-missing',
           'the queue wait before attempt ' || attempt || ' of hop ' || hop
    FROM counted
    UNION ALL
    -- One whose signal had come before it took no time, and has no span.
    SELECT w.task_id, tracekit.span_id(w.task_id || '/wait/' || w.hop || '/' || w.attempt), 'wait-span-missing',
           'the wait for ' || w.kind || ' of attempt ' || w.attempt || ' of hop ' || w.hop
    FROM scope AS t JOIN tracekit.waits AS w ON w.task_id = t.id WHERE w.closed_at > w.opened_at
    UNION ALL
    SELECT d.task_id, tracekit.span_id(d.task_id || '/dlq/' || d.hop), 'dlq-span-missing',
           'the time that hop ' || d.hop || ' lay in the DLQ'
    FROM scope AS t JOIN tracekit.dead_letters AS d ON d.task_id = t.id WHERE d.resolved_at IS NOT NULL
), unborn AS MATERIALIZED (
    SELECT s.task_id, s.trace_id, s.span_id, s.parent_span_id, s.source
    FROM projected AS s LEFT JOIN projected AS p ON (p.trace_id, p.span_id) = (s.trace_id, s.parent_span_id)
    WHERE s.parent_span_id IS NOT NULL AND p.span_id IS NULL
)"""

# A trace that began here has its task's id: 8, 60 and 60 of its bits are 2, 12 and 12 digits of a ULID.
_TRACE_BITS: LiteralString = """
CROSS JOIN LATERAL (
    SELECT ('x' || repeat('0', 14) || left({trace}, 2))::bit(64)::bigint AS a,
           ('x0' || substr({trace}, 3, 15))::bit(64)::bigint AS b, ('x0' || right({trace}, 15))::bit(64)::bigint AS c
) AS bits"""
_DIGIT: LiteralString = "substr('0123456789ABCDEFGHJKMNPQRSTVWXYZ', ((bits.{part} >> {shift}) & 31)::int + 1, 1)"
_DIGITS: dict[LiteralString, LiteralString] = {
    part: ", ".join(
        _DIGIT.replace("{part}", part).replace("{shift}", str(shift)) for shift in range(5 * digits - 5, -5, -5)
    )
    for part, digits in (("a", 2), ("b", 12), ("c", 12))
}
_BEGINNER: LiteralString = f"concat({_DIGITS['a']}, {_DIGITS['b']}, {_DIGITS['c']})"

_CHECKS: tuple[LiteralString, ...] = (
    # --- the task's state and its place ---
    """
    SELECT f.task_id, 'envelope-missing', 'is in ' || f.what || ' and was never accepted'
    FROM (SELECT task_id, 'the queue' FROM tracekit.queue UNION SELECT task_id, 'the record' FROM tracekit.record
          UNION SELECT task_id, 'waits' FROM tracekit.waits UNION SELECT task_id, 'the DLQ' FROM tracekit.dead_letters
    ) AS f(task_id, what)
    WHERE NOT EXISTS (SELECT FROM tracekit.envelopes AS e WHERE e.id = f.task_id)
    """,
    """
    SELECT t.id, 'queue-leftover', 'is ' || t.state || ' and still has a row in the queue'
    FROM scope AS t JOIN tracekit.queue AS q ON q.task_id = t.id WHERE t.state <> 'open'
    """,
    """
    SELECT t.id, 'queue-missing', 'is open and has no row in the queue: nobody will ever take it'
    FROM scope AS t WHERE t.state = 'open' AND NOT EXISTS (SELECT FROM tracekit.queue AS q WHERE q.task_id = t.id)
    """,
    """
    SELECT t.id, 'queue-incomplete', 'is ' || q.state || ' in the queue without '
           || CASE WHEN q.due_at IS NULL THEN 'a time that it is due' ELSE 'a worker, token or time of its claim' END
    FROM scope AS t JOIN tracekit.queue AS q ON q.task_id = t.id
    WHERE q.state <> 'ready' AND q.due_at IS NULL
       OR q.state = 'running' AND (q.worker IS NULL OR q.claimed_at IS NULL OR q.token = 0 OR q.attempt = 0)
    """,
    # --- lines and hops ---
    """
    SELECT task_id, split_part(fault, ' ', 1),
           'line ' || seq || ' (' || kind || ') of hop ' || hop || substr(fault, strpos(fault, ' '))
    FROM lines WHERE fault IS NOT NULL
    """,
    """
    SELECT task_id, 'hop-missing', 'has ' || hops || ' hops, the last of which is number ' || last_hop
    FROM places WHERE hops <> last_hop
    """,
    """
    SELECT q.task_id, 'hop-place', 'stands in the queue at hop ' || q.hop || ' (' || q.mode || '), its last hop is '
           || v.hop || ' (' || v.mode || ')'
    FROM tracekit.queue AS q JOIN places AS p ON p.task_id = q.task_id
    JOIN visited AS v ON (v.task_id, v.hop) = (p.task_id, p.last_hop)
    WHERE (q.hop, q.mode) <> (v.hop, v.mode)
    """,
    # --- attempts ---
    # What counts them: the queue for the hop where the task is, the DLQ for one that died, the task's last line for
    # the one that it ended in. Every earlier hop has handed off, so it had one at least.
    """
    SELECT h.task_id, 'attempt-missing', 'hop ' || h.hop || ' (' || h.mode || ') counts '
           || coalesce(c.counted || ' ended attempts', 'at least one attempt') || ', the record has '
           || coalesce(p.attempts, 0) || CASE WHEN p.last <> p.attempts THEN ' up to number ' || p.last ELSE '' END
    FROM visited AS h
    JOIN places AS l ON l.task_id = h.task_id
    LEFT JOIN per_hop AS p ON (p.task_id, p.hop) = (h.task_id, h.hop)
    LEFT JOIN tracekit.queue AS q ON (q.task_id, q.hop) = (h.task_id, h.hop)
    LEFT JOIN tracekit.dead_letters AS d ON (d.task_id, d.hop) = (h.task_id, h.hop)
    CROSS JOIN LATERAL (SELECT coalesce(
        CASE WHEN q.state = 'running' THEN q.attempt - 1 ELSE q.attempt END, d.attempts,
        CASE WHEN h.hop = l.last_hop THEN l.end_attempt END
    ) AS counted) AS c
    WHERE coalesce(p.attempts, 0) <> coalesce(p.last, 0)
       OR coalesce(p.attempts, 0) <> coalesce(
           c.counted, greatest(p.attempts, CASE WHEN h.hop < l.last_hop THEN 1 ELSE 0 END))
    """,
    """
    SELECT task_id, 'attempt-doubled', 'attempt ' || attempt || ' of hop ' || hop || ' ended ' || times || ' times'
    FROM counted WHERE times > 1
    """,
    # --- waits ---
    """
    SELECT t.id, 'wait-open', 'the wait for ' || w.kind || ' of attempt ' || w.attempt || ' of hop ' || w.hop
           || ' is open, and the task does not wait on it'
    FROM scope AS t JOIN tracekit.waits AS w ON w.task_id = t.id
    WHERE w.closed_at IS NULL AND NOT EXISTS (
        SELECT FROM tracekit.queue AS q
        WHERE q.state = 'parked' AND (q.task_id, q.hop, q.wait_attempt) = (w.task_id, w.hop, w.attempt))
    """,
    """
    SELECT t.id, 'wait-missing', 'is parked in hop ' || q.hop || ' on no open wait'
    FROM scope AS t JOIN tracekit.queue AS q ON q.task_id = t.id
    WHERE q.state = 'parked' AND NOT EXISTS (
        SELECT FROM tracekit.waits AS w
        WHERE w.closed_at IS NULL AND (w.task_id, w.hop, w.attempt) = (q.task_id, q.hop, q.wait_attempt))
    """,
    """
    SELECT l.task_id, 'wait-missing', 'attempt ' || l.attempt || ' of hop ' || l.hop || ' parked on no wait'
    FROM lines AS l LEFT JOIN tracekit.waits AS w ON (w.task_id, w.hop, w.attempt) = (l.task_id, l.hop, l.attempt)
    WHERE l.outcome = 'parked' AND w.task_id IS NULL
    """,
    """
    SELECT w.task_id, 'wait-line', 'the wait of attempt ' || w.attempt || ' of hop ' || w.hop || ' is closed, and '
           || count(l.seq) || ' lines say so'
    FROM scope AS t JOIN tracekit.waits AS w ON w.task_id = t.id
    LEFT JOIN lines AS l ON (l.task_id, l.hop, l.attempt, l.kind) = (w.task_id, w.hop, w.attempt, 'wait.closed')
    WHERE w.closed_at IS NOT NULL GROUP BY w.task_id, w.hop, w.attempt HAVING count(l.seq) <> 1
    """,
    """
    SELECT l.task_id, 'wait-line', 'line ' || l.seq || ' closes a wait of attempt ' || l.attempt || ' of hop ' || l.hop
           || ', which is not closed'
    FROM lines AS l LEFT JOIN tracekit.waits AS w
        ON (w.task_id, w.hop, w.attempt) = (l.task_id, l.hop, l.attempt) AND w.closed_at IS NOT NULL
    WHERE l.kind = 'wait.closed' AND w.task_id IS NULL
    """,
    # --- the DLQ ---
    """
    SELECT l.task_id, 'dlq-missing', 'died in hop ' || l.hop || ' and has no entry in the DLQ'
    FROM lines AS l LEFT JOIN tracekit.dead_letters AS d ON (d.task_id, d.hop) = (l.task_id, l.hop)
    WHERE l.kind = 'task.dead' AND d.task_id IS NULL
    """,
    """
    SELECT t.id, 'dlq-leftover', 'is ' || t.state || ' and has an open entry in the DLQ'
    FROM scope AS t JOIN tracekit.dead_letters AS d ON d.task_id = t.id
    WHERE t.state <> 'dead' AND d.resolved_at IS NULL
    """,
    """
    SELECT d.task_id, 'dlq-line', 'hop ' || d.hop || ' lies in the DLQ, ' || coalesce(d.resolution, 'open') || ', and '
           || count(*) FILTER (WHERE l.kind = 'task.dead') || ' lines say that it died, '
           || count(*) FILTER (WHERE l.kind <> 'task.dead') || ' what became of it'
    FROM scope AS t JOIN tracekit.dead_letters AS d ON d.task_id = t.id
    LEFT JOIN lines AS l ON (l.task_id, l.hop) = (d.task_id, d.hop) AND (
        l.kind IN ('task.dead', 'task.redriven') OR l.kind = 'task.ended' AND l.end_state = 'abandoned')
    GROUP BY d.task_id, d.hop, d.resolution
    HAVING count(*) FILTER (WHERE l.kind = 'task.dead') <> 1
        OR count(*) FILTER (WHERE l.kind = 'task.redriven') <> CASE d.resolution WHEN 'redriven' THEN 1 ELSE 0 END
        OR count(*) FILTER (WHERE l.kind = 'task.ended') <> CASE d.resolution WHEN 'abandoned' THEN 1 ELSE 0 END
    """,
    """
    SELECT t.id, 'review-missing', 'its death in hop ' || d.hop || ' has no review task'
           || coalesce(' ' || d.review_task_id, '')
    FROM scope AS t JOIN tracekit.dead_letters AS d ON d.task_id = t.id
    WHERE t.review_of IS NULL AND NOT EXISTS (
        SELECT FROM tracekit.envelopes AS r WHERE r.id = d.review_task_id AND r.review_of = t.id)
    """,
    # --- the trace ---
    # The last 60 bits are random in both, and say enough.
    f"""
    SELECT t.id, 'trace-id', 'began the trace ' || t.trace_id || ', which has another id'
    FROM scope AS t {_TRACE_BITS.replace("{trace}", "t.trace_id")}
    WHERE t.parent_span_id IS NULL AND t.xid > '2' AND right(t.id, 12) <> concat({_DIGITS["c"]})
    """,
    """
    SELECT task_id, fault, 'span ' || span_id || ' of the trace ' || trace_id || CASE fault
               WHEN 'trace-other' THEN ' is not of the task''s trace'
               WHEN 'root-second' THEN ' has no parent, and is not the root'
               WHEN 'root-early' THEN ' is its root, and it has not ended'
               ELSE ' is its root, and has not its caller as a parent: ' || coalesce(parent_span_id, '(none)')
           END
    FROM projected WHERE fault IS NOT NULL
    """,
    """
    SELECT k.task_id, 'span-doubled', 'has span ' || k.span_id || ' ' || count(*) || ' times'
    FROM tracekit.kept_spans AS k JOIN projected AS s ON (s.trace_id, s.span_id) = (k.trace_id, k.span_id)
    WHERE k.task_id IS NOT NULL GROUP BY k.task_id, k.trace_id, k.span_id HAVING count(*) > 1
    """,
    """
    SELECT e.task_id, e."check", e.what || ' has no span ' || e.span_id
    FROM expected AS e LEFT JOIN projected AS s ON (s.task_id, s.span_id) = (e.task_id, e.span_id)
        AND s.fault IS DISTINCT FROM 'trace-other'
    WHERE s.span_id IS NULL
    """,
    # A parent that is not there yet may be the root of a task that has not ended, the attempt that is running, or what
    # the SDK has not handed over yet; or it is the caller's, or of another task in the same trace.
    f"""
    SELECT t.id, 'orphan', s.source || ' span ' || s.span_id || ' ' || n.name || ' has the parent '
           || s.parent_span_id || ', which is not there'
    FROM unborn AS s JOIN scope AS t ON t.id = s.task_id
    CROSS JOIN LATERAL (
        SELECT n.name, n.start_time, n.end_time FROM tracekit.spans AS n
        WHERE (n.task_id, n.span_id, n.parent_span_id) = (s.task_id, s.span_id, s.parent_span_id) LIMIT 1) AS n
    WHERE s.parent_span_id IS DISTINCT FROM t.parent_span_id
      AND NOT (t.state IN ('open', 'dead') AND s.parent_span_id = t.root)
      AND NOT EXISTS (SELECT FROM tracekit.queue AS q WHERE q.task_id = t.id AND q.state = 'running'
                      AND (s.parent_span_id = tracekit.span_id(q.task_id || '/attempt/' || q.hop || '/' || q.attempt)
                           OR s.source = 'sdk' AND n.start_time >= q.claimed_at))
      AND NOT (s.source = 'sdk' AND n.end_time > clock_timestamp() - %(lag)s)
      AND NOT coalesce((
        SELECT true FROM tracekit.envelopes AS o {_TRACE_BITS.replace("{trace}", "s.trace_id")}
        WHERE (o.parent_span_id IS NOT NULL AND o.trace_id = s.trace_id OR o.id = {_BEGINNER}) AND o.id <> t.id
          AND (s.parent_span_id = tracekit.span_id(o.id || '/root')
               OR EXISTS (SELECT FROM tracekit.spans AS p WHERE (p.task_id, p.span_id) = (o.id, s.parent_span_id)))
        LIMIT 1), false)
    """,
)

# All spans are read from end to end, those of a window task by task.
_ALL: LiteralString = "JOIN tracekit.spans AS s ON s.task_id = t.id"
_SOME: LiteralString = "CROSS JOIN LATERAL (SELECT * FROM tracekit.spans AS s WHERE s.task_id = t.id OFFSET 0) AS s"

AUDIT: LiteralString = (
    "WITH "
    + _SCOPE
    + _TABLES
    + " SELECT f.task_id, coalesce(e.trace_id, '') AS trace_id, f.\"check\", f.detail FROM ("
    + " UNION ALL ".join(_CHECKS)
    + ') AS f(task_id, "check", detail) LEFT JOIN tracekit.envelopes AS e ON e.id = f.task_id'
    + ' ORDER BY task_id, "check", detail'
)

EXTENT: LiteralString = (
    "WITH "
    + _SCOPE
    + """, lines AS (
    SELECT count(r.next_hop) AS hops, count(r.claimed_at) AS attempts
    FROM tracekit.record AS r JOIN scope AS t ON t.id = r.task_id
)
SELECT count(*) AS tasks, count(*) FILTER (WHERE state NOT IN ('open', 'dead')) AS ended,
       count(*) FILTER (WHERE state = 'open') AS open, count(*) FILTER (WHERE state = 'dead') AS dead,
       count(*) + (SELECT hops FROM lines) AS hops, (SELECT attempts FROM lines) AS attempts,
       (SELECT count(*) FROM scope AS t {spans}) AS spans
FROM scope
"""
)


def statement(text: LiteralString, whole: bool) -> LiteralString:
    """`AUDIT` or `EXTENT`: of the whole record, or of a window."""
    return text.replace("{spans}", _ALL if whole else _SOME)
