"""Who is claimed when: priority, first in first out, and nobody for ever behind others (Q6, Q7)."""

from __future__ import annotations

from datetime import timedelta

from tests.faults.modes import Fast
from tests.faults.running import running
from tests.queue.driving import LEASE, accept, settle, submission, take
from tests.support.processes import eventually
from tracekit.config import WorkerSettings
from tracekit.envelope import Priority
from tracekit.postgres import Pool
from tracekit.queue import Done, HandOff, Park, Queue, RetryLater
from tracekit.queue.claim import BY_AGE_EVERY


async def test_the_urgent_come_first_and_the_first_come_first_Q6(queue: Queue) -> None:
    order = [Priority.LOW, Priority.URGENT, Priority.NORMAL, Priority.HIGH, Priority.URGENT, Priority.LOW]
    tasks = [await accept(queue, priority=priority) for priority in order]
    taken = [(await take(queue)).task_id for _ in tasks]
    assert taken == [tasks[index] for index in (1, 4, 3, 2, 0, 5)]


async def test_under_endless_urgent_load_a_low_task_is_claimed_within_the_bound_Q6(queue: Queue) -> None:
    """As the worker claims: each `BY_AGE_EVERY`th time by age."""
    ahead, at_once = 10, 2
    await queue.enqueue([submission(priority=Priority.HIGH) for _ in range(ahead)])
    low = await accept(queue, priority=Priority.LOW)
    # The worst: those ahead of it go by age alone too, because urgent ones never end.
    bound = (ahead // at_once + 1) * BY_AGE_EVERY
    for number in range(1, bound + 1):
        await queue.enqueue([submission(priority=Priority.URGENT) for _ in range(at_once)])
        claimed = await queue.claim("w1", {"router": at_once}, LEASE, by_age=number % BY_AGE_EVERY == 0)
        if low in {position.task_id for position in claimed}:
            break
        assert {position.priority for position in claimed} == (
            {Priority.HIGH} if number % BY_AGE_EVERY == 0 else {Priority.URGENT}
        )
    assert number == bound
    assert low in {position.task_id for position in claimed}


async def test_a_worker_claims_by_age_now_and_then_Q6(queue: Queue, pool: Pool, dsn: str) -> None:
    low = await accept(queue, "fast", priority=Priority.LOW)
    await queue.enqueue([submission("fast", priority=Priority.URGENT) for _ in range(60)])
    one_by_one = WorkerSettings(concurrency=1, poll_interval=timedelta(milliseconds=50))
    async with running(dsn, [Fast], one_by_one):

        async def all_done() -> bool:
            async with pool.connection() as connection:
                cursor = await connection.execute("SELECT count(*) FROM tracekit.queue")
                return await cursor.fetchone() == (0,)

        await eventually(all_done, "all are done")
    async with pool.connection() as connection:
        cursor = await connection.execute("SELECT task_id FROM tracekit.events WHERE kind = 'task.ended' ORDER BY seq")
        order = [row[0] for row in await cursor.fetchall()]
    assert order.index(low) < BY_AGE_EVERY


async def test_a_task_past_its_ttl_is_never_claimed_in_whatever_state_Q7(queue: Queue, pool: Pool) -> None:
    ttl = timedelta(milliseconds=300)
    ready = await accept(queue, "ready", ttl=ttl)
    scheduled = await accept(queue, "scheduled", ttl=ttl)
    await settle(queue, await take(queue, "scheduled"), RetryLater(timedelta(0), "later"))
    parked = await accept(queue, "parked", ttl=ttl)
    await settle(queue, await take(queue, "parked"), Park("ci", "ci:1", timedelta(0)))
    running = await accept(queue, "running", ttl=ttl)
    beyond = await accept(queue, "beyond", ttl=ttl)
    at_work = await take(queue, "running")
    await settle(queue, await take(queue, "beyond"), HandOff("review", beyond_ttl=True))

    async def over() -> bool:
        async with pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT every(expires_at < clock_timestamp()) FROM tracekit.tasks WHERE id = ANY(%s)",
                [[ready, scheduled, parked, running, beyond]],
            )
            return await cursor.fetchone() == (True,)

    await eventually(over, "their time is over")
    modes = dict.fromkeys(("ready", "scheduled", "parked", "running"), 1)
    assert await queue.claim("w1", modes, LEASE) == []
    # A signal does not revive what is over, and the sweep ends it before its own deadline gives it back.
    await queue.sweep()
    assert await queue.claim("w1", modes, LEASE) == []
    for task_id in (ready, scheduled, parked):
        assert (await queue.task(task_id)).state == "expired"
        async with pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT kind, recipient, body LIKE '%%turn on the kitchen light%%' FROM tracekit.outbox"
                " WHERE task_id = %s",
                [task_id],
            )
            assert await cursor.fetchall() == [("task_expired", "operator", True)]
    # What is under way is let finish; what is past its deed goes on.
    assert (await queue.task(running)).hop_state == "running"
    assert await settle(queue, at_work, Done())
    assert (await take(queue, "review")).task_id == beyond
