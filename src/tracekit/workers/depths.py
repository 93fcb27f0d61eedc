"""Reading the gauges that only the database knows: depths, ages, and what waits for somebody."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import LiteralString

from tracekit import instruments
from tracekit.cost import budgets, counters
from tracekit.instruments import DatabaseGauges, Reading
from tracekit.queue import Queue
from tracekit.workers.loops import keep

MOST_SPANS = 100_000
"""Where the count of unshipped spans ends: with more, only that it is too many matters, and counting them costs."""

SHARE = 20
"""A look that took long is repeated no sooner than this many times as long: at most 5 % of one connection's time."""

PAUSE = 5.0
"""Seconds between looks of a process."""

# The names are those of the catalogue, as tests/test_metrics.py holds them to.
_READ: LiteralString = """
WITH clock AS (
    SELECT clock_timestamp() AS now
), live AS MATERIALIZED (
    -- Since when: a ready hop since it became ready, a running one since its claim, the others since they were made.
    -- Of the ready, which may be a million, those are asked that are first in line: by the index alone this takes a
    -- third of the time that a reading of the rows does.
    SELECT mode, state, (ARRAY['low', 'normal', 'high', 'urgent'])[priority + 1] AS priority, hops, since FROM (
        SELECT mode, 'ready' AS state, priority, count(*) AS hops, (
            SELECT min(ready_at) FROM (
                SELECT f.ready_at FROM tracekit.queue AS f
                WHERE f.state = 'ready' AND f.mode = r.mode AND f.priority = r.priority
                ORDER BY f.created_at LIMIT 100
            ) AS first
        ) AS since
        FROM tracekit.queue AS r WHERE state = 'ready' GROUP BY mode, priority
        UNION ALL
        SELECT mode, state, priority, count(*), min(CASE state WHEN 'running' THEN claimed_at ELSE created_at END)
        FROM tracekit.queue WHERE state <> 'ready' GROUP BY mode, state, priority
    ) AS counted
), dead AS MATERIALIZED (
    SELECT mode, reason, count(*) AS entries, min(died_at) AS since
    FROM tracekit.dead_letters WHERE resolved_at IS NULL GROUP BY mode, reason
), pending AS MATERIALIZED (
    -- What asks for money goes on at its deadline, when the budget begins anew: it expires by its task's ttl alone.
    SELECT q.priority = 3 AS urgent, CASE WHEN w.on_deadline = 'expire' OR q.expires_at <= w.deadline
                                          THEN least(w.deadline, q.expires_at) END AS expires_at
    FROM tracekit.waits AS w
    JOIN tracekit.queue AS q ON (q.task_id, q.hop, q.wait_attempt) = (w.task_id, w.hop, w.attempt)
    WHERE w.closed_at IS NULL AND w.kind = 'approval' AND q.state = 'parked'
), unshipped AS MATERIALIZED (
    -- What the view of spans would make of these rows, counted without making it.
    SELECT least(%(most)s, coalesce(sum(rows.spans), 0)) AS spans, min(rows.since) AS since
    FROM tracekit.span_shipping AS p CROSS JOIN LATERAL (
        (SELECT 1 + (e.received IS NOT NULL)::int AS spans, e.created_at AS since FROM tracekit.envelopes AS e
         WHERE (e.xid, e.seq) > (p.xid, p.seq) AND e.xid > '2' ORDER BY e.xid, e.seq LIMIT %(most)s)
        UNION ALL
        (SELECT (r.next_hop IS NOT NULL)::int + (r.ready_at IS NOT NULL)::int + (r.claimed_at IS NOT NULL)::int
                + (r.end_state IS NOT NULL)::int + coalesce(r.data ?| '{opened_at,dead_since}', false)::int, r.at
         FROM tracekit.record AS r
         WHERE (r.xid, r.seq) > (p.xid, p.seq) AND r.xid > '2' ORDER BY r.xid, r.seq LIMIT %(most)s)
        UNION ALL
        (SELECT 1, k.end_time FROM tracekit.kept_spans AS k
         WHERE (k.xid, k.seq) > (p.xid, p.seq) ORDER BY k.xid, k.seq LIMIT %(most)s)
    ) AS rows
), sizes AS MATERIALIZED (
    SELECT "table", bytes, dead_rows FROM grafana.tables
)
SELECT 'tracekit_hops', ARRAY[mode, state, priority], hops::float8 FROM live
UNION ALL
SELECT 'tracekit_hop_oldest_age_seconds', ARRAY[mode, state, priority],
       greatest(0, extract(epoch FROM now - since))
FROM live, clock
UNION ALL
SELECT 'tracekit_dead_letters', ARRAY[mode, reason], entries::float8 FROM dead
UNION ALL
SELECT 'tracekit_dead_letter_oldest_age_seconds', '{}', coalesce(max(extract(epoch FROM now - since)), 0)
FROM dead, clock
UNION ALL
SELECT 'tracekit_approvals_pending', ARRAY[CASE WHEN kind.urgent THEN 'true' ELSE 'false' END], count(pending.urgent)
FROM (VALUES (true), (false)) AS kind(urgent) LEFT JOIN pending USING (urgent) GROUP BY kind.urgent
UNION ALL
SELECT 'tracekit_approval_next_deadline_seconds', '{}', extract(epoch FROM min(expires_at) - now)
FROM pending, clock GROUP BY now HAVING count(expires_at) > 0
UNION ALL
SELECT 'tracekit_spans_unshipped', '{}', coalesce(max(spans), 0) FROM unshipped
UNION ALL
SELECT 'tracekit_span_oldest_unshipped_age_seconds', '{}', coalesce(max(extract(epoch FROM now - since)), 0)
FROM unshipped, clock
UNION ALL
SELECT 'tracekit_notifications_undelivered', '{}', count(*) FROM tracekit.outbox WHERE delivered_at IS NULL
UNION ALL
SELECT 'tracekit_notification_oldest_undelivered_age_seconds', '{}',
       coalesce(greatest(0, extract(epoch FROM now - min(created_at))), 0)
FROM clock LEFT JOIN tracekit.outbox ON due_at IS NOT NULL GROUP BY now
UNION ALL
SELECT 'tracekit_table_bytes', ARRAY["table"], bytes::float8 FROM sizes
UNION ALL
SELECT 'tracekit_table_dead_rows', ARRAY["table"], dead_rows::float8 FROM sizes
UNION ALL
SELECT 'tracekit_workers', ARRAY[mode], count(*)
FROM clock, tracekit.workers AS w, unnest(w.modes) AS mode WHERE w.seen_at > now - interval '2 minutes' GROUP BY mode
"""


class DepthReader:
    """Renews `gauges`, in a process that shows them to somebody.

    `at_most` (default 4 s) is how young a reading is too young to be renewed, `timeout` (default 5 s) how long the
    database may take before it counts as away.
    """

    def __init__(
        self,
        queue: Queue,
        gauges: DatabaseGauges = instruments.DATABASE,
        *,
        at_most: timedelta = timedelta(seconds=4),
        timeout: timedelta = timedelta(seconds=5),
    ) -> None:
        self._queue = queue
        self._gauges = gauges
        self._at_most = at_most.total_seconds()
        self._timeout = timeout.total_seconds()

    async def keep(self) -> None:
        """Read every few seconds, until cancelled."""
        await keep("depths", self.read, pause=PAUSE)

    async def read(self) -> None:
        """Look, unless the last look is young enough; as `look`."""
        last = self._gauges.reading
        if last is None or time.monotonic() - last.at >= max(self._at_most, SHARE * last.took):
            await self.look()

    async def look(self) -> None:
        """Look now. Raises what the database said when it could not be read; the gauges then say that it is away."""
        began, before = time.monotonic(), self._gauges.accepted_since
        try:
            async with asyncio.timeout(self._timeout), self._queue.connection() as connection:
                cursor = await connection.execute(_READ, {"most": MOST_SPANS})
                rows = [(name, labels, float(value)) for name, labels, value in await cursor.fetchall()]
                rows += await counters.read(connection)
                rows += await budgets.gauges(connection)
        except Exception:
            self._gauges.away()
            raise
        self._gauges.show(Reading(rows, took=time.monotonic() - began), counted=before)
