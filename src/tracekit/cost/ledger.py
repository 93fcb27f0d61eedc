"""The ledger: every report of what a call spent, and what is known of it now (`0003_cost.sql`)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import class_row

from tracekit import ids
from tracekit.cost import prices
from tracekit.cost.budgets import make_present
from tracekit.cost.counting import ALONE, NEWEST, SHARED, counters_of, make_counters, spent_in, subject_of
from tracekit.cost.limits import OverBudget
from tracekit.cost.prices import PriceBook, Priced
from tracekit.cost.reservations import ABANDONED, Intended, Reserved, count, release, released, reserve
from tracekit.cost.spans import CallSpan
from tracekit.cost.spender import Spender
from tracekit.cost.usage import Usage, UsageError
from tracekit.cost.warnings import tell_used_up, watch
from tracekit.envelope import DataTier
from tracekit.queue import LeaseLost, Position, Queue
from tracekit.tracing.hop import HopScope
from tracekit.tracing.keeping import KEEP

# Whoever writes of a task holds its row in the queue, or its envelope's where it has left it. In statements of their
# own: what the next one reads must be what others had committed by then.
_LOCK_PLACE: LiteralString = "SELECT FROM tracekit.queue WHERE task_id = %s FOR UPDATE"
_LOCK_ENVELOPE: LiteralString = """
SELECT FROM tracekit.envelopes
WHERE id = %(task)s AND NOT EXISTS (SELECT FROM tracekit.queue WHERE task_id = %(task)s) FOR NO KEY UPDATE
"""

_COUNTERS: LiteralString = (
    "requests, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens"
)
_SUMS: LiteralString = f"calls, unpriced, {_COUNTERS}, cost"
_LABELS: LiteralString = "mode, persona, requester, provider, model, synthetic"


def _each(template: LiteralString, names: LiteralString) -> LiteralString:
    """`template` with each of `names` in place of its `#`."""
    return ", ".join(template.replace("#", name) for name in names.split(", "))


_SAID: LiteralString = f"provider, model, local, cost, price_source, basis, {_COUNTERS}"
"""What makes a report another one than the report before it."""

_SUBJECT = subject_of("m.scope", "s.mode", "s.persona", "s.requester", "coalesce(v.model, s.model)")
_AMOUNT = spent_in("c.unit", "s", "v")

_BOOK: LiteralString = f"""
WITH report AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset(%(reports)s::jsonb) AS r(
        key text, provider text, model text, local boolean, {_each("# bigint", _COUNTERS)}, seconds numeric,
        details jsonb, billed numeric, billed_by text, cost numeric, price_source text, price_version text,
        basis text, span_id text, at timestamptz)
), before AS MATERIALIZED (
    SELECT u.* FROM report AS r CROSS JOIN LATERAL (
        SELECT * FROM tracekit.usage WHERE task_id = %(task)s AND key = r.key ORDER BY version DESC LIMIT 1) AS u
), lease AS MATERIALIZED (
    SELECT EXISTS (SELECT FROM tracekit.queue
                   WHERE task_id = %(task)s AND token = %(token)s AND worker IS NOT NULL) AS held
), written AS (
    INSERT INTO tracekit.usage (
        task_id, key, version, hop, attempt, mode, persona, requester, origin, provider, model, local, {_COUNTERS},
        seconds, details, billed, billed_by, cost, price_source, price_version, basis, held, span_id, repricing,
        synthetic, at, booked_at)
    -- A later report tells of the call, and not of whoever brings it.
    SELECT %(task)s, r.key, coalesce(b.version, 0) + 1, coalesce(b.hop, %(hop)s), coalesce(b.attempt, %(attempt)s),
           coalesce(b.mode, %(mode)s), CASE WHEN b.key IS NULL THEN %(persona)s::text ELSE b.persona END,
           coalesce(b.requester, %(requester)s), coalesce(b.origin, %(origin)s), r.provider, r.model, r.local,
           {_each("r.#", _COUNTERS)}, coalesce(r.seconds, b.seconds), r.details, r.billed, r.billed_by,
           r.cost, r.price_source, r.price_version, r.basis, lease.held,
           CASE WHEN b.key IS NULL THEN r.span_id ELSE b.span_id END,
           %(repricing)s::bigint, coalesce(b.synthetic, %(synthetic)s),
           coalesce(b.at, r.at, v.made_at, clock_timestamp()), clock_timestamp()
    FROM lease, report AS r LEFT JOIN before AS b USING (key)
    LEFT JOIN tracekit.reservations AS v ON v.task_id = %(task)s AND v.key = r.key
    WHERE b.key IS NULL
       -- What is known worse than it was known before is no news.
       OR array_position(ARRAY['lost', 'estimated', 'reported'], r.basis)
          >= array_position(ARRAY['lost', 'estimated', 'reported'], b.basis)
          AND ({_each("r.#", _SAID)}) IS DISTINCT FROM ({_each("b.#", _SAID)})
    RETURNING *
), settled AS (
    UPDATE tracekit.reservations AS v
    SET closed_at = clock_timestamp(), outcome = CASE r.basis WHEN 'lost' THEN 'lost' ELSE 'settled' END
    FROM report AS r WHERE v.task_id = %(task)s AND v.key = r.key AND v.closed_at IS NULL
    RETURNING v.counters, v.usd, v.tokens, v.requests
), signed AS MATERIALIZED (
    SELECT 1 AS sign, w.* FROM written AS w UNION ALL
    SELECT -1, b.* FROM before AS b WHERE b.key IN (SELECT key FROM written)
), touched AS MATERIALIZED (
    SELECT c.id, s.sign * {_AMOUNT} AS spent, 0::numeric AS released
    FROM signed AS s LEFT JOIN tracekit.reservations AS v ON (v.task_id, v.key) = (s.task_id, s.key)
    JOIN ({NEWEST}) AS m ON m.subject = {_SUBJECT}
    CROSS JOIN LATERAL ({counters_of("m", "s.task_id", "s.at")}) AS found
    JOIN tracekit.budget_counters AS c ON c.id = found.id
    WHERE NOT s.synthetic
    UNION ALL {released("settled")}
), {count("touched")}, told AS (
    INSERT INTO tracekit.kept_spans (
        trace_id, span_id, parent_span_id, task_id, source, name, kind, start_time, end_time, status, status_message,
        attributes, links, events)
    SELECT s.trace_id, s.span_id, s.parent_span_id, s.task_id, 'sdk', s.name, s.kind, s.start_time, s.end_time,
           s.status, s.status_message, s.attributes, s.links, s.events
    FROM jsonb_to_recordset(%(spans)s::jsonb) AS s(
        key text, trace_id text, span_id text, parent_span_id text, task_id text, name text, kind smallint,
        start_time timestamptz, end_time timestamptz, status smallint, status_message text, attributes jsonb,
        links jsonb, events jsonb)
    JOIN written AS w ON w.key = s.key AND w.version = 1
    ON CONFLICT (trace_id, span_id) DO NOTHING
), change AS (
    SELECT mode, coalesce(persona, '') AS persona, requester, provider, model, synthetic,
           {_each("sum(sign * #) AS #", _SUMS)}
    FROM (SELECT 1 AS sign, {_LABELS}, 1 AS calls, (cost IS NULL)::int AS unpriced, {_COUNTERS},
                 coalesce(cost, 0) AS cost FROM written
          UNION ALL
          SELECT -1, {_LABELS}, 1, (cost IS NULL)::int, {_COUNTERS}, coalesce(cost, 0)
          FROM before WHERE key IN (SELECT key FROM written)) AS moved
    GROUP BY 1, 2, 3, 4, 5, 6
), added AS (
    INSERT INTO tracekit.usage_totals AS t ({_LABELS}, lowered, {_SUMS})
    SELECT {_LABELS}, way.lowered, {_each("greatest(0, CASE WHEN way.lowered THEN -# ELSE # END)", _SUMS)}
    FROM change CROSS JOIN (VALUES (false), (true)) AS way(lowered)
    -- After the counters of budgets, as the order of locks has it.
    WHERE (NOT way.lowered OR least({_SUMS}) < 0) AND (SELECT count(*) FROM counted) >= 0
    ORDER BY {_LABELS}, way.lowered
    ON CONFLICT ({_LABELS}, lowered) DO UPDATE SET {_each("# = t.# + excluded.#", _SUMS)}
)
SELECT r.key, coalesce(w.version, b.version) AS version, w.key IS NOT NULL AS new,
       CASE WHEN w.key IS NULL THEN b.cost ELSE w.cost END AS cost,
       coalesce(w.price_source, b.price_source) AS price_source, lease.held
FROM lease, report AS r LEFT JOIN written AS w USING (key) LEFT JOIN before AS b USING (key)
"""


@dataclass(frozen=True, slots=True)
class Booked:
    """What the ledger knows of a call after a report of it."""

    key: str
    version: int
    new: bool
    """Whether the report said something new: the same one again changes nothing."""
    cost: Decimal | None
    price_source: str
    held: bool
    """Whether the lease was held."""


@dataclass(frozen=True, slots=True)
class Report:
    """One call's usage with its price, and the span to be kept with it."""

    key: str
    usage: Usage
    priced: Priced
    span: CallSpan | None = None

    def row(self) -> dict[str, Any]:
        """The columns of `usage`, ready for JSON."""
        usage = self.usage
        return {
            "key": self.key,
            "provider": usage.provider,
            "model": usage.model,
            "local": usage.local,
            "requests": usage.requests,
            "input_tokens": usage.input,
            "cache_read_tokens": usage.cache_read,
            "cache_write_tokens": usage.cache_write,
            "output_tokens": usage.output,
            "reasoning_tokens": usage.reasoning,
            "seconds": None if usage.seconds is None else str(usage.seconds),
            "details": dict(usage.details),
            "billed": None if usage.cost is None else str(usage.cost),
            "billed_by": usage.billed_by or None,
            "cost": None if self.priced.cost is None else str(self.priced.cost),
            "price_source": self.priced.source,
            "price_version": self.priced.version,
            "basis": usage.basis,
            "span_id": self.span.id if self.span else None,
            "at": usage.at and usage.at.isoformat(),
        }


class Ledger:
    """The ledger of a queue's tasks, at the prices of `book`."""

    def __init__(self, queue: Queue, prices: PriceBook) -> None:
        self.queue = queue
        self.prices = prices

    async def report(self, usage: Usage, span: CallSpan | None = None) -> Report:
        """What `usage` is to be booked as: under its key or a new one, with its price."""
        # The first look at the table takes as long as a short call does.
        await asyncio.to_thread(prices.warm)
        key = usage.key or (span.id if span else ids.new_span_id())
        return Report(key, usage, self.prices.price(usage, usage.at or datetime.now(UTC)), span)

    async def book(self, at: Position, reports: Sequence[Report], *, synthetic: bool = False) -> list[Booked]:
        """Write what calls of an attempt spent, with their spans, in one transaction.

        A key that is known already becomes the call's next version, unless it says nothing new. Raises `LeaseLost`
        where the lease is not held any more: what was spent is booked all the same.
        """
        async with self.queue.connection() as connection, connection.transaction():
            booked = await book(connection, Spender.of(at), reports, synthetic=synthetic)
        if not all(one.held for one in booked):
            raise LeaseLost(at.task_id)
        return booked

    async def reserve(self, at: Position, key: str, intended: Intended, span_id: str) -> None:
        """Before a call: say that it is about to be made, and take the most that it can cost from the budgets that are
        its business. What is booked under `key` settles it. Raises `LeaseLost`, and `OverBudget` where a budget has no
        room for it.
        """
        await asyncio.to_thread(prices.warm)
        most = Usage(
            intended.provider,
            intended.model,
            input=intended.input,
            output=intended.output,
            requests=intended.requests,
            local=intended.local,
            seconds=intended.seconds,
        )
        usd = self.prices.bound(most, datetime.now(UTC)).cost
        async with self.queue.connection() as connection:
            found = await self._reserve(connection, Spender.of(at), key, intended, usd, span_id)
            if not found.exceeded:
                return
            await tell_used_up(connection, at.task_id, [one.counter for one in found.exceeded])
        raise OverBudget(
            found.exceeded,
            provider=intended.provider,
            model=intended.model,
            usd=usd,
            tokens=intended.input + intended.output,
            requests=intended.requests,
        )

    async def _reserve(
        self,
        connection: AsyncConnection[Any],
        spender: Spender,
        key: str,
        intended: Intended,
        usd: Decimal | None,
        span_id: str,
    ) -> Reserved:
        while True:
            async with connection.pipeline(), connection.transaction():
                await lock(connection, spender.task_id)
                found = await reserve(connection, spender, key, intended, usd, span_id)
            if not found.absent:
                return found
            # The first call of a day, or of a week. Nobody may be about to spend meanwhile.
            async with connection.transaction():
                await connection.execute(ALONE)
                await make_counters(connection, found.absent)

    async def release(self, at: Position, key: str, span: CallSpan | None = None) -> None:
        """The call was not made: nothing of it is spent. Its span, which has ended, is kept."""
        async with self.queue.connection() as connection, connection.pipeline(), connection.transaction():
            await lock(connection, at.task_id)
            await release(connection, at.task_id, key)
            if span:
                await connection.execute(KEEP, [json.dumps([span.row(key)])])

    async def sweep(self) -> int:
        """Book the calls that dead workers were about, as lost, and let go of what was reserved for them. Returns how
        many there were.
        """
        async with self.queue.connection() as connection:
            abandoned = await (await connection.execute(f"{ABANDONED} ORDER BY r.made_at LIMIT 200")).fetchall()
            for row in abandoned:
                async with connection.transaction():
                    await lock(connection, row[0])
                    # Its worker may have been slow, and not dead.
                    cursor = await connection.execute(f"{ABANDONED} AND r.task_id = %s AND r.key = %s", row[:2])
                    if await cursor.fetchone() is not None:
                        await self._book_lost(connection, row)
        return len(abandoned)

    async def _book_lost(self, connection: AsyncConnection[Any], row: Any) -> None:
        (task_id, key, hop, attempt, mode, persona, requester, origin, token, provider, model, local, requests, span_id,
         synthetic, made_at, trace_id, trace_state, data_tier) = row  # fmt: skip
        usage = Usage(provider, model, requests=requests, local=local, basis="lost", at=made_at)
        scope = HopScope(
            task_id,
            trace_id,
            hop,
            attempt,
            mode,
            persona,
            DataTier(data_tier),
            trace_state,
        )
        span = CallSpan.lost(usage, scope, span_id) if span_id else None
        priced = self.prices.price(usage, made_at)
        spender = Spender(task_id, hop, attempt, mode, persona, requester, origin, token)
        await book(connection, spender, [Report(key, usage, priced, span)], synthetic=synthetic)

    async def watch_budgets(self, warn_at: float) -> int:
        """Tell the operator of budgets that are used up, or that do not last at this pace once `warn_at` of them is
        spent. Returns how many were told of.
        """
        async with self.queue.connection() as connection:
            await make_present(connection)
            return await watch(connection, warn_at)


async def lock(connection: AsyncConnection[Any], task_id: str) -> None:
    """Be the only one who writes of this task, and see all budgets as they are, until the caller's transaction ends."""
    await connection.execute(SHARED)
    await connection.execute(_LOCK_PLACE, [task_id])
    await connection.execute(_LOCK_ENVELOPE, {"task": task_id})


async def book(
    connection: AsyncConnection[Any],
    spender: Spender,
    reports: Sequence[Report],
    *,
    synthetic: bool = False,
    repricing: int | None = None,
) -> list[Booked]:
    """Write reports of calls, in the caller's transaction. Whoever makes the calls holds the lease `spender.token`, or
    not: `Booked.held` says so. Raises `UsageError` where two are of one call.
    """
    if len({report.key for report in reports}) < len(reports):
        raise UsageError("two reports of one call came together")
    if not reports:
        return []
    parameters = {
        "task": spender.task_id,
        "hop": spender.hop,
        "attempt": spender.attempt,
        "mode": spender.mode,
        "persona": spender.persona,
        "requester": spender.requester,
        "origin": spender.origin,
        "token": spender.token,
        "synthetic": synthetic,
        "repricing": repricing,
        "reports": json.dumps([report.row() for report in reports]),
        "spans": json.dumps([report.span.row(report.key) for report in reports if report.span]),
    }
    async with connection.pipeline(), connection.cursor(row_factory=class_row(Booked)) as cursor:
        await lock(connection, spender.task_id)
        await cursor.execute(_BOOK, parameters)
        booked = await cursor.fetchall()
    return booked
