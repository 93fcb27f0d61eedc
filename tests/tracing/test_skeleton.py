"""The skeleton that the view of spans makes of a task's record, held against one that is said by hand."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest

from tests.queue.driving import AT_ONCE, accept, settle, submission, take
from tests.tracing.skeletons import Skeleton, Times, by_id, link, written
from tests.tracing.writing import RECEIVED
from tracekit import ids
from tracekit.envelope import DataTier, Origin, Priority
from tracekit.postgres import Pool
from tracekit.queue import Done, GiveUp, HandOff, Park, Position, Queue, RetryLater
from tracekit.queue.model import EndState, Failed, Released
from tracekit.tracing import semconv
from tracekit.tracing.spans import StatusCode

HOUR = timedelta(hours=1)
CALLER = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
"""The (trace_id, span_id) that a caller's `traceparent` named."""


async def times(queue: Queue, task_id: str) -> Times:
    return Times.of(await queue.events(task_id))


async def take_and_lose(queue: Queue, mode: str) -> Position:
    """An attempt whose worker is never heard of again."""
    position = await take(queue, mode, worker="w2", lease=timedelta(0))
    assert await queue.sweep() == 1
    return position


async def test_a_task_that_goes_through_everything_has_the_trace_that_it_had_T1_T2_T3_T4_T5(queue: Queue) -> None:
    """A received request that continues a trace, a hand-off, a retry, a wait with its signal, the DLQ, a redrive, a
    rest, a release, a lost worker, and the end.
    """
    trace_id, caller = CALLER
    offered = submission(
        trace_id=trace_id,
        parent_span_id=caller,
        received=RECEIVED,
        origin=Origin.ANDROID,
        requester="renee",
        priority=Priority.HIGH,
        data_tier=DataTier.PUBLIC,
    )
    [receipt] = await queue.enqueue([offered])
    task_id = receipt.task_id
    routed = await take(queue)
    await settle(queue, routed, HandOff("planner", {"light": "on"}, persona="butler"))
    failing = await take(queue, "planner")
    await settle(queue, failing, Failed("ValueError", "no such lamp"))
    await queue.sweep()
    planned = await take(queue, "planner")
    await settle(queue, planned, HandOff("guardian", destructive=True, tags=("renee-originated",)))
    parked = await take(queue, "guardian")
    await settle(queue, parked, Park("approval", "approval:1", HOUR))
    await queue.signal("approval:1", {"decision": "approve"}, dedupe_key="decision", sent_by="rob")
    approved = await take(queue, "guardian")
    await settle(queue, approved, HandOff("executor", persona="valet"))
    dying = await take(queue, "executor")
    await settle(queue, dying, GiveUp("the lamp is broken"))
    await queue.resolve_dead(task_id, "redriven", "rob")
    resting = await take(queue, "executor")
    await settle(queue, resting, RetryLater(timedelta(0), "busy"))
    await queue.sweep()
    released = await take(queue, "executor")
    await settle(queue, released, Released())
    lost = await take_and_lose(queue, "executor")
    last = await take(queue, "executor")
    await settle(queue, last, Done(summary="The light is on."))

    at = await times(queue, task_id)
    ended = [at("attempt.ended", number) for number in range(10)]
    accepted = receipt.created_at
    wanted = Skeleton(task_id, trace_id)
    wanted.send(1, "router", accepted)
    wanted.receive(accepted - timedelta(seconds=RECEIVED.duration), accepted)
    wanted.attempt(routed, ended[0], "handed_off")
    wanted.send(2, "planner", ended[0], handed_off_by=(1, 1))
    wanted.attempt(failing, ended[1], "failed", "ValueError", "no such lamp")
    wanted.attempt(planned, ended[2], "handed_off")
    wanted.send(3, "guardian", ended[2], handed_off_by=(2, 2))
    wanted.attempt(parked, ended[3], "parked")
    wanted.waited(parked, "approval", "signal", ended[3], at("wait.closed"))
    wanted.attempt(approved, ended[4], "handed_off")
    wanted.send(4, "executor", ended[4], handed_off_by=(3, 2))
    wanted.attempt(dying, ended[5], "given_up", "given_up", "the lamp is broken")
    wanted.dead(dying, "redriven", at("task.dead"), at("task.redriven"))
    wanted.send(5, "executor", at("task.redriven"), handed_off_by=(4, 1))
    wanted.attempt(resting, ended[6], "retry_later")
    wanted.attempt(released, ended[7], "released")
    message = "the worker died or could not be reached; its lease ended"
    wanted.attempt(lost, ended[8], "lease_expired", "lease_expired", message)
    wanted.attempt(last, ended[9], "done")
    wanted.root(
        accepted,
        at("task.ended"),
        "done",
        StatusCode.OK,
        caller,
        origin="android",
        requester="renee",
        priority="high",
        data_tier="public",
    )
    assert by_id(await written(queue, task_id)) == by_id(wanted.spans)
    assert [p.persona for p in (routed, planned, approved, last)] == [None, "butler", "butler", "valet"]
    assert (routed.ready_at, planned.ready_at > ended[1], last.hop) == (accepted, True, 5)


async def test_an_abandoned_task_and_the_review_of_it_are_two_traces_with_a_link_T5_Q15(queue: Queue) -> None:
    [receipt] = await queue.enqueue([submission("executor")])
    task_id, trace_id = receipt.task_id, receipt.trace_id
    attempts = []
    for _ in range(AT_ONCE.max_attempts):
        attempts.append(await take(queue, "executor"))
        await settle(queue, attempts[-1], Failed("OSError", "unreachable"))
        await queue.sweep()
    await queue.resolve_dead(task_id, "abandoned", "rob")

    at = await times(queue, task_id)
    wanted = Skeleton(task_id, trace_id)
    wanted.send(1, "executor", receipt.created_at)
    for number, attempt in enumerate(attempts):
        wanted.attempt(attempt, at("attempt.ended", number), "failed", "OSError", "unreachable")
    wanted.dead(attempts[-1], "abandoned", at("task.dead"), at("task.ended"))
    wanted.root(receipt.created_at, at("task.ended"), "abandoned", StatusCode.ERROR)
    assert by_id(await written(queue, task_id)) == by_id(wanted.spans)

    review = await take(queue, "guardian")
    assert review.trace_id != trace_id
    asked = Skeleton(review.task_id, review.trace_id)
    asked.send(1, "guardian", review.task_created_at)
    asked.spans[0]["links"] = [link(trace_id, ids.attempt_span_id(task_id, 1, 3), "review_of")]
    assert await written(queue, review.task_id) == asked.spans


@pytest.mark.parametrize("attempts", [0, 1])
async def test_a_task_that_expires_while_it_is_ready_shows_how_long_it_waited_T3_Q7(
    queue: Queue, pool: Pool, attempts: int
) -> None:
    [receipt] = await queue.enqueue([submission(ttl=HOUR)])
    given_back = [await take(queue) for _ in range(attempts)]
    for attempt in given_back:
        await settle(queue, attempt, Released())
    async with pool.connection() as connection:
        await connection.execute("UPDATE tracekit.queue SET expires_at = statement_timestamp()")
    assert await queue.sweep() == 1

    at = await times(queue, receipt.task_id)
    wanted = Skeleton(receipt.task_id, receipt.trace_id)
    wanted.send(1, "router", receipt.created_at)
    ready = receipt.created_at
    for attempt in given_back:
        ready = at("attempt.ended")
        wanted.attempt(attempt, ready, "released")
    wanted.queued(1, attempts + 1, "router", None, ready, at("task.ended"))
    wanted.root(receipt.created_at, at("task.ended"), "expired", StatusCode.UNSET)
    assert by_id(await written(queue, receipt.task_id)) == by_id(wanted.spans)


async def test_a_task_that_expires_while_it_rests_was_waiting_for_no_worker_T3_Q7(queue: Queue, pool: Pool) -> None:
    [receipt] = await queue.enqueue([submission(ttl=HOUR)])
    resting = await take(queue)
    await settle(queue, resting, RetryLater(HOUR / 2, "busy"))
    async with pool.connection() as connection:
        await connection.execute("UPDATE tracekit.queue SET expires_at = statement_timestamp()")
    assert await queue.sweep() == 1

    at = await times(queue, receipt.task_id)
    wanted = Skeleton(receipt.task_id, receipt.trace_id)
    wanted.send(1, "router", receipt.created_at)
    wanted.attempt(resting, at("attempt.ended"), "retry_later")
    wanted.root(receipt.created_at, at("task.ended"), "expired", StatusCode.UNSET)
    assert by_id(await written(queue, receipt.task_id)) == by_id(wanted.spans)


async def test_a_wait_that_nobody_ends_is_a_span_up_to_its_deadline_T3_Q14(queue: Queue) -> None:
    """Twice in one hop, the second time with the end of the task."""
    [receipt] = await queue.enqueue([submission()])
    first = await take(queue)
    await settle(queue, first, Park("ci", "never", timedelta(0)))
    await queue.sweep()
    second = await take(queue)
    await settle(queue, second, Park("approval", "never:2", timedelta(0), on_deadline="expire"))
    await queue.sweep()

    at = await times(queue, receipt.task_id)
    wanted = Skeleton(receipt.task_id, receipt.trace_id)
    wanted.send(1, "router", receipt.created_at)
    wanted.attempt(first, at("attempt.ended", 0), "parked")
    wanted.waited(first, "ci", "deadline", at("attempt.ended", 0), at("wait.closed", 0))
    wanted.attempt(second, at("attempt.ended", 1), "parked")
    wanted.waited(second, "approval", "deadline", at("attempt.ended", 1), at("wait.closed", 1))
    wanted.root(receipt.created_at, at("task.ended"), "expired", StatusCode.UNSET)
    assert by_id(await written(queue, receipt.task_id)) == by_id(wanted.spans)


async def test_a_wait_whose_signal_came_first_took_no_time_and_is_no_span_T3_Q14(queue: Queue) -> None:
    await queue.signal("ci:1", {"result": "success"}, dedupe_key="run-1", sent_by="github")
    [receipt] = await queue.enqueue([submission()])
    parked = await take(queue)
    await settle(queue, parked, Park("ci", "ci:1", HOUR))
    resumed = await take(queue)
    await settle(queue, resumed, Done())

    at = await times(queue, receipt.task_id)
    wanted = Skeleton(receipt.task_id, receipt.trace_id)
    wanted.send(1, "router", receipt.created_at)
    wanted.attempt(parked, at("attempt.ended", 0), "parked")
    wanted.attempt(resumed, at("attempt.ended", 1), "done")
    wanted.root(receipt.created_at, at("task.ended"), "done", StatusCode.OK)
    assert by_id(await written(queue, receipt.task_id)) == by_id(wanted.spans)


@pytest.mark.parametrize(
    ("outcome", "status"),
    [("done", StatusCode.OK), ("failed", StatusCode.ERROR), ("rejected", StatusCode.UNSET)],
)
async def test_a_root_has_the_status_of_its_outcome_T5(queue: Queue, outcome: EndState, status: StatusCode) -> None:
    """What a person stopped did as it was told: no error, no success."""
    [receipt] = await queue.enqueue([submission()])
    assert ids.root_span_id(receipt.task_id) not in by_id(await written(queue, receipt.task_id))
    position = await take(queue)
    await settle(queue, position, Done(outcome, "Said in words."))

    at = await times(queue, receipt.task_id)
    wanted = Skeleton(receipt.task_id, receipt.trace_id)
    wanted.send(1, "router", receipt.created_at)
    wanted.attempt(position, at("attempt.ended"), outcome)
    wanted.root(receipt.created_at, at("task.ended"), outcome, status)
    assert by_id(await written(queue, receipt.task_id)) == by_id(wanted.spans)


async def test_a_restricted_task_s_spans_say_nothing_of_what_it_is_about_T10_P8(queue: Queue) -> None:
    """An error may quote it, and so may what a handler says of a rest, of giving up and of the end."""
    told = "the alarm code is 4711"
    [receipt] = await queue.enqueue(
        [submission(input={"code": told}, intent=told, data_tier=DataTier.RESTRICTED, tags=(told,))]
    )
    task_id = receipt.task_id
    failing = await take(queue)
    await settle(queue, failing, Failed("ValueError", told))
    await queue.sweep()
    resting = await take(queue)
    await settle(queue, resting, RetryLater(timedelta(0), told))
    await queue.sweep()
    parked = await take(queue)
    await settle(queue, parked, Park("approval", told, timedelta(0), {"plan": told}))
    await queue.sweep()
    dying = await take(queue)
    await settle(queue, dying, GiveUp(told))
    await queue.resolve_dead(task_id, "redriven", "rob")
    last = await take(queue)
    await settle(queue, last, Done(summary=told))

    at = await times(queue, task_id)
    wanted = Skeleton(task_id, receipt.trace_id)
    wanted.send(1, "router", receipt.created_at)
    wanted.attempt(failing, at("attempt.ended", 0), "failed", "ValueError")
    wanted.attempt(resting, at("attempt.ended", 1), "retry_later")
    wanted.attempt(parked, at("attempt.ended", 2), "parked")
    wanted.waited(parked, "approval", "deadline", at("attempt.ended", 2), at("wait.closed"))
    wanted.attempt(dying, at("attempt.ended", 3), "given_up", "given_up")
    wanted.dead(dying, "redriven", at("task.dead"), at("task.redriven"))
    wanted.send(2, "router", at("task.redriven"), handed_off_by=(1, 4))
    wanted.attempt(last, at("attempt.ended", 4), "done")
    wanted.root(receipt.created_at, at("task.ended"), "done", StatusCode.OK, data_tier="restricted")
    spans = await written(queue, task_id)
    assert by_id(spans) == by_id(wanted.spans)
    assert "4711" not in str(spans)


async def test_a_status_message_is_cut_where_it_was_cut_T6(queue: Queue) -> None:
    task_id = await accept(queue)
    await settle(queue, await take(queue), Failed("ValueError", "x" * 501))
    await queue.sweep()
    await settle(queue, await take(queue), Failed("ValueError", "y" * 500))
    spans = by_id(await written(queue, task_id))
    assert spans[ids.attempt_span_id(task_id, 1, 1)]["status_message"] == "x" * 499 + "…"
    assert spans[ids.attempt_span_id(task_id, 1, 2)]["status_message"] == "y" * 500


async def test_the_view_s_names_of_attributes_are_the_catalogue_s_T6(pool: Pool) -> None:
    """It cannot import them: all that look like one must be there, and all that are there must have a span."""
    catalogue = {value for name, value in vars(semconv).items() if name.isupper()}
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT pg_get_viewdef('tracekit.recorded_spans'::regclass)"
            " || pg_get_functiondef('tracekit.span_link'::regproc) || pg_get_functiondef('tracekit.spent_by'::regproc)"
        )
        [(text,)] = await cursor.fetchall()
    named = set(re.findall(r"'((?:tracekit|messaging|error)\.[\w.]+)'", text))
    assert named <= catalogue
    unnamed = catalogue - named - {semconv.SYSTEM, semconv.LEASE_EXPIRED}
    assert unnamed == set()
