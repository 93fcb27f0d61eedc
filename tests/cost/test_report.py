"""The report: every number of it against the calls that it is made of."""

from __future__ import annotations

import itertools
import random
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest

from tests.cost.driving import book, ledger_of, rows, usage
from tests.queue.driving import accept, settle, take
from tracekit.config import PriceSettings
from tracekit.cost.report import DIMENSIONS, CostReport, local_days, report
from tracekit.envelope import DataTier, Origin
from tracekit.queue import Done, HandOff, Park, Queue
from tracekit.queue.model import Failed

MODELS = ("m-1", "m-2", "unknown")


async def a_week(queue: Queue) -> None:
    """Tasks of two people in two modes, with retries, over ten days; the last is today."""
    chance, ledger = random.Random(7), ledger_of(queue)
    for number in range(12):
        await accept(
            queue,
            requester=("rob", "renee")[number % 2],
            origin=(Origin.MANUAL, Origin.OBSERVER)[number % 2],
            data_tier=DataTier.RESTRICTED if number == 0 else DataTier.INTERNAL,
        )
        at = await take(queue)
        if number % 3 == 0:
            await book(ledger, at, usage(output=5))
            await settle(queue, at, Failed("ValueError", "no"))
            await queue.sweep()
            at = await take(queue)
        when = datetime.now(UTC) - timedelta(days=number % 10)
        for _ in range(1 + number % 4):
            call = usage(
                chance.choice(MODELS),
                output=chance.randint(0, 500),
                cache_read=chance.randint(0, 90),
                local=number == 5,
                basis="estimated" if number == 6 else "reported",
                at=when,
            )
            await book(ledger, at, call)
        await settle(queue, at, HandOff("planner", persona="archivist"))
        at = await take(queue, "planner")
        await book(ledger, at, usage("m-2", at=when), synthetic=number == 3)
        await settle(queue, at, Done())


async def read(queue: Queue, **asked: object) -> CostReport:
    values = {"days": 7, "time_zone": "UTC", **asked}
    async with queue.connection() as connection:
        return await report(connection, **values)  # type: ignore[arg-type]


async def test_c1_the_report_adds_up_by_everything_it_can_be_asked_for(queue: Queue) -> None:
    await a_week(queue)
    whole = await read(queue)
    [expected] = await rows(
        queue,
        "SELECT count(*), count(DISTINCT task_id), sum(requests), count(*) FILTER (WHERE cost IS NULL),"
        " count(*) FILTER (WHERE basis <> 'reported'), count(*) FILTER (WHERE synthetic),"
        " count(*) FILTER (WHERE local), sum(input_tokens), sum(cache_read_tokens), sum(cache_write_tokens),"
        " sum(output_tokens), sum(reasoning_tokens), sum(cost), count(*) FILTER (WHERE attempt > 1),"
        " sum(input_tokens + cache_read_tokens + cache_write_tokens + output_tokens) FILTER (WHERE attempt > 1),"
        " sum(cost) FILTER (WHERE attempt > 1) FROM tracekit.spend WHERE at >= %s AND at < %s",
        whole.since,
        whole.until,
    )
    total = whole.total
    seen = (
        total.calls, total.tasks, total.requests, total.unpriced, total.uncertain, total.synthetic, total.local,
        total.input, total.cache_read, total.cache_write, total.output, total.reasoning, total.cost,
        total.retry_calls, total.retry_tokens, total.retry_cost,
    )  # fmt: skip
    assert seen == expected
    assert all(
        value
        for value in (total.unpriced, total.uncertain, total.synthetic, total.local, total.retry_calls, total.cost)
    )
    names: dict[str, set[str]] = {
        "model": {"test/m-1", "test/m-2", "test/unknown"},
        "mode": {"router", "planner"},
        "persona": {"", "archivist"},
        "requester": {"rob", "renee"},
        "origin": {"manual", "observer"},
    }
    for by in DIMENSIONS:
        found = await read(queue, by=by)
        assert found.total == total
        for name in ("cost", "calls", "tokens", "unpriced", "retry_cost"):
            assert sum(getattr(group.sums, name) for group in found.groups) == getattr(total, name)
            assert sum(getattr(day.sums, name) for day in found.days) == getattr(total, name)
        assert {group.key for group in found.groups} == names.get(by, {task.task_id for task in found.dearest})
        assert [group.sums.cost for group in found.groups] == sorted(
            (group.sums.cost for group in found.groups), reverse=True
        )


async def test_c1_days_without_a_call_are_days_and_synthetic_calls_can_be_left_out(queue: Queue) -> None:
    await a_week(queue)
    found = await read(queue, days=30)
    today = datetime.now(UTC).date()
    assert [day.date for day in found.days] == [today - timedelta(days=n) for n in range(29, -1, -1)]
    assert found.days[0].sums.calls == 0
    real = await read(queue, days=30, synthetic=False)
    assert real.total.synthetic == 0
    assert real.total.calls == found.total.calls - found.total.synthetic


async def test_c1_percentiles_are_of_tasks_and_the_dearest_come_first(queue: Queue) -> None:
    await a_week(queue)
    found = await read(queue, days=30)
    costs = sorted(
        cost for (cost,) in await rows(queue, "SELECT coalesce(sum(cost), 0) FROM tracekit.spend GROUP BY task_id")
    )
    assert [one.percent for one in found.per_task] == [50, 90, 95, 99, 100]
    # Of twelve tasks: the sixth, the eleventh and the last.
    assert [one.cost for one in found.per_task] == [costs[5], costs[10], costs[11], costs[11], costs[11]]
    assert [task.cost for task in found.dearest] == costs[:1:-1]
    traces = dict(await rows(queue, "SELECT id, trace_id FROM tracekit.tasks"))
    assert all(traces[task.task_id] == task.trace_id for task in found.dearest)
    assert (found.unpriced[0].model, found.unpriced[0].local) == ("unknown", False)
    assert sum(one.calls for one in found.unpriced) == found.total.unpriced


async def test_c1_only_what_follows_a_failure_is_a_retry(queue: Queue) -> None:
    """An attempt that goes on after an approval, a rest or a drain is a claim more, and repeats nothing."""
    ledger = ledger_of(queue)
    await accept(queue)
    at = await take(queue)
    await book(ledger, at, usage())
    await settle(queue, at, Park("approval", "k", timedelta(hours=1)))
    await queue.signal("k", {}, dedupe_key="d", sent_by="rob")
    at = await take(queue)
    assert at.attempt == 2
    await book(ledger, at, usage())
    assert (await read(queue)).total.retry_calls == 0
    await settle(queue, at, Failed("ValueError", "no"))
    await queue.sweep()
    await book(ledger, at := await take(queue), usage(output=99))
    await settle(queue, at, HandOff("planner"))
    await book(ledger, await take(queue, "planner"), usage())
    found = (await read(queue)).total
    assert (found.calls, found.retry_calls, found.retry_tokens) == (4, 1, 109)


async def test_c1_a_lost_answer_and_an_unknown_model_are_told_apart(queue: Queue) -> None:
    await accept(queue)
    lost = usage(input=0, output=0, basis="lost")
    await book(ledger_of(queue), await take(queue), lost, usage("unknown"), usage("unknown", basis="lost"))
    found = {one.model: (one.calls, one.lost) for one in (await read(queue)).unpriced}
    assert found == {"m-1": (1, 1), "unknown": (2, 1)}


async def test_c1_nothing_was_spent(queue: Queue) -> None:
    found = await read(queue)
    assert (found.total.calls, found.total.cost) == (0, Decimal(0))
    assert [*found.groups, *found.per_task, *found.dearest] == []
    assert len(found.days) == 7


async def test_c1_a_flat_rate_stands_beside_what_was_spent(queue: Queue) -> None:
    today = datetime.now(UTC).date()
    prices = [
        PriceSettings(model="a", per_month=Decimal(100)),
        PriceSettings(model="b", per_month=Decimal(100), since=today - timedelta(days=2)),
        PriceSettings(model="c", free=True),
    ]
    found = await read(queue, subscriptions=prices)
    assert [one.label for one in found.subscriptions] == ["a", f"b since {today - timedelta(days=2)}"]
    week, part = (one.cost for one in found.subscriptions)
    assert week == pytest.approx(Decimal("22.998"), abs=Decimal("0.001"))
    assert part == pytest.approx(week * 3 / 7, abs=Decimal("0.001"))


def test_local_days_have_as_many_hours_as_they_have() -> None:
    """The night of 25 October 2026 is an hour longer in Amsterdam, that of 28 March 2027 an hour shorter."""
    autumn = local_days(datetime(2026, 10, 26, 0, 30, tzinfo=UTC), 2, "Europe/Amsterdam")
    assert [moment.date() for moment in autumn] == [date(2026, 10, 25), date(2026, 10, 26), date(2026, 10, 27)]
    hours = [moment.astimezone(UTC) for moment in autumn]
    assert [b - a for a, b in itertools.pairwise(hours)] == [timedelta(hours=25), timedelta(hours=24)]
    spring = [
        moment.astimezone(UTC) for moment in local_days(datetime(2027, 3, 28, 12, tzinfo=UTC), 1, "Europe/Amsterdam")
    ]
    assert spring[1] - spring[0] == timedelta(hours=23)
    # Before midnight in UTC it is the next day already.
    late = local_days(datetime(2026, 11, 24, 23, 30, tzinfo=UTC), 1, "Europe/Amsterdam")
    assert late[0].date() == date(2026, 11, 25)


async def test_c1_calls_around_midnight_count_in_their_local_day(queue: Queue) -> None:
    ledger = ledger_of(queue)
    await accept(queue)
    at = await take(queue)
    midnight = local_days(datetime.now(UTC), 2, "Pacific/Auckland")[1]
    for minutes in (-1, 0, 1):
        await book(ledger, at, usage(at=midnight + timedelta(minutes=minutes)))
    found = await read(queue, days=2, time_zone="Pacific/Auckland")
    assert [day.sums.calls for day in found.days] == [1, 2]
