"""Claiming: a worker takes ready hops under a lease."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, LiteralString

from psycopg import AsyncConnection

from tracekit.queue.model import Position
from tracekit.queue.notify import array
from tracekit.queue.position import COLUMNS, JOINS, position

BY_AGE_EVERY = 8
"""Each eighth claim of a mode by a worker takes its oldest hops, whatever their priority. So under endless urgent work
a hop with A older hops of its mode is taken by claim `8·(ceil((A+1)/b) - 1) + 7·W + 1` of that mode at the latest, for
W workers that take b hops a claim; a retry of an older hop counts once more. For one worker that is the eighth claim
for each batch (Q6).
"""

MOST = 500
"""Hops of one claim by priority, and of one by age, whatever was asked for."""

# A LATERAL per mode: each mode's index range is read to its own limit, and another mode's backlog costs nothing.
#
# By age: the oldest of each priority, and of those the oldest; what another worker is about to take is passed over.
#
# What was picked goes on as an array of places, not as a join, for which the planner would read whole tables; and
# `MOST` stands there for it to see. A place is a row's version: one that somebody took and handed on since this
# statement's snapshot was locked at its new place, which the snapshot does not show, and is left for the next claim.
# Its new input could not be read.
_CLAIM: LiteralString = f"""
WITH wanted AS (
    SELECT * FROM unnest(%(modes)s::text[], %(limits)s::int[], %(by_age)s::bool[]) AS w(mode, free, by_age)
), first AS MATERIALIZED (
    SELECT c.ctid AS place FROM wanted AS w CROSS JOIN LATERAL (
        SELECT q.ctid FROM tracekit.queue AS q
        WHERE q.mode = w.mode AND q.state = 'ready' AND (q.expires_at IS NULL OR q.expires_at > clock_timestamp())
        ORDER BY q.priority DESC, q.created_at LIMIT w.free FOR UPDATE SKIP LOCKED
    ) AS c WHERE NOT w.by_age LIMIT {MOST}
), oldest AS MATERIALIZED (
    SELECT c.ctid AS place FROM wanted AS w CROSS JOIN LATERAL (
        SELECT q.ctid FROM tracekit.queue AS q
        WHERE q.ctid = ANY(ARRAY(
            SELECT o.ctid FROM generate_series(0, 3) AS p(priority) CROSS JOIN LATERAL (
                SELECT q.ctid, q.created_at FROM tracekit.queue AS q
                WHERE q.mode = w.mode AND q.state = 'ready' AND q.priority = p.priority
                  AND (q.expires_at IS NULL OR q.expires_at > clock_timestamp())
                ORDER BY q.created_at LIMIT w.free
            ) AS o ORDER BY o.created_at LIMIT w.free
        )) FOR UPDATE SKIP LOCKED
    ) AS c WHERE w.by_age LIMIT {MOST}
), q AS (
    UPDATE tracekit.queue AS q
    SET state = 'running', attempt = q.attempt + 1, token = nextval('tracekit.lease_tokens'), worker = %(worker)s,
        claimed_at = clock_timestamp(), due_at = clock_timestamp() + %(lease)s
    WHERE q.ctid = ANY(ARRAY(SELECT place FROM first UNION ALL SELECT place FROM oldest))
    RETURNING q.*
)
SELECT {COLUMNS} FROM q {JOINS}
"""


@dataclass(frozen=True, slots=True)
class Ask:
    """Up to `free[mode]` ready hops of each mode, for `worker`, each under a new lease of `lease`."""

    worker: str
    free: Mapping[str, int]
    lease: timedelta
    by_age: Collection[str] = ()
    """The modes of which the oldest are taken, whatever their priority."""
    sleep: Collection[str] | None = None
    """The modes of which whoever writes from now on is to notify `worker`, committed before the claim looks (see
    `notify`); of none, when empty. None leaves it as it is.
    """

    def statement(self) -> tuple[LiteralString, dict[str, Any]]:
        """What asks for them. Its rows are `position`'s.

        Every claim counts as an attempt (Q4) and takes a token greater than any before it (Q3). A hop past its task's
        ttl is never claimed (Q7).
        """
        return (
            _CLAIM,
            {
                "modes": array(self.free),
                "limits": "{" + ",".join(map(str, self.free.values())) + "}",
                "by_age": "{" + ",".join("t" if mode in self.by_age else "f" for mode in self.free) + "}",
                "worker": self.worker,
                "lease": self.lease,
            },
        )


async def claim(connection: AsyncConnection[Any], ask: Ask) -> list[Position]:
    """What `ask` asks for, in a statement of its own."""
    async with connection.cursor(binary=True) as cursor:
        await cursor.execute(*ask.statement(), prepare=True)
        return [position(row) for row in await cursor.fetchall()]


# Rows that are locked just now are being settled, or their effects are: they are left alone, and still held.
_HEARTBEAT: LiteralString = """
WITH free AS MATERIALIZED (
    SELECT task_id FROM tracekit.queue
    WHERE task_id = ANY(%(tasks)s::text[]) AND token = ANY(%(tokens)s::bigint[]) AND worker IS NOT NULL
    FOR UPDATE SKIP LOCKED
), extended AS (
    UPDATE tracekit.queue SET due_at = clock_timestamp() + %(lease)s
    WHERE task_id = ANY(ARRAY(SELECT task_id FROM free))
), seen AS (
    INSERT INTO tracekit.workers AS w (id, modes, listener) VALUES (%(worker)s, %(modes)s, %(listener)s)
    ON CONFLICT (id) DO UPDATE SET seen_at = clock_timestamp(), listener = excluded.listener
), asleep AS (
    -- Said again, should the row be gone: without it the worker would only poll.
    INSERT INTO tracekit.sleepers (id, modes) SELECT %(worker)s, %(modes)s WHERE %(asleep)s
    ON CONFLICT (id) DO UPDATE SET seen_at = clock_timestamp()
)
SELECT token FROM tracekit.queue
WHERE task_id = ANY(%(tasks)s::text[]) AND token = ANY(%(tokens)s::bigint[]) AND worker IS NOT NULL
"""


async def heartbeat(
    connection: AsyncConnection[Any],
    worker: str,
    modes: list[str],
    listener: str,
    leases: Mapping[str, int],
    lease: timedelta,
    asleep: bool = False,
) -> set[int]:
    """Extend all of a worker's leases (`leases`: task id to token) in one statement, and say that it lives.

    Returns the tokens that are still held. Of the others the handlers must stop.
    """
    parameters = {
        "worker": worker,
        "modes": modes,
        "listener": listener,
        "tasks": list(leases),
        "tokens": list(leases.values()),
        "lease": lease,
        "asleep": asleep,
    }
    cursor = await connection.execute(_HEARTBEAT, parameters, prepare=True)
    return {row[0] for row in await cursor.fetchall()}
