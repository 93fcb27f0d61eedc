"""SIGTERM for the real program with 200 hops in flight."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

from tests.faults.aftermath import Aftermath
from tests.faults.database import outcomes, rows
from tests.faults.modes import Lingering, read_ledger
from tests.faults.program import program
from tests.queue.driving import submission
from tracekit.config import WorkerSettings
from tracekit.postgres import Pool

GRACE = timedelta(seconds=5)
PATIENT = WorkerSettings(
    concurrency=200,
    lease=timedelta(minutes=20),
    heartbeat=timedelta(seconds=30),
    poll_interval=timedelta(minutes=20),
    sweep_interval=timedelta(seconds=1),
    grace=GRACE,
)
"""A lease and a poll so long that nothing which waits for either ends in this test."""


async def test_sigterm_with_200_in_flight_loses_doubles_and_delays_nothing_Q8_Q13(
    after: Aftermath, pool: Pool, dsn: str, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        # Tasks that are there before the worker is: nothing has to wake it.
        brief = await after.accept(*(submission("lingering", {"seconds": 1.0}) for _ in range(100)))
        long = await after.accept(*(submission("lingering", {"seconds": 600.0}) for _ in range(100)))
        leaving = await stack.enter_async_context(
            program(dsn, PATIENT, Lingering, directory=tmp_path / "leaving", ledger=after.ledger)
        )
        await after.until_ledger("begun", 200)
        leaving.send(signal.SIGTERM)
        began = time.monotonic()
        starting = asyncio.create_task(
            stack.enter_async_context(
                program(dsn, PATIENT, Lingering, directory=tmp_path / "staying", ledger=after.ledger)
            )
        )
        assert await leaving.gone() == 0, leaving.log[-4000:]
        gone = time.monotonic() - began
        left = await rows(pool, "SELECT task_id FROM tracekit.queue WHERE state = 'running' AND attempt = 1")
        assert left == [], "it kept leases"
        staying = await starting

        await after.until_ended()
        all_done = time.monotonic() - began
        assert {tuple(await outcomes(pool, task_id)) for task_id in brief} == {("done",)}
        assert {tuple(await outcomes(pool, task_id)) for task_id in long} == {("released", "done")}
        begun = Counter(task_id for task_id, step, _ in read_ledger(after.ledger) if step == "begun")
        assert begun == dict.fromkeys(brief, 1) | dict.fromkeys(long, 2)
        staying.send(signal.SIGTERM)
        assert await staying.gone() == 0
    after.report(
        f"SIGTERM with 200 hops in flight: {len(brief)} finished, {len(long)} given back, exit 0 after {gone:.2f} s "
        f"(grace {GRACE.total_seconds():g} s); all done by another worker after {all_done:.2f} s"
    )
    await after.check()
