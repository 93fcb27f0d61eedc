"""Reading a task's record: whole from the start, whole from any point on, live, and over a lost connection."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from tests.queue.driving import accept, settle, take
from tests.support.postgres import ThrowawayServer
from tracekit.postgres import Pool, migrate, open_pool
from tracekit.queue import Done, GiveUp, HandOff, Park, Queue, TaskNotFound
from tracekit.queue.follow import Away, Follower, Look
from tracekit.queue.model import Failed
from tracekit.queue.tasks import Event

RARELY = timedelta(hours=1)
OFTEN = timedelta(milliseconds=20)


async def history(queue: Queue) -> str:
    task_id = await accept(queue, "a")
    assert await settle(queue, await take(queue, "a"), HandOff("b"))
    assert await settle(queue, await take(queue, "b"), Failed("OSError", "no"))
    await queue.sweep()
    assert await settle(queue, await take(queue, "b"), Park("approval", f"k:{task_id}", timedelta(hours=1)))
    await queue.signal(f"k:{task_id}", {}, dedupe_key="d", sent_by="rob")
    assert await settle(queue, await take(queue, "b"), Done(summary="well"))
    return task_id


async def read(queue: Queue, task_id: str, since_seq: int = 0) -> list[Event]:
    events: list[Event] = []
    async for seen in Follower(queue, task_id, since_seq=since_seq).looks():
        assert isinstance(seen, Look)
        events += seen.events
    return events


async def test_reading_on_from_any_event_gives_the_same_whole(queue: Queue) -> None:
    task_id = await history(queue)
    await history(queue)
    whole = await read(queue, task_id)
    assert [event.kind for event in whole] == [
        "task.accepted",
        *["attempt.ended"] * 3,
        "wait.closed",
        "attempt.ended",
        "task.ended",
    ]
    for number, event in enumerate(whole):
        assert whole[: number + 1] + await read(queue, task_id, event.seq) == whole


async def test_each_event_comes_once_while_it_happens(queue: Queue) -> None:
    task_id = await accept(queue, "a")
    follower = Follower(queue, task_id, poll=RARELY)
    looks = follower.looks()

    async def wake_and_look() -> Look:
        follower.wake([{"task": task_id}])
        seen = await anext(looks)
        assert isinstance(seen, Look)
        return seen

    first = await anext(looks)
    assert isinstance(first, Look)
    assert [event.kind for event in first.events] == ["task.accepted"]
    position = await take(queue, "a")
    seen = await wake_and_look()
    assert (seen.events, seen.task.hop_state, seen.task.worker) == ([], "running", "w1")
    await settle(queue, position, HandOff("b"))
    assert [event.kind for event in (await wake_and_look()).events] == ["attempt.ended"]
    await settle(queue, await take(queue, "b"), Done())
    last = await wake_and_look()
    assert ([event.kind for event in last.events], last.last) == (["attempt.ended", "task.ended"], True)
    with pytest.raises(StopAsyncIteration):
        await anext(looks)


async def test_a_look_is_of_one_moment(queue: Queue) -> None:
    """Whatever is written meanwhile: a task that has ended comes with the event of its end, and only then."""
    task_id = await accept(queue, "m0")

    async def work() -> None:
        for number in range(40):
            await settle(queue, await take(queue, f"m{number}"), HandOff(f"m{number + 1}"))
        await settle(queue, await take(queue, "m40"), Done())

    working = asyncio.create_task(work())
    events: list[Event] = []
    async for seen in Follower(queue, task_id, poll=timedelta(microseconds=1)).looks():
        assert isinstance(seen, Look)
        events += seen.events
        ended = [event for event in events if event.kind == "attempt.ended"]
        assert seen.last == (events[-1].kind == "task.ended")
        assert seen.last or seen.task.hop == len(ended) + 1
    await working
    assert events == await queue.events(task_id)


async def test_other_tasks_wake_nobody_and_a_doubtful_listener_does(queue: Queue) -> None:
    follower = Follower(queue, await accept(queue, "a"), poll=RARELY)
    looks = follower.looks()
    await anext(looks)
    follower.wake([{"task": "another"}])
    waiting = asyncio.ensure_future(anext(looks))
    done, _ = await asyncio.wait({waiting}, timeout=0.1)
    assert not done
    follower.wake([])
    assert isinstance(await waiting, Look)


async def test_following_ends_in_the_dlq_and_goes_on_after_a_redrive(queue: Queue) -> None:
    task_id = await accept(queue, "a")
    await settle(queue, await take(queue, "a"), GiveUp("no"))
    before = await read(queue, task_id)
    assert before[-1].kind == "task.dead"
    await queue.resolve_dead(task_id, "redriven", "rob")
    await settle(queue, await take(queue, "a"), Done())
    assert [event.kind for event in await read(queue, task_id, before[-1].seq)] == [
        "task.redriven",
        "attempt.ended",
        "task.ended",
    ]


async def test_a_task_that_is_not_there(queue: Queue) -> None:
    with pytest.raises(TaskNotFound):
        await read(queue, "01ARZ3NDEKTSV4RRFFQ69G5FAV")


async def test_a_server_that_stops_and_comes_back_costs_nothing() -> None:
    with ThrowawayServer() as server:
        await migrate(server.dsn)
        pool: Pool = await open_pool(server.dsn, min_size=1, max_size=3, name="test", autocommit=True)
        try:
            queue = Queue(pool, timeout=timedelta(seconds=1))
            task_id = await accept(queue, "a")
            events: list[Event] = []
            away = False
            async for seen in Follower(queue, task_id, poll=OFTEN).looks():
                if isinstance(seen, Away):
                    if not away:
                        # It stays away until the reader has noticed.
                        away = True
                        await asyncio.to_thread(server.server.acquire)
                    continue
                if not events:
                    await asyncio.to_thread(server.server.stop, mode="immediate")
                events += seen.events
                if away and len(events) == 1:
                    await settle(queue, await take(queue, "a"), Done())
            assert away
            assert [event.kind for event in events] == ["task.accepted", "attempt.ended", "task.ended"]
        finally:
            await pool.close()
