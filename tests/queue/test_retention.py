"""Retention: weeks of history go whole, and nothing that is not over goes with them (Q5, Q12)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.queue.driving import settle, submission, take
from tracekit import ids
from tracekit.postgres import Pool, connect
from tracekit.queue import Done, GiveUp, HandOff, Park, Queue
from tracekit.queue.audit import Extent, audit
from tracekit.queue.retention import AHEAD, Kept

KEEP = timedelta(days=30)
BASES = ("envelopes", "record", "waits", "effects", "dead_letters", "outbox")


async def rows(pool: Pool, query: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    async with pool.connection() as connection:
        return await (await connection.execute(query.encode(), parameters)).fetchall()


async def made_at(queue: Queue, moment: datetime, mode: str = "router", **fields: Any) -> str:
    """A task whose id says that it was made at `moment`."""
    trace_id = f"{int(moment.timestamp() * 1000):012x}{ids.new_trace_id()[12:]}"
    return (await queue.enqueue([submission(mode, trace_id=trace_id, **fields)]))[0].task_id


async def weeks_ago(pool: Pool, queue: Queue, count: int) -> datetime:
    """A moment of an earlier week, which gets a partition as it would have had one then."""
    now: datetime = (await rows(pool, "SELECT now()"))[0][0]
    moment = now.astimezone(UTC) - timedelta(weeks=count)
    first = moment.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=moment.weekday())
    name = f"record_{first.isocalendar().year}w{first.isocalendar().week:02}"
    bounds = f"FROM ('{ids.first_task_id(first)}') TO ('{ids.first_task_id(first + timedelta(weeks=1))}')"
    async with pool.connection() as connection:
        await connection.execute(
            f"CREATE TABLE IF NOT EXISTS tracekit.{name} PARTITION OF tracekit.record FOR VALUES {bounds}".encode()
        )
    return moment


async def kept(queue: Queue) -> Kept:
    found = await queue.keep_history(KEEP)
    assert found is not None
    return found


async def findings(pool: Pool) -> list[Any]:
    async with pool.connection() as connection:
        return [found async for found in audit(connection) if not isinstance(found, Extent)]


async def test_each_week_to_come_has_its_partition_and_new_tasks_are_in_theirs_Q12(queue: Queue, pool: Pool) -> None:
    await queue.keep_history(KEEP)
    assert (await kept(queue)).made == []
    names = [name for (name,) in await rows(pool, "SELECT relname FROM pg_class WHERE relname ~ '^record_\\d+w\\d+$'")]
    assert len(names) >= AHEAD
    now: datetime = (await rows(pool, "SELECT now()"))[0][0]
    task = await made_at(queue, now + timedelta(weeks=AHEAD - 1))
    await settle(queue, await take(queue), Done())
    [(table,)] = await rows(pool, "SELECT tableoid::regclass::text FROM tracekit.record WHERE task_id = %s", [task])
    assert table != "tracekit.record_rest"


async def test_a_week_that_is_over_goes_whole_and_the_rest_stays_Q12(queue: Queue, pool: Pool) -> None:
    long_ago, lately = await weeks_ago(pool, queue, 8), await weeks_ago(pool, queue, 2)
    old = await made_at(queue, long_ago, key="again")
    await settle(queue, await take(queue), HandOff("executor"))
    await settle(queue, await take(queue, "executor"), Done(notify=True))
    young = await made_at(queue, lately)
    await settle(queue, await take(queue), Done())
    outcome = await kept(queue)
    assert [len(outcome.dropped), outcome.deleted, outcome.held] == [1, 0, []]
    for table in BASES:
        column = "id" if table == "envelopes" else "task_id"
        assert (await rows(pool, f"SELECT count(*) FROM tracekit.{table} WHERE {column} = %s", [old]))[0][0] == 0
    assert (await queue.task(young)).state == "done"
    assert await findings(pool) == []
    # For as long as the first is kept, and no longer (Q5).
    [again] = await queue.enqueue([submission(key="again")])
    assert not again.duplicate


@pytest.mark.parametrize("how", ["ready", "parked", "dead"])
async def test_what_is_not_over_keeps_its_week_Q12(queue: Queue, pool: Pool, how: str) -> None:
    moment = await weeks_ago(pool, queue, 8)
    over = await made_at(queue, moment)
    await settle(queue, await take(queue), Done())
    waiting = await made_at(queue, moment + timedelta(seconds=1))
    if how == "parked":
        await settle(queue, await take(queue), Park("ci", "ci:x", timedelta(days=1)))
    elif how == "dead":
        await settle(queue, await take(queue), GiveUp("no"))
    outcome = await kept(queue)
    assert [outcome.dropped, len(outcome.held)] == [[], 1]
    assert (await queue.task(over)).state == "done"
    if how == "dead":
        await queue.resolve_dead(waiting, "abandoned", "rob")
    else:
        if how == "parked":
            await queue.signal("ci:x", {}, dedupe_key="1", sent_by="ci")
        await settle(queue, await take(queue), Done())
    assert len((await kept(queue)).dropped) == 1
    assert await findings(pool) == []


async def test_what_has_no_partition_goes_task_by_task_Q12(queue: Queue, pool: Pool) -> None:
    moment = datetime.now(UTC) - timedelta(weeks=20)
    over = [await made_at(queue, moment) for _ in range(3)]
    for _ in over:
        await settle(queue, await take(queue), Done())
    live = await made_at(queue, moment)
    await settle(queue, await take(queue), HandOff("executor"))
    assert (await kept(queue)).deleted == 3
    assert [row[0] for row in await rows(pool, "SELECT id FROM tracekit.envelopes")] == [live]
    assert await findings(pool) == []


async def test_one_at_a_time_and_nobody_waits_long_for_it_Q12(queue: Queue, pool: Pool, dsn: str) -> None:
    async with await connect(dsn) as other:
        await other.execute("SELECT pg_advisory_xact_lock(hashtext('tracekit.retention'))")
        assert await queue.keep_history(KEEP) is None
    assert await queue.keep_history(KEEP) is not None
