"""A task that ends its worker's process whenever it is tried."""

from __future__ import annotations

import signal
import time
from collections import Counter

from tests.faults.aftermath import Aftermath
from tests.faults.conftest import StartWorker
from tests.faults.database import outcomes, rows, state
from tests.queue.driving import AT_ONCE, submission
from tests.support.processes import ALL_DAY, Process, background, eventually
from tracekit.postgres import Pool
from tracekit.queue import Queue

ATTEMPTS = 3
POISONED = 66
"""The exit status of a worker that the task ended."""
PATIENT = AT_ONCE.model_copy(update={"max_attempts": 25})
"""An innocent task may be under way in each worker that the poison ends, and must not die of it."""


async def test_a_poison_task_ends_in_the_dlq_and_harms_nobody_else_Q4_Q15(
    after: Aftermath, queue: Queue, pool: Pool, dsn: str, start_worker: StartWorker
) -> None:
    statuses: Counter[int] = Counter()
    running: dict[int, Process] = {}

    async def keep(place: int) -> None:
        """A supervisor: whatever ends is started again."""
        while True:
            running[place] = await start_worker(dsn, "--lease=2", "--poll=0.1", ready=False)
            statuses[await running[place].gone(within=600)] += 1

    began = time.monotonic()
    async with background(keep(0), keep(1)):
        innocent = await after.accept(
            *(submission("fast", {}, retry_policy=PATIENT) for _ in range(10)),
            *(submission("slow", {"seconds": 0.5}, retry_policy=PATIENT) for _ in range(10)),
            *(submission("effectful", {}, retry_policy=PATIENT) for _ in range(5)),
        )
        [poison] = await after.accept(
            submission("poison", {}, retry_policy=AT_ONCE.model_copy(update={"max_attempts": ATTEMPTS})),
            ends="abandoned",
        )
        await eventually(queue.dead_letters, "it is dead", within=ALL_DAY)
        dead = time.monotonic() - began

        async def others_done() -> bool:
            return {await state(pool, task_id) for task_id in innocent} == {"done"}

        await eventually(others_done, "all others are done")
        done = time.monotonic() - began
        [entry] = await queue.dead_letters()
        assert (entry.task_id, entry.reason, entry.error_type, entry.attempts) == (
            poison, "attempts_exhausted", "lease_expired", ATTEMPTS,
        )  # fmt: skip
        assert await outcomes(pool, poison) == ["lease_expired"] * ATTEMPTS
        [(review, review_of)] = await rows(pool, "SELECT id, review_of FROM tracekit.tasks WHERE review_of IS NOT NULL")
        assert (review, review_of) == (entry.review_task_id, poison)

        async def asked() -> bool:
            return await state(pool, review) == "parked"

        await eventually(asked, "its review waits for the operator")
        await queue.resolve_dead(poison, "abandoned", "rob")
        await after.until_ended()
        lost = sum([(await outcomes(pool, task_id)).count("lease_expired") for task_id in innocent])
    # Each attempt cost one worker, and no more than that many were tried.
    assert statuses == {POISONED: ATTEMPTS}
    for worker in running.values():
        await worker.prints()
        worker.send(signal.SIGTERM)
        assert await worker.gone() == 0
    after.report(
        f"a poison task took {ATTEMPTS} workers and was dead after {dead:.1f} s (starting workers included); "
        f"{lost} attempts of {len(innocent)} other tasks died with them, all done after {done:.1f} s (lease 2 s)"
    )
    await after.check(shippers_cut=ATTEMPTS + 2)
