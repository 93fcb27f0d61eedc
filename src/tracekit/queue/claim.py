"""Claiming: a worker takes ready hops under a lease."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from tracekit.queue.model import Position
from tracekit.queue.position import COLUMNS, JOINS, position

BY_AGE_EVERY = 8
"""Each eighth claim takes the oldest hops whatever their priority, so endless urgent work starves nobody (Q6)."""

MOST = 500
"""Hops of one claim, whatever was asked for."""

# A LATERAL per mode: each mode's index range is read to its own limit, and another mode's backlog costs nothing.
#
# The planner expects a tenth of a mode's backlog from a limit that it does not know. So what was picked goes on as an
# array, not as a join, for which it would read whole tables; and `MOST` stands there for it to see.
#
# Rows are locked as they are, and read with the rest as they were at the statement's start. `seen` is the row as it
# was: a hop that somebody took and handed on in between (another token) is left for the next claim. Its new input could
# not be read, and it would run without anybody knowing of it.
_CLAIM: LiteralString = """
WITH wanted AS (
    SELECT * FROM unnest(%(modes)s::text[], %(limits)s::int[]) AS w(mode, free)
), picked AS MATERIALIZED (
    SELECT c.task_id FROM wanted AS w CROSS JOIN LATERAL (
        SELECT task_id, token FROM tracekit.queue
        WHERE mode = w.mode AND state = 'ready' AND (expires_at IS NULL OR expires_at > clock_timestamp())
        ORDER BY {order} LIMIT w.free FOR UPDATE SKIP LOCKED
    ) AS c CROSS JOIN LATERAL (
        SELECT FROM tracekit.queue AS s WHERE s.task_id = c.task_id AND s.token = c.token OFFSET 0
    ) AS seen LIMIT {most}
), q AS (
    UPDATE tracekit.queue AS q
    SET state = 'running', attempt = q.attempt + 1, token = nextval('tracekit.lease_token'), worker = %(worker)s,
        claimed_at = clock_timestamp(), due_at = clock_timestamp() + %(lease)s
    WHERE q.task_id = ANY(ARRAY(SELECT task_id FROM picked))
    RETURNING q.*
)
SELECT {columns} FROM q {joins}
"""
_BY_PRIORITY = _CLAIM.format(order="priority DESC, created_at", most=MOST, columns=COLUMNS, joins=JOINS)
_BY_AGE = _CLAIM.format(order="created_at", most=MOST, columns=COLUMNS, joins=JOINS)


async def claim(
    connection: AsyncConnection[Any], worker: str, free: Mapping[str, int], lease: timedelta, *, by_age: bool
) -> list[Position]:
    """Up to `free[mode]` hops of each mode, each under a new lease of `lease`.

    Every claim counts as an attempt (Q4) and takes a token greater than any before it (Q3). A hop past its task's ttl
    is never claimed (Q7).
    """
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _BY_AGE if by_age else _BY_PRIORITY,
            {"modes": list(free), "limits": list(free.values()), "worker": worker, "lease": lease},
        )
        return [position(row) for row in await cursor.fetchall()]


# Locked in the order of task ids, as a settlement does: the worker's own may be under way.
_HEARTBEAT: LiteralString = """
WITH mine AS MATERIALIZED (
    SELECT q.task_id FROM tracekit.queue AS q
    JOIN unnest(%(tasks)s::text[], %(tokens)s::bigint[]) AS leases(task_id, token) USING (task_id, token)
    WHERE q.state = 'running' ORDER BY q.task_id FOR UPDATE OF q
), held AS (
    UPDATE tracekit.queue AS q SET due_at = clock_timestamp() + %(lease)s
    FROM mine WHERE q.task_id = mine.task_id
    RETURNING q.token
), seen AS (
    INSERT INTO tracekit.workers AS w (id, modes, listener) VALUES (%(worker)s, %(modes)s, %(listener)s)
    ON CONFLICT (id) DO UPDATE SET seen_at = clock_timestamp(), listener = excluded.listener
)
SELECT token FROM held
"""


async def heartbeat(
    connection: AsyncConnection[Any],
    worker: str,
    modes: list[str],
    listener: str,
    leases: Mapping[str, int],
    lease: timedelta,
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
    }
    cursor = await connection.execute(_HEARTBEAT, parameters)
    return {row[0] for row in await cursor.fetchall()}
