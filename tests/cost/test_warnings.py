"""Warnings: at pace and at the limit, each told once, and gauges of what is left (C3, D6)."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.cost.budgeting import let_hold, limit, reserve
from tests.cost.driving import book, ledger_of, rows, usage
from tests.queue.driving import accept, take
from tracekit import metrics
from tracekit.config import Settings
from tracekit.cost import OverBudget
from tracekit.envelope import DataTier
from tracekit.instruments import DatabaseGauges
from tracekit.queue import Queue
from tracekit.queue.outbox import Notification
from tracekit.workers.depths import DepthReader
from tracekit.workers.notifications import _Message

OF = limit("total", "week", "tokens")


async def notices(queue: Queue) -> list[tuple[Any, ...]]:
    return await rows(queue, "SELECT kind, recipient, title, body FROM tracekit.outbox ORDER BY id")


async def begun(queue: Queue, ago: timedelta) -> None:
    """The counters of now began that long ago, and go on for as long as they would have."""
    async with queue.connection() as connection:
        await connection.execute(
            "UPDATE tracekit.budget_counters SET begins = clock_timestamp() - %s::interval,"
            " ends = clock_timestamp() - %s::interval + interval '7 days' WHERE ends > clock_timestamp()",
            [ago, ago],
        )


async def test_c3_a_budget_that_does_not_last_is_told_of_once_and_once_when_it_is_used_up(queue: Queue) -> None:
    ledger = ledger_of(queue)
    await let_hold(queue, OF, 100)
    await accept(queue)
    at = await take(queue)
    await begun(queue, timedelta(days=1))
    await book(ledger, at, usage(input=20, output=20))
    assert await ledger.watch_budgets(0.5) == 0
    await book(ledger, at, usage(input=10, output=10))
    assert [await ledger.watch_budgets(0.5) for _ in range(2)] == [1, 0]
    [(kind, recipient, title, body)] = await notices(queue)
    assert (kind, recipient) == ("budget_pace", "operator")
    assert title == "60 % spent: the total budget for this week"
    assert "60 tokens of 100 tokens is spent, and 14 % of its time has passed" in body
    assert "would come to 42" in body
    await book(ledger, at, usage(input=20, output=20))
    assert [await ledger.watch_budgets(0.5) for _ in range(2)] == [1, 0]
    assert [row[0] for row in await notices(queue)] == ["budget_pace", "budget_used_up"]
    # A raised one may be told of again.
    await let_hold(queue, OF, 150)
    await begun(queue, timedelta(days=1))
    assert await ledger.watch_budgets(0.5) == 1


async def test_c3_a_budget_that_lasts_is_not_told_of(queue: Queue) -> None:
    ledger = ledger_of(queue)
    await let_hold(queue, OF, 100)
    await accept(queue)
    await book(ledger, await take(queue), usage(input=30, output=30))
    await begun(queue, timedelta(days=5))
    assert await ledger.watch_budgets(0.5) == 0
    assert await notices(queue) == []


async def test_c3_the_first_call_without_room_tells_that_it_is_used_up(queue: Queue) -> None:
    ledger = ledger_of(queue)
    await let_hold(queue, OF, 100)
    await accept(queue)
    at = await take(queue)
    for key in ("a", "b", "c"):
        with pytest.raises(OverBudget):
            await reserve(ledger, at, key)
    assert [row[0] for row in await notices(queue)] == ["budget_used_up"]


@pytest.mark.parametrize("kind", ["budget_pace", "task_expired"])
def test_p8_a_warning_says_nothing_of_the_task_that_spent_last_and_is_told_in_full(kind: str) -> None:
    message = _Message(
        Notification(
            1, "01M854MB2N7P4Q6R8S0T2V4W6X", "", "rob", DataTier.RESTRICTED.value, "operator", kind, False,
            "60 % spent", "of it", {"replaces": "60 % spent"}, None, 0,  # type: ignore[arg-type]
        )
    )  # fmt: skip
    assert (message.title == "60 % spent") == (kind == "budget_pace")


async def shown_used_up(queue: Queue) -> list[float]:
    gauges = DatabaseGauges()
    await DepthReader(queue, gauges).look()
    [family] = [family for family in gauges.collect() if family.name == metrics.BUDGET_USED_UP.name]
    return [sample.value for sample in family.samples]


async def test_c3_d6_a_gauge_shows_that_a_call_found_no_room_though_some_is_left_until_it_is_set_anew(
    queue: Queue,
) -> None:
    ledger = ledger_of(queue)
    await let_hold(queue, OF, 100)
    await accept(queue)
    at = await take(queue)
    await book(ledger, at, usage(input=30, output=30))
    assert await shown_used_up(queue) == [0]
    with pytest.raises(OverBudget):
        await reserve(ledger, at, "k")
    assert await shown_used_up(queue) == [1]
    await let_hold(queue, OF, 1000)
    assert await shown_used_up(queue) == [0]


async def test_c3_d6_a_gauge_shows_that_all_is_spent_before_a_call_asks_for_more(queue: Queue) -> None:
    ledger = ledger_of(queue)
    await let_hold(queue, OF, 60)
    await accept(queue)
    at = await take(queue)
    await book(ledger, at, usage(input=30, output=29))
    assert await shown_used_up(queue) == [0]
    await book(ledger, at, usage(input=1, output=0))
    assert await shown_used_up(queue) == [1]
    # Nobody has asked anything of a budget of nothing.
    await let_hold(queue, OF, 0)
    assert await shown_used_up(queue) == [0]


async def test_c3_d6_gauges_show_what_is_left(queue: Queue) -> None:
    await let_hold(queue, OF, 1000)
    await let_hold(queue, limit("task", "task", "usd"), 2)
    ledger = ledger_of(queue)
    await accept(queue)
    at = await take(queue)
    await reserve(ledger, at, "k")
    await book(ledger, at, usage())
    await begun(queue, timedelta(days=3.5))
    gauges = DatabaseGauges()
    await DepthReader(queue, gauges).look()
    shown = {
        (sample.name, *sample.labels.values()): Decimal(repr(sample.value))
        for family in gauges.collect()
        for sample in family.samples
        if "budget" in sample.name
    }
    of = ("total", "", "week", "tokens")
    assert float(shown.pop((metrics.BUDGET_PERIOD_ELAPSED.name, *of))) == pytest.approx(0.5, abs=0.001)
    assert shown == {
        (metrics.BUDGET_AMOUNT.name, *of): 1000,
        (metrics.BUDGET_SPENT.name, *of): 30,
        (metrics.BUDGET_RESERVED.name, *of): 300,
        (metrics.BUDGET_REMAINING.name, *of): 670,
        (metrics.BUDGET_USED_UP.name, *of): 0,
        (metrics.BUDGET_AMOUNT.name, "task", "", "task", "usd"): 2,
    }


def test_a_model_that_is_not_in_the_house_cannot_stand_in_for_others() -> None:
    for models in ({}, {"m": {"base_url": "http://x/v1", "model": "m"}}):
        with pytest.raises(ValueError, match=r"cost\.local_model must name one of"):
            Settings(models=models, cost={"local_model": "m"})  # type: ignore[arg-type]
