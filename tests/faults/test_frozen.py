"""A worker that stands still past its lease, and writes late: everything that it may still want to say."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from tests.faults.aftermath import Aftermath
from tests.faults.conftest import StartWorker
from tests.faults.database import outcomes, rows
from tests.faults.modes import read_ledger
from tests.faults.points import mortal
from tests.queue.driving import submission
from tests.support.processes import eventually
from tracekit.postgres import Pool
from tracekit.queue import Queue

LEASE = 3.0
FROZEN = (f"--lease={LEASE}", "--poll=0.1", "--no-sweep")
HEALTHY = ("--lease=600", "--poll=0.1", "--held")
HOLD = "begin_effect:careful record_effect:effectful settle:fast heartbeat"


async def test_nothing_that_a_woken_worker_still_says_counts_Q3(
    after: Aftermath, queue: Queue, pool: Pool, dsn: str, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Its settlement, its heartbeat, the beginning of an effect and the record of one come after another worker has
    finished the same hops: they change nothing, it hears of it, and its handlers are cancelled.
    """
    healthy = await start_worker(dsn, *HEALTHY, ready=False)
    async with mortal(dsn, *FROZEN, log=tmp_path / "frozen", ledger=after.ledger, hold=HOLD) as frozen:
        await healthy.prints()
        accepted = await after.accept(
            submission("fast", {}), submission("effectful", {}), submission("careful", {}),
            submission("lingering", {"seconds": 600.0}),
        )  # fmt: skip
        _, effectful, careful, lingering = accepted
        # Each late word is on its tongue when it freezes, and is said first thing when it wakes.
        await frozen.prints(lines=1 + len(HOLD.split()))
        frozen.freeze()
        stopped = time.monotonic()
        healthy.thaw()
        await after.until_ended()
        took = time.monotonic() - stopped
        assert [await outcomes(pool, task_id) for task_id in accepted] == [["lease_expired", "done"]] * 4
        before = await everything(pool)
        assert sorted(read_ledger(after.ledger)) == sorted(
            [
                (effectful, "a", 1),
                (effectful, "a", 2),
                (effectful, "b", 2),
                (effectful, "c", 2),
                (careful, "deed", 2),
                (lingering, "begun", 1),
                (lingering, "begun", 2),
            ]
        )

        woken = time.monotonic()
        frozen.thaw()
        await frozen.prints(lines=1 + 2 * len(HOLD.split()))
        assert sorted(frozen.lines[-4:]) == [
            "begin_effect:careful LeaseLost",
            "heartbeat kept 0 of 4",
            "record_effect:effectful LeaseLost",
            "settle lost 1 of 1",
        ]
        await after.until_ledger("cancelled")
        heard = time.monotonic() - woken

        async def told() -> bool:
            return all(_lost(frozen.log, task_id) for task_id in accepted)

        await eventually(told, "it says of each lease that it is lost")
        assert await everything(pool) == before
        # No handler goes on with what is another's.
        assert [step for _, step, attempt in read_ledger(after.ledger) if attempt == 1].count("b") == 0
        assert (careful, "deed", 1) not in read_ledger(after.ledger)

        # It lives, and works on.
        healthy.send(signal.SIGTERM)
        assert await healthy.gone() == 0
        await after.accept(submission("fast", {}), submission("careful", {}))
        await after.until_ended()
        frozen.send(signal.SIGTERM)
        assert await frozen.gone() == 0
    after.report(
        f"frozen with 4 hops: another worker had finished them after {took:.2f} s (lease {LEASE:g} s); "
        f"woken: 4 late writes refused, the handler cancelled after {heard:.2f} s"
    )
    await after.check(shippers_cut=2)


def _lost(log: str, task_id: str) -> bool:
    return any("lease.lost" in line and task_id in line for line in log.splitlines())


async def everything(pool: Pool) -> list[list[tuple[object, ...]]]:
    """All that could have been changed."""
    return [
        await rows(pool, "SELECT id, state, summary, ended_at FROM tracekit.tasks ORDER BY 1"),
        await rows(pool, "SELECT task_id, seq, kind, at, data FROM tracekit.events ORDER BY 1, 2"),
        await rows(pool, "SELECT task_id, step, attempt, result, finished_at FROM tracekit.effects ORDER BY 1, 2"),
        await rows(pool, "SELECT trace_id, span_id, start_time, end_time FROM tracekit.spans ORDER BY 1, 2"),
        await rows(pool, "SELECT task_id, state, token, due_at FROM tracekit.queue ORDER BY 1"),
    ]
