"""A worker process killed with SIGKILL at each point of a hop's life, and another one that goes on."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from tests.faults.aftermath import Aftermath
from tests.faults.conftest import StartWorker
from tests.faults.database import outcomes, rows, value
from tests.faults.modes import read_ledger
from tests.faults.points import mortal
from tests.queue.driving import submission
from tests.support.processes import eventually
from tracekit.postgres import Pool
from tracekit.queue import Queue

LEASE, SWEEP = 2.0, 0.2
DOOMED = (f"--lease={LEASE}", "--poll=0.1", "--no-sweep", "--held")
"""It comes when there is work: what came between its look and its claim it would claim without having seen it."""
HEALTHY = ("--lease=600", "--poll=0.1", "--held")
"""It loses no lease of its own however slow it is, and ends those of the dead."""


@dataclass(frozen=True)
class Left:
    """What a dead worker left behind."""

    running: list[str]
    """Task ids."""
    ended_attempts: int
    deeds: int
    begun: int
    """Effects."""
    recorded: int
    uncertain: list[str]
    """Tasks whose deed nobody would want done twice, and nobody knows whether it was."""


async def left(pool: Pool, ledger: Path) -> Left:
    return Left(
        running=[row[0] for row in await rows(pool, "SELECT task_id FROM tracekit.queue WHERE state = 'running'")],
        ended_attempts=await value(pool, "SELECT count(*) FROM tracekit.events WHERE kind = 'attempt.ended'"),
        deeds=len(read_ledger(ledger)),
        begun=await value(pool, "SELECT count(*) FROM tracekit.effects"),
        recorded=await value(pool, "SELECT count(*) FROM tracekit.effects WHERE finished_at IS NOT NULL"),
        uncertain=[
            row[0]
            for row in await rows(
                pool, "SELECT task_id FROM tracekit.effects WHERE step = 'deed' AND finished_at IS NULL"
            )
        ],
    )


def is_at(point: str, found: Left) -> bool:
    """Whether that is what a death at this point leaves."""
    under_way = len(found.running) > 0
    match point:
        case "claim":
            return not under_way and found.ended_attempts == 0
        case "claimed":
            return under_way and (found.ended_attempts, found.begun, found.deeds) == (0, 0, 0)
        case "begin_effect":
            return under_way and (found.begun, found.deeds) == (0, 0)
        case "record_effect:careful":
            return under_way and len(found.uncertain) == 1 and found.deeds > found.recorded
        case "settle":
            return under_way and found.ended_attempts == 0
        case "settled":
            return found.ended_attempts > 0
    return False


@pytest.mark.parametrize(
    "point", ["claim", "claimed", "begin_effect", "record_effect:careful", "settle", "settled"]
)  # fmt: skip
async def test_a_worker_killed_at_a_point_loses_and_doubles_nothing_Q1_Q2_Q3_Q5_Q8_T4(
    after: Aftermath, queue: Queue, pool: Pool, dsn: str, start_worker: StartWorker, tmp_path: Path, point: str
) -> None:
    """Q2: ready again within lease and sweep. Q5: what nobody can know is the operator's to decide."""
    doomed_one = mortal(dsn, *DOOMED, log=tmp_path / "doomed", ledger=after.ledger, kill=point)
    healthy = await start_worker(dsn, *HEALTHY, ready=False)
    async with doomed_one as doomed:
        # It does nothing until there is something to recover, and needs no time to start then.
        await healthy.prints()
        *_, careful = accepted = await after.accept(
            submission("fast", {}), submission("fast", {}), submission("chain", {"hops": 2}),
            submission("effectful", {}), submission("effectful", {}), submission("careful", {}),
        )  # fmt: skip
        doomed.thaw()
        assert await doomed.gone() == -signal.SIGKILL, doomed.log
        died = time.time()
        found = await left(pool, after.ledger)
        assert is_at(point, found), found
        healthy.thaw()

    if found.uncertain:
        assert found.uncertain == [careful]
        after.ends[careful] = "abandoned"
        await eventually(queue.dead_letters, "what may have been done is the operator's to decide")
        [entry] = await queue.dead_letters()
        assert (entry.task_id, entry.reason) == (careful, "given_up")
        await queue.resolve_dead(careful, "abandoned", "rob")
    await after.until_ended()

    lost = {task_id for task_id in accepted if "lease_expired" in await outcomes(pool, task_id)}
    # What the dead had sent off may have been written after them; at some points nothing was under way.
    assert lost <= set(found.running)
    assert lost or not found.running
    if point in ("claimed", "settle"):
        assert lost == set(found.running)
    for task_id in lost:
        assert (await outcomes(pool, task_id)).count("lease_expired") == 1
    deeds = [step for task_id, step, _ in read_ledger(after.ledger) if task_id == careful]
    assert len(deeds) <= 1
    assert deeds == ["deed"] or (found.uncertain and not point.startswith("record_effect"))
    assert healthy.returncode is None
    ready, claimed, done = await recovery(pool, died)
    after.report(
        f"killed at {point}: {len(lost)} of {len(accepted)} tasks had to come back; ready again after {ready:.2f} s, "
        f"claimed after {claimed:.2f} s, all done after {done:.2f} s (lease {LEASE:g} s, sweep {SWEEP:g} s)"
    )
    healthy.send(signal.SIGTERM)
    assert await healthy.gone() == 0
    await after.check(shippers_cut=2)


async def recovery(pool: Pool, died: float) -> tuple[float, float, float]:
    """Seconds from a death until the last lost hop was ready again, until the last attempt after it was claimed, and
    until the last task ended.
    """
    [(ready, claimed, done)] = await rows(
        pool,
        "SELECT extract(epoch FROM max(at) FILTER (WHERE data->>'outcome' = 'lease_expired'))::float8,"
        "  extract(epoch FROM max((data->>'claimed_at')::timestamptz)"
        "    FILTER (WHERE kind = 'attempt.ended' AND attempt > 1 AND mode <> 'guardian'))::float8,"
        "  extract(epoch FROM max(at) FILTER (WHERE kind = 'task.ended'))::float8 FROM tracekit.events",
    )
    return max(0.0, (ready or died) - died), max(0.0, (claimed or died) - died), done - died


async def test_a_worker_killed_while_its_completion_is_being_written_loses_and_doubles_nothing_Q1_Q8(
    after: Aftermath, pool: Pool, dsn: str, start_worker: StartWorker
) -> None:
    """Q8: the completing transaction is there whole or not at all, though nobody is left to hear which."""
    doomed, healthy = await asyncio.gather(start_worker(dsn, *DOOMED), start_worker(dsn, *HEALTHY))
    accepted = await after.accept(*(submission("fast", {}) for _ in range(4)))
    async with await psycopg.AsyncConnection.connect(dsn) as blocker:
        async with blocker.transaction():
            # Whoever ends a task waits for this lock, in the middle of its transaction.
            await blocker.execute("LOCK TABLE tracekit.tasks IN SHARE ROW EXCLUSIVE MODE")
            doomed.thaw()

            async def writes() -> bool:
                waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'relation' AND NOT granted"
                return bool(await value(pool, waiting))

            await eventually(writes, "the completion is being written")
            await doomed.kill()
            died = time.time()
        healthy.thaw()
    await after.until_ended()
    ends = [await outcomes(pool, task_id) for task_id in accepted]
    assert all(end in (["done"], ["lease_expired", "done"]) for end in ends), ends
    _, _, done = await recovery(pool, died)
    after.report(
        f"killed in the completing transaction: {sum(len(end) == 1 for end in ends)} of {len(ends)} had been written, "
        f"all done after {done:.2f} s (lease {LEASE:g} s, sweep {SWEEP:g} s)"
    )
    healthy.send(signal.SIGTERM)
    assert await healthy.gone() == 0
    await after.check(shippers_cut=2)
