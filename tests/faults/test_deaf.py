"""Handlers that nothing can stop: one that swallows its cancellation, and a thread that blocks."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.faults.aftermath import Aftermath
from tests.faults.conftest import StartWorker
from tests.faults.database import outcomes, state
from tests.faults.modes import Blocked, Deaf, read_ledger, release_file
from tests.faults.program import program
from tests.queue.driving import settle, submission, take
from tests.support.processes import eventually
from tracekit.config import WorkerSettings
from tracekit.postgres import Pool
from tracekit.queue import Done, Queue
from tracekit.workers.mode import Mode

GRACE = 0.5
PATIENT = WorkerSettings(
    lease=timedelta(minutes=20),
    heartbeat=timedelta(seconds=30),
    poll_interval=timedelta(seconds=0.1),
    grace=timedelta(seconds=GRACE),
)
"""A lease so long that nothing which waits for its end ends in a test."""


async def since(began: float, what: Awaitable[object]) -> float:
    """Seconds from a moment to the end of `what`."""
    await what
    return time.monotonic() - began


async def given_back(pool: Pool, task_id: str) -> None:
    async def ready() -> bool:
        return await state(pool, task_id) == "ready"

    await eventually(ready, "the lease is given back")


async def test_sigterm_ends_a_process_whose_handlers_do_not_hear_Q13(
    after: Aftermath, queue: Queue, pool: Pool, dsn: str, tmp_path: Path
) -> None:
    """Of the real program. The leases are given back over the handlers' heads, and the process goes without them."""
    kinds: list[type[Mode[Any]]] = [Deaf, Blocked]
    async with AsyncExitStack() as stack:
        directories = [tmp_path / kind.name for kind in kinds]
        leaving = await asyncio.gather(
            *(
                stack.enter_async_context(program(dsn, PATIENT, kind, directory=directory, ledger=after.ledger))
                for kind, directory in zip(kinds, directories, strict=True)
            )
        )
        accepted = [(await after.accept(submission(kind.name, {})))[0] for kind in kinds]
        await after.until_ledger("begun", len(kinds))
        began = time.monotonic()
        for process in leaving:
            process.send(signal.SIGTERM)

        back, gone = await asyncio.gather(
            asyncio.gather(*(since(began, given_back(pool, task_id)) for task_id in accepted)),
            asyncio.gather(*(since(began, process.gone()) for process in leaving)),
        )
        assert [process.returncode for process in leaving] == [0, 0]
        assert [await outcomes(pool, task_id) for task_id in accepted] == [["released"]] * 2
    # Whoever takes them up finds nobody in the way.
    for kind in kinds:
        assert await settle(queue, await take(queue, kind.name), Done())
    after.report(
        f"deaf handlers (grace {GRACE:g} s): the coroutine's lease given back {back[0]:.2f} s after SIGTERM, its "
        f"process gone after {gone[0]:.2f} s; the thread's after {back[1]:.2f} s, its process after {gone[1]:.2f} s"
    )
    assert [await outcomes(pool, task_id) for task_id in accepted] == [["released", "done"]] * 2
    assert "answered" not in {step for _, step, _ in read_ledger(after.ledger)}
    await after.check()


async def test_the_late_answer_of_a_handler_that_does_not_hear_changes_nothing_Q3(
    after: Aftermath, queue: Queue, pool: Pool, dsn: str, start_worker: StartWorker
) -> None:
    """Its lease is lost while its worker is frozen; it answers long after, and the worker works on."""
    quick = ("--poll=0.1", "--grace=1")
    deaf = await start_worker(dsn, *quick, "--lease=3", "--no-sweep", ready=False)
    healthy = await start_worker(dsn, *quick, "--lease=600", "--held", ready=False)
    for worker in (deaf, healthy):
        await worker.prints()
    accepted = await after.accept(submission("deaf", {}), submission("blocked", {}))
    await after.until_ledger("begun", 2)
    deaf.freeze()
    healthy.thaw()
    await after.until_ended()
    before = [await queue.events(task_id) for task_id in accepted]
    summaries = [(await queue.task(task_id)).summary for task_id in accepted]
    assert summaries == ["attempt 2"] * 2

    woken = time.monotonic()
    deaf.thaw()
    await after.until_ledger("ignored")
    heard = time.monotonic() - woken
    release_file().touch()

    async def both_answered() -> bool:
        late = [task_id for task_id, step, attempt in read_ledger(after.ledger) if (step, attempt) == ("answered", 1)]
        return sorted(late) == sorted(accepted)

    await eventually(both_answered, "both answer at last")
    # A task that it ends after these answers is proof that it has dealt with them.
    healthy.send(signal.SIGTERM)
    assert await healthy.gone() == 0
    [next_one] = await after.accept(submission("fast", {}))
    await after.until_ended()
    assert await outcomes(pool, next_one) == ["done"]
    deaf.send(signal.SIGTERM)
    assert await deaf.gone() == 0
    assert [await queue.events(task_id) for task_id in accepted] == before
    assert [(await queue.task(task_id)).summary for task_id in accepted] == summaries
    assert [await outcomes(pool, task_id) for task_id in accepted] == [["lease_expired", "done"]] * 2
    assert all(task_id in deaf.log for task_id in accepted)
    after.report(f"deaf handlers that lost their leases: told {heard:.2f} s after waking, answered late, for nothing")
    await after.check(shippers_cut=2)
