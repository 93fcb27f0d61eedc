"""What happened in a week, from the record: tasks, attempts, approvals, the DLQ, what was spent, and the budgets.

A week is an ISO week of local days. All of it is of one moment of the database, and of a week that is over it is the
same whenever it is read, but for what is learnt later.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, LiteralString, Self
from zoneinfo import ZoneInfo

from psycopg import AsyncConnection
from psycopg.rows import class_row, scalar_row

from tracekit import ids
from tracekit.config import PriceSettings
from tracekit.cost.limits import Limit
from tracekit.cost.periods import midnight
from tracekit.cost.report import CostReport, Group, groups_of, one_moment, report_of
from tracekit.errors import TracekitError
from tracekit.queue.tasks import SYNTHETIC_SURFACE

SLOWEST = 10


class NoSuchWeek(TracekitError):
    """It is no ISO week, or has not begun."""

    exit_code = 2


@dataclass(frozen=True, slots=True, order=True)
class Week:
    """An ISO week: it begins on Monday, and belongs to the year that its Thursday is in."""

    year: int
    number: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """`2026-W47`. Raises `NoSuchWeek`."""
        found = re.fullmatch(r"([0-9]{4})-W([0-9]{2})", text)
        try:
            assert found is not None
            date.fromisocalendar(int(found[1]), int(found[2]), 7) + timedelta(days=1)
            return cls(int(found[1]), int(found[2]))
        except (AssertionError, ValueError, OverflowError):
            raise NoSuchWeek(f"{text!r} is no ISO week", hint="it looks like 2026-W47") from None

    @classmethod
    def of(cls, day: date) -> Self:
        """The week that a local day is in."""
        year, number, _ = day.isocalendar()
        return cls(year, number)

    @classmethod
    def before(cls, now: datetime, time_zone: str) -> Self:
        """The last week that is over."""
        return cls.of(now.astimezone(ZoneInfo(time_zone)).date() - timedelta(days=7))

    def __str__(self) -> str:
        return f"{self.year}-W{self.number:02}"

    @property
    def days(self) -> list[date]:
        """From Monday to Sunday."""
        monday = date.fromisocalendar(self.year, self.number, 1)
        return [monday + timedelta(days=n) for n in range(7)]

    def bounds(self, time_zone: str) -> list[datetime]:
        """Where its seven local days begin, and the day after them."""
        return [midnight(day, time_zone) for day in [*self.days, self.days[-1] + timedelta(days=1)]]


@dataclass(frozen=True, slots=True)
class Ends:
    """Tasks that ended in a mode with an outcome."""

    mode: str
    outcome: str
    tasks: int


@dataclass(frozen=True, slots=True)
class Attempts:
    """The attempts of a mode that ended in the week."""

    mode: str
    attempts: int
    retries: int
    """Attempts after a hop's first."""
    failed: int
    median: timedelta
    longest: timedelta


@dataclass(frozen=True, slots=True)
class SlowTask:
    """A task that took long, from its acceptance to its end."""

    task_id: str
    intent: str
    outcome: str
    created_at: datetime
    ended_at: datetime


@dataclass(frozen=True, slots=True)
class Decisions:
    """Approvals that were decided in the week, or expired in it."""

    decision: str
    approvals: int
    median: timedelta
    """From being asked to the decision."""
    longest: timedelta


@dataclass(frozen=True, slots=True)
class Deaths:
    """Tasks that came into the DLQ in the week."""

    mode: str
    reason: str
    tasks: int
    open: int
    """That still lie there."""


@dataclass(frozen=True, slots=True)
class BudgetWeek:
    """A budget in the week: each of its days, or the week."""

    limit: Limit
    periods: int
    amount: Decimal | None
    """As it was set at the end of the dearest period. None: withdrawn."""
    most: Decimal
    """Spent in the dearest of the periods."""


@dataclass(frozen=True, slots=True)
class Record:
    """A week, as it is known now."""

    week: Week
    time_zone: str
    over: bool
    accepted: int
    open: int
    """Of the accepted, those that have not ended yet."""
    restricted: int
    """Of the accepted, those whose data is restricted: they are counted, and nothing is told of them (P8)."""
    ends: list[Ends]
    attempts: list[Attempts]
    slowest: list[SlowTask]
    decisions: list[Decisions]
    undecided: int
    """Approvals that were asked for by the end of the week and not decided in it."""
    deaths: list[Deaths]
    cost: CostReport
    by_mode: list[Group]
    by_requester: list[Group]
    dear_and_secret: frozenset[str]
    """Of the report's dearest tasks those of which nothing is told."""
    accepted_at: dict[str, datetime]
    """When the dearest tasks were accepted, which their summaries are named by."""
    budgets: list[BudgetWeek]


_REAL: LiteralString = "(%(synthetic)s OR e.surface <> %(made_up)s)"

_SECRET: LiteralString = """
(e.data_tier = 'restricted' OR EXISTS (
    SELECT FROM tracekit.hops AS h WHERE h.task_id = e.id
    AND h.input @? '$.plan.steps[*] ? (@.data_tier == "restricted")'))
"""

_ACCEPTED: LiteralString = f"""
SELECT count(*), count(*) FILTER (WHERE e.state IN ('open', 'dead')),
       count(*) FILTER (WHERE e.data_tier = 'restricted')
FROM tracekit.tasks AS e WHERE e.created_at >= %(since)s AND e.created_at < %(until)s AND {_REAL}
"""

_ENDS: LiteralString = f"""
SELECT r.mode, r.end_state AS outcome, count(*) AS tasks
FROM tracekit.record AS r JOIN tracekit.envelopes AS e ON e.id = r.task_id
WHERE r.end_state IS NOT NULL AND r.at >= %(since)s AND r.at < %(until)s AND {_REAL} GROUP BY 1, 2 ORDER BY 1, 2
"""

_ATTEMPTS: LiteralString = f"""
SELECT r.mode, count(*) AS attempts, count(*) FILTER (WHERE r.attempt > 1) AS retries,
       count(*) FILTER (WHERE r.data ? 'error') AS failed,
       percentile_disc(0.5) WITHIN GROUP (ORDER BY r.at - r.claimed_at) AS median,
       max(r.at - r.claimed_at) AS longest
FROM tracekit.record AS r JOIN tracekit.envelopes AS e ON e.id = r.task_id
WHERE r.claimed_at IS NOT NULL AND r.outcome IS NOT NULL AND r.at >= %(since)s AND r.at < %(until)s AND {_REAL}
GROUP BY 1 ORDER BY 1
"""

_SLOWEST: LiteralString = f"""
SELECT e.id AS task_id, e.intent, r.end_state AS outcome, e.created_at, r.at AS ended_at
FROM tracekit.record AS r JOIN tracekit.envelopes AS e ON e.id = r.task_id
WHERE r.end_state IS NOT NULL AND r.at >= %(since)s AND r.at < %(until)s AND {_REAL} AND NOT {_SECRET}
ORDER BY r.at - e.created_at DESC, e.id LIMIT {SLOWEST}
"""

_DECISIONS: LiteralString = f"""
SELECT coalesce(CASE jsonb_typeof(s.payload) WHEN 'object' THEN s.payload ->> 'decision' END, w.resolution) AS decision,
       count(*) AS approvals,
       percentile_disc(0.5) WITHIN GROUP (ORDER BY w.closed_at - w.opened_at) AS median,
       max(w.closed_at - w.opened_at) AS longest
FROM tracekit.waits AS w JOIN tracekit.envelopes AS e ON e.id = w.task_id
LEFT JOIN tracekit.signals AS s ON s.id = w.signal_id
WHERE w.kind = 'approval' AND w.closed_at >= %(since)s AND w.closed_at < %(until)s AND {_REAL} GROUP BY 1 ORDER BY 1
"""

_UNDECIDED: LiteralString = f"""
SELECT count(*) FROM tracekit.waits AS w JOIN tracekit.envelopes AS e ON e.id = w.task_id
WHERE w.kind = 'approval' AND w.opened_at < %(until)s AND coalesce(w.closed_at, 'infinity') >= %(until)s AND {_REAL}
"""

_DEATHS: LiteralString = f"""
SELECT d.mode, d.reason, count(*) AS tasks, count(*) FILTER (WHERE d.resolved_at IS NULL) AS open
FROM tracekit.dead_letters AS d JOIN tracekit.envelopes AS e ON e.id = d.task_id
WHERE d.died_at >= %(since)s AND d.died_at < %(until)s AND {_REAL} GROUP BY 1, 2 ORDER BY 1, 2
"""

_DEAR: LiteralString = f"SELECT e.id, e.created_at, {_SECRET} FROM tracekit.envelopes AS e WHERE e.id = ANY(%(tasks)s)"

_BUDGETS: LiteralString = """
SELECT c.scope, c.subject, c.period, c.unit, c.spent,
       (SELECT b.amount FROM tracekit.budgets AS b
        WHERE (b.scope, b.subject, b.period, b.unit) = (c.scope, c.subject, c.period, c.unit) AND b.set_at < c.ends
        ORDER BY b.id DESC LIMIT 1) AS amount
FROM tracekit.budget_counters AS c
WHERE c.task_id = '' AND c.begins >= %(since)s AND c.begins < %(until)s
ORDER BY array_position(ARRAY['total', 'mode', 'persona', 'requester', 'model'], c.scope), c.subject,
         array_position(ARRAY['usd', 'tokens', 'requests'], c.unit), c.period, c.begins
"""

_ANY: LiteralString = """
SELECT EXISTS (SELECT FROM tracekit.envelopes AS e
               WHERE e.id >= %s AND e.id < %s AND e.surface <> %s)
"""


async def had_tasks(connection: AsyncConnection[Any], week: Week, time_zone: str) -> bool:
    """Whether anything was asked for in it, but for what a demonstration made up."""
    since, *_, until = week.bounds(time_zone)
    async with connection.cursor(row_factory=scalar_row) as cursor:
        await cursor.execute(_ANY, [ids.first_task_id(since), ids.first_task_id(until), SYNTHETIC_SURFACE])
        return bool(await cursor.fetchone())


async def read_week(
    connection: AsyncConnection[Any],
    week: Week | None,
    time_zone: str,
    *,
    synthetic: bool = False,
    subscriptions: Sequence[PriceSettings] = (),
) -> Record:
    """The record of a week; None: of the last that is over. Without `synthetic`, only what really was. Raises
    `NoSuchWeek`.
    """
    async with one_moment(connection) as now:
        week = week or Week.before(now, time_zone)
        bounds = week.bounds(time_zone)
        if bounds[0] > now:
            raise NoSuchWeek(
                f"the week {week} has not begun", hint=f"the last one that is over is {Week.before(now, time_zone)}"
            )
        window = {"since": bounds[0], "until": bounds[-1], "synthetic": synthetic, "made_up": SYNTHETIC_SURFACE}
        accepted, still_open, restricted = await _row(connection, _ACCEPTED, window)
        cost = await report_of(connection, bounds, time_zone, synthetic=synthetic, subscriptions=subscriptions)
        dear = await (await connection.execute(_DEAR, {"tasks": [task.task_id for task in cost.dearest]})).fetchall()
        [undecided] = await _row(connection, _UNDECIDED, window)
        return Record(
            week=week,
            time_zone=time_zone,
            over=bounds[-1] <= now,
            accepted=accepted,
            open=still_open,
            restricted=restricted,
            ends=await _rows(connection, Ends, _ENDS, window),
            attempts=await _rows(connection, Attempts, _ATTEMPTS, window),
            slowest=await _rows(connection, SlowTask, _SLOWEST, window),
            decisions=await _rows(connection, Decisions, _DECISIONS, window),
            undecided=undecided,
            deaths=await _rows(connection, Deaths, _DEATHS, window),
            cost=cost,
            by_mode=await groups_of(connection, bounds, "mode", synthetic=synthetic),
            by_requester=await groups_of(connection, bounds, "requester", synthetic=synthetic),
            dear_and_secret=frozenset(task_id for task_id, _, secret in dear if secret),
            accepted_at={task_id: created_at for task_id, created_at, _ in dear},
            budgets=_budgets(await (await connection.execute(_BUDGETS, window)).fetchall()),
        )


def _budgets(rows: Sequence[Any]) -> list[BudgetWeek]:
    found: dict[Limit, list[tuple[Decimal, Decimal | None]]] = {}
    for *name, spent, amount in rows:
        found.setdefault(Limit(*name), []).append((spent, amount))
    return [
        BudgetWeek(limit, len(periods), amount, most)
        for limit, periods in found.items()
        for most, amount in [max(periods, key=lambda one: one[0])]
    ]


async def _row(connection: AsyncConnection[Any], query: LiteralString, window: dict[str, Any]) -> Any:
    row = await (await connection.execute(query, window)).fetchone()
    assert row is not None, "an aggregate answers one row"
    return row


async def _rows(connection: AsyncConnection[Any], kind: Any, query: LiteralString, window: dict[str, Any]) -> list[Any]:
    async with connection.cursor(row_factory=class_row(kind)) as cursor:
        await cursor.execute(query, window)
        return list(await cursor.fetchall())
