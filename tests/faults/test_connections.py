"""Ways to the database that break: restarted servers, connections that hang, poolers (Q9, Q10)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from tests.faults.breaking import BreakableServer, proxied
from tests.faults.conftest import StartWorker
from tests.faults.database import rows, state
from tests.faults.modes import Chain, Effectful, Fast, Parker, Raising, parker_key
from tests.faults.running import running
from tests.queue.driving import accept, settle, submission, take
from tests.support.pooler import Pooler
from tests.support.processes import eventually, patience
from tracekit.config import WorkerSettings
from tracekit.postgres import Pool, connect, open_pool
from tracekit.queue import Done, Park, Queue, Settlement, Submission
from tracekit.queue.claim import Ask
from tracekit.queue.enqueue import enqueue
from tracekit.queue.listener import ListenerState
from tracekit.queue.notify import CHANNEL
from tracekit.workers.mode import Mode

QUICK = WorkerSettings(
    concurrency=4,
    lease=timedelta(seconds=3),
    heartbeat=timedelta(milliseconds=200),
    poll_interval=timedelta(milliseconds=100),
    sweep_interval=timedelta(milliseconds=100),
    grace=timedelta(seconds=2),
    database_timeout=timedelta(seconds=5),
)
PATIENT = QUICK.model_copy(update={"poll_interval": timedelta(minutes=5)})
"""What is not announced stays where it is for the length of any test."""

INTERVAL, TIMEOUT = timedelta(milliseconds=300), timedelta(milliseconds=700)
"""Of the listener's self-test."""


def is_in(pool: Pool, task_id: str, wanted: str) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return await state(pool, task_id) == wanted

    return look


def asleep(pool: Pool) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return bool(await rows(pool, "SELECT FROM tracekit.sleepers"))

    return look


async def accept_unannounced(pool: Pool, mode: str) -> str:
    """A task that is committed at a moment when nobody asks to be notified."""
    async with pool.connection() as connection, connection.transaction():
        sleepers = await (
            await connection.execute("DELETE FROM tracekit.sleepers RETURNING id, modes, task_id")
        ).fetchall()
        [receipt] = await enqueue(connection, [submission(mode)])
        for sleeper in sleepers:
            await connection.execute("INSERT INTO tracekit.sleepers VALUES (%s, %s, %s)", sleeper)
    return receipt.task_id


def becomes(here: Any, wanted: ListenerState) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return here.listener.state is wanted and here.worker.listener_state == wanted.value

    return look


async def test_losing_every_notify_costs_only_the_poll_Q9(queue: Queue, pool: Pool, dsn: str) -> None:
    second = QUICK.model_copy(update={"poll_interval": timedelta(seconds=1)})
    async with (
        running(dsn, [Chain], second, notify=False) as here,
        await connect(dsn, autocommit=True) as witness,
    ):
        await witness.execute(f"LISTEN {CHANNEL}")
        await eventually(becomes(here, ListenerState.LISTENING), "it listens")
        await eventually(asleep(pool), "it asks to be notified")
        began = time.monotonic()
        task_id = await accept(queue, "chain", input={"hops": 2})
        await eventually(is_in(pool, task_id, "done"), "the task ends")
        took = time.monotonic() - began
        lost = [notify.payload async for notify in witness.notifies(timeout=0) if task_id in notify.payload]
    print(f"three hops in {took:.2f} s with a poll each second, {len(lost)} NOTIFY lost")
    assert lost, "nothing was lost, and this shows nothing"


async def test_a_notify_is_what_wakes_Q9(queue: Queue, pool: Pool, dsn: str) -> None:
    async with running(dsn, [Chain], PATIENT) as here:
        await eventually(becomes(here, ListenerState.LISTENING), "it listens")
        await eventually(asleep(pool), "it asks to be notified")
        began = time.monotonic()
        [receipt] = await here.queue.enqueue([_chain(2)])
        await eventually(is_in(pool, receipt.task_id, "done"), "the task ends")
        print(f"three hops in {time.monotonic() - began:.2f} s by NOTIFY alone")


def _chain(hops: int) -> Submission:
    return submission("chain", {"hops": hops})


async def test_a_listener_whose_connection_is_dead_says_so_polls_and_recovers_Q9_Q10(
    queue: Queue, pool: Pool, dsn: str
) -> None:
    async with (
        proxied(dsn) as (around, proxy),
        running(dsn, [Fast], QUICK, listen_dsn=around, test_interval=INTERVAL, test_timeout=TIMEOUT) as here,
    ):
        await eventually(becomes(here, ListenerState.LISTENING), "it listens")
        proxy.hang()
        # Nothing closes, nothing fails: only the self-test can tell.
        await eventually(becomes(here, ListenerState.POLLING), "it polls")
        task_id = await accept(queue, "fast")
        await eventually(is_in(pool, task_id, "done"), "the work is done all the same")

        async def said() -> bool:
            return await rows(pool, "SELECT listener FROM tracekit.workers") == [("polling",)]

        await eventually(said, "the record says that it polls")
        proxy.cut()
        proxy.heal()
        await eventually(becomes(here, ListenerState.LISTENING), "it listens again")


async def test_listen_through_a_pooler_is_detected_and_the_whole_queue_works_through_it_Q9_Q10(
    queue: Queue, pool: Pool, dsn: str, ledger: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEKIT_TEST_LEDGER", str(ledger))
    modes: list[type[Mode[Any]]] = [Fast, Chain, Parker, Effectful, Raising]
    async with (
        Pooler(dsn) as pooler,
        running(
            pooler.dsn, modes, QUICK, transaction_pooler=True, test_interval=INTERVAL, test_timeout=TIMEOUT
        ) as here,
    ):
        await eventually(becomes(here, ListenerState.POLLING), "LISTEN through the pooler is seen to be deaf")
        tasks = [
            await accept(here.queue, mode, input=work)
            for _ in range(12)
            for mode, work in [("fast", {}), ("chain", {"hops": 3}), ("effectful", {}), ("raising", {"failures": 2})]
        ]
        parked = await accept(here.queue, "parker")
        await eventually(is_in(pool, parked, "parked"), "it is parked")
        await here.queue.signal(parker_key(parked), "x", dedupe_key="run", sent_by="github")
        for task_id in [*tasks, parked]:
            await eventually(is_in(pool, task_id, "done"), "the task ends")
        assert here.listener.state is ListenerState.POLLING
    # With a way of its own for LISTEN it listens.
    async with (
        Pooler(dsn) as pooler,
        running(pooler.dsn, modes, PATIENT, listen_dsn=dsn, transaction_pooler=True) as here,
    ):
        await eventually(becomes(here, ListenerState.LISTENING), "it listens past the pooler")
        task_id = await accept(here.queue, "fast")
        await eventually(is_in(pool, task_id, "done"), "it is woken")


async def test_a_restarted_server_finds_its_workers_idle_and_busy_Q10(
    breakable: BreakableServer, breakable_dsn: str, start_worker: StartWorker
) -> None:
    # With a poll so long that only LISTEN, and the look right after it, find anything.
    idle = await start_worker(breakable_dsn, "--poll=300", "--lease=60")
    pool = await open_pool(breakable_dsn, min_size=1, max_size=2, name="test", autocommit=True)
    async with pool:
        queue = Queue(pool)

        async def listening() -> bool:
            return await rows(pool, "SELECT listener FROM tracekit.workers") == [("listening",)]

        await eventually(listening, "the worker listens")
        for number, mode in enumerate(["fast", "slow"]):
            busy = await accept(queue, mode, input={"seconds": 4.0}) if mode == "slow" else None
            if busy:
                await eventually(is_in(pool, busy, "running"), "it is busy")
            await breakable.stop()
            await breakable.start()
            began = time.monotonic()
            await pool.check()
            # Nobody announces this one: the look after LISTEN has to find it, or nothing will.
            unannounced = await accept_unannounced(pool, "fast")
            await eventually(is_in(pool, unannounced, "done"), "it looks at once")
            print(f"restart {number}: first work {time.monotonic() - began:.2f} s after the server was back")
            await eventually(listening, "it listens again")
            await eventually(asleep(pool), "it asks to be notified")
            announced = await accept(queue, "fast")
            await eventually(is_in(pool, announced, "done"), "it is woken again")
            if busy:
                # The handler went on meanwhile, and its lease held: the outage was shorter.
                await eventually(is_in(pool, busy, "done"), "the busy one ends")
                assert (await queue.events(busy))[1].attempt == 1
            assert idle.returncode is None


async def test_every_call_has_a_time_limit_Q10(dsn: str, queue: Queue) -> None:
    await accept(queue)
    position = await take(queue)
    limit = timedelta(milliseconds=300)
    async with proxied(dsn) as (around, proxy):
        pool = await open_pool(around, min_size=8, max_size=8, name="hung", autocommit=True)
        hung = Queue(pool, timeout=limit)
        proxy.hang()
        calls: dict[str, Awaitable[object]] = {
            "claim": hung.claim("w", {"router": 1}, limit),
            "heartbeat": hung.heartbeat("w", ["router"], "polling", {}, limit),
            "settle": hung.settle([Settlement(position, Done())]),
            "sweep": hung.sweep(),
            "signal": hung.signal("k", 1, dedupe_key="d", sent_by="x"),
            "enqueue": hung.enqueue([_chain(1)]),
            "effect": hung.begin_effect(position, "step", uncertain="rerun"),
            "turn": hung.turn([Settlement(position, Done())], Ask("w", {"router": 1}, limit, sleep=["router"])),
            "sleep": hung.sleep("w", position.task_id),
            "awake": hung.awake("w"),
        }
        began = time.monotonic()

        async def timed(call: Awaitable[object]) -> tuple[str, float]:
            try:
                await call
            except (TimeoutError, psycopg.OperationalError) as error:
                return type(error).__name__, time.monotonic() - began
            return "answered", 0.0

        # psycopg asks the server to cancel, and waits for that for up to twice five seconds.
        async with patience():
            ended = dict(zip(calls, await asyncio.gather(*map(timed, calls.values())), strict=True))
        print(ended)
        assert {error for error, _ in ended.values()} == {"TimeoutError"}
        proxy.cut()
        proxy.heal()
        await pool.close()
    # Nothing of it was written, or it was written whole.
    assert await settle(queue, position, Park("ci", "k", timedelta(hours=1)))


async def test_a_worker_told_to_stop_while_the_database_hangs_goes_Q10_Q13(dsn: str) -> None:
    async with proxied(dsn) as (around, proxy):
        async with running(around, [Fast], QUICK, test_interval=INTERVAL, test_timeout=TIMEOUT) as here:
            await eventually(becomes(here, ListenerState.LISTENING), "it listens")
            proxy.hang()
            # By then a claim has been under way for some polls.
            await eventually(becomes(here, ListenerState.POLLING), "it hears nothing any more")
            began = time.monotonic()
        took = time.monotonic() - began
        print(f"gone {took:.1f} s after it was told (grace 2 s)")


async def test_what_a_claim_takes_while_its_worker_is_told_to_stop_is_given_back_Q13(
    queue: Queue, pool: Pool, dsn: str
) -> None:
    async with running(dsn, [Fast], PATIENT) as here, await connect(dsn) as holding:
        await eventually(becomes(here, ListenerState.LISTENING), "it listens")
        await holding.execute("LOCK TABLE tracekit.queue IN SHARE MODE")
        # Wakes the worker, whose claim then waits for the lock.
        here.worker.wake([])

        async def claim_waits() -> bool:
            waiting = "SELECT FROM pg_stat_activity WHERE wait_event = 'relation' AND query LIKE '%%WITH wanted%%'"
            return bool(await rows(pool, waiting))

        await eventually(claim_waits, "the claim waits")
        [receipt] = await enqueue(holding, [submission("fast")])
        here.stop.set()
        await holding.commit()
    assert await state(pool, receipt.task_id) in ("ready", "done")
