"""Budgets: what is set holds, whoever spends at once, and what counters say is what was spent (C3)."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cost.budgeting import (
    call,
    counters,
    holds_together,
    let_hold,
    limit,
    reserve,
)
from tests.cost.driving import book, ledger_of, rows, usage
from tests.queue.driving import accept, settle, take
from tests.support.processes import patience
from tracekit.cost import OverBudget, late
from tracekit.cost.budgets import standings
from tracekit.cost.late import LateReport
from tracekit.envelope import Priority
from tracekit.queue import Done, HandOff, Queue


async def spend(queue: Queue, at: Any, key: str, **used: Any) -> None:
    """A call from its reservation to its booking."""
    ledger = ledger_of(queue)
    await reserve(ledger, at, key)
    await book(ledger, at, usage(key=key, **used))


async def test_c3_a_call_is_reserved_at_its_upper_bound_and_settled_at_what_it_was(queue: Queue) -> None:
    await let_hold(queue, limit("total", "day", "usd"), 1)
    await let_hold(queue, limit("total", "week", "tokens"), 1000)
    await let_hold(queue, limit("total", "day", "requests"), 10)
    await accept(queue)
    at = await take(queue)
    await reserve(ledger_of(queue), at, "k")
    [(usd,)] = await rows(queue, "SELECT usd FROM tracekit.reservations")
    assert usd == (100 * Decimal("3.75") + 200 * 15) / 1_000_000
    assert await counters(queue) == {"usd": (0, usd), "tokens": (0, 300), "requests": (0, 1)}
    await holds_together(queue)
    await book(ledger_of(queue), at, usage(key="k"))
    assert await counters(queue) == {"usd": (Decimal("0.00033"), 0), "tokens": (30, 0), "requests": (1, 0)}
    await holds_together(queue)


async def test_c3_a_call_without_room_is_not_made_and_says_why(queue: Queue) -> None:
    await let_hold(queue, limit("total", "day", "requests"), 1, policy="refuse")
    await accept(queue)
    at = await take(queue)
    await spend(queue, at, "first")
    with pytest.raises(OverBudget, match="the total budget for today is 1 request, with 1 request spent") as refused:
        await reserve(ledger_of(queue), at, "second")
    assert refused.value.policy == "refuse"
    assert await rows(queue, "SELECT key FROM tracekit.reservations") == [("first",)]
    await holds_together(queue)


async def test_c3_a_call_that_was_not_made_gives_all_of_it_back(queue: Queue) -> None:
    await let_hold(queue, limit("total", "day", "requests"), 1)
    await accept(queue)
    at = await take(queue)
    ledger = ledger_of(queue)
    for key in ("a", "b", "c"):
        await reserve(ledger, at, key)
        await ledger.release(at, key)
        await ledger.release(at, key)
    assert await counters(queue) == {"requests": (0, 0)}


@pytest.mark.parametrize(
    ("scope", "subject", "other"),
    [
        ("mode", "router", {"mode": "planner"}),
        ("persona", "archivist", {"persona": "steward"}),
        ("requester", "rob", {"requester": "renee"}),
        ("model", "m-1", {"model": "m-2"}),
    ],
)
async def test_c3_a_budget_of_one_is_nobody_else_s(
    queue: Queue, scope: Any, subject: str, other: dict[str, str]
) -> None:
    await let_hold(queue, limit(scope, "day", "requests", subject), 1)
    ledger = ledger_of(queue)

    async def claimed(mode: str = "router", persona: str = "archivist", requester: str = "rob") -> Any:
        await accept(queue, "first", requester=requester)
        await settle(queue, await take(queue, "first"), HandOff(mode, persona=persona))
        return await take(queue, mode)

    model = other.pop("model", "m-1")
    mine, others = await claimed(), await claimed(**other)
    await reserve(ledger, mine, "k")
    with pytest.raises(OverBudget, match=f"the budget of the {scope} {subject} for today"):
        await reserve(ledger, mine, "more")
    for key in ("x", "y"):
        await reserve(ledger, others, key, call(model=model))
    await holds_together(queue)


async def test_c3_a_cap_is_each_task_s_own(queue: Queue) -> None:
    ledger = ledger_of(queue)
    await accept(queue)
    first = await take(queue)
    await reserve(ledger, first, "before")
    await let_hold(queue, limit("task", "task", "requests"), 2)
    # What the task has spent or begun before there was a cap counts.
    await reserve(ledger, first, "a")
    with pytest.raises(OverBudget, match="the cap of a task is 2 requests"):
        await reserve(ledger, first, "b")
    await accept(queue)
    second = await take(queue)
    await spend(queue, second, "a")
    await spend(queue, second, "b")
    with pytest.raises(OverBudget, match="with 2 requests spent"):
        await reserve(ledger, second, "c")
    await holds_together(queue)


async def test_c3_what_was_spent_and_is_under_way_when_a_budget_is_set_counts(queue: Queue) -> None:
    ledger = ledger_of(queue)
    await accept(queue)
    at = await take(queue)
    await spend(queue, at, "spent")
    await reserve(ledger, at, "under way")
    await let_hold(queue, limit("total", "day", "requests"), 3)
    assert await counters(queue) == {"requests": (1, 1)}
    await reserve(ledger, at, "last")
    with pytest.raises(OverBudget):
        await reserve(ledger, at, "more")
    await book(ledger, at, usage(key="under way"))
    await holds_together(queue)
    assert await counters(queue) == {"requests": (2, 1)}


async def test_c3_the_strictest_policy_of_those_without_room_is_taken(queue: Queue) -> None:
    await let_hold(queue, limit("total", "day", "requests"), 0, policy="downgrade")
    await let_hold(queue, limit("total", "week", "requests"), 0, policy="park")
    await let_hold(queue, limit("total", "week", "tokens"), 10**6, policy="refuse")
    await accept(queue)
    with pytest.raises(OverBudget) as over:
        await reserve(ledger_of(queue), await take(queue), "k")
    assert over.value.policy == "park"
    assert [one.limit.period for one in over.value.exceeded] == ["day", "week"]


async def test_c3_a_call_without_a_price_does_not_slip_under_a_budget_of_dollars(queue: Queue) -> None:
    ledger = ledger_of(queue)
    await accept(queue)
    at = await take(queue)
    await reserve(ledger, at, "free to go", call(model="unknown"))
    await let_hold(queue, limit("total", "day", "usd"), 100)
    with pytest.raises(OverBudget, match="what this call would cost nobody knows"):
        await reserve(ledger, at, "k", call(model="unknown"))
    await let_hold(queue, limit("total", "day", "usd"), None)
    await let_hold(queue, limit("total", "day", "tokens"), 10**6)
    await reserve(ledger, at, "k", call(model="unknown"))
    await holds_together(queue)


async def test_c3_urgent_tasks_have_their_own_head_room(queue: Queue) -> None:
    await let_hold(queue, limit("total", "day", "requests"), 1, urgent_extra=1)
    ledger = ledger_of(queue)
    await accept(queue)
    normal = await take(queue)
    await accept(queue, priority=Priority.URGENT)
    urgent = await take(queue)
    await reserve(ledger, normal, "a")
    with pytest.raises(OverBudget):
        await reserve(ledger, normal, "b")
    await reserve(ledger, urgent, "a")
    with pytest.raises(OverBudget, match="is 2 requests"):
        await reserve(ledger, urgent, "b")


async def test_c3_a_dead_worker_s_reservation_is_let_go_and_its_lost_call_counts_as_much(queue: Queue) -> None:
    await let_hold(queue, limit("total", "day", "usd"), 1)
    await let_hold(queue, limit("total", "day", "tokens"), 1000)
    await let_hold(queue, limit("total", "day", "requests"), 5)
    ledger = ledger_of(queue)
    await accept(queue)
    at = await take(queue, lease=timedelta(microseconds=1))
    await reserve(ledger, at, "k")
    await queue.sweep()
    assert await ledger.sweep() == 1
    bound = Decimal("0.003375")
    assert await counters(queue) == {"usd": (bound, 0), "tokens": (300, 0), "requests": (1, 0)}
    assert await rows(queue, "SELECT cost, output_tokens FROM tracekit.spend") == [(None, 0)]
    await holds_together(queue)
    # So does it in a budget that is set later.
    await let_hold(queue, limit("total", "week", "usd"), 1)
    await holds_together(queue)
    assert await rows(queue, "SELECT spent FROM tracekit.budget_counters WHERE period = 'week'") == [(bound,)]
    await let_hold(queue, limit("total", "week", "usd"), None)
    # It was slow, and not dead: what it spent is known after all, and counts instead.
    again = await take(queue)
    await book(ledger, again, usage(key="k"))
    spent = await rows(queue, "SELECT unit, spent, reserved FROM tracekit.budget_counters WHERE period = 'day'")
    assert sorted(spent) == [("requests", 1, 0), ("tokens", 30, 0), ("usd", Decimal("0.00033"), 0)]
    await holds_together(queue)


async def test_c3_a_model_that_never_answers_uses_its_budget_up(queue: Queue) -> None:
    await let_hold(queue, limit("total", "day", "usd"), Decimal("0.01"), policy="refuse")
    ledger = ledger_of(queue)
    await accept(queue)
    at = await take(queue)
    for key in ("a", "b"):
        await reserve(ledger, at, key)
        await book(ledger, at, usage(key=key, basis="lost", input=0, output=0))
        await holds_together(queue)
    with pytest.raises(OverBudget, match=r"is \$0.01, with \$0.0068 spent, and this call may take \$0.0034"):
        await reserve(ledger, at, "c")


async def test_c3_a_raised_budget_holds_at_once_and_a_withdrawn_one_no_more(queue: Queue) -> None:
    of = limit("total", "day", "requests")
    ledger = ledger_of(queue)
    await accept(queue)
    at = await take(queue)
    await let_hold(queue, of, 1)
    await reserve(ledger, at, "a")
    with pytest.raises(OverBudget):
        await reserve(ledger, at, "b")
    await let_hold(queue, of, 2)
    await reserve(ledger, at, "b")
    with pytest.raises(OverBudget):
        await reserve(ledger, at, "c")
    await let_hold(queue, of, None)
    await reserve(ledger, at, "c")
    async with queue.connection() as connection:
        assert await standings(connection) == []
    await holds_together(queue)


async def test_c3_another_time_zone_has_other_days_and_what_is_under_way_counts_in_them(queue: Queue) -> None:
    of = limit("total", "day", "requests")
    ledger = ledger_of(queue)
    await accept(queue)
    at = await take(queue)
    await let_hold(queue, of, 3)
    await spend(queue, at, "a")
    await reserve(ledger, at, "b")
    await let_hold(queue, of, 3, time_zone="Asia/Kathmandu")
    await reserve(ledger, at, "c")
    with pytest.raises(OverBudget):
        await reserve(ledger, at, "d")
    for key in ("b", "c"):
        await book(ledger, at, usage(key=key))
    await holds_together(queue)


async def test_c3_settling_twice_is_settling_once(queue: Queue) -> None:
    await let_hold(queue, limit("total", "day", "tokens"), 1000)
    await accept(queue)
    at = await take(queue)
    await spend(queue, at, "k")
    for _ in range(3):
        await book(ledger_of(queue), at, usage(key="k"))
        assert await counters(queue) == {"tokens": (30, 0)}
    # A correction counts in place of what it corrects, after the task's end as well.
    await settle(queue, at, Done())
    report = LateReport(source="counters", call="k", result={"input": 10, "output": 7})
    for _ in range(2):
        await late.settle(ledger_of(queue), at.task_id, report, by="rob")
        assert await counters(queue) == {"tokens": (17, 0)}
    await holds_together(queue)


async def test_c3_what_a_demonstration_made_up_takes_nothing(queue: Queue) -> None:
    await let_hold(queue, limit("total", "day", "tokens"), 1)
    await accept(queue)
    at = await take(queue)
    await book(ledger_of(queue), at, usage(), synthetic=True)
    assert await counters(queue) == {"tokens": (0, 0)}
    await holds_together(queue)


# --- many at once ---------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    amount=st.integers(0, 12),
    calls=st.lists(
        st.tuples(
            st.integers(0, 3),  # whose
            st.sampled_from(["settle", "settle more", "release", "leave", "twice"]),
            st.integers(1, 300),  # tokens that it used, of 300
        ),
        min_size=1,
        max_size=16,
    ),
)
async def test_c3_no_interleaving_of_spenders_exceeds_a_budget_and_reservations_add_up(
    queue: Queue, amount: int, calls: list[tuple[int, str, int]]
) -> None:
    """Callers at once, over connections of their own, in tasks of their own or the same: what is spent and reserved is
    never more than the budget, and at the end the counters are the ledger.
    """
    ledger = ledger_of(queue)
    async with queue.connection() as connection:
        await connection.execute(
            "TRUNCATE tracekit.budgets, tracekit.budget_counters, tracekit.usage, tracekit.reservations,"
            " tracekit.usage_totals, tracekit.outbox"
        )
    most = amount * 100
    await let_hold(queue, limit("total", "day", "tokens"), most)
    await let_hold(queue, limit("total", "week", "requests"), amount)
    await let_hold(queue, limit("requester", "day", "usd", "rob"), amount * Decimal("0.0015"))
    await let_hold(queue, limit("task", "task", "tokens"), 900)
    places = []
    for _ in range(4):
        await accept(queue, "spending")
        places.append(await take(queue, "spending"))

    async def spender(number: int, whose: int, then: str, used: int) -> None:
        at, key = places[whose], f"k{number}"
        try:
            await reserve(ledger, at, key)
        except OverBudget:
            return
        made = min(used, 200)
        report = usage(key=key, input=min(used - made, 100), output=made)
        if then == "release":
            await ledger.release(at, key)
        elif then != "leave":
            await book(ledger, at, report)
            if then == "twice":
                await asyncio.gather(book(ledger, at, report), ledger.release(at, key))
            if then == "settle more":
                await book(ledger, at, usage(key=f"{key}-more", input=0, output=0, requests=0))

    async def look() -> None:
        for _ in range(10):
            await holds_together(queue, within=True)

    async with asyncio.TaskGroup() as group:
        group.create_task(look())
        for number, one in enumerate(calls):
            group.create_task(spender(number, *one))
    await holds_together(queue, within=True)
    for at in places:
        await settle(queue, at, Done())
    await ledger.sweep()
    await holds_together(queue)
    assert await rows(queue, "SELECT FROM tracekit.budget_counters WHERE reserved <> 0") == []


async def test_c3_a_time_zone_that_comes_back_on_the_same_day_counts_that_day(queue: Queue) -> None:
    await accept(queue)
    at = await take(queue)
    await book(ledger_of(queue), at, usage())
    for zone in ("UTC", "Asia/Tokyo", "UTC"):
        await let_hold(queue, limit("total", "week", "requests"), 1, policy="refuse", time_zone=zone)
    async with queue.connection() as connection:
        [standing] = await standings(connection)
    assert standing.spent == 1, "it is the same week"
    with pytest.raises(OverBudget):
        async with patience():
            await reserve(ledger_of(queue), at, "k")
    await holds_together(queue)
