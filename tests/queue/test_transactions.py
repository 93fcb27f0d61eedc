"""What commits together: with the caller's own work, or not at all (Q1, Q8)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest

from tests.queue.driving import accept, claim, submission, take
from tests.support.processes import PATIENCE
from tracekit.postgres import Pool, connect
from tracekit.queue import (
    Done,
    GiveUp,
    HandOff,
    Notice,
    Outcome,
    Park,
    PayloadRefused,
    Queue,
    RetryLater,
    Settlement,
)
from tracekit.queue.claim import Ask
from tracekit.queue.enqueue import enqueue
from tracekit.queue.model import Failed
from tracekit.queue.turn import take_turn

TABLES = ("envelopes", "record", "queue", "waits", "signals", "effects", "dead_letters", "outbox", "kept_spans")


async def contents(pool: Pool) -> dict[str, list[Any]]:
    """Everything that the queue has written."""
    async with pool.connection() as connection:
        return {
            table: await (await connection.execute(f"SELECT t::text FROM tracekit.{table} AS t ORDER BY 1")).fetchall()
            for table in TABLES
        }


async def test_a_callers_transaction_decides_Q1_Q8(queue: Queue, pool: Pool, dsn: str) -> None:
    empty = await contents(pool)
    async with await connect(dsn) as connection:
        await enqueue(connection, [submission()])
        await connection.rollback()
        assert await contents(pool) == empty

        [receipt] = await enqueue(connection, [submission()])
        assert await claim(queue) is None, "claimed before the commit"
        await connection.commit()
    assert (await take(queue)).task_id == receipt.task_id
    assert (await queue.events(receipt.task_id))[0].kind == "task.accepted"


async def test_a_savepoint_takes_back_its_own_enqueues_only(queue: Queue, dsn: str) -> None:
    async with await connect(dsn) as connection:
        [kept] = await enqueue(connection, [submission(key="kept")])
        async with connection.transaction(force_rollback=True):
            [gone] = await enqueue(connection, [submission(key="gone")])
        [again] = await enqueue(connection, [submission(key="gone")])
        # A refused one leaves the transaction usable and takes its whole call back.
        with pytest.raises(PayloadRefused):
            await enqueue(connection, [submission(key="good"), submission(key="bad", input="\x00")])
        await connection.commit()
    assert not again.duplicate
    assert again.task_id != gone.task_id
    assert [(await take(queue)).task_id for _ in range(2)] == [kept.task_id, again.task_id]
    assert await claim(queue) is None


async def test_sleepers_are_told_with_the_callers_commit_Q9(queue: Queue, dsn: str) -> None:
    async with await connect(dsn, autocommit=True) as listening, await connect(dsn) as connection:
        await listening.execute("LISTEN tracekit")
        await queue.turn([], Ask("w1", {"router": 1}, timedelta(minutes=1), sleep=["router"]))
        await enqueue(connection, [submission()])
        await connection.rollback()
        [receipt] = await enqueue(connection, [submission()])
        await connection.commit()
        [notification] = [item async for item in listening.notifies(timeout=PATIENCE, stop_after=1)]
    assert receipt.task_id in notification.payload


SETTLING: list[Outcome | Failed] = [
    Done(summary="done", notify=True),
    HandOff("executor", {"light": "on"}, destructive=True, tags=("x",)),
    Park("approval", "a:1", timedelta(hours=1), notice=Notice("approval", "Unlock?", "The door")),
    RetryLater(timedelta(hours=1), "later", extend_ttl=True),
    Failed("Boom", "it broke"),
    GiveUp("no plan"),
]


@pytest.mark.parametrize("ending", SETTLING, ids=lambda ending: type(ending).__name__)
async def test_a_settlement_whose_backend_dies_at_any_statement_is_not_there_at_all_Q8(
    queue: Queue, pool: Pool, dsn: str, ending: Outcome | Failed
) -> None:
    await accept(queue, ttl=timedelta(hours=1))
    position = await take(queue)
    before = await contents(pool)
    for table in TABLES:
        # The backend ends itself at the first write to this table: the transaction is in its middle by then.
        async with pool.connection() as connection:
            await connection.execute(
                "CREATE OR REPLACE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS"
                " $$BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END$$"
            )
            await connection.execute(
                f"CREATE TRIGGER die AFTER INSERT OR UPDATE OR DELETE ON tracekit.{table} EXECUTE FUNCTION die()"
            )
        async with await connect(dsn, autocommit=True) as doomed:
            try:
                await take_turn(doomed, [Settlement(position, ending)], None)
                written = True
            except psycopg.OperationalError:
                written = False
        async with pool.connection() as connection:
            await connection.execute(f"DROP TRIGGER die ON tracekit.{table}")
        if written:
            # This ending does not touch that table. It is written: begin anew.
            after = await contents(pool)
            assert after[table] == before[table]
            await accept(queue, ttl=timedelta(hours=1))
            position = await take(queue)
            before = await contents(pool)
        else:
            assert await contents(pool) == before, table
    assert not await queue.settle([Settlement(position, ending)])
    assert (await contents(pool))["record"] != before["record"]
