"""The report: what was spent in some local days, by whom and on what, as the ledger knows it now.

All of it is of one moment of the database. A sum of dollars is of the calls that have a price, and beside it stands how
many have none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, LiteralString, get_args
from zoneinfo import ZoneInfo

from psycopg import AsyncConnection
from psycopg.rows import class_row

from tracekit.config import PriceSettings

Dimension = Literal["model", "mode", "persona", "requester", "origin", "task"]
DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)

MOST_GROUPS = 1_000
DEAREST = 10
PERCENTILES = (50, 90, 95, 99, 100)

_KEYS: dict[Dimension, LiteralString] = {
    "model": "u.provider || '/' || u.model",
    "mode": "u.mode",
    "persona": "coalesce(u.persona, '')",
    "requester": "u.requester",
    "origin": "u.origin",
    "task": "u.task_id",
}

_SUMS: LiteralString = """
count(*) AS calls, count(DISTINCT u.task_id) AS tasks, coalesce(sum(u.requests), 0)::bigint AS requests,
count(*) FILTER (WHERE u.cost IS NULL) AS unpriced, count(*) FILTER (WHERE u.basis <> 'reported') AS uncertain,
count(*) FILTER (WHERE u.synthetic) AS synthetic, count(*) FILTER (WHERE u.local) AS local,
coalesce(sum(u.input_tokens), 0)::bigint AS input, coalesce(sum(u.cache_read_tokens), 0)::bigint AS cache_read,
coalesce(sum(u.cache_write_tokens), 0)::bigint AS cache_write, coalesce(sum(u.output_tokens), 0)::bigint AS output,
coalesce(sum(u.reasoning_tokens), 0)::bigint AS reasoning, coalesce(sum(u.cost), 0) AS cost,
count(*) FILTER (WHERE u.retried) AS retry_calls,
coalesce(sum(u.input_tokens + u.cache_read_tokens + u.cache_write_tokens + u.output_tokens)
         FILTER (WHERE u.retried), 0)::bigint AS retry_tokens,
coalesce(sum(u.cost) FILTER (WHERE u.retried), 0) AS retry_cost
"""

_SPEND: LiteralString = """
FROM (SELECT *, tracekit.retried(task_id, hop, attempt) AS retried FROM tracekit.spend) AS u
WHERE u.at >= %(since)s AND u.at < %(until)s AND (%(synthetic)s OR NOT u.synthetic)
"""


@dataclass(frozen=True, slots=True)
class Sums:
    """What some calls came to."""

    calls: int
    tasks: int
    requests: int
    unpriced: int
    """Calls that have no price: they are not in `cost`."""
    uncertain: int
    """Calls whose tokens are estimated, or lost."""
    synthetic: int
    """Calls that a demonstration made up."""
    local: int
    """Calls of models in the house."""
    input: int
    cache_read: int
    cache_write: int
    output: int
    reasoning: int
    """Inside the output."""
    cost: Decimal
    retry_calls: int
    """Of attempts after one of the same hop that failed."""
    retry_tokens: int
    retry_cost: Decimal

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.input + self.cache_read + self.cache_write + self.output


@dataclass(frozen=True, slots=True)
class Group:
    """The calls that have one value of the report's dimension."""

    key: str
    sums: Sums


@dataclass(frozen=True, slots=True)
class Day:
    """A local day."""

    date: date
    sums: Sums


@dataclass(frozen=True, slots=True)
class PerTask:
    """What a task costs, over those that called models: `percent` of them cost no more."""

    percent: int
    cost: Decimal
    tokens: int
    calls: int


@dataclass(frozen=True, slots=True)
class DearTask:
    """A task that cost much."""

    task_id: str
    trace_id: str
    requester: str
    origin: str
    data_tier: str
    intent: str
    state: str
    calls: int
    unpriced: int
    tokens: int
    cost: Decimal
    synthetic: bool


@dataclass(frozen=True, slots=True)
class Unpriced:
    """A model that calls were made of, and no price is known."""

    provider: str
    model: str
    local: bool
    calls: int
    lost: int
    """Of them, those whose answer nobody saw: no price would help."""
    tokens: int
    last_at: datetime


@dataclass(frozen=True, slots=True)
class Subscription:
    """A flat rate of the configuration, and its part of these days."""

    label: str
    per_month: Decimal
    cost: Decimal


@dataclass(frozen=True, slots=True)
class CostReport:
    """What was spent from `since` until `until`, which are the beginnings of local days."""

    since: datetime
    until: datetime
    time_zone: str
    by: Dimension
    total: Sums
    groups: list[Group]
    days: list[Day]
    per_task: list[PerTask]
    dearest: list[DearTask]
    unpriced: list[Unpriced]
    subscriptions: list[Subscription]


def local_days(now: datetime, days: int, time_zone: str) -> list[datetime]:
    """The beginnings of the last `days` local days, today among them, and of the next: one more than `days`."""
    zone = ZoneInfo(time_zone)
    today = now.astimezone(zone).date()
    dates = [today + timedelta(days=n) for n in range(1 - days, 2)]
    return [datetime(day.year, day.month, day.day, tzinfo=zone) for day in dates]


@asynccontextmanager
async def one_moment(connection: AsyncConnection[Any]) -> AsyncIterator[datetime]:
    """A transaction that sees the database as it is now, which is what is yielded, and reads as much as it likes."""
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        await connection.execute("SET LOCAL enable_seqscan = on")
        await connection.execute("SET LOCAL plan_cache_mode = auto")
        row = await (await connection.execute("SELECT clock_timestamp()")).fetchone()
        assert row is not None, "a SELECT without FROM answers one row"
        yield row[0]


async def report(
    connection: AsyncConnection[Any],
    *,
    days: int,
    time_zone: str,
    by: Dimension = "model",
    synthetic: bool = True,
    subscriptions: Sequence[PriceSettings] = (),
) -> CostReport:
    """What was spent in the last `days` local days. Without `synthetic`, only what was really spent."""
    async with one_moment(connection) as now:
        bounds = local_days(now, days, time_zone)
        return await report_of(connection, bounds, time_zone, by=by, synthetic=synthetic, subscriptions=subscriptions)


async def report_of(
    connection: AsyncConnection[Any],
    bounds: Sequence[datetime],
    time_zone: str,
    *,
    by: Dimension = "model",
    synthetic: bool = True,
    subscriptions: Sequence[PriceSettings] = (),
) -> CostReport:
    """The report of the local days between `bounds`, in the caller's transaction (`one_moment`)."""
    window = {"since": bounds[0], "until": bounds[-1], "synthetic": synthetic, "days": bounds[:-1]}
    [total] = await _sums(connection, f"SELECT '' AS key, {_SUMS} {_SPEND}", window)
    by_day = await _sums(
        connection,
        f"SELECT width_bucket(u.at, %(days)s::timestamptz[])::text AS key, {_SUMS} {_SPEND} GROUP BY 1",
        window,
    )
    found = {int(group.key): group.sums for group in by_day}
    return CostReport(
        since=bounds[0],
        until=bounds[-1],
        time_zone=time_zone,
        by=by,
        total=total.sums,
        groups=await groups_of(connection, bounds, by, synthetic=synthetic),
        days=[
            Day(day.astimezone(ZoneInfo(time_zone)).date(), found.get(number, _NONE))
            for number, day in enumerate(bounds[:-1], 1)
        ],
        per_task=await _per_task(connection, window),
        dearest=await _rows(connection, DearTask, _DEAREST, window),
        unpriced=await _rows(connection, Unpriced, _UNPRICED, window),
        subscriptions=[_subscription(entry, bounds) for entry in subscriptions if entry.per_month is not None],
    )


async def groups_of(
    connection: AsyncConnection[Any], bounds: Sequence[datetime], by: Dimension, *, synthetic: bool = True
) -> list[Group]:
    """What was spent between `bounds` by one more dimension, the dearest first."""
    window = {"since": bounds[0], "until": bounds[-1], "synthetic": synthetic}
    return await _sums(
        connection,
        f"SELECT {_KEYS[by]} AS key, {_SUMS} {_SPEND} GROUP BY 1"
        f" ORDER BY cost DESC, calls DESC, key LIMIT {MOST_GROUPS}",
        window,
    )


_NONE = Sums(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, Decimal(0), 0, 0, Decimal(0))

_TOKENS: LiteralString = "u.input_tokens + u.cache_read_tokens + u.cache_write_tokens + u.output_tokens"

_PER_TASK: LiteralString = f"""
SELECT percentile_disc(%(shares)s::float8[]) WITHIN GROUP (ORDER BY cost) AS cost,
       percentile_disc(%(shares)s::float8[]) WITHIN GROUP (ORDER BY tokens) AS tokens,
       percentile_disc(%(shares)s::float8[]) WITHIN GROUP (ORDER BY calls) AS calls
FROM (SELECT coalesce(sum(u.cost), 0) AS cost, sum({_TOKENS})::bigint AS tokens, count(*) AS calls
      {_SPEND} GROUP BY u.task_id) AS task
"""

_DEAREST: LiteralString = f"""
SELECT s.task_id, e.trace_id, e.requester, e.origin, e.data_tier, e.intent, e.state, s.calls, s.unpriced, s.tokens,
       s.cost, s.synthetic
FROM (SELECT u.task_id, count(*) AS calls, count(*) FILTER (WHERE u.cost IS NULL) AS unpriced,
             sum({_TOKENS})::bigint AS tokens, coalesce(sum(u.cost), 0) AS cost, bool_or(u.synthetic) AS synthetic
      {_SPEND} GROUP BY u.task_id ORDER BY cost DESC, tokens DESC, u.task_id LIMIT {DEAREST}) AS s
JOIN tracekit.tasks AS e ON e.id = s.task_id ORDER BY s.cost DESC, s.tokens DESC, s.task_id
"""

_UNPRICED: LiteralString = f"""
SELECT u.provider, u.model, u.local, count(*) AS calls, count(*) FILTER (WHERE u.basis = 'lost') AS lost,
       sum({_TOKENS})::bigint AS tokens, max(u.at) AS last_at
{_SPEND} AND u.cost IS NULL GROUP BY 1, 2, 3 ORDER BY calls DESC, 1, 2, 3
"""


async def _sums(connection: AsyncConnection[Any], query: LiteralString, window: dict[str, Any]) -> list[Group]:
    cursor = await connection.execute(query, window)
    return [Group(row[0], Sums(*row[1:])) for row in await cursor.fetchall()]


async def _per_task(connection: AsyncConnection[Any], window: dict[str, Any]) -> list[PerTask]:
    shares = [percent / 100 for percent in PERCENTILES]
    row = await (await connection.execute(_PER_TASK, {**window, "shares": shares})).fetchone()
    if row is None or row[0] is None:
        return []
    return [PerTask(*values) for values in zip(PERCENTILES, *row, strict=True)]


async def _rows(connection: AsyncConnection[Any], kind: Any, query: LiteralString, window: dict[str, Any]) -> list[Any]:
    async with connection.cursor(row_factory=class_row(kind)) as cursor:
        await cursor.execute(query, window)
        return list(await cursor.fetchall())


_MONTH = Decimal(146_097) / 4_800
"""Days of an average month."""


def _subscription(entry: PriceSettings, bounds: Sequence[datetime]) -> Subscription:
    held = sum(entry.holds(day.date()) for day in bounds[:-1])
    per_month = entry.per_month or Decimal(0)
    return Subscription(entry.label, per_month, (per_month * held / _MONTH).quantize(Decimal("0.000001")))
