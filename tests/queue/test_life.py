"""The life of a hop, step by step, against a real server."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.queue.driving import accept, claim, settle, submission, take
from tracekit import ids
from tracekit.postgres import Pool
from tracekit.queue import Done, GiveUp, HandOff, Notice, Park, Queue, QueueError, RetryLater, Settlement
from tracekit.queue.model import Ending, Failed, Released


async def spans(pool: Pool, task_id: str) -> dict[str, str]:
    async with pool.connection() as connection:
        cursor = await connection.execute("SELECT span_id, name FROM tracekit.spans WHERE task_id = %s", [task_id])
        return dict(await cursor.fetchall())


async def test_a_task_goes_through_modes_and_ends_in_one_trace_T1_T2_T3_T5(queue: Queue, pool: Pool) -> None:
    task_id = await accept(queue)
    first = await take(queue)
    assert await settle(queue, first, HandOff("executor", {"light": "on"}, persona="butler"))
    second = await take(queue, "executor")
    assert (second.hop, second.attempt, second.persona, second.input) == (2, 1, "butler", {"light": "on"})
    assert second.token > first.token
    assert ids.root_span_id(task_id) not in await spans(pool, task_id)
    assert await settle(queue, second, Done(summary="The light is on."))

    task = await queue.task(task_id)
    assert (task.state, task.summary, task.mode) == ("done", "The light is on.", None)
    assert await spans(pool, task_id) == {
        ids.root_span_id(task_id): "task manual",
        ids.send_span_id(task_id, 1): "send router",
        ids.queue_span_id(task_id, 1, 1): "wait queue router",
        ids.attempt_span_id(task_id, 1, 1): "process router",
        ids.send_span_id(task_id, 2): "send executor",
        ids.queue_span_id(task_id, 2, 1): "wait queue executor",
        ids.attempt_span_id(task_id, 2, 1): "process executor",
    }
    kinds = [event.kind for event in await queue.events(task_id)]
    assert kinds == ["task.accepted", "attempt.ended", "attempt.ended", "task.ended"]


async def test_a_failure_is_tried_again_and_then_dead_with_one_review_task_Q4_Q15(queue: Queue) -> None:
    task_id = await accept(queue)
    for attempt in (1, 2, 3):
        position = await take(queue)
        assert position.attempt == attempt
        assert await settle(queue, position, Failed("ValueError", "no such lamp"))
        await queue.sweep()
    assert await claim(queue) is None
    [dead] = await queue.dead_letters()
    assert (dead.task_id, dead.reason, dead.error_type, dead.error, dead.attempts) == (
        task_id,
        "attempts_exhausted",
        "ValueError",
        "no such lamp",
        3,
    )
    assert (await queue.task(task_id)).state == "dead"
    review = await take(queue, "guardian")
    assert (review.review_of, review.task_id) == (task_id, dead.review_task_id)
    assert await settle(queue, review, GiveUp("even this"))
    assert [entry.task_id for entry in await queue.dead_letters()] == [review.task_id, task_id]
    assert await claim(queue, "guardian") is None


async def test_a_late_worker_changes_nothing_Q3(queue: Queue) -> None:
    task_id = await accept(queue)
    late = await take(queue, lease=timedelta(0))
    assert await queue.sweep() == 1
    current = await take(queue, worker="w2")
    assert (current.attempt, current.token > late.token) == (2, True)
    before = await queue.events(task_id)
    assert not await settle(queue, late, Done(summary="too late"))
    assert await queue.heartbeat("w1", ["router"], "listening", {task_id: late.token}, timedelta(1)) == set()
    assert await queue.events(task_id) == before
    assert await settle(queue, current, Done())


@pytest.mark.parametrize(
    ("first", "second", "line"),
    [
        (Done(), Failed("Boom", "it broke"), "done"),
        (GiveUp("no"), Done(), "given_up"),
        (Park("ci", "ci:1", timedelta(hours=1)), Released(), "parked"),
        (Released(), Released(), "released"),
    ],
    ids=["done", "given_up", "parked", "released"],
)
async def test_of_two_ends_in_one_batch_the_first_counts_Q3(
    queue: Queue, first: Ending, second: Ending, line: str
) -> None:
    task_id = await accept(queue)
    position = await take(queue)
    ends = [Settlement(position, first), Settlement(position, second)]
    assert await queue.settle(ends) == ends[1:]
    ended = [event.data["outcome"] for event in await queue.events(task_id) if event.kind == "attempt.ended"]
    assert ended == [line]


@pytest.mark.parametrize(
    ("ending", "too_late", "line"),
    [
        (Done("failed", notify=True), Done(notify=True), "failed"),
        (HandOff("next"), HandOff("elsewhere"), "handed_off"),
        (Released(), GiveUp("no"), "released"),
    ],
    ids=["done", "handed_off", "released"],
)
@pytest.mark.parametrize("late_first", [True, False])
async def test_a_late_end_beside_that_of_the_current_attempt_changes_nothing_Q3(
    queue: Queue, pool: Pool, ending: Ending, too_late: Ending, line: str, late_first: bool
) -> None:
    """A worker may get back the hop that it lost, and come to the ends of both attempts at once."""
    task_id = await accept(queue)
    late = Settlement(await take(queue, lease=timedelta(0)), too_late)
    await queue.sweep()
    current = Settlement(await take(queue), ending)
    assert await queue.settle([late, current] if late_first else [current, late]) == [late]
    ended = [event.data["outcome"] for event in await queue.events(task_id) if event.kind == "attempt.ended"]
    assert ended == ["lease_expired", line]
    async with pool.connection() as connection:
        cursor = await connection.execute("SELECT kind FROM tracekit.outbox")
        assert await cursor.fetchall() == ([("task_failed",)] if isinstance(ending, Done) else [])


async def test_a_signal_before_its_wait_is_found_and_a_second_one_counts_nothing_Q14(queue: Queue) -> None:
    sent = await queue.signal("ci:1", {"result": "success"}, dedupe_key="run-1", sent_by="github")
    assert (sent.accepted, sent.resumed) == (True, [])
    again = await queue.signal("ci:1", {"result": "failure"}, dedupe_key="run-1", sent_by="github")
    assert (again.accepted, again.first.payload) == (False, {"result": "success"})
    await accept(queue)
    assert await settle(queue, await take(queue), Park("ci", "ci:1", timedelta(hours=1)))
    resumed = await take(queue)
    assert resumed.resumption is not None
    assert resumed.resumption.signal is not None
    assert resumed.resumption.signal.payload == {"result": "success"}


async def test_a_signal_ends_a_wait_and_the_hop_keeps_its_attempts_Q14(queue: Queue) -> None:
    task_id = await accept(queue)
    notice = Notice("approval", "Unlock?", "The front door")
    assert await settle(
        queue, await take(queue), Park("approval", "a:1", timedelta(hours=1), {"plan": 1}, notice=notice)
    )
    assert await claim(queue) is None
    sent = await queue.signal("a:1", {"decision": "approve"}, dedupe_key="decision", sent_by="rob")
    assert sent.resumed == [task_id]
    resumed = await take(queue)
    assert (resumed.attempt, resumed.max_attempts) == (2, 4)


async def test_deadlines_fire_with_and_without_the_handler_Q14_P6(queue: Queue) -> None:
    asked = await accept(queue)
    assert await settle(queue, await take(queue), Park("ci", "never", timedelta(0)))
    assert await queue.sweep() == 1
    resumed = await take(queue)
    assert resumed.resumption is not None
    assert resumed.resumption.signal is None
    assert await settle(queue, resumed, Park("approval", "never:2", timedelta(0), on_deadline="expire"))
    assert await queue.sweep() == 1
    assert (await queue.task(asked)).state == "expired"


async def test_a_task_past_its_ttl_is_never_claimed_and_its_wait_is_seen_Q7_T3(queue: Queue, pool: Pool) -> None:
    task_id = await accept(queue, ttl=timedelta(microseconds=1))
    assert await claim(queue) is None
    await queue.sweep()
    assert (await queue.task(task_id)).state == "expired"
    async with pool.connection() as connection:
        cursor = await connection.execute("SELECT kind, recipient FROM tracekit.outbox WHERE task_id = %s", [task_id])
        assert await cursor.fetchall() == [("task_expired", "operator")]
    assert (await spans(pool, task_id))[ids.queue_span_id(task_id, 1, 1)] == "wait queue router"


async def test_released_and_rested_hops_keep_their_attempts_Q13(queue: Queue) -> None:
    await accept(queue)
    assert await settle(queue, await take(queue), Released())
    again = await take(queue)
    assert (again.attempt, again.max_attempts) == (2, 4)
    assert await settle(queue, again, RetryLater(timedelta(0), "not yet"))
    await queue.sweep()
    assert (await take(queue)).max_attempts == 5


async def test_a_dead_task_is_abandoned_and_ends_Q15_T5(queue: Queue, pool: Pool) -> None:
    task_id = await accept(queue)
    assert await settle(queue, await take(queue), GiveUp("no plan"))
    assert ids.root_span_id(task_id) not in await spans(pool, task_id)
    await queue.resolve_dead(task_id, "abandoned", "rob")
    assert (await queue.task(task_id)).state == "abandoned"
    assert (await spans(pool, task_id))[ids.root_span_id(task_id)] == "task manual"
    assert await queue.dead_letters() == []


async def test_a_dead_task_is_redriven_and_its_review_hears_of_it_Q15(queue: Queue) -> None:
    task_id = await accept(queue, input={"light": "on"})
    assert await settle(queue, await take(queue), GiveUp("no plan"))
    review = await take(queue, "guardian")
    assert await settle(queue, review, Park("review", f"dlq:{task_id}/1", timedelta(days=1)))
    await queue.resolve_dead(task_id, "redriven", "rob")
    again = await take(queue)
    assert (again.task_id, again.hop, again.attempt, again.input) == (task_id, 2, 1, {"light": "on"})
    told = await take(queue, "guardian")
    assert told.resumption is not None
    assert told.resumption.signal is not None
    assert told.resumption.signal.payload == {"resolution": "redriven"}
    with pytest.raises(QueueError, match="is open, not dead"):
        await queue.resolve_dead(task_id, "redriven", "rob")


async def test_the_same_key_is_the_same_task_Q5(queue: Queue) -> None:
    first, second = await queue.enqueue([submission(key="k"), submission(key="k")])
    third = (await queue.enqueue([submission(key="k")]))[0]
    assert [first.duplicate, second.duplicate, third.duplicate] == [False, True, True]
    assert first.task_id == second.task_id == third.task_id
    await take(queue)
    assert await claim(queue) is None
