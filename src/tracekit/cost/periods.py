"""Periods: the local days and weeks that budgets go by, whatever a clock change makes of their length."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

Period = Literal["day", "week", "task"]
"""A local day, a local week from Monday on, or all of a task's life."""

ALWAYS = (datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC))
"""The bounds of a task's life: nothing begins before, or goes on after."""


def period_of(at: datetime, period: Period, time_zone: str) -> tuple[datetime, datetime]:
    """Where the period that `at` is in begins and where the next one does, in UTC."""
    if period == "task":
        return ALWAYS
    first, after = dates_of(at.astimezone(ZoneInfo(time_zone)).date(), period)
    return midnight(first, time_zone), midnight(after, time_zone)


def dates_of(day: date, period: Literal["day", "week"]) -> tuple[date, date]:
    """The first day of the period that a local day is in, and of the next one."""
    if period == "day":
        return day, day + timedelta(days=1)
    monday = day - timedelta(days=day.weekday())
    return monday, monday + timedelta(weeks=1)


def midnight(day: date, time_zone: str) -> datetime:
    """The moment at which a local day begins, in UTC. Where a clock change leaves midnight out, the day begins with
    the change; where it brings it twice, with the first.
    """
    return datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(time_zone)).astimezone(UTC)
