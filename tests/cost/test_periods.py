"""Days and weeks of a place: of 23, 24 and 25 hours, and never a moment in none or in two of them (C3)."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cost.budgeting import counters, holds_together, let_hold, limit, reserve
from tests.cost.driving import book, ledger_of, rows, usage
from tests.queue.driving import accept, take
from tracekit.cost.periods import Period, midnight, period_of
from tracekit.queue import Queue

AMSTERDAM = "Europe/Amsterdam"
PERIODS: tuple[Period, ...] = ("day", "week")


@pytest.mark.parametrize(
    ("day", "hours"), [(date(2026, 3, 29), 23), (date(2026, 10, 25), 25), (date(2026, 11, 24), 24)]
)
def test_c3_a_day_is_as_long_as_the_clocks_make_it(day: date, hours: int) -> None:
    noon = datetime(day.year, day.month, day.day, 11, tzinfo=UTC)
    begins, ends = period_of(noon, "day", AMSTERDAM)
    assert ends - begins == timedelta(hours=hours)
    assert begins == midnight(day, AMSTERDAM)
    week = period_of(noon, "week", AMSTERDAM)
    assert week[1] - week[0] == timedelta(days=7, hours=hours - 24)


def test_c3_where_the_clock_change_leaves_midnight_out_the_day_begins_with_it() -> None:
    # Beirut, 27 March 2022: midnight became one o'clock.
    begins = midnight(date(2022, 3, 27), "Asia/Beirut")
    assert begins == datetime(2022, 3, 26, 22, tzinfo=UTC)
    assert period_of(begins, "day", "Asia/Beirut")[1] - begins == timedelta(hours=23)


@given(
    at=st.integers(1_577_836_800, 2_051_222_400).map(lambda second: datetime.fromtimestamp(second, UTC)),
    zone=st.sampled_from(
        [AMSTERDAM, "America/Sao_Paulo", "Asia/Kathmandu", "Australia/Lord_Howe", "Asia/Beirut", "UTC"]
    ),
    period=st.sampled_from(PERIODS),
)
def test_c3_periods_follow_each_other_without_a_gap(at: datetime, zone: str, period: Period) -> None:
    begins, ends = period_of(at, period, zone)
    assert begins <= at < ends
    assert period_of(begins, period, zone) == (begins, ends)
    assert period_of(ends, period, zone)[0] == ends
    assert period_of(begins - timedelta(microseconds=1), period, zone)[1] == begins


async def test_c3_a_call_counts_in_the_day_in_which_it_was_made(queue: Queue) -> None:
    """What was made yesterday and is booked today takes nothing of today's budget; a week has both."""
    await let_hold(queue, limit("total", "day", "requests"), 5, time_zone=AMSTERDAM)
    await let_hold(queue, limit("total", "day", "tokens"), 500, time_zone=AMSTERDAM)
    await accept(queue)
    at = await take(queue)
    [(begins, ends)] = await rows(
        queue, "SELECT begins, ends FROM tracekit.budget_counters WHERE unit = 'requests' AND period = 'day'"
    )
    for key, moment, counted in (
        ("the last of yesterday", begins - timedelta(microseconds=1), 0),
        ("the first of today", begins, 1),
        ("the last of today", ends - timedelta(microseconds=1), 2),
        ("the first of tomorrow", ends, 2),
    ):
        await book(ledger_of(queue), at, usage(key=key, at=moment))
        assert (await counters(queue))["requests"] == (counted, 0)
    await holds_together(queue)


async def test_c3_a_new_day_has_a_counter_of_its_own(queue: Queue) -> None:
    of = limit("total", "day", "requests")
    await let_hold(queue, of, 1)
    await accept(queue)
    at = await take(queue)
    ledger = ledger_of(queue)
    await reserve(ledger, at, "today")
    async with queue.connection() as connection:
        # What was today was yesterday.
        for statement in (
            "UPDATE tracekit.budget_counters SET begins = begins - interval '1 day', ends = ends - interval '1 day'",
            "UPDATE tracekit.reservations SET made_at = made_at - interval '1 day'",
        ):
            await connection.execute(statement.encode())
    await reserve(ledger, at, "the next day")
    await book(ledger, at, usage(key="today"), usage(key="the next day"))
    assert await rows(queue, "SELECT spent, reserved FROM tracekit.budget_counters") == [(1, 0), (1, 0)]
    await holds_together(queue, within=True)
