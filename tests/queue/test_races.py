"""Several at once: sweepers, settlers, signals, operators. Each thing happens once, and nobody waits for nobody."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from datetime import timedelta
from typing import Any

from tests.queue.driving import AT_ONCE, accept, settle, submission, take
from tests.support.processes import eventually
from tracekit.postgres import Pool, connect
from tracekit.queue import Done, GiveUp, HandOff, Park, Queue, QueueError, Settlement
from tracekit.queue.claim import Ask
from tracekit.queue.claim import claim as claim_hops
from tracekit.queue.model import Failed, Released

NOW = timedelta(0)
HOUR = timedelta(hours=1)


async def kinds(queue: Queue, task_id: str) -> Counter[str]:
    return Counter(event.kind for event in await queue.events(task_id))


async def accept_many(queue: Queue, count: int, mode: str = "router", **fields: Any) -> list[str]:
    receipts = await queue.enqueue([submission(mode, **fields) for _ in range(count)])
    return [receipt.task_id for receipt in receipts]


async def test_a_signal_against_deadline_sweeps_resolves_a_wait_once_Q14(queue: Queue, pool: Pool) -> None:
    resolutions: Counter[str] = Counter()
    # Where one side always won there was no race.
    for number in itertools.takewhile(lambda n: n < 40 or len(resolutions) < 2, itertools.count()):
        key = f"ci:{number}"
        task_id = await accept(queue)
        # Both deadline and signal are due: whoever comes first.
        await settle(queue, await take(queue), Park("ci", key, NOW))
        sending = queue.signal(key, {"n": number}, dedupe_key="run", sent_by="github")
        if number % 2:
            sent, *_ = await asyncio.gather(sending, queue.sweep(), queue.sweep())
        else:
            *_, sent = await asyncio.gather(queue.sweep(), queue.sweep(), sending)
        assert await queue.sweep() == 0
        [closed] = [event for event in await queue.events(task_id) if event.kind == "wait.closed"]
        resolution = closed.data["resolution"]
        resolutions[resolution] += 1
        assert sent.accepted
        assert sent.resumed == ([task_id] if resolution == "signal" else [])
        resumed = await take(queue)
        assert (resumed.attempt, resumed.max_attempts) == (2, 4)
        assert resumed.resumption is not None
        assert (resumed.resumption.signal is not None) == (resolution == "signal")
        await settle(queue, resumed, Done())
        async with pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT count(*) FROM tracekit.spans WHERE task_id = %s AND name = 'wait ci'", [task_id]
            )
            assert await cursor.fetchone() == (1,)
    print(resolutions)


async def test_a_signal_against_an_expiring_deadline_has_one_winner_Q14_P6(queue: Queue) -> None:
    for number in range(20):
        key = f"approval:{number}"
        task_id = await accept(queue)
        await settle(queue, await take(queue), Park("approval", key, NOW, on_deadline="expire"))
        sent, *_ = await asyncio.gather(
            queue.signal(key, {"decision": "approve"}, dedupe_key="decision", sent_by="rob"), queue.sweep()
        )
        await queue.sweep()
        state = (await queue.task(task_id)).state
        assert state == ("open" if sent.resumed else "expired")
        assert (await kinds(queue, task_id))["wait.closed"] == 1
        if sent.resumed:
            await settle(queue, await take(queue), Done())


async def test_the_same_signal_from_many_counts_once_Q14(queue: Queue) -> None:
    task_id = await accept(queue)
    await settle(queue, await take(queue), Park("ci", "ci:1", HOUR))
    sent = await asyncio.gather(*(queue.signal("ci:1", {"n": n}, dedupe_key="run", sent_by="github") for n in range(8)))
    assert sorted(one.accepted for one in sent) == [False] * 7 + [True]
    assert [one.resumed for one in sent if one.accepted] == [[task_id]]
    assert len({one.first.payload["n"] for one in sent}) == 1


async def test_a_signal_against_the_park_that_waits_for_it_is_never_lost_Q14(queue: Queue) -> None:
    for number in range(30):
        key = f"ci:{number}"
        task_id = await accept(queue)
        position = await take(queue)
        await asyncio.gather(
            settle(queue, position, Park("ci", key, HOUR)),
            queue.signal(key, {"n": number}, dedupe_key="run", sent_by="github"),
        )
        resumed = await take(queue)
        assert resumed.task_id == task_id
        assert resumed.resumption is not None
        assert resumed.resumption.signal is not None
        await settle(queue, resumed, Done())


async def test_ten_sweepers_at_once_do_each_thing_once_Q2_Q4_Q7(queue: Queue, pool: Pool) -> None:
    died = await accept_many(queue, 150, "died")
    await queue.claim("w1", {"died": 150}, NOW)
    last = await accept_many(queue, 150, "last", retry_policy=AT_ONCE.model_copy(update={"max_attempts": 1}))
    await queue.claim("w1", {"last": 150}, NOW)
    expired = await accept_many(queue, 150, "expired", ttl=timedelta(microseconds=1))
    moved = await asyncio.gather(*(queue.sweep() for _ in range(10)))
    assert sum(moved) == 450
    assert {(await queue.task(task_id)).state for task_id in expired} == {"expired"}
    assert {(await queue.task(task_id)).hop_state for task_id in died} == {"ready"}
    reviews = [dead.review_task_id for dead in await queue.dead_letters(limit=1000)]
    assert len(reviews) == len(set(reviews)) == len(last)
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT kind, count(*), count(DISTINCT task_id) FROM tracekit.events GROUP BY kind ORDER BY kind"
        )
        assert await cursor.fetchall() == [
            ("attempt.ended", 300, 300),
            ("task.accepted", 600, 600),  # a review task for each dead one
            ("task.dead", 150, 150),
            ("task.ended", 150, 150),
        ]


async def test_of_two_settlers_with_the_same_claims_one_writes_Q3(queue: Queue) -> None:
    tasks = await accept_many(queue, 60)
    claimed = await queue.claim("w1", {"router": 60}, HOUR)
    mine = [Settlement(position, Done(summary="mine")) for position in claimed]
    yours = [Settlement(position, HandOff("executor")) for position in reversed(claimed)]
    lost = await asyncio.gather(
        queue.settle(mine[:40]), queue.settle(yours[20:]), queue.settle(mine[20:]), queue.settle(yours[:40])
    )
    offered = [*mine[:40], *yours[20:], *mine[20:], *yours[:40]]
    assert sum(map(len, lost)) == len(offered) - len(tasks)
    for task_id in tasks:
        assert (await kinds(queue, task_id))["attempt.ended"] == 1


async def test_of_two_ends_of_one_attempt_in_one_batch_the_first_is_written_Q3(queue: Queue) -> None:
    task_id, other = await accept_many(queue, 2)
    claimed = {position.task_id: position for position in await queue.claim("w1", {"router": 2}, HOUR)}
    late = Settlement(claimed[task_id], Done())
    batch = [Settlement(claimed[task_id], Released()), Settlement(claimed[other], Done()), late]
    lost = await queue.settle(batch)
    assert [one is late for one in lost] == [True]
    assert (await queue.task(task_id)).hop_state == "ready"
    assert (await queue.task(other)).state == "done"


async def test_a_dead_task_files_one_review_whoever_buries_it_Q15(queue: Queue, pool: Pool) -> None:
    for _ in range(15):
        task_id = await accept(queue, retry_policy=AT_ONCE.model_copy(update={"max_attempts": 1}))
        position = await take(queue, lease=NOW)
        await asyncio.gather(
            queue.sweep(),
            queue.settle([Settlement(position, Failed("Boom", "it broke"))]),
            queue.sweep(),
            queue.settle([Settlement(position, GiveUp("no"))]),
        )
        [dead] = await queue.dead_letters(task_id=task_id, resolved=True)
        assert dead.review_task_id
        async with pool.connection() as connection:
            cursor = await connection.execute("SELECT id FROM tracekit.tasks WHERE review_of = %s", [task_id])
            assert await cursor.fetchall() == [(dead.review_task_id,)]
            cursor = await connection.execute(
                "SELECT count(*) FROM tracekit.outbox WHERE task_id = %s AND kind = 'dead_letter'", [task_id]
            )
            assert await cursor.fetchone() == (1,)


async def test_of_redrive_and_abandon_one_wins_and_the_other_is_told_Q15(queue: Queue) -> None:
    won: Counter[str] = Counter()
    for _ in range(15):
        task_id = await accept(queue)
        await settle(queue, await take(queue), GiveUp("no plan"))
        answers = await asyncio.gather(
            queue.resolve_dead(task_id, "redriven", "rob"),
            queue.resolve_dead(task_id, "abandoned", "rob"),
            return_exceptions=True,
        )
        [refused] = [answer for answer in answers if answer is not None]
        assert isinstance(refused, QueueError)
        [dead] = await queue.dead_letters(task_id=task_id, resolved=True)
        state = (await queue.task(task_id)).state
        assert str(refused) == f"task {task_id} is {state}, not dead"
        assert {"redriven": "open", "abandoned": "abandoned"}[dead.resolution or ""] == state
        recorded = await kinds(queue, task_id)
        assert recorded["task.redriven"] + recorded["task.ended"] == 1
        won[state] += 1
        if state == "open":
            await settle(queue, await take(queue), Done())
    print(won)


async def test_many_with_one_key_get_one_task_Q5(queue: Queue) -> None:
    for number in range(10):
        receipts = await asyncio.gather(*(queue.enqueue([submission(key=f"one-{number}")]) for _ in range(8)))
        assert len({receipt.task_id for [receipt] in receipts}) == 1
        assert sorted(receipt.duplicate for [receipt] in receipts) == [False] + [True] * 7


async def test_two_that_offer_the_same_keys_in_other_orders_both_get_receipts_Q5(queue: Queue) -> None:
    """Two Alertmanagers of one cluster send the same group, each in its own order."""
    for number in range(5):
        keys = [f"alert-{number}-{index:03}" for index in range(150)]
        forth, back = await asyncio.gather(
            queue.enqueue([submission(key=key) for key in keys]),
            queue.enqueue([submission(key=key) for key in reversed(keys)]),
        )
        assert [receipt.task_id for receipt in forth] == [receipt.task_id for receipt in reversed(back)]


async def test_heartbeats_and_settlements_of_the_same_hops_never_wait_for_each_other(queue: Queue) -> None:
    """A worker extends its leases while it settles some of them. A deadlock would end one of the two with an error."""
    for _ in range(8):
        await accept_many(queue, 200)
        claimed = await queue.claim("w1", {"router": 200}, HOUR)
        leases = {position.task_id: position.token for position in reversed(claimed)}
        await asyncio.gather(
            queue.heartbeat("w1", ["router"], "listening", leases, HOUR),
            queue.settle([Settlement(position, Done()) for position in claimed]),
            queue.heartbeat("w1", ["router"], "listening", leases, HOUR),
        )


async def test_a_hop_that_moved_on_while_a_claim_was_under_way_is_not_claimed_blindly_Q2(
    queue: Queue, pool: Pool, dsn: str
) -> None:
    """A claim reads the queue as it was and locks rows as they are. Of a hop that was taken and handed on in between,
    its snapshot cannot see the input: such a hop must stay ready, not become one that runs and nobody knows of.
    """
    await accept(queue, "first", ttl=timedelta(hours=1))
    moved = await accept(queue, "second")
    async with pool.connection() as connection:
        # Whoever asks for the time stands still: at the first mode, whose task has a ttl, its snapshot taken.
        await connection.execute("CREATE SCHEMA hooks")
        await connection.execute(
            "CREATE FUNCTION hooks.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS"
            " $$BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN pg_catalog.clock_timestamp(); END$$"
        )
    async with await connect(dsn) as holding, await connect(dsn, autocommit=True) as claiming:
        await claiming.execute("SET search_path = hooks, pg_catalog")
        await holding.execute("SELECT pg_advisory_xact_lock(1)")
        claimed = asyncio.create_task(claim_hops(claiming, Ask("slow", {"first": 1, "second": 1}, HOUR)))

        async def stands_still() -> bool:
            async with pool.connection() as connection:
                cursor = await connection.execute(
                    "SELECT wait_event FROM pg_stat_activity WHERE pid = %s", [claiming.info.backend_pid]
                )
                return await cursor.fetchone() == ("advisory",)

        await eventually(stands_still, "the claim stands still")
        # Somebody takes the second one and hands it on within its mode.
        async with pool.connection() as connection, connection.transaction():
            await connection.execute(
                "WITH line AS (INSERT INTO tracekit.record (task_id, at, kind, hop, mode, attempt, next_hop, next_mode,"
                "  next_input) VALUES (%s, clock_timestamp(), 'attempt.ended', 1, 'second', 1, 2, 'second', '1')"
                "  RETURNING task_id, seq)"
                " UPDATE tracekit.queue AS q SET hop = 2, token = 5, created_at = clock_timestamp()"
                " FROM line WHERE q.task_id = line.task_id",
                [moved],
            )
        await holding.rollback()
        told = {position.task_id for position in await claimed}
    async with pool.connection() as connection:
        cursor = await connection.execute("SELECT task_id FROM tracekit.queue WHERE state = 'running'")
        assert {row[0] for row in await cursor.fetchall()} == told
    if moved not in told:
        assert (await take(queue, "second")).input == 1
