"""Suggestions: numbers for budgets, from what was spent, each with what it comes from (C4).

- a day: the 90th percentile of the days, so that one day in ten would have had to ask;
- a week: the dearest seven days in a row;
- a task: twice the 99th percentile of tasks, which is there to stop what runs away;

to a day and a week is added a week of the trend, where it clearly rises, then the head-room; rounded up to two digits.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from itertools import combinations
from statistics import median
from typing import Any, LiteralString
from zoneinfo import ZoneInfo

from psycopg import AsyncConnection

from tracekit.cost.counting import TOKENS, in_unit
from tracekit.cost.limits import Limit, Scope, Unit, about
from tracekit.cost.periods import midnight
from tracekit.errors import TracekitError

ENOUGH = 7
"""Days with calls that a number needs: a household's Sunday is not its Monday, and a month of silence says nothing."""
MOST_DAYS = 28
"""Days that are looked at, the last ones: what was before is not how it is now."""
HEAD_ROOM = Decimal("0.2")
TASK_FACTOR = Decimal(2)
CLEARLY = 2 / 3
"""Share of the pairs of days of which the later one is dearer, from which on the trend is taken to rise."""
LEAST_SHARE = Decimal("0.05")
"""Of all that was spent: a part that is less has no budget suggested."""


class NotEnoughData(TracekitError):
    """The ledger has not seen as many days as a number needs."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Basis:
    """What a number comes from. Amounts are in its budget's unit."""

    first: date
    last: date
    days: int
    """From `first` to `last`, all of which count, those without a call as well."""
    days_with_calls: int
    synthetic: bool
    """All of it was made up by a demonstration."""
    calls: int
    unpriced: int
    """Calls that no dollar stands for."""
    median: Decimal
    p90: Decimal
    most: Decimal
    of: str
    """What `median`, `p90` and `most` are of: days, weeks or tasks."""
    trend: Decimal
    """A day, by the median of the slopes between any two days."""
    rises: bool
    """Whether the trend is clear enough to count."""
    level: Decimal
    """What the head-room is added to."""
    head_room: Decimal
    how: str


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A number for a budget."""

    limit: Limit
    amount: Decimal
    basis: Basis


@dataclass(frozen=True, slots=True)
class _Seen:
    first: date
    last: date
    days: int
    days_with_calls: int
    synthetic: bool
    calls: int
    unpriced: int


_FIRST: LiteralString = "SELECT min(at) FROM tracekit.spend WHERE synthetic = %s"

_FROM: LiteralString = """
FROM tracekit.spend AS u LEFT JOIN tracekit.reservations AS v ON (v.task_id, v.key) = (u.task_id, u.key)
WHERE u.at >= %(since)s AND u.at < %(until)s AND u.synthetic = %(synthetic)s
"""
_COUNT: LiteralString = f"""
SELECT count(*), count(*) FILTER (WHERE u.cost IS NULL), count(DISTINCT width_bucket(u.at, %(bounds)s::timestamptz[]))
{_FROM}
"""
_VALUE = in_unit("%(unit)s", "coalesce(u.cost, 0)", f"(u.{TOKENS.replace(' + ', ' + u.')})", "u.requests")

_SUBJECTS: dict[str, LiteralString] = {
    "total": "''",
    "mode": "u.mode",
    "persona": "coalesce(u.persona, '')",
    "requester": "u.requester",
    "model": "coalesce(v.model, u.model)",
}


async def suggest(
    connection: AsyncConnection[Any],
    time_zone: str,
    *,
    by: Sequence[Scope] = (),
    unit: Unit = "usd",
    synthetic: bool | None = None,
    anyway: bool = False,
) -> list[Suggestion]:
    """Numbers for the total of a day and of a week and for a task, and for a day of whatever is asked for in `by`.

    `synthetic`: from what a demonstration made up, or not; None: only where there is nothing else. Today, which is not
    over, does not count. Raises `NotEnoughData` for less than `ENOUGH` days with calls, unless told to go on `anyway`;
    and always where there is none.
    """
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        await connection.execute("SET LOCAL enable_seqscan = on")
        seen, window = await _look(connection, time_zone, unit, synthetic, anyway)
        days = await _by_day(connection, "total", window, seen)
        whole = days.get("", [Decimal(0)] * seen.days)
        found = [_of_a_day(Limit("total", "", "day", unit), whole, seen), _of_a_week(unit, whole, seen)]
        tasks = await _tasks(connection, window)
        found.append(_of_a_task(unit, tasks, seen))
        for scope in by:
            for subject, values in sorted((await _by_day(connection, scope, window, seen)).items()):
                if subject and sum(values) >= LEAST_SHARE * sum(whole):
                    found.append(_of_a_day(Limit(scope, subject, "day", unit), values, seen))
    return [one for one in found if one.amount > 0]


async def _look(
    connection: AsyncConnection[Any], time_zone: str, unit: Unit, synthetic: bool | None, anyway: bool
) -> tuple[_Seen, dict[str, Any]]:
    now: datetime = (await _row(connection, "SELECT clock_timestamp()"))[0]
    today = now.astimezone(ZoneInfo(time_zone)).date()
    first_at = (await _row(connection, _FIRST, [bool(synthetic)]))[0]
    if synthetic is None and first_at is None:
        synthetic = True
        first_at = (await _row(connection, _FIRST, [True]))[0]
    first = today if first_at is None else first_at.astimezone(ZoneInfo(time_zone)).date()
    first = max(first, today - timedelta(days=MOST_DAYS))
    days = (today - first).days
    window = {
        "since": midnight(first, time_zone),
        "until": midnight(today, time_zone),
        "bounds": [midnight(first + timedelta(days=n), time_zone) for n in range(days)],
        "synthetic": bool(synthetic),
        "unit": unit,
    }
    calls, unpriced, with_calls = (0, 0, 0) if not days else await _row(connection, _COUNT, window)
    if with_calls < ENOUGH and not (anyway and with_calls):
        when = f", in the {days} since {first}; today is not over" if days else ": its first call is of today"
        raise NotEnoughData(
            f"the ledger has {with_calls} of the {ENOUGH} days with calls that a number needs"
            + ("; it has nothing yet" if first_at is None else when),
            hint="wait, or `--anyway` takes what there is"
            if with_calls
            else "`tracekit demo --week` shows what it will say"
            if first_at is None
            else "wait: a synthetic week does not count beside what is real",
        )
    return _Seen(first, today - timedelta(days=1), days, with_calls, bool(synthetic), calls, unpriced), window


async def _by_day(
    connection: AsyncConnection[Any], scope: str, window: dict[str, Any], seen: _Seen
) -> dict[str, list[Decimal]]:
    """What each subject of a scope spent on each of the days."""
    cursor = await connection.execute(
        f"SELECT {_SUBJECTS[scope]}, width_bucket(u.at, %(bounds)s::timestamptz[]), sum({_VALUE})::numeric"
        f" {_FROM} GROUP BY 1, 2",
        window,
    )
    found: defaultdict[str, list[Decimal]] = defaultdict(lambda: [Decimal(0)] * seen.days)
    for subject, day, amount in await cursor.fetchall():
        found[subject][day - 1] = amount
    return dict(found)


async def _tasks(connection: AsyncConnection[Any], window: dict[str, Any]) -> list[Decimal]:
    cursor = await connection.execute(f"SELECT sum({_VALUE})::numeric {_FROM} GROUP BY u.task_id", window)
    return [row[0] for row in await cursor.fetchall()]


# --- the numbers ----------------------------------------------------------------------------------------------------


def _of_a_day(limit: Limit, days: Sequence[Decimal], seen: _Seen) -> Suggestion:
    trend, rises = trend_of(days)
    most = percentile(days, 90)
    level = most + (7 * trend if rises else 0)
    how = f"90 % of the days cost no more than {about(limit.unit, most)}" + _trend(limit.unit, 7 * trend, rises)
    return _suggest(limit, days, "days", level, HEAD_ROOM, how, trend, rises, seen)


def _of_a_week(unit: Unit, days: Sequence[Decimal], seen: _Seen) -> Suggestion:
    trend, rises = trend_of(days)
    length = min(7, len(days))
    # Fewer than seven days, where somebody wanted a number anyway, stand for a week of such days.
    weeks = [sum(days[n : n + length], Decimal(0)) * 7 / length for n in range(len(days) - length + 1)]
    level = max(weeks) + (7 * 7 * trend if rises else 0)
    how = f"the dearest seven days in a row: {about(unit, max(weeks))}" + _trend(unit, 7 * 7 * trend, rises)
    return _suggest(Limit("total", "", "week", unit), weeks, "weeks", level, HEAD_ROOM, how, trend, rises, seen)


def _trend(unit: Unit, amount: Decimal, rises: bool) -> str:
    return f", and a week of the trend, {about(unit, amount)}" if rises else ""


def _of_a_task(unit: Unit, tasks: Sequence[Decimal], seen: _Seen) -> Suggestion:
    level = percentile(tasks, 99)
    how = f"99 % of the tasks cost no more than {about(unit, level)}"
    limit = Limit("task", "", "task", unit)
    return _suggest(limit, tasks, "tasks", level, TASK_FACTOR - 1, how, Decimal(0), False, seen)


def _suggest(
    limit: Limit, values: Sequence[Decimal], of: str, level: Decimal, head_room: Decimal, how: str, trend: Decimal,
    rises: bool, seen: _Seen,
) -> Suggestion:  # fmt: skip
    basis = Basis(
        first=seen.first,
        last=seen.last,
        days=seen.days,
        days_with_calls=seen.days_with_calls,
        synthetic=seen.synthetic,
        calls=seen.calls,
        unpriced=seen.unpriced,
        median=percentile(values, 50),
        p90=percentile(values, 90),
        most=max(values, default=Decimal(0)),
        of=of,
        trend=trend,
        rises=rises,
        level=level,
        head_room=head_room,
        how=f"{how}; plus {head_room:.0%}, rounded up",
    )
    return Suggestion(limit, rounded_up(level * (1 + head_room), whole=limit.unit != "usd"), basis)


def percentile(values: Sequence[Decimal], percent: int) -> Decimal:
    """The least of `values` that at least `percent` of them do not exceed; 0 where there are none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else Decimal(0)


def trend_of(days: Sequence[Decimal]) -> tuple[Decimal, bool]:
    """By how much a day differs from the one before, as the median of all slopes between two days has it, which one odd
    day does not move (Theil and Sen); and whether it clearly rises.
    """
    slopes = [(after - before) / (j - i) for (i, before), (j, after) in combinations(enumerate(days), 2)]
    if not slopes:
        return Decimal(0), False
    slope = Decimal(median(slopes))
    return slope, slope > 0 and sum(one > 0 for one in slopes) >= CLEARLY * len(slopes)


def rounded_up(amount: Decimal, *, whole: bool = False) -> Decimal:
    """To two digits: `0.0347` to `0.035`, `12.31` to `13`."""
    if amount <= 0:
        return Decimal(0)
    step = Decimal(1).scaleb(amount.adjusted() - 1)
    if whole:
        step = max(step, Decimal(1))
    up = (amount / step).to_integral_value(ROUND_CEILING) * step
    return Decimal(f"{up.normalize():f}")


async def _row(connection: AsyncConnection[Any], query: LiteralString, parameters: Any = None) -> Any:
    row = await (await connection.execute(query, parameters)).fetchone()
    assert row is not None, "it asks for one row"
    return row
