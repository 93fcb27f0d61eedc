"""Reservations: a call that is about to be made, from before it until its usage is booked.

Each call of `tracekit.workers.models` has one, whether or not there is a budget: it is how a call is known of that its
worker did not live to report. What it may cost at most is on it; `counters` are the budgets that hold it.

It is made where all budgets that are its business have room for its upper bound, looked at under the locks of their
counters, or where an operator has granted the task this call.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import class_row

from tracekit.cost.counting import NEWEST, TOKENS, counters_of, in_unit, make_caps, subject_of
from tracekit.cost.limits import Exceeded, Limit
from tracekit.cost.spender import Spender
from tracekit.queue import LeaseLost


@dataclass(frozen=True, slots=True)
class Intended:
    """A call that somebody is about to make, and the most that it can use."""

    provider: str
    model: str
    local: bool
    input: int
    """Tokens that it reads, at most."""
    output: int
    """Tokens that it writes, at most."""
    requests: int = 1
    seconds: float | None = None
    """That it takes, at most. None: nobody knows, and a price by the hour has no upper bound."""


_MINE = subject_of("b.scope", "%(mode)s", "%(persona)s::text", "%(requester)s", "%(model)s")
_WANTED = in_unit("b.unit", "%(usd)s::numeric", "%(tokens)s::numeric", "%(requests)s::numeric")
_COUNTERS = counters_of("m", "%(task)s", "clock.now")

# Of a call that is under way, and of one that was lost, nobody knows more than the most that it can have used.
_UNKNOWN: LiteralString = "v.closed_at IS NULL OR u.basis = 'lost'"

# Under the lease's token (Q3). A reservation that comes twice is one. What a grant allows is one call like the one that
# was approved; what the task has had of it since is taken off.
_OPEN: LiteralString = f"""
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now
), mine AS MATERIALIZED (
    SELECT b.scope, b.subject, b.period, b.unit, b.policy, b.time_zone, {_WANTED} AS wanted,
           b.amount + CASE WHEN %(urgent)s THEN b.urgent_extra ELSE 0 END AS amount
    FROM ({NEWEST}) AS b WHERE b.amount IS NOT NULL AND NOT %(synthetic)s AND b.subject = {_MINE}
), place AS MATERIALIZED (
    SELECT m.*, c.id AS counter FROM mine AS m CROSS JOIN clock LEFT JOIN LATERAL ({_COUNTERS}) AS c ON true
), whole AS MATERIALIZED (
    SELECT NOT EXISTS (SELECT FROM place WHERE counter IS NULL) AS yes
), held AS MATERIALIZED (
    SELECT c.id, c.spent, c.reserved, c.ends FROM tracekit.budget_counters AS c
    WHERE c.id = ANY(ARRAY(SELECT counter FROM place, whole WHERE whole.yes)) ORDER BY c.id FOR UPDATE
), weighed AS MATERIALIZED (
    SELECT p.*, h.spent, h.reserved, h.ends FROM place AS p JOIN held AS h ON h.id = p.counter
), beyond AS MATERIALIZED (
    SELECT * FROM weighed WHERE wanted IS NULL OR (wanted > 0 AND spent + reserved + wanted > amount)
), room AS MATERIALIZED (
    SELECT CASE WHEN NOT EXISTS (SELECT FROM beyond) THEN true ELSE (
        SELECT g.tokens >= %(tokens)s + s.tokens AND g.requests >= %(requests)s + s.requests
               AND CASE WHEN %(usd)s::numeric IS NULL THEN g.unpriced ELSE g.usd >= %(usd)s::numeric + s.usd END
        FROM (SELECT min(granted_at) AS since, {
    ", ".join(
        f"coalesce(sum(amount) FILTER (WHERE unit = '{unit}'), 0) AS {unit}" for unit in ("usd", "tokens", "requests")
    )
},
                     coalesce(bool_or(jsonb_typeof(w.data->'plan'->'usd') = 'null'), false) AS unpriced
              FROM tracekit.budget_grants AS g
              JOIN tracekit.waits AS w ON (w.task_id, w.key) = (g.task_id, g.approval)
              WHERE g.task_id = %(task)s AND w.data->'plan'->>'provider' = %(provider)s
                AND w.data->'plan'->>'model' = %(model)s) AS g
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(CASE WHEN {_UNKNOWN} THEN v.usd ELSE u.cost END), 0) AS usd,
                   coalesce(sum(CASE WHEN {_UNKNOWN} THEN v.tokens ELSE {TOKENS} END), 0) AS tokens,
                   coalesce(sum(CASE WHEN v.closed_at IS NULL THEN v.requests ELSE u.requests END), 0) AS requests
            FROM tracekit.reservations AS v LEFT JOIN tracekit.spend AS u ON (u.task_id, u.key) = (v.task_id, v.key)
            WHERE v.task_id = %(task)s AND v.provider = %(provider)s AND v.model = %(model)s AND v.made_at >= g.since
        ) AS s) END AS yes
), opened AS (
    INSERT INTO tracekit.reservations (
        task_id, key, hop, attempt, token, mode, persona, requester, origin, provider, model, local, usd, tokens,
        requests, counters, span_id, synthetic, made_at)
    SELECT q.task_id, %(key)s, %(hop)s, %(attempt)s, q.token, %(mode)s, %(persona)s, %(requester)s, %(origin)s,
           %(provider)s, %(model)s, %(local)s, %(usd)s, %(tokens)s, %(requests)s,
           ARRAY(SELECT id FROM held ORDER BY id), %(span_id)s, %(synthetic)s, clock.now
    FROM tracekit.queue AS q, clock, whole, room
    WHERE q.task_id = %(task)s AND q.token = %(token)s AND q.worker IS NOT NULL AND whole.yes AND room.yes
    ON CONFLICT (task_id, key) DO NOTHING
    RETURNING task_id
), taken AS (
    UPDATE tracekit.budget_counters AS c SET reserved = c.reserved + w.wanted
    FROM weighed AS w WHERE c.id = w.counter AND w.wanted > 0 AND EXISTS (SELECT FROM opened)
)
SELECT EXISTS (SELECT FROM opened) OR EXISTS (
           SELECT FROM tracekit.reservations WHERE task_id = %(task)s AND key = %(key)s) AS made,
       EXISTS (SELECT FROM tracekit.queue
               WHERE task_id = %(task)s AND token = %(token)s AND worker IS NOT NULL) AS held,
       coalesce((SELECT jsonb_agg(jsonb_build_array(scope, subject, period, unit, time_zone))
                 FROM place WHERE counter IS NULL), '[]') AS absent,
       coalesce((SELECT jsonb_agg(jsonb_build_array(scope, subject, period, unit, amount::text, spent::text,
                                                    reserved::text, wanted::text, policy, ends, counter)
                                  ORDER BY counter) FROM beyond), '[]') AS beyond
"""


def released(counters: LiteralString) -> LiteralString:
    """What each counter gets back of reservations that end: rows of (id, spent, released), from rows `counters` of
    (counters, usd, tokens, requests).
    """
    amount = in_unit("c.unit", "coalesce(v.usd, 0)", "v.tokens", "v.requests")
    return f"""
        SELECT c.id, 0::numeric AS spent, {amount}::numeric AS released
        FROM {counters} AS v CROSS JOIN LATERAL unnest(v.counters) AS held(id)
        JOIN tracekit.budget_counters AS c ON c.id = held.id
    """


def count(touched: LiteralString) -> LiteralString:
    """The CTEs `locked` and `counted`, which move the counters as rows `touched` of (id, spent, released) say, with
    their locks in order.
    """
    return f"""
locked AS MATERIALIZED (
    SELECT c.id FROM tracekit.budget_counters AS c
    WHERE c.id = ANY(ARRAY(SELECT DISTINCT id FROM {touched})) ORDER BY c.id FOR UPDATE
), counted AS (
    UPDATE tracekit.budget_counters AS c SET spent = c.spent + t.spent, reserved = c.reserved - t.released
    FROM (SELECT id, sum(spent) AS spent, sum(released) AS released FROM {touched} GROUP BY id) AS t,
         (SELECT count(*) FROM locked) AS first
    WHERE c.id = t.id
    RETURNING c.id
)"""


_RELEASE: LiteralString = f"""
WITH closed AS (
    UPDATE tracekit.reservations SET closed_at = clock_timestamp(), outcome = 'released'
    WHERE task_id = %s AND key = %s AND closed_at IS NULL
    RETURNING counters, usd, tokens, requests
), touched AS MATERIALIZED ({released("closed")}), {count("touched")}
SELECT count(*) FROM counted
"""

ABANDONED: LiteralString = """
SELECT r.task_id, r.key, r.hop, r.attempt, r.mode, r.persona, r.requester, r.origin, r.token, r.provider, r.model,
       r.local, r.requests, r.span_id, r.synthetic, r.made_at, e.trace_id, e.trace_state, e.data_tier
FROM tracekit.reservations AS r JOIN tracekit.envelopes AS e ON e.id = r.task_id
WHERE r.closed_at IS NULL AND NOT EXISTS (
    SELECT FROM tracekit.queue AS q WHERE q.task_id = r.task_id AND q.token = r.token AND q.worker IS NOT NULL)
"""
"""Open reservations whose lease is held by nobody any more."""


@dataclass(frozen=True, slots=True)
class _Answer:
    made: bool
    held: bool
    absent: list[list[Any]]
    beyond: list[list[Any]]


@dataclass(frozen=True, slots=True)
class Reserved:
    """What came of a reservation: it is made where both are empty."""

    absent: list[tuple[Limit, str]]
    """Budgets without a counter for the present day or week, each with its time zone: they must be made first."""
    exceeded: list[Exceeded]
    """Budgets without room."""


async def reserve(
    connection: AsyncConnection[Any],
    spender: Spender,
    key: str,
    intended: Intended,
    usd: Decimal | None,
    span_id: str | None,
    *,
    synthetic: bool = False,
) -> Reserved:
    """Say that a call is about to be made, which can cost `usd` at most (None: unpriced). In a transaction of the
    caller's, who holds the task's lock (`ledger.lock`). Raises `LeaseLost`.
    """
    parameters = {
        "task": spender.task_id,
        "key": key,
        "hop": spender.hop,
        "attempt": spender.attempt,
        "token": spender.token,
        "mode": spender.mode,
        "persona": spender.persona,
        "requester": spender.requester,
        "origin": spender.origin,
        "urgent": spender.urgent,
        "provider": intended.provider,
        "model": intended.model,
        "local": intended.local,
        "usd": usd,
        "tokens": intended.input + intended.output,
        "requests": intended.requests,
        "span_id": span_id,
        "synthetic": synthetic,
    }
    while True:
        async with connection.cursor(row_factory=class_row(_Answer)) as cursor:
            await cursor.execute(_OPEN, parameters)
            answer = await cursor.fetchone()
        assert answer is not None, "it answers one row"
        if answer.made:
            return Reserved([], [])
        if not answer.held:
            raise LeaseLost(spender.task_id)
        absent = [(Limit(*row[:4]), row[4]) for row in answer.absent]
        others = [(limit, zone) for limit, zone in absent if limit.scope != "task"]
        if others or not absent:
            return Reserved(others, [_exceeded(row) for row in answer.beyond])
        await make_caps(connection, spender.task_id, [limit for limit, _ in absent])


def _exceeded(row: list[Any]) -> Exceeded:
    *limit, amount, spent, reserved, wanted, policy, ends, counter = row
    return Exceeded(
        Limit(*limit),
        Decimal(amount),
        Decimal(spent),
        Decimal(reserved),
        None if wanted is None else Decimal(wanted),
        policy,
        datetime.fromisoformat(ends),
        counter,
    )


async def release(connection: AsyncConnection[Any], task_id: str, key: str) -> None:
    """The call was not made: nothing of it is spent. The caller holds the task's lock."""
    await connection.execute(_RELEASE, [task_id, key])
