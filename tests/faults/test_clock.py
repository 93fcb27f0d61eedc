"""A worker whose clock is an hour wrong: only the database's counts."""

from __future__ import annotations

import os
import shutil
import signal
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from psycopg import sql

from tests.faults import clock
from tests.faults.aftermath import Aftermath
from tests.faults.database import outcomes, rows, state, value
from tests.queue.driving import settle, submission, take
from tests.support.processes import Process, eventually
from tracekit.postgres import Pool
from tracekit.queue import Done, Park, Queue, RetryLater

HOUR = timedelta(hours=1)
SOON, LONG = timedelta(seconds=4), timedelta(minutes=30)


@pytest.mark.parametrize("wrong", [HOUR, -HOUR], ids=["ahead", "behind"])
async def test_a_worker_with_a_wrong_clock_changes_no_time_Q2_Q6_Q7_Q10_Q14_T6(
    after: Aftermath, queue: Queue, pool: Pool, dsn: str, tmp_path: Path, wrong: timedelta
) -> None:
    """It is the only one that sweeps. What is due in seconds happens then, what has half an hour keeps it, what it
    hands on stands in its place in the line, and no time in any table or span is its own.
    """
    began: datetime = await value(pool, "SELECT clock_timestamp()")
    shutil.copy(clock.__file__, tmp_path / "sitecustomize.py")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    env = {"PYTHONPATH": paths, clock.VARIABLE: str(wrong.total_seconds())}
    starting = Process.start(
        "tests.faults.worker", f"--dsn={dsn}", "--lease=5", "--poll=0.1", log=tmp_path / "log", env=env
    )
    async with await starting as worker:
        await worker.prints()
        # One that is longer at work than a lease lasts, and one that may wait for half an hour.
        served = await after.accept(submission("slow", {"seconds": 6.0}), submission("fast", {}, ttl=LONG))
        [held] = await after.accept(submission("held"))
        mine = await take(queue, "held", lease=LONG)
        [waiting] = await after.accept(submission("waiting"))
        assert await settle(queue, await take(queue, "waiting"), Park("ci", "ci:waiting", LONG))

        [parked] = await after.accept(submission("parked"))
        assert await settle(queue, await take(queue, "parked"), Park("ci", "ci:parked", SOON))
        [rested] = await after.accept(submission("rested"))
        assert await settle(queue, await take(queue, "rested"), RetryLater(SOON, "not now"))
        [lapsed] = await after.accept(submission("lapsed"))
        await take(queue, "lapsed", lease=SOON)
        due = {task_id: (await queue.task(task_id)).due_at for task_id in (parked, rested, lapsed)}
        [expiring] = await after.accept(submission("nobody", ttl=SOON), ends="expired")

        # What it hands on is younger than the first of these, and older than the last.
        line = await after.accept(submission("elsewhere"))
        line += await after.accept(submission("timekeeper", {}))

        async def handed_on() -> bool:
            return (await queue.task(line[1])).mode == "elsewhere"

        await eventually(handed_on, "it hands on")
        line += await after.accept(submission("elsewhere"))
        taken = [await take(queue, "elsewhere") for _ in line]
        assert [position.task_id for position in taken] == line
        for told in taken[1].input.values():
            assert abs(told - time.time() - wrong.total_seconds()) < 60, "its clock is right"

        async def all_due() -> bool:
            states = {await state(pool, task_id) for task_id in due}
            return states == {"ready"} and {await state(pool, task_id) for task_id in (*served, expiring)} == {
                "done", "expired"
            }  # fmt: skip

        await eventually(all_due, "what was due has happened")
        late = {}
        for task_id, when in due.items():
            task = await queue.task(task_id)
            assert task.ready_at is not None
            assert when is not None
            late[task_id] = (task.ready_at - when).total_seconds()
        ended = await queue.task(expiring)
        assert ended.ended_at is not None
        assert ended.expires_at is not None
        late[expiring] = (ended.ended_at - ended.expires_at).total_seconds()
        assert all(0 <= seconds < (HOUR / 2).total_seconds() for seconds in late.values()), late
        assert [await outcomes(pool, task_id) for task_id in served] == [["done"], ["done"]]
        assert await state(pool, waiting) == "parked"
        assert await state(pool, held) == "running"

        # The rest by hand: the lease is still ours, and the wait still waits for its signal.
        await queue.signal("ci:waiting", {}, dedupe_key="run", sent_by="github")
        for position in [
            mine,
            *taken,
            *[await take(queue, mode) for mode in ("waiting", "parked", "rested", "lapsed")],
        ]:
            assert await settle(queue, position, Done())
        worker.send(signal.SIGTERM)
        assert await worker.gone() == 0
    after.report(
        f"a worker's clock {wrong.total_seconds():+.0f} s off: a wait's deadline, a rest, a lease and a ttl were over "
        f"{', '.join(f'{seconds:.2f}' for seconds in late.values())} s after their time (sweep 0.2 s)"
    )
    await after.check(shippers_cut=1)
    until: datetime = await value(pool, "SELECT clock_timestamp()")
    strange = {
        name: found for name, found in (await times(pool)).items() if found[0] < began or found[1] > until + LONG
    }
    assert strange == {}
    for span in after.receiver.spans():
        assert began.timestamp() <= span["start_time"] / 1e9 <= span["end_time"] / 1e9 <= until.timestamp()


async def times(pool: Pool) -> dict[str, tuple[datetime, datetime]]:
    """The earliest and the latest time in each column of each table and view."""
    columns = await rows(
        pool,
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'tracekit'"
        " AND data_type = 'timestamp with time zone' AND table_name <> 'schema_migrations'",
    )
    found = {}
    async with pool.connection() as connection:
        for table, column in columns:
            statement = sql.SQL("SELECT min({0}), max({0}) FROM tracekit.{1}")
            cursor = await connection.execute(statement.format(sql.Identifier(column), sql.Identifier(table)))
            [(first, last)] = await cursor.fetchall()
            if first is not None:
                found[f"{table}.{column}"] = (first, last)
    assert len(found) > 10
    return found
