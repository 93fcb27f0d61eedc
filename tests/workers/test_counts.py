"""What the worker counts of tasks and of people: each end and each decision once, wherever it came from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from itertools import product

import pytest

from tests.queue.driving import AT_ONCE, accept, settle, take
from tests.support.processes import eventually
from tests.workers.test_worker import Text, mode_of, until, working
from tracekit import instruments, metrics
from tracekit.envelope import Priority
from tracekit.queue import Done, GiveUp, Notice, Outcome, Park, Queue, RetryLater
from tracekit.queue.outbox import MOST_ATTEMPTS, Notification
from tracekit.workers.mode import Hop
from tracekit.workers.worker import OUTCOMES

HOUR = timedelta(hours=1)
Series = tuple[str, ...]


def series(metric: metrics.Metric) -> dict[Series, float]:
    """All of a counter's, or of how many a histogram has seen, by label values in the catalogue's order."""
    suffix = "_count" if metric.type == "histogram" else ""
    return {
        tuple(sample.labels[label] for label in metric.labels): sample.value
        for family in instruments.REGISTRY.collect()
        for sample in family.samples
        if sample.name == metric.name + suffix
    }


class Since:
    """What was counted since this was made."""

    def __init__(self, *counted: metrics.Metric) -> None:
        self._before = {metric.name: series(metric) for metric in counted}

    def __call__(self, metric: metrics.Metric) -> dict[Series, float]:
        before = self._before[metric.name]
        grown = {labels: value - before.get(labels, 0) for labels, value in series(metric).items()}
        return {labels: value for labels, value in grown.items() if value}

    def has(self, metric: metrics.Metric, count: int) -> Callable[[], Awaitable[bool]]:
        """Tells whether so many were counted: after the commit that others see, and not with it."""

        async def look() -> bool:
            return sum(self(metric).values()) >= count

        return look


@pytest.fixture
def since() -> Since:
    return Since(metrics.TASKS_ENDED, metrics.APPROVALS_DECIDED, metrics.APPROVAL_WAIT, metrics.NOTIFICATIONS_GIVEN_UP)


def approval(key: str, within: timedelta = HOUR, on_deadline: str = "expire") -> Park:
    return Park("approval", key, within, on_deadline=on_deadline)  # type: ignore[arg-type]


def decision(decision: str) -> dict[str, str]:
    return {"decision": decision, "plan_hash": "0"}


@pytest.mark.parametrize("metric", [metrics.TASKS_ENDED, metrics.APPROVALS_DECIDED, metrics.NOTIFICATIONS])
def test_d6_what_may_be_counted_is_there_before_it_is(metric: metrics.Metric) -> None:
    """An alert on `increase()` does not see the first event of a series that begins with it."""
    assert set(product(*metric.known)) <= set(series(metric))


async def test_d6_a_worker_shows_what_its_modes_may_come_to_before_they_do(queue: Queue) -> None:
    async def never(_: Hop[Text]) -> Outcome:
        raise AssertionError

    async with working(queue, mode_of(never, "quiet")):
        assert {("quiet", outcome): 0.0 for outcome in OUTCOMES}.items() <= series(metrics.ATTEMPTS).items()
        assert series(metrics.LEASES_LOST)["quiet",] == 0
        assert series(metrics.RETRIES)["quiet",] == 0


async def test_ends_of_tasks_are_counted_once_by_state(queue: Queue, since: Since) -> None:
    async def end(hop: Hop[Text]) -> Outcome:
        return Done(hop.input.text)  # type: ignore[arg-type]

    async with working(queue, mode_of(end)):
        for state, destructive in (("done", False), ("done", True), ("rejected", False), ("failed", True)):
            await until(queue, await accept(queue, input={"text": state}, destructive=destructive), state)
        # Of the sweep, in whose process it is told.
        gone = await accept(queue, "nobody-serves-this", destructive=True, ttl=timedelta(microseconds=1))
        await until(queue, gone, "expired")
        await eventually(since.has(metrics.TASKS_ENDED, 5), "all are counted")
    dead = await accept(queue, "planner", retry_policy=AT_ONCE)
    await settle(queue, await take(queue, "planner"), GiveUp("no"))
    await queue.resolve_dead(dead, "abandoned", "rob")
    assert since(metrics.TASKS_ENDED) == {
        ("done", "false"): 1,
        ("done", "true"): 1,
        ("rejected", "false"): 1,
        ("failed", "true"): 1,
        ("expired", "true"): 1,
        ("abandoned", "false"): 1,
    }


async def test_decisions_are_counted_once_though_their_hop_is_tried_again(queue: Queue, since: Since) -> None:
    async def ask(hop: Hop[Text]) -> Outcome:
        if hop.task.wait_attempt is None:
            return approval(hop.task.task_id)
        if hop.task.attempt == 2:
            raise RuntimeError("after the decision, with which it comes back")
        return Done()

    async with working(queue, mode_of(ask)):
        for number, said in enumerate(("approve", "reject", "defer", "what?")):
            urgent = Priority.URGENT if number == 0 else Priority.NORMAL
            task_id = await accept(queue, priority=urgent, retry_policy=AT_ONCE)

            async def parked(task_id: str = task_id) -> bool:
                return (await queue.task(task_id)).hop_state == "parked"

            await eventually(parked, "it waits")
            await queue.signal(task_id, decision(said), dedupe_key="decision", sent_by="rob")
            await until(queue, task_id, "done")
    assert since(metrics.APPROVALS_DECIDED) == {
        ("approved", "true"): 1,
        ("rejected", "false"): 1,
        ("deferred", "false"): 1,
        ("cancelled", "false"): 1,
    }
    assert since(metrics.APPROVAL_WAIT) == {(said,): 1 for said in ("approved", "rejected", "deferred", "cancelled")}


async def test_approvals_that_nobody_gave_are_counted_by_the_sweep_or_when_the_task_goes_on(
    queue: Queue, since: Since
) -> None:
    async def ask(hop: Hop[Text]) -> Outcome:
        if hop.task.wait_attempt is not None:
            return Done()
        return approval(hop.task.task_id, timedelta(0), hop.input.text)

    async with working(queue, mode_of(ask)):
        await until(queue, await accept(queue, input={"text": "expire"}), "expired")
        await until(queue, await accept(queue, input={"text": "resume"}), "done")
        await eventually(since.has(metrics.APPROVALS_DECIDED, 2), "both are counted")
    assert since(metrics.APPROVALS_DECIDED) == {("expired", "false"): 1, ("cancelled", "false"): 1}
    assert since(metrics.APPROVAL_WAIT) == {("expired",): 1, ("cancelled",): 1}


async def test_rests_and_other_waits_are_no_decisions(queue: Queue, since: Since) -> None:
    async def rest(hop: Hop[Text]) -> Outcome:
        if hop.task.attempt == 1:
            return RetryLater(timedelta(0), "later")
        return Park("ci", "run", timedelta(0)) if hop.task.wait_attempt is None else Done()

    async with working(queue, mode_of(rest)):
        await until(queue, await accept(queue, retry_policy=AT_ONCE), "done", "expired")
    assert since(metrics.APPROVALS_DECIDED) == {}


async def test_the_last_try_to_tell_somebody_is_counted(queue: Queue, since: Since) -> None:
    async def fail(_: Notification) -> None:
        raise RuntimeError("unreachable")

    await accept(queue)
    await settle(queue, await take(queue), Park("ci", "x", HOUR, notice=Notice("ci", "waits", "…")))
    for attempts in (1, MOST_ATTEMPTS - 1):
        async with queue.connection() as connection:
            await connection.execute("UPDATE tracekit.outbox SET due_at = now(), attempts = %s", [attempts])
        assert since(metrics.NOTIFICATIONS_GIVEN_UP) == {}
        assert await queue.deliver(fail) == 1
    assert since(metrics.NOTIFICATIONS_GIVEN_UP) == {(): 1}
    assert await queue.deliver(fail) == 0
