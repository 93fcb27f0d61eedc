"""T11: a whole record passes the audit, and whatever is taken from it or added to it is named."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.queue.driving import accept, settle, submission, take
from tracekit import ids
from tracekit.postgres import Pool
from tracekit.queue import Done, GiveUp, HandOff, Park, Queue, RetryLater
from tracekit.queue.audit import Extent, Finding, audit
from tracekit.queue.model import Failed, Released


async def findings(
    pool: Pool, *, since: datetime | timedelta | None = None, until: datetime | None = None
) -> tuple[Extent, list[Finding]]:
    async with pool.connection() as connection:
        extent, *found = [answer async for answer in audit(connection, since=since, until=until)]
    assert isinstance(extent, Extent)
    return extent, [finding for finding in found if isinstance(finding, Finding)]


async def finished(queue: Queue) -> str:
    """A task with everything in it: two hops, a retry, a rest, a wait that a signal ended, and one given back."""
    task_id = await accept(queue, "a", parent_span_id="00f067aa0ba902b7")
    assert await settle(queue, await take(queue, "a"), HandOff("b", {"n": 1}))
    assert await settle(queue, await take(queue, "b"), Failed("OSError", "no"))
    await queue.sweep()
    assert await settle(queue, await take(queue, "b"), Released())
    assert await settle(queue, await take(queue, "b"), RetryLater(timedelta(0), "not yet"))
    await queue.sweep()
    assert await settle(queue, await take(queue, "b"), Park("approval", f"k:{task_id}", timedelta(hours=1)))
    await queue.signal(f"k:{task_id}", {}, dedupe_key="d", sent_by="rob")
    assert await settle(queue, await take(queue, "b"), Done(summary="well"))
    return task_id


async def dead(queue: Queue, mode: str = "d") -> str:
    """A task in the DLQ after three attempts, one of which lost its worker."""
    task_id = await accept(queue, mode)
    assert await settle(queue, await take(queue, mode), Failed("OSError", "no"))
    await queue.sweep()
    await take(queue, mode, lease=timedelta(0))
    await queue.sweep()
    assert await settle(queue, await take(queue, mode), GiveUp("no use"))
    return task_id


async def parked(queue: Queue) -> str:
    task_id = await accept(queue, "p")
    assert await settle(queue, await take(queue, "p"), Park("ci", f"ci:{task_id}", timedelta(hours=1)))
    return task_id


async def histories(queue: Queue) -> dict[str, str]:
    """Tasks in every state there is."""
    made = {"done": await finished(queue), "dead": await dead(queue), "parked": await parked(queue)}
    made["ready"] = await accept(queue, "never")
    made["running"] = await accept(queue, "r")
    assert await settle(queue, await take(queue, "r"), HandOff("r2"))
    await take(queue, "r2")
    made["expired"] = await accept(queue, "e", ttl=timedelta(microseconds=1))
    await queue.sweep()
    made["scheduled"] = await accept(queue, "s")
    assert await settle(queue, await take(queue, "s"), RetryLater(timedelta(hours=1), "later"))
    made["redriven"] = await dead(queue, "again")
    await queue.resolve_dead(made["redriven"], "redriven", "rob")
    made["abandoned"] = await dead(queue)
    await queue.resolve_dead(made["abandoned"], "abandoned", "rob")
    made["deadline"] = await accept(queue, "w")
    assert await settle(queue, await take(queue, "w"), Park("ci", "never", timedelta(0), on_deadline="expire"))
    await queue.sweep()
    made["review"] = (await queue.dead_letters(task_id=made["dead"]))[0].review_task_id or ""
    return made


async def test_a_whole_record_of_every_state_passes(queue: Queue, pool: Pool) -> None:
    await histories(queue)
    extent, found = await findings(pool)
    assert found == []
    assert (extent.tasks, extent.ended, extent.dead) == (13, 4, 1)


async def test_a_signal_before_its_wait_leaves_no_gap(queue: Queue, pool: Pool) -> None:
    await queue.signal("early", {}, dedupe_key="d", sent_by="ci")
    await accept(queue, "p")
    assert await settle(queue, await take(queue, "p"), Park("ci", "early", timedelta(hours=1)))
    assert await settle(queue, await take(queue, "p"), Done())
    assert (await findings(pool))[1] == []


SPAN = "DELETE FROM tracekit.spans WHERE task_id = %(task)s AND span_id = %(span)s"
EVENT = "DELETE FROM tracekit.events WHERE task_id = %(task)s AND kind = "

BREAKS = [
    ("done", SPAN, "root", {"root-missing", "orphan"}),
    ("done", SPAN, "send 1", {"send-missing", "orphan"}),
    ("done", SPAN, "send 2", {"send-missing", "orphan"}),
    ("done", SPAN, "attempt 2 1", {"attempt-span-missing"}),
    ("done", SPAN, "queue 2 3", {"queue-span-missing"}),
    ("done", SPAN, "wait 2 4", {"wait-span-missing"}),
    ("dead", SPAN, "attempt 1 2", {"attempt-span-missing"}),
    ("abandoned", SPAN, "dlq 1", {"dlq-span-missing"}),
    ("parked", SPAN, "send 1", {"send-missing", "orphan"}),
    ("expired", SPAN, "root", {"root-missing", "orphan"}),
    ("done", EVENT + "'task.ended'", "", {"event-ended"}),
    ("done", EVENT + "'task.accepted'", "", {"event-accepted"}),
    ("done", EVENT + "'attempt.ended' AND hop = 1", "", {"attempt-missing"}),
    ("done", EVENT + "'attempt.ended' AND hop = 2 AND attempt = 2", "", {"attempt-missing"}),
    ("done", EVENT + "'attempt.ended' AND hop = 2 AND attempt = 5", "", {"attempt-missing"}),
    ("dead", EVENT + "'attempt.ended' AND attempt = 3", "", {"attempt-missing"}),
    ("parked", EVENT + "'attempt.ended'", "", {"attempt-missing"}),
    ("running", EVENT + "'attempt.ended'", "", {"attempt-missing"}),
    ("done", "DELETE FROM tracekit.hops WHERE task_id = %(task)s AND hop = 1", "", {"hop-missing", "attempt-stray"}),
    ("ready", "DELETE FROM tracekit.hops WHERE task_id = %(task)s", "", {"hop-missing"}),
    ("ready", "DELETE FROM tracekit.queue WHERE task_id = %(task)s", "", {"queue-missing"}),
    ("running", "UPDATE tracekit.queue SET hop = 1 WHERE task_id = %(task)s", "", {"hop-place", "attempt-missing"}),
    ("dead", "DELETE FROM tracekit.dead_letters WHERE task_id = %(task)s", "", {"dlq-missing"}),
    ("dead", "DELETE FROM tracekit.tasks WHERE id = %(review)s", "", {"review-missing"}),
    ("dead", "UPDATE tracekit.dead_letters SET review_task_id = NULL WHERE task_id = %(task)s", "", {"review-missing"}),
    (
        "done",
        "INSERT INTO tracekit.queue (task_id, hop, mode, priority, state, created_at, ready_at, max_attempts)"
        " VALUES (%(task)s, 2, 'b', 1, 'ready', now(), now(), 3)",
        "",
        {"queue-leftover", "attempt-missing"},
    ),
    (
        "abandoned",
        "UPDATE tracekit.dead_letters SET resolution = NULL, resolved_at = NULL WHERE task_id = %(task)s",
        "",
        {"dlq-leftover"},
    ),
    ("parked", "DELETE FROM tracekit.waits WHERE task_id = %(task)s", "", {"wait-missing"}),
    ("parked", "UPDATE tracekit.queue SET state = 'ready' WHERE task_id = %(task)s", "", {"wait-open"}),
    ("done", "UPDATE tracekit.tasks SET ended_at = NULL WHERE id = %(task)s", "", {"end-time"}),
    ("done", "UPDATE tracekit.tasks SET parent_span_id = NULL WHERE id = %(task)s", "", {"root-parent", "orphan"}),
    (
        "running",
        "INSERT INTO tracekit.spans (trace_id, span_id, task_id, name, kind, start_time, end_time)"
        " SELECT trace_id, %(root)s, id, 'task manual', 1, now(), now() FROM tracekit.tasks WHERE id = %(task)s",
        "",
        {"root-early"},
    ),
    (
        "done",
        "INSERT INTO tracekit.spans (trace_id, span_id, task_id, name, kind, start_time, end_time)"
        " SELECT trace_id, 'ffffffffffffffff', id, 'another', 1, now(), now() FROM tracekit.tasks WHERE id = %(task)s",
        "",
        {"root-second"},
    ),
    (
        "done",
        "INSERT INTO tracekit.events (task_id, at, kind, hop, mode, attempt)"
        " VALUES (%(task)s, now(), 'attempt.ended', 1, 'a', 1)",
        "",
        {"attempt-doubled"},
    ),
    (
        "done",
        "UPDATE tracekit.spans SET trace_id = repeat('c', 32) WHERE task_id = %(task)s AND span_id = %(span)s",
        "attempt 2 1",
        {"trace-other", "attempt-span-missing", "orphan"},
    ),
]


def span_id(task_id: str, what: str) -> str:
    kind, *numbers = what.split() or ["root"]
    make = {
        "root": ids.root_span_id,
        "send": ids.send_span_id,
        "queue": ids.queue_span_id,
        "attempt": ids.attempt_span_id,
        "wait": ids.wait_span_id,
        "dlq": ids.review_span_id,
    }[kind]
    return make(task_id, *map(int, numbers))  # type: ignore[operator,no-any-return]


@pytest.mark.parametrize(("which", "statement", "span", "expected"), BREAKS)
async def test_what_is_broken_is_named(
    queue: Queue, pool: Pool, which: str, statement: str, span: str, expected: set[str]
) -> None:
    made = await histories(queue)
    task_id = made[which]
    values = {
        "task": task_id,
        "span": span_id(task_id, span),
        "root": ids.root_span_id(task_id),
        "review": made["review"],
    }
    async with pool.connection() as connection:
        cursor = await connection.execute(statement, values)
        assert cursor.rowcount > 0, "nothing was broken"
    _, found = await findings(pool)
    assert {finding.check for finding in found} == expected
    assert {finding.task_id for finding in found} == {task_id}
    if statement == SPAN and span != "root":
        assert any(values["span"] in finding.detail for finding in found)


SDK_SPAN = (
    "INSERT INTO tracekit.spans (trace_id, span_id, parent_span_id, task_id, source, name, kind, start_time, end_time)"
    " SELECT trace_id, %(id)s, %(parent)s, id, 'sdk', 'GET', 3, clock_timestamp() - %(age)s::interval,"
    " clock_timestamp() - %(age)s::interval FROM tracekit.tasks WHERE id = %(task)s"
)


async def test_sdk_spans_need_a_parent_once_it_can_be_there(queue: Queue, pool: Pool) -> None:
    task_id = await finished(queue)

    async def add(id: str, parent: str, age: timedelta) -> None:
        async with pool.connection() as connection:
            await connection.execute(SDK_SPAN, {"id": id, "parent": parent, "age": age, "task": task_id})

    await add("aaaaaaaaaaaaaaa1", ids.attempt_span_id(task_id, 1, 1), timedelta(hours=1))
    await add("aaaaaaaaaaaaaaa2", "aaaaaaaaaaaaaaa1", timedelta(hours=1))
    await add("aaaaaaaaaaaaaaa3", "bbbbbbbbbbbbbbbb", timedelta(0))
    assert (await findings(pool))[1] == [], "a span that was made just now may be ahead of its parent"
    await add("aaaaaaaaaaaaaaa4", "bbbbbbbbbbbbbbbb", timedelta(hours=1))
    [orphan] = (await findings(pool))[1]
    assert (orphan.check, orphan.task_id) == ("orphan", task_id)
    assert "aaaaaaaaaaaaaaa4" in orphan.detail


async def test_spans_of_a_running_attempt_are_no_orphans(queue: Queue, pool: Pool) -> None:
    task_id = await accept(queue, "r")
    position = await take(queue, "r")
    async with pool.connection() as connection:
        values = {"id": "aaaaaaaaaaaaaaa1", "parent": position.span_id, "age": timedelta(hours=1), "task": task_id}
        await connection.execute(SDK_SPAN, values)
    assert (await findings(pool))[1] == []


async def test_tasks_of_one_trace_are_told_apart(queue: Queue, pool: Pool) -> None:
    trace_id = ids.new_trace_id()
    first, second = await queue.enqueue(
        [submission("a", trace_id=trace_id), submission("a", trace_id=trace_id, parent_span_id="00f067aa0ba902b7")]
    )
    assert first.trace_id == second.trace_id
    assert await settle(queue, await take(queue, "a"), Done())
    assert (await findings(pool))[1] == []


async def test_the_window_holds_what_was_alive_in_it(queue: Queue, pool: Pool) -> None:
    old, new = await finished(queue), await finished(queue)
    alive = await parked(queue)
    async with pool.connection() as connection:
        await connection.execute(
            "UPDATE tracekit.tasks SET created_at = now() - interval '2 days',"
            " ended_at = now() - interval '1 day' WHERE id = %s",
            [old],
        )
        await connection.execute(
            "UPDATE tracekit.tasks SET created_at = now() - interval '2 days' WHERE id = %s", [alive]
        )
        await connection.execute("DELETE FROM tracekit.events")
    assert {finding.task_id for finding in (await findings(pool, since=timedelta(hours=1)))[1]} == {new, alive}
    assert {finding.task_id for finding in (await findings(pool))[1]} == {old, new, alive}
    yesterday = datetime.now(UTC) - timedelta(hours=20)
    assert {finding.task_id for finding in (await findings(pool, until=yesterday))[1]} == {old, alive}
