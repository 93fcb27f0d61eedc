"""The overview: its numbers are those of the queue, the record and the ledger, and looking is cheap."""

from __future__ import annotations

import asyncio
import json
import re
import time
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.cost.budgeting import call, let_hold, limit, reserve
from tests.cost.driving import book, ledger_of, rows, usage
from tests.queue.driving import accept, settle, take
from tests.queue.test_plans import fill, nodes
from tracekit import metrics
from tracekit.cost import OverBudget
from tracekit.envelope import DataTier, Priority
from tracekit.instruments import DatabaseGauges, Reading
from tracekit.postgres import Pool, connect
from tracekit.queue import Done, GiveUp, Notice, Park, Queue, RetryLater
from tracekit.queue.claim import heartbeat
from tracekit.workers import overview as looking
from tracekit.workers.overview import ModeNow, Overview, Overviews

HOUR = timedelta(hours=1)


async def look(queue: Queue, time_zone: str = "UTC") -> Overview:
    return await Overviews(queue, time_zone=time_zone, at_most=timedelta(0)).look()


def mode(overview: Overview, name: str) -> ModeNow:
    [found] = [one for one in overview.modes if one.mode == name]
    return found


async def test_each_mode_has_its_hops_workers_and_rates(queue: Queue) -> None:
    for _ in range(3):
        await accept(queue, "planner")
    await accept(queue, "executor")
    running = await take(queue, "executor", worker="w9")
    await accept(queue, "executor")
    await settle(queue, await take(queue, "executor"), RetryLater(delay=HOUR, reason="later"))
    await accept(queue, "executor")
    await settle(queue, await take(queue, "executor"), GiveUp("no lamp"))
    await accept(queue, "guardian")
    await settle(queue, await take(queue, "guardian"), Park("approval", "k", HOUR))
    async with queue.connection() as connection:
        await heartbeat(connection, "w9", ["executor", "planner"], "polling", {}, HOUR)
        await heartbeat(connection, "w8", ["executor"], "listening", {}, HOUR)
    seen = await look(queue)
    planner, executor, guardian = (mode(seen, name) for name in ("planner", "executor", "guardian"))
    assert (planner.ready, planner.running, planner.workers, planner.attempts_per_minute) == (3, 0, 1, 0)
    assert planner.oldest_ready_seconds is not None
    assert not planner.unserved
    assert (executor.ready, executor.scheduled, executor.running, executor.parked, executor.workers) == (0, 1, 1, 0, 2)
    assert (executor.attempts_per_minute, executor.failures_per_minute) == (2, 1)
    assert executor.oldest_ready_seconds is None
    assert (guardian.parked, guardian.workers, guardian.attempts_per_minute) == (1, 0, 1)
    # The review task of the dead one waits for the guardian, too.
    assert [one.mode for one in seen.modes][:3] == ["planner", "guardian", "executor"]
    assert (seen.in_flight, seen.deaf, [one.worker for one in seen.workers]) == (1, 1, ["w9", "w8"])
    [flying] = seen.running
    assert (flying.task_id, flying.mode, flying.worker, flying.attempt) == (running.task_id, "executor", "w9", 1)


async def test_rates_are_of_what_the_newest_steps_span(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "_STEPS", 10)
    for _ in range(30):
        await accept(queue)
        await settle(queue, await take(queue), Done())
    await rows_set(queue, "UPDATE tracekit.record SET at = clock_timestamp() - interval '6 seconds'")
    router = mode(await look(queue), "router")
    # Ten steps in the six seconds that they reach back: a hundred a minute, not ten.
    assert 80 < router.attempts_per_minute <= 100


async def rows_set(queue: Queue, statement: str) -> None:
    async with queue.connection() as connection:
        await connection.execute(statement.encode())


async def test_q15_the_dlq_has_its_reasons_and_the_newest_three(queue: Queue) -> None:
    died = []
    for number in range(4):
        died.append(await accept(queue, intent=f"thing {number}"))
        await settle(queue, await take(queue), GiveUp("no lamp"))
    await queue.resolve_dead(died[0], "abandoned", "rob")
    seen = await look(queue)
    assert (seen.dead, seen.dead_by_reason) == (3, {"given_up": 3})
    assert [one.task_id for one in seen.newest_dead] == died[:0:-1]
    assert (seen.newest_dead[0].title, seen.newest_dead[0].error_type) == ("thing 3", "given_up")


async def test_p5_approvals_come_by_the_deadline_that_binds(queue: Queue) -> None:
    later = await accept(queue, "guardian", intent="later")
    await settle(queue, await take(queue, "guardian"), Park("approval", "k1", 3 * HOUR))
    # Its ttl ends before its wait does.
    sooner = await accept(queue, "guardian", intent="sooner", ttl=HOUR, priority=Priority.URGENT)
    await settle(queue, await take(queue, "guardian"), Park("approval", "k2", 5 * HOUR))
    await accept(queue, "guardian")
    await settle(queue, await take(queue, "guardian"), Park("ci", "k3", HOUR))
    seen = await look(queue)
    assert (seen.approvals, seen.urgent_approvals) == (2, 1)
    assert [(one.task_id, one.urgent) for one in seen.next_approvals] == [(sooner, True), (later, False)]
    assert 0 < seen.next_approvals[0].seconds <= 3600 < seen.next_approvals[1].seconds


async def test_p8_t10_no_title_of_a_restricted_task_is_in_it(queue: Queue) -> None:
    secret: dict[str, Any] = {"intent": "the secret thing", "data_tier": DataTier.RESTRICTED}
    await accept(queue, **secret)
    await settle(queue, await take(queue), GiveUp("the secret reason"))
    await accept(queue, **secret)
    await settle(queue, await take(queue), Park("approval", "k", HOUR, data={"what": ["the secret plan"]}))
    await accept(queue, **secret)
    await take(queue)
    seen = await look(queue)
    assert "secret" not in repr(seen)
    dead, pending, running = seen.newest_dead, seen.next_approvals, seen.running
    assert [dead[0].title, pending[0].title, running[0].title] == ["(restricted)"] * 3


async def test_p8_a_restricted_plan_hides_what_an_open_task_asked(queue: Queue) -> None:
    """The tier is the plan's, as `workers.asking` keeps it with the wait."""
    for tier in DataTier:
        await accept(queue, intent=f"the {tier.value} plan", data_tier=DataTier.INTERNAL)
        await settle(queue, await take(queue), Park("approval", tier.value, HOUR, data={"data_tier": tier.value}))
    seen = await look(queue)
    titles = {one.title for one in seen.next_approvals}
    assert titles == {f"the {tier.value} plan" for tier in DataTier if tier is not DataTier.RESTRICTED} | {
        "(restricted)"
    }


async def test_titles_are_one_line_that_no_screen_obeys(queue: Queue) -> None:
    await accept(queue, intent="turn on\n\n\x1b[31mthe ‮light\t" + "x" * 300)
    await take(queue)
    [flying] = (await look(queue)).running
    assert not re.search(r"[\x00-\x1f‮]", flying.title)
    assert len(flying.title) == 120


async def test_notifications_and_spans_that_wait_are_told_of(queue: Queue) -> None:
    seen = await look(queue)
    assert (seen.notifications, seen.spans) == ("all delivered", "kept here: no collector was ever named")
    for name in ("a", "b"):
        await accept(queue)
        await settle(queue, await take(queue), Park("approval", name, HOUR, notice=Notice("note", name, "body")))
    await rows_set(queue, "UPDATE tracekit.outbox SET due_at = NULL WHERE title = 'a'")
    await rows_set(queue, "UPDATE tracekit.outbox SET created_at = created_at - interval '90 s'")
    await rows_set(queue, "INSERT INTO tracekit.span_shipping (destination) VALUES ('x')")
    seen = await look(queue)
    assert (seen.undelivered, seen.given_up) == (2, 1)
    assert re.fullmatch(r"1 undelivered, the oldest for 1m3\ds, 1 given up", seen.notifications)
    assert seen.unshipped > 0
    assert re.fullmatch(r"\d+ unshipped, the oldest for \d+s", seen.spans)
    await rows_set(queue, "UPDATE tracekit.outbox SET due_at = NULL")
    seen = await look(queue)
    assert (seen.notifications, seen.oldest_undelivered_seconds) == ("2 given up", None)


async def test_q12_its_counts_are_the_reading_of_the_metrics(queue: Queue) -> None:
    """None of it is in the database: a screen that counted anew would disagree with the alert that led to it."""
    gauges = DatabaseGauges()
    rows = [
        (metrics.DEAD_LETTERS.name, ["router", "given_up"], 2.0),
        (metrics.DEAD_LETTERS.name, ["planner", "given_up"], 1.0),
        (metrics.DEAD_LETTERS.name, ["planner", "lease_expired"], 4.0),
        (metrics.NOTIFICATIONS_UNDELIVERED.name, [], 5.0),
        (metrics.NOTIFICATION_OLDEST_UNDELIVERED_AGE.name, [], 61.0),
    ]
    gauges.show(Reading(rows, took=1e6))
    seen = await Overviews(queue, time_zone="UTC", gauges=gauges).look()
    assert (seen.dead, list(seen.dead_by_reason.items())) == (7, [("lease_expired", 4), ("given_up", 3)])
    assert seen.notifications == "5 undelivered, the oldest for 1m01s"


async def test_c1_c3_what_is_spent_and_left_is_the_ledger_s(queue: Queue) -> None:
    ledger = ledger_of(queue)
    await let_hold(queue, limit("total", "day", "usd"), 1)
    await let_hold(queue, limit("task", "task", "usd"), 1)
    await accept(queue)
    at = await take(queue)
    await book(ledger, at, usage(), usage(model="nobody-knows"), usage())
    await book(ledger, at, usage(), synthetic=True)
    seen = await look(queue)
    assert (seen.today.calls, seen.today.unpriced, seen.today.tokens) == (3, 1, 90)
    assert seen.today.cost == Decimal("0.00066")
    assert seen.today.begins >= seen.this_week.begins
    assert (seen.this_week.calls, seen.this_week.cost) == (3, Decimal("0.00066"))
    [budget] = seen.budgets
    assert (budget.name, budget.spent, budget.remaining) == ("total/day/usd", Decimal("0.00066"), Decimal("0.99934"))
    assert not budget.used_up
    with pytest.raises(OverBudget):
        await reserve(ledger, at, "k", call(output=10**9))
    [budget] = (await look(queue)).budgets
    assert budget.used_up
    assert budget.remaining == Decimal("0.99934")


async def test_c3_looking_makes_no_counter_of_a_day_without_a_call(queue: Queue) -> None:
    await let_hold(queue, limit("total", "day", "usd"), 5)
    await rows_set(queue, "DELETE FROM tracekit.budget_counters")
    [budget] = (await look(queue)).budgets
    assert (budget.spent, budget.remaining) == (Decimal(0), Decimal(5))
    assert await rows(queue, "SELECT * FROM tracekit.budget_counters") == []


async def test_q11_however_many_ask_there_is_one_look(queue: Queue) -> None:
    shared = Overviews(queue, time_zone="UTC", at_most=HOUR)
    seen = await asyncio.gather(*(shared.look() for _ in range(20)))
    assert all(one is seen[0] for one in seen)
    fresh = Overviews(queue, time_zone="UTC", at_most=timedelta(0))
    before = await fresh.look()
    fresh._again_at = 0.0
    assert await fresh.look() is not before


async def test_q12_a_count_that_took_long_is_kept_and_said_to_be_old(queue: Queue) -> None:
    await accept(queue, "planner")
    gauges = DatabaseGauges()
    rows = [("tracekit_hops", _hops(ready="planner"), 1_000_000.0)]
    gauges.show(Reading(rows, took=2.0, at=time.monotonic() - 30))
    seen = await Overviews(queue, time_zone="UTC", gauges=gauges, at_most=timedelta(0)).look()
    assert (mode(seen, "planner").ready, seen.stale) == (1_000_000, "counted 30s ago")
    gauges.show(Reading(rows, took=0.01, at=time.monotonic() - 30))
    seen = await Overviews(queue, time_zone="UTC", gauges=gauges, at_most=timedelta(0)).look()
    assert (mode(seen, "planner").ready, seen.stale) == (1, "")


def _hops(ready: str) -> list[str]:
    """Label values of that metric, whatever more labels it has."""
    known = {"mode": ready, "state": "ready"}
    return [known.get(label, "") for label in metrics.HOPS.labels]


async def test_q12_what_it_asks_is_read_by_index(queue: Queue, pool: Pool, dsn: str) -> None:
    """However deep the queue and long the record; the counts of it are those of the metrics."""
    async with pool.connection() as connection:
        await fill(connection)
        await connection.execute(
            "INSERT INTO tracekit.dead_letters (task_id, hop, mode, reason, attempts, trace_id, died_at, resolved_at,"
            "  resolution, resolved_by)"
            " SELECT 't' || n, 1, 'm1', 'given_up', 1, md5(n::text), now(), open.not_now,"
            "  CASE WHEN n > 5 THEN 'redriven' END, CASE WHEN n > 5 THEN 'rob' END"
            " FROM generate_series(1, 20000) AS n, LATERAL (SELECT CASE WHEN n > 5 THEN now() END AS not_now) AS open"
        )
        await connection.execute(
            "INSERT INTO tracekit.waits (task_id, hop, attempt, kind, key, data, deadline, on_deadline, opened_at,"
            "  closed_at, resolution)"
            " SELECT 't' || n, 1, 1, 'approval', n::text, '{}', now(), 'expire', now(), open.not_now,"
            "  CASE WHEN n > 5 THEN 'deadline' END"
            " FROM generate_series(1, 20000) AS n, LATERAL (SELECT CASE WHEN n > 5 THEN now() END AS not_now) AS open"
        )
        await connection.execute("VACUUM ANALYZE")
        [now] = (await (await connection.execute("SELECT clock_timestamp()")).fetchone()) or ()
    pages = {"_ATTEMPTS": 400, "_RUNNING": 2_000, "_DEAD": 60, "_APPROVALS": 60, "_GIVEN_UP": 20}
    for name, most in pages.items():
        async with await connect(dsn, autocommit=True) as connection:
            cursor = await connection.execute(
                "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + getattr(looking, name), {"now": now, "steps": 1_000}
            )
            row = await cursor.fetchone()
        assert row is not None
        explained = row[0] if isinstance(row[0], list) else json.loads(row[0])
        found = list(nodes(explained[0]["Plan"]))
        scanned = {node["Relation Name"] for node in found if node["Node Type"] == "Seq Scan"}
        assert scanned == set(), name
        touched = explained[0]["Plan"]["Shared Hit Blocks"] + explained[0]["Plan"]["Shared Read Blocks"]
        print(f"{name}: {touched} pages")
        assert touched < most, name
