"""Many sweepers at once: whatever time asks for happens once."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest

from tests.faults.aftermath import Aftermath
from tests.faults.database import rows
from tests.queue.driving import AT_ONCE, submission
from tracekit.postgres import Pool, open_pool
from tracekit.queue import Done, Outcome, Park, Position, Queue, RetryLater, Settlement

EACH = 100
"""Things due of each kind: more in all than one sweep takes."""
NOW = timedelta(0)
LONG = timedelta(minutes=5)
ONCE = AT_ONCE.model_copy(update={"max_attempts": 1})


async def take_all(queue: Queue, mode: str, count: int, lease: timedelta = LONG) -> list[Position]:
    taken: list[Position] = []
    while len(taken) < count:
        taken += (more := await queue.claim("hand", {mode: count - len(taken)}, lease))
        assert more, f"only {len(taken)} of {count} are ready in {mode}"
    return taken


async def settle_all(queue: Queue, positions: list[Position], ending: Outcome) -> None:
    assert await queue.settle([Settlement(position, ending) for position in positions]) == []


@pytest.mark.parametrize("sweepers", [2, 10])
async def test_each_thing_that_is_due_happens_once_Q2_Q4_Q7_Q14_Q15(
    after: Aftermath, queue: Queue, pool: Pool, dsn: str, sweepers: int
) -> None:
    accepted: dict[str, list[str]] = {}
    for kind in ("lease", "poison", "resume", "expire", "rest", "ttl"):
        ends = {"poison": "abandoned", "expire": "expired", "ttl": "expired"}.get(kind, "done")
        policy, ttl = (ONCE if kind == "poison" else AT_ONCE), (timedelta(microseconds=1) if kind == "ttl" else None)
        accepted[kind] = await after.accept(
            *(submission(kind, ttl=ttl, retry_policy=policy) for _ in range(EACH)), ends=ends
        )
    # Parked first: a lease that lasts no time is due while the rest is made ready.
    for kind, ending in (
        ("resume", Park("ci", "ci:never", NOW)),
        ("expire", Park("approval", "approval:never", NOW, on_deadline="expire")),
        ("rest", RetryLater(NOW, "not now")),
    ):
        await settle_all(queue, await take_all(queue, kind, EACH), ending)
    for kind in ("lease", "poison"):
        await take_all(queue, kind, EACH, NOW)

    async with AsyncExitStack() as stack:
        others = [
            Queue(
                await stack.enter_async_context(
                    await open_pool(dsn, min_size=1, max_size=1, name=f"sweeper {number}", autocommit=True)
                )
            )
            for number in range(sweepers)
        ]
        began = time.monotonic()
        moved = await asyncio.gather(*(other.sweep() for other in others))
        took = time.monotonic() - began
    due = EACH * len(accepted)
    assert sum(moved) == due
    assert sum(one > 0 for one in moved) > 1, "one of them did it all: this was no race"
    assert await queue.sweep() == 0

    expected = {
        "lease": {"task.accepted": 1, "lease_expired": 1},
        "poison": {"task.accepted": 1, "lease_expired": 1, "task.dead": 1},
        "resume": {"task.accepted": 1, "parked": 1, "wait.closed": 1},
        "expire": {"task.accepted": 1, "parked": 1, "wait.closed": 1, "task.ended": 1},
        "rest": {"task.accepted": 1, "retry_later": 1},
        "ttl": {"task.accepted": 1, "task.ended": 1},
    }
    events = await rows(pool, "SELECT task_id, kind, data->>'outcome' FROM tracekit.events")
    happened = Counter((task_id, outcome if kind == "attempt.ended" else kind) for task_id, kind, outcome in events)
    for kind, task_ids in accepted.items():
        for task_id in task_ids:
            assert {what: count for (of, what), count in happened.items() if of == task_id} == expected[kind]
    # The operator is told once of each that expired, and of each that died.
    told = dict(await rows(pool, "SELECT task_id, count(*) FROM tracekit.outbox GROUP BY task_id"))
    assert told == dict.fromkeys([*accepted["expire"], *accepted["ttl"], *accepted["poison"]], 1)
    buried = await queue.dead_letters(limit=10_000)
    assert sorted(entry.task_id for entry in buried) == sorted(accepted["poison"])
    [(reviews, reviewed)] = await rows(
        pool, "SELECT count(*), count(DISTINCT review_of) FROM tracekit.tasks WHERE review_of IS NOT NULL"
    )
    assert (reviews, reviewed) == (EACH, EACH)
    after.report(f"{sweepers} sweepers: {due} things due done in {took:.2f} s, by each {sorted(moved, reverse=True)}")

    for kind in ("lease", "resume", "rest"):
        await settle_all(queue, await take_all(queue, kind, EACH), Done())
    await settle_all(queue, await take_all(queue, "guardian", EACH), Done())
    for entry in buried:
        await queue.resolve_dead(entry.task_id, "abandoned", "rob")
    await after.check()
