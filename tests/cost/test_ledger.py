"""The ledger: every call leaves a row, whatever becomes of its attempt; what is learnt later is another (C1)."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.cost.budgeting import let_hold, limit
from tests.cost.driving import all_counted, all_spent, book, exactly, ledger_of, rows, spent, usage
from tests.cost.hops import hop_of
from tests.queue.driving import accept, settle, take
from tracekit import ids
from tracekit.cost import Usage, UsageError, late
from tracekit.cost.late import LateReport, NoSuchCall
from tracekit.cost.reservations import Intended
from tracekit.queue import Done, HandOff, LeaseLost, Queue, TaskNotFound
from tracekit.queue.model import Failed
from tracekit.queue.retention import keep_history
from tracekit.tracing import genai, semconv

INTENDED = Intended("test", "m-1", False, input=100, output=200)


async def spans_of(queue: Queue, task_id: str, name: str) -> list[dict[str, Any]]:
    found = await rows(
        queue,
        "SELECT span_id, parent_span_id, status, attributes FROM tracekit.spans"
        " WHERE task_id = %s AND name = %s ORDER BY start_time, span_id",
        task_id,
        name,
    )
    return [dict(zip(("id", "parent", "status", "attributes"), row, strict=True)) for row in found]


async def test_c1_a_call_s_row_says_whose_it_is_and_what_it_spent(queue: Queue) -> None:
    task_id = await accept(queue, requester="renee")
    first = await take(queue)
    await settle(queue, first, HandOff("planner", persona="archivist"))
    at = await take(queue, "planner")
    call = usage(cache_read=30, cache_write=40, reasoning=5, seconds=1.5, key="k")
    [booked] = await book(ledger_of(queue), at, call)
    cost = (10 * 3 + 30 * Decimal("0.3") + 40 * Decimal("3.75") + 20 * 15) / 1_000_000
    assert (booked.key, booked.version, booked.new, booked.held) == ("k", 1, True, True)
    assert booked.cost == cost
    [row] = await rows(
        queue,
        "SELECT task_id, hop, attempt, mode, persona, requester, origin, provider, model, local, input_tokens,"
        " cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens, requests, seconds, cost,"
        " price_source, price_version, basis, held, synthetic FROM tracekit.usage",
    )
    assert row == (
        task_id, 2, 1, "planner", "archivist", "renee", "manual", "test", "m-1", False, 10, 30, 40, 20, 5, 1,
        Decimal("1.5"), cost, "override", "m-*", "reported", True, False,
    )  # fmt: skip


async def test_c1_a_failed_attempt_has_spent_it_all_the_same(queue: Queue) -> None:
    ledger = ledger_of(queue)
    task_id = await accept(queue)
    for attempt in (1, 2):
        at = await take(queue)
        await book(ledger, at, usage())
        await settle(queue, at, Failed("ValueError", "no"))
        await queue.sweep()
        assert (await spent(queue, task_id)).calls == attempt
    assert (await spent(queue, task_id)).cost == 2 * Decimal("0.00033")


async def test_q3_c1_a_late_worker_learns_that_its_lease_is_lost_and_its_spend_is_booked(queue: Queue) -> None:
    ledger = ledger_of(queue)
    task_id = await accept(queue)
    slow = await take(queue, lease=timedelta(microseconds=1))
    await queue.sweep()
    again = await take(queue)
    await book(ledger, again, usage())
    with pytest.raises(LeaseLost):
        await book(ledger, slow, usage())
    found = await rows(queue, "SELECT attempt, held FROM tracekit.usage ORDER BY attempt")
    assert found == [(1, False), (2, True)]
    # Of the task nothing changed: the new attempt goes on.
    assert await settle(queue, again, Done())
    assert (await queue.task(task_id)).state == "done"


async def test_c1_the_same_report_twice_is_one(queue: Queue) -> None:
    ledger = ledger_of(queue)
    task_id = await accept(queue)
    at = await take(queue)
    for new in (True, False, False):
        [booked] = await hop_of(queue, at).usage(usage(key="k"))
        assert (booked.version, booked.new, booked.cost) == (1, new, Decimal("0.00033"))
    assert (await spent(queue, task_id)).calls == 1
    assert len(await spans_of(queue, task_id, "chat m-1")) == 1
    with pytest.raises(UsageError, match="one call"):
        await book(ledger, at, usage(key="x"), usage(key="x"))


async def test_c1_a_later_report_settles_what_was_estimated_and_nothing_is_forgotten(queue: Queue) -> None:
    ledger = ledger_of(queue)
    task_id = await accept(queue)
    at = await take(queue)
    await book(ledger, at, usage(key="k", basis="estimated"))
    [booked] = await book(ledger, at, usage(key="k", output=5, cost=Decimal("0.5"), provider="other"))
    assert (booked.version, booked.new) == (2, True)
    # What is known worse is no news.
    [ignored] = await book(ledger, at, usage(key="k", basis="lost", input=0, output=0))
    assert (ignored.version, ignored.new) == (2, False)
    found = await spent(queue, task_id)
    assert (found.calls, found.output, found.uncertain) == (1, 5, 0)
    versions = await rows(queue, "SELECT version, output_tokens, basis FROM tracekit.usage ORDER BY version")
    assert versions == [(1, 20, "estimated"), (2, 5, "reported")]
    assert await all_counted(queue) == await all_spent(queue)


async def test_c1_a_bill_that_comes_after_the_end_counts_for_whoever_made_the_call(queue: Queue) -> None:
    ledger = ledger_of(queue)
    task_id = await accept(queue)
    at = await take(queue)
    await book(ledger, at, usage("unknown", key="k"))
    await settle(queue, at, Done())
    bill = LateReport(source="litellm", headers={"X-LiteLLM-Response-Cost": "0.25"})
    for new in (True, False):
        [booked] = await late.settle(ledger, task_id, bill, by="rob")
        assert (booked.version, booked.new, booked.cost, booked.held) == (2, new, Decimal("0.25"), False)
    [row] = await rows(queue, "SELECT hop, attempt, mode, requester, price_source, price_version FROM tracekit.spend")
    assert row == (1, 1, "router", "rob", "provider", "litellm")
    with pytest.raises(NoSuchCall, match="has made no call 'other'"):
        await late.settle(ledger, task_id, bill.model_copy(update={"call": "other"}), by="rob")


async def test_c1_reports_of_one_call_that_come_at_once_are_versions_in_a_row(queue: Queue) -> None:
    ledger = ledger_of(queue)
    task_id = await accept(queue)
    at = await take(queue)
    await asyncio.gather(*(book(ledger, at, usage(key="k", output=n)) for n in range(1, 7)))
    versions = await rows(queue, "SELECT version, output_tokens FROM tracekit.usage ORDER BY version")
    assert [version for version, _ in versions] == [1, 2, 3, 4, 5, 6]
    assert (await spent(queue, task_id)).output == versions[-1][1]
    assert await all_counted(queue) == await all_spent(queue)


async def test_c2_metrics_totals_are_the_ledger_whatever_was_reported(queue: Queue) -> None:
    """Reports in any order, of calls that change their model, their size and their price: booked less lowered is the
    ledger, in every counter, and nothing that was booked ever sinks.
    """
    ledger, chance = ledger_of(queue), random.Random(4)
    await accept(queue)
    at = await take(queue)
    booked_before: dict[tuple[Any, ...], Any] = {}
    for _ in range(60):
        keys = chance.sample([f"k{n}" for n in range(8)], chance.randint(1, 3))
        calls = []
        for key in keys:
            output = chance.randint(0, 50)
            calls.append(
                usage(
                    chance.choice(["m-1", "m-2", "unknown"]),
                    key=key,
                    input=chance.randint(0, 50),
                    cache_read=chance.randint(0, 50),
                    output=output,
                    reasoning=chance.randint(0, output),
                    requests=chance.randint(0, 3),
                    basis=chance.choice(["estimated", "reported"]),
                    cost=chance.choice([None, Decimal("0.1"), Decimal("0.00000001")]),
                )
            )
        await book(ledger, at, *calls)
        assert await all_counted(queue) == await all_spent(queue)
        for *label, calls_, cost, output in await rows(
            queue, "SELECT model, lowered, calls, cost, output_tokens FROM tracekit.usage_totals"
        ):
            before = booked_before.get(tuple(label), (0, 0, 0))
            assert all(now >= then for now, then in zip((calls_, cost, output), before, strict=True))
            booked_before[tuple(label)] = (calls_, cost, output)


async def test_c2_a_call_s_span_has_what_the_ledger_has(queue: Queue) -> None:
    task_id = await accept(queue)
    at = await take(queue)
    [booked] = await hop_of(queue, at).usage(usage(cache_read=30, cache_write=40, reasoning=5, seconds=2.0))
    [span] = await spans_of(queue, task_id, "chat m-1")
    assert span["parent"] == at.span_id
    assert span["id"] == booked.key
    said = span["attributes"]
    assert said[genai.INPUT_TOKENS] == 80
    assert (said[genai.CACHE_READ], said[genai.CACHE_CREATION]) == (30, 40)
    assert (said[genai.OUTPUT_TOKENS], said[genai.REASONING]) == (20, 5)
    assert exactly(said[genai.COST_AMOUNT]) == booked.cost == (await spent(queue, task_id)).cost
    assert (said[genai.COST_CURRENCY], said[genai.COST_SOURCE]) == ("USD", "override")
    assert said[semconv.TASK_ID] == task_id
    [took] = await rows(
        queue,
        "SELECT extract(epoch FROM end_time - start_time)::float8 FROM tracekit.spans WHERE span_id = %s",
        span["id"],
    )
    assert took[0] == pytest.approx(2.0, abs=0.2)


async def test_t5_the_root_span_has_what_the_task_had_spent_by_its_end(queue: Queue) -> None:
    ledger = ledger_of(queue)
    task_id, idle = await accept(queue), await accept(queue, "idle")
    at = await take(queue)
    await book(ledger, at, usage(key="k", basis="estimated"), usage("unknown", cache_read=3, reasoning=2))
    await book(ledger, at, usage(key="k", output=40))
    await settle(queue, at, Done())
    await settle(queue, await take(queue, "idle"), Done())
    # What is learnt later is in the ledger, and not in what was said when the task ended.
    await late.settle(ledger, task_id, LateReport(source="counters", call="k", result={"input": 10}), by="rob")
    [root] = await spans_of(queue, task_id, "task manual")
    said = root["attributes"]
    assert root["id"] == ids.root_span_id(task_id)
    assert exactly(said[semconv.COST_USD]) == (10 * 3 + 40 * 15) / Decimal(1_000_000)
    assert (said[semconv.COST_UNPRICED], said[semconv.USAGE_CALLS], said[semconv.USAGE_REQUESTS]) == (1, 2, 2)
    assert (said[semconv.USAGE_INPUT], said[semconv.USAGE_OUTPUT], said[semconv.USAGE_CACHE_READ]) == (20, 60, 3)
    assert (said[semconv.USAGE_CACHE_WRITE], said[semconv.USAGE_REASONING]) == (0, 2)
    [other] = await spans_of(queue, idle, "task manual")
    assert not [name for name in other["attributes"] if name.startswith(("tracekit.cost", "tracekit.usage"))]


async def test_c1_usage_stands_in_the_task_s_record_in_the_order_of_commits(queue: Queue) -> None:
    ledger = ledger_of(queue)
    task_id = await accept(queue)
    at = await take(queue)
    await book(ledger, at, usage(key="k"))
    await settle(queue, at, HandOff("planner"))
    events = await queue.events(task_id)
    assert [event.kind for event in events] == ["task.accepted", "usage.booked", "attempt.ended"]
    assert events[1].data["cost"] == "0.00033"
    assert (events[1].data["model"], events[1].data["output_tokens"]) == ("m-1", 20)
    assert "persona" not in events[1].data


# --- calls that nobody lived to report ------------------------------------------------------------------------------


async def test_c1_q2_a_call_that_its_worker_died_over_is_booked_as_lost(queue: Queue) -> None:
    ledger = ledger_of(queue)
    task_id = await accept(queue)
    at = await take(queue, lease=timedelta(microseconds=1))
    await ledger.reserve(at, "k", INTENDED, "00000000000000aa")
    assert await ledger.sweep() == 0, "its lease is held until somebody takes it away"
    await queue.sweep()
    assert await ledger.sweep() == 1
    assert await ledger.sweep() == 0
    found = await spent(queue, task_id)
    assert (found.calls, found.unpriced, found.uncertain, found.requests, found.output) == (1, 1, 1, 1, 0)
    [span] = await spans_of(queue, task_id, "chat m-1")
    assert (span["id"], span["parent"], span["status"]) == ("00000000000000aa", at.span_id, 2)
    assert span["attributes"][semconv.ERROR_TYPE] == semconv.LEASE_EXPIRED
    assert await rows(queue, "SELECT outcome FROM tracekit.reservations") == [("lost",)]
    # And should the worker be alive after all, what it says counts.
    with pytest.raises(LeaseLost):
        await book(ledger, at, usage(key="k"))
    assert (await spent(queue, task_id)).cost == Decimal("0.00033")
    assert await all_counted(queue) == await all_spent(queue)


async def test_c1_a_reservation_is_settled_by_what_is_booked_and_the_call_counts_when_it_was_made(queue: Queue) -> None:
    ledger = ledger_of(queue)
    await accept(queue)
    at = await take(queue)
    await ledger.reserve(at, "k", INTENDED, "00000000000000aa")
    await ledger.reserve(at, "k", INTENDED, "00000000000000aa")
    [[usd, tokens]] = await rows(queue, "SELECT usd, tokens FROM tracekit.reservations")
    assert (usd, tokens) == ((100 * Decimal("3.75") + 200 * 15) / 1_000_000, 300)
    await book(ledger, at, usage(key="k"))
    found = await rows(
        queue,
        "SELECT r.outcome, u.at = r.made_at, u.booked_at > u.at"
        " FROM tracekit.reservations AS r JOIN tracekit.usage AS u USING (task_id, key)",
    )
    assert found == [("settled", True, True)]
    await settle(queue, at, Done())
    assert await ledger.sweep() == 0


async def test_c1_a_call_that_was_not_made_has_spent_nothing(queue: Queue) -> None:
    ledger = ledger_of(queue)
    task_id = await accept(queue)
    at = await take(queue)
    await ledger.reserve(at, "k", INTENDED, "00000000000000aa")
    await ledger.release(at, "k")
    assert await rows(queue, "SELECT outcome FROM tracekit.reservations") == [("released",)]
    assert (await spent(queue, task_id)).calls == 0


async def test_q3_nothing_is_reserved_without_a_lease(queue: Queue) -> None:
    ledger = ledger_of(queue)
    await accept(queue)
    at = await take(queue)
    await settle(queue, at, Done())
    with pytest.raises(LeaseLost):
        await ledger.reserve(at, "k", INTENDED, "00000000000000aa")
    assert await rows(queue, "SELECT FROM tracekit.reservations") == []


async def test_c1_sweepers_and_a_late_worker_do_not_wait_for_each_other_in_a_circle(queue: Queue) -> None:
    ledger = ledger_of(queue)
    for _ in range(12):
        await accept(queue)
        at = await take(queue, lease=timedelta(microseconds=1))
        await ledger.reserve(at, "k", INTENDED, "00000000000000aa")
        await queue.sweep()
        answers = await asyncio.gather(
            ledger.sweep(), book(ledger, at, usage(key="k")), ledger.sweep(), return_exceptions=True
        )
        assert isinstance(answers[1], LeaseLost)
        assert (await spent(queue, at.task_id)).cost == Decimal("0.00033")
        await settle(queue, await take(queue), Done())
    assert await all_counted(queue) == await all_spent(queue)


async def test_q12_history_that_goes_takes_its_usage_along_and_totals_stay(queue: Queue) -> None:
    ledger = ledger_of(queue)
    await let_hold(queue, limit("task", "task", "requests"), 9)
    await let_hold(queue, limit("total", "day", "requests"), 9)
    stays = await accept(queue)
    await book(ledger, await take(queue), usage(key="k"))
    await accept(queue)
    at = await take(queue)
    await ledger.reserve(at, "k", INTENDED, "00000000000000aa")
    await book(ledger, at, usage(key="k"))
    await book(ledger, at, usage(key="k", output=7))
    await settle(queue, at, Done())
    before = await all_spent(queue)
    old = ids.first_task_id(datetime(2020, 1, 1, tzinfo=UTC))[:10] + at.task_id[10:]
    tables = ("usage", "reservations", "budget_counters", "budget_grants")
    async with queue.connection() as connection:
        await connection.execute(
            "INSERT INTO tracekit.budget_grants (task_id, approval, unit, amount, granted_by)"
            " VALUES (%s, 'a', 'requests', 1, 'rob')",
            [at.task_id],
        )
        for table, column in (("envelopes", "id"), *((table, "task_id") for table in ("record", *tables))):
            await connection.execute(
                f"UPDATE tracekit.{table} SET {column} = %s WHERE {column} = %s".encode(), [old, at.task_id]
            )
        for table in tables:
            assert await rows(queue, f"SELECT FROM tracekit.{table} WHERE task_id = %s", old), table
        await keep_history(connection, timedelta(days=90))
    for table in tables:
        assert await rows(queue, f"SELECT FROM tracekit.{table} WHERE task_id = %s", old) == [], table
    assert await rows(queue, "SELECT task_id, key FROM tracekit.usage") == [(stays, "k")]
    # What was spent stays in the metrics, and in the budgets' days; a bill for what is gone finds nothing to settle.
    assert await all_counted(queue) == before
    assert await rows(queue, "SELECT spent FROM tracekit.budget_counters WHERE task_id = ''") == [(2,)]
    with pytest.raises(TaskNotFound):
        await queue.resolve_id(old)
    with pytest.raises(NoSuchCall):
        await late.settle(ledger, old, LateReport(source="counters", call="k", result={"input": 1}), by="rob")
    assert await all_counted(queue) == before


async def test_c1_a_usage_of_nothing_is_a_call_too(queue: Queue) -> None:
    task_id = await accept(queue)
    at = await take(queue)
    [booked] = await book(ledger_of(queue), at, Usage("test", "m-1"))
    assert booked.cost == 0
    assert (await spent(queue, task_id)).calls == 1
