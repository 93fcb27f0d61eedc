"""Who is claimed when: priority, first in first out, and nobody for ever behind others (Q6, Q7)."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest

from tests.faults.database import rows
from tests.faults.modes import Fast, Work
from tests.faults.running import running
from tests.queue.driving import LEASE, accept, settle, submission, take
from tests.support.processes import eventually
from tracekit.config import WorkerSettings
from tracekit.envelope import Priority
from tracekit.postgres import Pool
from tracekit.queue import Done, HandOff, Park, Queue, RetryLater
from tracekit.queue.claim import BY_AGE_EVERY
from tracekit.queue.model import Outcome
from tracekit.workers.mode import Hop, Mode

SEED = 20_261_124
ONE_BY_ONE = WorkerSettings(concurrency=1, poll_interval=timedelta(milliseconds=50))


class Slower(Mode[Work]):
    """Takes a while, now more, now less."""

    name = "slower"
    input_type = Work

    async def run(self, hop: Hop[Work]) -> Outcome:
        await asyncio.sleep(random.Random(hop.task.task_id).uniform(0.002, 0.02))
        return Done()


def ended(pool: Pool, count: int) -> Callable[[], Awaitable[bool]]:
    async def so_many() -> bool:
        return await rows(pool, "SELECT count(*) FROM tracekit.tasks WHERE state = 'done'") == [(count,)]

    return so_many


async def claimed(pool: Pool, mode: str) -> list[str]:
    """The tasks of a mode whose first attempt has ended, in the order of their claims."""
    found = await rows(
        pool,
        "SELECT task_id FROM tracekit.events WHERE kind = 'attempt.ended' AND mode = %s"
        " ORDER BY (data->>'claimed_at')::timestamptz",
        mode,
    )
    return [row[0] for row in found]


async def test_the_urgent_come_first_and_the_first_come_first_Q6(queue: Queue) -> None:
    order = [Priority.LOW, Priority.URGENT, Priority.NORMAL, Priority.HIGH, Priority.URGENT, Priority.LOW]
    tasks = [await accept(queue, priority=priority) for priority in order]
    taken = [(await take(queue)).task_id for _ in tasks]
    assert taken == [tasks[index] for index in (1, 4, 3, 2, 0, 5)]


def most_claims(older: int, at_once: int, workers: int) -> int:
    """The bound of Q6: a low hop is among what the queue's first so many claims take, however urgent the rest is.

    `older` hops of its mode are ready before it and are claimed before it, each eighth claim of each worker takes
    `at_once` of the oldest, and in the worst case every worker has made its seven others when it counts.
    """
    by_age = math.ceil((older + 1) / at_once)
    return BY_AGE_EVERY * (by_age - 1) + (BY_AGE_EVERY - 1) * workers + 1


async def claims_until_low(queue: Queue, mode: str, older: int, at_once: int, turns: Iterator[int]) -> int:
    """How many claims it takes until a low hop starts, behind `older` ones and beside urgent ones that never end.

    `turns`: which worker claims next. Each claims by age as the worker does, every `BY_AGE_EVERY`th time of its own.
    """
    await queue.enqueue([submission(mode, priority=Priority.HIGH) for _ in range(older)])
    low = await accept(queue, mode, priority=Priority.LOW)
    claims: Counter[int] = Counter()
    backlog = 0
    for worker in turns:
        if backlog < at_once:
            await queue.enqueue([submission(mode, priority=Priority.URGENT) for _ in range(20 * at_once)])
            backlog += 20 * at_once
        claims[worker] += 1
        by_age = claims[worker] % BY_AGE_EVERY == 0
        taken = await queue.claim(f"w{worker}", {mode: at_once}, LEASE, by_age=by_age)
        assert len(taken) == at_once
        if low in {position.task_id for position in taken}:
            return claims.total()
        # The others lose nothing but each eighth claim.
        assert {position.priority for position in taken} == {Priority.HIGH if by_age else Priority.URGENT}
        backlog -= 0 if by_age else at_once
    raise AssertionError("turns never end")


@pytest.mark.parametrize("at_once", [1, 4, 10])
@pytest.mark.parametrize("workers", [1, 2, 5])
async def test_under_endless_urgent_load_a_low_hop_starts_within_the_bound_Q6(
    queue: Queue, workers: int, at_once: int
) -> None:
    chance = random.Random(SEED)

    def in_any_order() -> Iterator[int]:
        while True:
            yield chance.randrange(workers)

    def worst() -> Iterator[int]:
        """All make their seven, and then but one goes on."""
        yield from (worker for worker in range(workers) for _ in range(BY_AGE_EVERY - 1))
        yield from itertools.repeat(0)

    # As many as its batches hold, so that the low one is the last of the last batch; then any number.
    older = 3 * at_once - 1
    bound = most_claims(older, at_once, workers)
    reached = await claims_until_low(queue, "worst", older, at_once, worst())
    # Reached exactly: it is the bound, and not merely above it.
    assert reached == bound
    measured = []
    for number in range(4):
        older = chance.randrange(5 * at_once)
        took = await claims_until_low(queue, f"any-{number}", older, at_once, in_any_order())
        assert took <= most_claims(older, at_once, workers)
        measured.append(took / most_claims(older, at_once, workers))
    print(
        f"{workers} workers, {at_once} at once: {reached} of {bound} claims at worst, else {max(measured):.0%} at most"
    )


async def test_workers_keep_the_bound_Q6(queue: Queue, pool: Pool, dsn: str) -> None:
    """Real workers, in hops: with one at once a claim is a hop."""
    older, workers = 2, 3
    bound = most_claims(older, 1, workers)
    first = [await accept(queue, "fast", priority=Priority.HIGH) for _ in range(older)]
    low = await accept(queue, "fast", priority=Priority.LOW)
    await queue.enqueue([submission("fast", priority=Priority.URGENT) for _ in range(2 * bound)])
    async with AsyncExitStack() as stack:
        for _ in range(workers):
            await stack.enter_async_context(running(dsn, [Fast], ONE_BY_ONE))
        await eventually(ended(pool, 2 * bound + older + 1), "all are done")
    order = await claimed(pool, "fast")
    print(f"{workers} workers: the low hop was number {order.index(low) + 1}, the bound is {bound}")
    assert order.index(low) < bound
    assert all(order.index(one) < order.index(low) for one in first)
    # And the urgent lose no more than each eighth claim to those that are not.
    for count in range(1, len(order) + 1):
        others = sum(task_id in {*first, low} for task_id in order[:count])
        assert others <= count / BY_AGE_EVERY + workers


async def test_the_bound_holds_in_each_mode_of_a_worker_Q6(queue: Queue, pool: Pool, dsn: str) -> None:
    """A busy mode beside it does not take the claims by age that a slower mode has a right to."""
    names = [f"slower-{number}" for number in range(12)]
    slower = [type("Slower", (Slower,), {"name": name}) for name in names]
    low = {}
    for name in names:
        low[name] = await accept(queue, name, priority=Priority.LOW)
        await queue.enqueue([submission(name, priority=Priority.URGENT) for _ in range(3 * BY_AGE_EVERY)])
    await queue.enqueue([submission("fast") for _ in range(1500)])

    async def all_claimed() -> bool:
        return all([low[name] in await claimed(pool, name) for name in names])

    async with running(dsn, [*slower, Fast], ONE_BY_ONE):
        await eventually(all_claimed, "each low hop has run")
    numbers = [(await claimed(pool, name)).index(low[name]) + 1 for name in names]
    print(f"the low hop of each mode was number {numbers}, the bound is {BY_AGE_EVERY}")
    assert max(numbers) <= BY_AGE_EVERY


async def test_a_task_past_its_ttl_is_never_claimed_in_whatever_state_Q7(queue: Queue, pool: Pool) -> None:
    ttl = timedelta(hours=1)
    ready = await accept(queue, "ready", ttl=ttl)
    scheduled = await accept(queue, "scheduled", ttl=ttl)
    await settle(queue, await take(queue, "scheduled"), RetryLater(timedelta(0), "later"))
    parked = await accept(queue, "parked", ttl=ttl)
    await settle(queue, await take(queue, "parked"), Park("ci", "ci:1", timedelta(0)))
    running = await accept(queue, "running", ttl=ttl)
    beyond = await accept(queue, "beyond", ttl=ttl)
    at_work = await take(queue, "running")
    await settle(queue, await take(queue, "beyond"), HandOff("review", beyond_ttl=True))
    async with pool.connection() as connection:
        # The hour passes.
        await connection.execute("UPDATE tracekit.envelopes SET expires_at = expires_at - interval '1 hour'")
        await connection.execute("UPDATE tracekit.queue SET expires_at = expires_at - interval '1 hour'")
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
