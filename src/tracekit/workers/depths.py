"""Reading the gauges that only the database knows: depths, ages, and what waits for somebody."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import LiteralString

from tracekit import instruments
from tracekit.instruments import DatabaseGauges, Reading
from tracekit.queue import Queue

MOST_SPANS = 100_000
"""Where the count of unshipped spans ends: with more, only that it is too many matters, and counting them costs."""

_SHARE = 20
"""A look that took long is repeated no sooner than this many times as long: at most 5 % of one connection's time."""

# The names are those of the catalogue, as tests/test_metrics.py holds them to.
_READ: LiteralString = """
WITH clock AS (
    SELECT clock_timestamp() AS now
), live AS MATERIALIZED (
    -- Since when: a ready hop since it became ready, a running one since its claim, the others since they were made.
    SELECT mode, state, count(*) AS hops,
           min(CASE state WHEN 'ready' THEN ready_at WHEN 'running' THEN claimed_at ELSE created_at END) AS since
    FROM tracekit.queue GROUP BY mode, state
), dead AS MATERIALIZED (
    SELECT mode, count(*) AS entries, min(died_at) AS since
    FROM tracekit.dead_letters WHERE resolved_at IS NULL GROUP BY mode
), pending AS MATERIALIZED (
    SELECT q.priority = 3 AS urgent, w.deadline
    FROM tracekit.waits AS w
    JOIN tracekit.queue AS q ON (q.task_id, q.hop, q.wait_attempt) = (w.task_id, w.hop, w.attempt)
    WHERE w.closed_at IS NULL AND w.kind = 'approval' AND q.state = 'parked'
), unshipped AS MATERIALIZED (
    SELECT (SELECT count(*) FROM (SELECT FROM tracekit.spans AS s WHERE (s.xid, s.seq) > (p.xid, p.seq)
                                  LIMIT %(most)s) AS waiting) AS spans,
           (SELECT s.end_time FROM tracekit.spans AS s WHERE (s.xid, s.seq) > (p.xid, p.seq)
            ORDER BY s.xid, s.seq LIMIT 1) AS since
    FROM tracekit.span_shipping AS p
)
SELECT 'tracekit_hops', ARRAY[mode, state], hops::float8 FROM live
UNION ALL
SELECT 'tracekit_hop_oldest_age_seconds', ARRAY[mode, state], greatest(0, extract(epoch FROM now - since))
FROM live, clock
UNION ALL
SELECT 'tracekit_dead_letters', ARRAY[mode], entries::float8 FROM dead
UNION ALL
SELECT 'tracekit_dead_letter_oldest_age_seconds', '{}', coalesce(max(extract(epoch FROM now - since)), 0)
FROM dead, clock
UNION ALL
SELECT 'tracekit_approvals_pending', ARRAY[CASE WHEN kind.urgent THEN 'true' ELSE 'false' END], count(pending.urgent)
FROM (VALUES (true), (false)) AS kind(urgent) LEFT JOIN pending USING (urgent) GROUP BY kind.urgent
UNION ALL
SELECT 'tracekit_approval_next_deadline_seconds', '{}', extract(epoch FROM min(deadline) - now)
FROM pending, clock GROUP BY now HAVING count(*) > 0
UNION ALL
SELECT 'tracekit_spans_unshipped', '{}', coalesce(max(spans), 0) FROM unshipped
UNION ALL
SELECT 'tracekit_span_oldest_unshipped_age_seconds', '{}', coalesce(max(extract(epoch FROM now - since)), 0)
FROM unshipped, clock
UNION ALL
SELECT 'tracekit_notifications_undelivered', '{}', count(*) FROM tracekit.outbox WHERE delivered_at IS NULL
UNION ALL
SELECT 'tracekit_workers', ARRAY[mode], count(*)
FROM clock, tracekit.workers AS w, unnest(w.modes) AS mode WHERE w.seen_at > now - interval '2 minutes' GROUP BY mode
"""


class DepthReader:
    """Renews `gauges`. Several in one process (workers and ingress) share them and look no more often than one would.

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

    async def read(self) -> None:
        """Look, unless the last look is young enough; as `look`."""
        last = self._gauges.reading
        if last is None or time.monotonic() - last.at >= max(self._at_most, _SHARE * last.took):
            await self.look()

    async def look(self) -> None:
        """Look now. Raises what the database said when it could not be read; the gauges then say that it is away."""
        began, before = time.monotonic(), self._gauges.accepted_since
        try:
            async with asyncio.timeout(self._timeout), self._queue.connection() as connection:
                cursor = await connection.execute(_READ, {"most": MOST_SPANS})
                rows = [(name, labels, float(value)) for name, labels, value in await cursor.fetchall()]
        except Exception:
            self._gauges.away()
            raise
        self._gauges.show(Reading(rows, took=time.monotonic() - began), counted=before)
