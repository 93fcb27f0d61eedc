"""Processes that are killed, frozen and told to go."""

from __future__ import annotations

import random
import signal
import time
from contextlib import AsyncExitStack
from pathlib import Path

from tests.faults.breaking import BreakableServer
from tests.faults.conftest import StartWorker
from tests.faults.database import outcomes, rows, state
from tests.faults.modes import read_ledger
from tests.queue.driving import accept
from tests.support.processes import Process, eventually
from tracekit.postgres import Pool, open_pool
from tracekit.queue import Queue

SEED = 20_260_729


async def test_what_has_a_receipt_survives_kill_9_and_an_immediate_stop_Q1(
    breakable: BreakableServer, breakable_dsn: str, tmp_path: Path
) -> None:
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    async with AsyncExitStack() as stack:
        storms = []
        for name in ("one", "two", "three"):
            storm = await Process.start(
                "tests.faults.enqueuer", f"--dsn={breakable_dsn}", f"--name={name}", log=tmp_path / name
            )
            storms.append(await stack.enter_async_context(storm))
        killed, last = storms[:2], storms[2]
        for storm in killed:
            await storm.prints(lines=chance.randrange(100, 400))
            await storm.kill()
        await last.prints(lines=len(last.lines) + 100)
        await breakable.stop()
        assert await last.gone() != 0, "an enqueue that failed was not told so"
        await breakable.start()
    printed = [task_id for storm in storms for task_id in storm.lines]
    assert len(printed) > 300
    assert len(set(printed)) < len(printed), "no key was offered twice"
    async with await open_pool(breakable_dsn, min_size=1, max_size=1, name="test", autocommit=True) as pool:
        kept = await rows(
            pool,
            "SELECT t.id FROM tracekit.tasks AS t JOIN tracekit.queue AS q ON q.task_id = t.id AND q.state = 'ready'"
            " JOIN tracekit.hops AS h ON h.task_id = t.id JOIN tracekit.events AS e ON e.task_id = t.id"
            " JOIN tracekit.spans AS s ON s.task_id = t.id WHERE t.state = 'open'",
        )
    assert set(printed) <= {row[0] for row in kept}
    print(f"{len(set(printed))} receipts, {len(kept)} tasks")


async def test_a_frozen_worker_changes_nothing_and_its_handler_is_cancelled_Q2_Q3(
    queue: Queue, pool: Pool, dsn: str, start_worker: StartWorker, ledger: Path
) -> None:
    frozen = await start_worker(dsn)
    task_id = await accept(queue, mode="slow", input={"seconds": 3.0})

    async def begun() -> int:
        return sum(step == "begun" for _, step, _ in read_ledger(ledger))

    async def both_began() -> bool:
        return await begun() == 2

    await eventually(begun, "the first attempt begins")
    frozen.freeze()
    began = time.monotonic()
    other = await start_worker(dsn)
    await eventually(both_began, "another worker takes the hop")
    print(f"taken over {time.monotonic() - began:.1f} s after the freeze, the other's start included (lease 2 s)")
    frozen.thaw()

    async def ended() -> bool:
        return await state(pool, task_id) == "done"

    await eventually(ended, "the task ends")
    assert await outcomes(pool, task_id) == ["lease_expired", "done"]
    assert (await queue.task(task_id)).summary == f"by {other.pid}"

    async def cancelled() -> bool:
        return (task_id, "cancelled", 1) in read_ledger(ledger)

    await eventually(cancelled, "the frozen worker's handler is cancelled")
    assert (task_id, "finished", 1) not in read_ledger(ledger)
    assert "lease.lost" in frozen.log
    # It lives, and works on.
    other.send(signal.SIGTERM)
    await other.gone()
    after = await accept(queue, mode="fast")

    async def works() -> bool:
        return await state(pool, after) == "done"

    await eventually(works, "the frozen worker works again")


async def test_a_dead_worker_is_replaced_within_its_lease_and_a_sweep_Q2_Q4(
    queue: Queue, pool: Pool, dsn: str, start_worker: StartWorker, ledger: Path
) -> None:
    first, other = await start_worker(dsn), await start_worker(dsn)
    tasks = [await accept(queue, mode="slow", input={"seconds": 1.0}) for _ in range(8)]

    async def all_begun() -> bool:
        return len(read_ledger(ledger)) >= 8

    await eventually(all_begun, "all are under way")
    [(ours,)] = await rows(
        pool,
        "SELECT count(*) FROM tracekit.queue WHERE state = 'running' AND worker = %s",
        first.lines[0],
    )
    assert ours > 0
    killed = time.time()
    await first.kill()

    async def all_done() -> bool:
        return {await state(pool, task_id) for task_id in tasks} == {"done"}

    await eventually(all_done, "all are done")
    taken = await rows(
        pool,
        "SELECT extract(epoch FROM ready_again.at)::float8,"
        "  extract(epoch FROM (next.data->>'claimed_at')::timestamptz)::float8"
        " FROM tracekit.events AS ready_again JOIN tracekit.events AS next ON next.task_id = ready_again.task_id"
        "  AND next.attempt = ready_again.attempt + 1 AND next.kind = 'attempt.ended'"
        " WHERE ready_again.data->>'outcome' = 'lease_expired' AND ready_again.data->>'worker' = %s",
        first.lines[0],
    )
    assert len(taken) == ours
    print(f"recovery: ready after {max(row[0] for row in taken) - killed:.2f} s, "
          f"claimed after {max(row[1] for row in taken) - killed:.2f} s; lease 2 s, sweep 0.2 s")  # fmt: skip
    assert other.returncode is None


async def test_sigterm_under_load_gives_everything_back_at_once_Q13(
    queue: Queue, pool: Pool, dsn: str, start_worker: StartWorker, ledger: Path
) -> None:
    # A lease and a poll so long that nothing which waits for either ends in this test.
    patient = ("--lease=600", "--poll=600", "--grace=1")
    leaving = await start_worker(dsn, *patient)
    long = [await accept(queue, mode="slow", input={"seconds": 600.0}) for _ in range(4)]

    async def all_begun() -> bool:
        return len(read_ledger(ledger)) == 4

    await eventually(all_begun, "the long ones are under way")
    staying = await start_worker(dsn, *patient)
    began = time.monotonic()
    leaving.send(signal.SIGTERM)
    assert await leaving.gone() == 0
    took = time.monotonic() - began

    async def taken_over() -> bool:
        return sum(step == "begun" and attempt == 2 for _, step, attempt in read_ledger(ledger)) == 4

    await eventually(taken_over, "the other worker goes on at once")
    print(f"gone {took:.1f} s after SIGTERM (grace 1 s), all taken over after {time.monotonic() - began:.1f} s")
    for task_id in long:
        assert await outcomes(pool, task_id) == ["released"]
        task = await queue.task(task_id)
        assert (task.hop_state, task.worker, task.max_attempts) == ("running", staying.lines[0], 4)
