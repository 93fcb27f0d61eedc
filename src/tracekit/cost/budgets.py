"""Budgets: what may be spent, by whose word, and how each of them stands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import class_row

from tracekit import metrics
from tracekit.cost.counting import ALONE, NEWEST, make_counters
from tracekit.cost.limits import Limit, Policy, Scope, Unit
from tracekit.cost.periods import Period, period_of
from tracekit.cost.warnings import projected
from tracekit.queue.model import Json

MOST_SHOWN = 100
"""Budgets that have gauges, those first that were set first. Each is somebody's decision, and more are nobody's."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What somebody said may be spent."""

    limit: Limit
    amount: Decimal | None
    """None: withdrawn."""
    policy: Policy
    time_zone: str
    set_by: str
    urgent_extra: Decimal = Decimal(0)
    why: str = ""
    basis: Json = None
    """What `suggest` gave for it, and from what."""
    set_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """A budget as it stands now. Of a cap of tasks nothing is spent: each task has its own."""

    scope: Scope
    subject: str
    period: Period
    unit: Unit
    amount: Decimal
    urgent_extra: Decimal
    policy: Policy
    time_zone: str
    set_by: str
    set_at: datetime
    begins: datetime | None
    ends: datetime | None
    spent: Decimal | None
    reserved: Decimal | None
    """By calls that are under way."""
    used_up: bool
    """A call of its day or week found no room in it, or all of it is spent."""
    now: datetime

    @property
    def limit(self) -> Limit:
        """Which budget it is."""
        return Limit(self.scope, self.subject, self.period, self.unit)

    @property
    def remaining(self) -> Decimal | None:
        """What is left for calls to come. Less than nothing where more was spent than was known beforehand."""
        if self.spent is None or self.reserved is None:
            return None
        return self.amount - self.spent - self.reserved

    @property
    def elapsed(self) -> float | None:
        """The share of its day or week that has passed."""
        if self.begins is None or self.ends is None:
            return None
        return (self.now - self.begins) / (self.ends - self.begins)

    @property
    def projection(self) -> Decimal | None:
        """What will be spent at the end of the period if it goes on as it began."""
        if self.spent is None or self.begins is None or self.ends is None:
            return None
        return projected(self.spent, self.begins, self.ends, self.now)


@dataclass(frozen=True, slots=True)
class Setting:
    """A line of the budgets' history."""

    id: int
    scope: Scope
    subject: str
    period: Period
    unit: Unit
    amount: Decimal | None
    urgent_extra: Decimal
    policy: Policy
    time_zone: str
    set_by: str
    set_at: datetime
    why: str
    basis: Json

    @property
    def limit(self) -> Limit:
        """Which budget it is."""
        return Limit(self.scope, self.subject, self.period, self.unit)


@dataclass(frozen=True, slots=True)
class Past:
    """A day or a week of a budget, over or not, and what was spent in it."""

    scope: Scope
    subject: str
    period: Period
    unit: Unit
    begins: datetime
    ends: datetime
    spent: Decimal


_SET: LiteralString = """
INSERT INTO tracekit.budgets (scope, subject, period, unit, amount, urgent_extra, policy, time_zone, set_by, why, basis)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s::jsonb)
"""

# In another time zone the day is another, and what this one holds was counted in the old: it ends now.
_CUT: LiteralString = """
UPDATE tracekit.budget_counters SET ends = clock_timestamp()
WHERE (scope, subject, period, unit) = (%s, %s, %s, %s) AND task_id = '' AND begins <= %s AND ends > clock_timestamp()
  AND (begins, ends) IS DISTINCT FROM (%s, %s)
"""

_SAY_AGAIN: LiteralString = """
UPDATE tracekit.budget_counters SET warned = 0
WHERE (scope, subject, period, unit) = (%s, %s, %s, %s) AND task_id = '' AND ends > clock_timestamp()
"""

_STANDING: LiteralString = f"""
SELECT b.scope, b.subject, b.period, b.unit, b.amount, b.urgent_extra, b.policy, b.time_zone, b.set_by, b.set_at,
       c.begins, c.ends, c.spent, c.reserved,
       coalesce(c.warned >= 1 OR (c.spent >= b.amount AND b.amount > 0), false) AS used_up, clock.now
FROM ({NEWEST}) AS b CROSS JOIN (SELECT clock_timestamp() AS now) AS clock LEFT JOIN LATERAL (
    SELECT * FROM tracekit.budget_counters AS c
    WHERE (c.scope, c.subject, c.period, c.unit) = (b.scope, b.subject, b.period, b.unit) AND c.task_id = ''
      AND b.scope <> 'task' AND c.begins > clock.now - interval '9 days' AND c.begins <= clock.now
      AND clock.now < c.ends LIMIT 1) AS c ON true
WHERE b.amount IS NOT NULL
ORDER BY array_position(ARRAY['total', 'task', 'mode', 'persona', 'requester', 'model'], b.scope), b.subject,
         array_position(ARRAY['usd', 'tokens', 'requests'], b.unit), b.period
"""

_HISTORY: LiteralString = """
SELECT id, scope, subject, period, unit, amount, urgent_extra, policy, time_zone, set_by, set_at, why, basis
FROM tracekit.budgets ORDER BY id DESC LIMIT %s
"""

_PAST: LiteralString = """
SELECT scope, subject, period, unit, begins, ends, spent FROM tracekit.budget_counters
WHERE task_id = '' ORDER BY begins DESC, scope, subject, period, unit LIMIT %s
"""


async def set_budgets(connection: AsyncConnection[Any], budgets: Sequence[Budget]) -> None:
    """Let these hold from now on, all at once, each in place of what held before under its name. What was spent and is
    reserved already in their present days and weeks counts.
    """
    async with connection.transaction():
        await connection.execute(ALONE)
        for budget in budgets:
            limit = budget.limit
            name = [limit.scope, limit.subject, limit.period, limit.unit]
            basis = None if budget.basis is None else json.dumps(budget.basis)
            extra, zone = budget.urgent_extra, budget.time_zone
            await connection.execute(
                _SET, [*name, budget.amount, extra, budget.policy, zone, budget.set_by, budget.why, basis]
            )
            await connection.execute(_SAY_AGAIN, name)
            if limit.period != "task":
                row = await (await connection.execute("SELECT clock_timestamp()")).fetchone()
                assert row is not None, "a SELECT without FROM answers one row"
                begins, ends = period_of(row[0], limit.period, zone)
                await connection.execute(_CUT, [*name, row[0], begins, ends])
        await make_counters(connection, [(one.limit, one.time_zone) for one in budgets if one.amount is not None])


async def make_present(connection: AsyncConnection[Any]) -> None:
    """Make the counters of budgets whose day or week has begun without a call."""
    absent = [one for one in await _standings(connection) if one.begins is None and one.scope != "task"]
    if absent:
        async with connection.transaction():
            await connection.execute(ALONE)
            await make_counters(connection, [(one.limit, one.time_zone) for one in absent])


async def standings(connection: AsyncConnection[Any], *, make: bool = True) -> list[Standing]:
    """All budgets that hold, as they stand: the total ones first. Without `make` nothing is written, and of a day or
    week in which nobody has spent yet nothing is known.
    """
    if make:
        await make_present(connection)
    return await _standings(connection)


async def _standings(connection: AsyncConnection[Any]) -> list[Standing]:
    async with connection.cursor(row_factory=class_row(Standing)) as cursor:
        await cursor.execute(_STANDING)
        return await cursor.fetchall()


async def history(connection: AsyncConnection[Any], limit: int = 100) -> list[Setting]:
    """Who set what and when, the newest first."""
    async with connection.cursor(row_factory=class_row(Setting)) as cursor:
        await cursor.execute(_HISTORY, [limit])
        return await cursor.fetchall()


async def past(connection: AsyncConnection[Any], limit: int = 100) -> list[Past]:
    """What was spent in the days and weeks of budgets, the newest first."""
    async with connection.cursor(row_factory=class_row(Past)) as cursor:
        await cursor.execute(_PAST, [limit])
        return await cursor.fetchall()


async def gauges(connection: AsyncConnection[Any]) -> list[tuple[str, tuple[str, ...], float]]:
    """The rows of the budgets' metrics: a metric's name, its label values, its value."""
    rows: list[tuple[str, tuple[str, ...], float]] = []
    for one in sorted(await _standings(connection), key=lambda one: one.set_at)[:MOST_SHOWN]:
        labels = (one.scope, one.subject, one.period, one.unit)
        rows.append((metrics.BUDGET_AMOUNT.name, labels, float(one.amount)))
        if one.spent is not None and one.reserved is not None and one.remaining is not None:
            rows.append((metrics.BUDGET_SPENT.name, labels, float(one.spent)))
            rows.append((metrics.BUDGET_RESERVED.name, labels, float(one.reserved)))
            rows.append((metrics.BUDGET_REMAINING.name, labels, float(one.remaining)))
            rows.append((metrics.BUDGET_USED_UP.name, labels, float(one.used_up)))
        if one.elapsed is not None:
            rows.append((metrics.BUDGET_PERIOD_ELAPSED.name, labels, one.elapsed))
    return rows
