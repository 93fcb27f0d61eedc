"""Suggestions: from seven days at least, with what each number comes from; and the week that shows them (C4)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.cost.budgeting import counters, holds_together, let_hold, limit
from tests.cost.driving import PRICES, all_counted, all_spent, book, ledger_of, rows, usage
from tests.queue.driving import accept, take
from tracekit.config import Settings
from tracekit.cost.suggestion import NotEnoughData, Suggestion, percentile, rounded_up, suggest, trend_of
from tracekit.demo.week import WeekError, remove, write
from tracekit.postgres import connect
from tracekit.queue import Queue
from tracekit.queue.audit import Finding, audit

DAY = timedelta(days=1)


async def spend(queue: Queue, by_day: list[Decimal], **more: Any) -> None:
    """A call at noon of each day before today, the last one yesterday."""
    await accept(queue)
    at = await take(queue)
    noon = datetime.now(UTC).replace(hour=12)
    for number, cost in enumerate(by_day):
        call = usage(cost=cost, model="billed", billed_by="test", at=noon - (len(by_day) - number) * DAY)
        await book(ledger_of(queue), at, call, **more)


async def ask(queue: Queue, **how: Any) -> list[Suggestion]:
    async with queue.connection() as connection:
        return await suggest(connection, "UTC", **how)


async def test_c4_with_fewer_than_seven_days_nothing_is_suggested_unless_told_to(queue: Queue) -> None:
    with pytest.raises(NotEnoughData, match=r"has 0 of the 7 days .* it has nothing yet"):
        await ask(queue)
    with pytest.raises(NotEnoughData):
        await ask(queue, anyway=True)
    await spend(queue, [Decimal(1)] * 6)
    with pytest.raises(NotEnoughData, match="has 6 of the 7 days"):
        await ask(queue)
    day, week, _ = await ask(queue, anyway=True)
    assert (day.amount, day.basis.days) == (Decimal("1.2"), 6)
    assert week.amount == Decimal("8.4")


async def test_c4_days_without_a_call_are_no_data(queue: Queue) -> None:
    await spend(queue, [Decimal(1)])
    await accept(queue)
    at = await take(queue)
    long_ago = datetime.now(UTC) - 20 * DAY
    await book(ledger_of(queue), at, usage(cost=Decimal(1), model="billed", billed_by="test", at=long_ago))
    with pytest.raises(NotEnoughData, match=r"has 2 of the 7 days with calls .* in the 20 since"):
        await ask(queue)
    basis = (await ask(queue, anyway=True))[0].basis
    assert (basis.days, basis.days_with_calls) == (20, 2)


async def test_c4_each_number_says_what_it_comes_from(queue: Queue) -> None:
    await spend(queue, [Decimal(n) for n in (3, 1, 2, 5, 1, 4, 2)])
    day, week, task = await ask(queue)
    assert (day.limit.name, week.limit.name, task.limit.name) == ("total/day/usd", "total/week/usd", "task/task/usd")
    basis = day.basis
    assert (basis.days, basis.days_with_calls, basis.calls, basis.unpriced) == (7, 7, 7, 0)
    assert not basis.synthetic
    assert [basis.median, basis.p90, basis.most] == [2, 5, 5]
    assert basis.of == "days"
    assert not basis.rises
    assert day.amount == 6
    assert week.amount == Decimal(22)
    assert week.basis.level == 18
    assert task.amount == 36
    assert basis.how == "90 % of the days cost no more than $5.00; plus 20%, rounded up"
    assert week.basis.how == "the dearest seven days in a row: $18.00; plus 20%, rounded up"
    assert task.basis.how == "99 % of the tasks cost no more than $18.00; plus 100%, rounded up"


async def test_c4_where_the_days_clearly_rise_a_week_of_it_is_added(queue: Queue) -> None:
    await spend(queue, [Decimal(n) for n in range(1, 9)])
    day, _, _ = await ask(queue)
    assert day.basis.trend == 1
    assert day.basis.rises
    assert day.basis.level == 8 + 7
    assert day.amount == 18
    assert day.basis.how == (
        "90 % of the days cost no more than $8.00, and a week of the trend, $7.00; plus 20%, rounded up"
    )


async def test_c4_parts_are_suggested_where_they_matter_and_in_their_unit(queue: Queue) -> None:
    await spend(queue, [Decimal(1)] * 7)
    names = [one.limit.name for one in await ask(queue, by=("mode", "requester", "model", "persona"), unit="tokens")]
    assert names[3:] == ["mode router/day/tokens", "requester rob/day/tokens", "model billed/day/tokens"]
    assert (await ask(queue, unit="requests"))[0].amount == 2


async def test_c4_what_was_made_up_counts_only_where_there_is_nothing_else(queue: Queue) -> None:
    await spend(queue, [Decimal(9)] * 7, synthetic=True)
    assert (await ask(queue))[0].basis.synthetic
    await spend(queue, [Decimal(1)] * 2)
    with pytest.raises(NotEnoughData):
        await ask(queue)
    assert (await ask(queue, synthetic=True))[0].basis.most == 9


def test_c4_percentiles_trend_and_rounding() -> None:
    values = [Decimal(n) for n in range(1, 11)]
    assert [percentile(values, percent) for percent in (0, 50, 90, 99, 100)] == [1, 5, 9, 10, 10]
    assert percentile([], 50) == 0
    assert trend_of([Decimal(5)]) == (Decimal(0), False)
    assert trend_of([Decimal(n) for n in (9, 8, 7)]) == (Decimal(-1), False)
    assert [rounded_up(Decimal(text)) for text in ("0.0341", "12.01", "12", "0", "999")] == [
        Decimal("0.035"), 13, 12, 0, 1000,
    ]  # fmt: skip
    assert rounded_up(Decimal("3.2"), whole=True) == 4


# --- the week -------------------------------------------------------------------------------------------------------


async def _everything(queue: Queue) -> dict[str, int]:
    tables = await rows(
        queue, "SELECT tablename FROM pg_tables WHERE schemaname = 'tracekit' AND tablename !~ '^record_'"
    )
    return {name: (await rows(queue, f"SELECT count(*) FROM tracekit.{name}"))[0][0] for (name,) in tables}


async def test_a_synthetic_week_is_written_marked_and_taken_away(queue: Queue, dsn: str) -> None:
    await let_hold(queue, limit("total", "week", "usd"), 1)
    task_id = await accept(queue)
    at = await take(queue)
    await book(ledger_of(queue), at, usage())
    before, budget = await _everything(queue), await counters(queue)
    settings = Settings(prices=PRICES)
    async with await connect(dsn, autocommit=True) as connection:
        written = await write(connection, settings)
        assert (written.last - written.first).days == 6
        with pytest.raises(WeekError, match="already"):
            await write(connection, settings)
        made = await rows(
            queue,
            "SELECT count(*), min(created_at), max(ended_at), bool_and(state = 'done'), bool_and(tags = '{synthetic}'),"
            " count(DISTINCT origin) FROM tracekit.tasks WHERE surface = 'demo-week'",
        )
        [(tasks, first, last, done, tagged, origins)] = made
        assert (tasks, done, tagged, origins) == (written.tasks, True, True, 6)
        assert first.date() == written.first
        assert last.date() <= written.last + DAY
        assert written.retries > 0
        [(calls, cost, real)] = await rows(
            queue,
            "SELECT count(*) FILTER (WHERE synthetic), sum(cost) FILTER (WHERE synthetic),"
            " count(*) FILTER (WHERE NOT synthetic) FROM tracekit.spend",
        )
        assert (calls, cost, real) == (written.calls, written.cost, 1)
        assert (
            await rows(queue, "SELECT FROM tracekit.usage WHERE synthetic AND booked_at > at + interval '1 hour'") == []
        )
        marks = await rows(
            queue,
            "SELECT DISTINCT split_part(name, ' ', 1),"
            " attributes->>'tracekit.surface', attributes->'tracekit.synthetic'"
            " FROM tracekit.spans JOIN tracekit.envelopes AS e ON e.id = task_id"
            " WHERE e.surface = 'demo-week' AND split_part(name, ' ', 1) IN ('task', 'chat') ORDER BY 1",
        )
        assert marks == [("chat", None, True), ("task", "demo-week", None)]
        # The record of it holds together as any other does, ledger and metrics agree, and no budget knows of it.
        async with queue.connection() as other:
            assert [found async for found in audit(other) if isinstance(found, Finding)] == []
        assert await all_counted(queue) == await all_spent(queue)
        assert await counters(queue) == budget
        await holds_together(queue)
        assert (await ask(queue, synthetic=True))[0].basis.days == 7

        # The surface alone is a name that anybody may choose.
        await connection.execute("UPDATE tracekit.envelopes SET surface = 'demo-week' WHERE id = %s", [task_id])
        assert await remove(connection) == tasks
        assert await _everything(queue) == before
        assert await remove(connection) == 0
        # The same seed is the same week.
        again = await write(connection, settings)
        assert again == written
        assert await write_other_seed(connection, settings) != written
    assert (await queue.task(task_id)).state == "open"


async def write_other_seed(connection: Any, settings: Settings) -> object:
    await remove(connection)
    return await write(connection, settings, seed=5)


async def test_a_week_that_cannot_be_told_to_its_end_leaves_none_of_its_days(queue: Queue, dsn: str) -> None:
    task_id = await accept(queue, mode="router")
    await rows(queue, "UPDATE tracekit.queue SET created_at = created_at - interval '3 days' RETURNING 1")
    async with await connect(dsn, autocommit=True) as connection:
        with pytest.raises(WeekError, match="has waited"):
            await write(connection, Settings(prices=PRICES))
        assert await remove(connection) == 0
        # In a queue in which somebody waits since now, it can.
        await rows(queue, "UPDATE tracekit.queue SET created_at = clock_timestamp() RETURNING 1")
        await write(connection, Settings(prices=PRICES))
        with pytest.raises(WeekError, match="already"):
            await write(connection, Settings(prices=PRICES))
        assert await remove(connection) > 0
    assert (await queue.task(task_id)).state == "open"
