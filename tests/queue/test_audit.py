"""T11: a whole record passes the audit, and whatever is taken from it or added to it is named."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import LiteralString

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


LINE = "DELETE FROM tracekit.record WHERE task_id = %(task)s AND "
OF_LINE = "UPDATE tracekit.record SET {} WHERE task_id = %(task)s AND {}"
KEPT = (
    "INSERT INTO tracekit.kept_spans (trace_id, span_id, parent_span_id, task_id, name, kind, start_time, end_time)"
    " SELECT trace_id, {}, {}, id, 'GET', 3, now() - interval '1 hour', now() - interval '1 hour'"
    " FROM tracekit.envelopes WHERE id = %(task)s"
)
UNACCEPTED = "DELETE FROM tracekit.envelopes WHERE id = %(task)s"

# The task, what is done to it, and what the audit must call it.
BREAKS = [
    # lines that are gone
    ("done", LINE + "end_state IS NOT NULL", {"queue-missing"}),
    ("done", LINE + "next_hop = 2", {"line-place", "orphan", "attempt-missing"}),
    ("done", LINE + "hop = 2 AND attempt = 2 AND kind = 'attempt.ended'", {"attempt-missing"}),
    ("done", LINE + "kind = 'wait.closed'", {"wait-line", "wait-span-missing"}),
    ("dead", LINE + "attempt = 2", {"attempt-missing"}),
    ("dead", LINE + "attempt = 3 AND kind = 'attempt.ended'", {"attempt-missing"}),
    ("dead", LINE + "kind = 'task.dead'", {"dlq-line"}),
    ("parked", LINE + "kind = 'attempt.ended'", {"attempt-missing"}),
    ("redriven", LINE + "kind = 'task.redriven'", {"dlq-line", "dlq-span-missing", "hop-place"}),
    ("abandoned", LINE + "end_state IS NOT NULL", {"queue-missing", "dlq-line", "dlq-span-missing"}),
    ("running", LINE + "next_hop = 2", {"hop-place"}),
    ("deadline", LINE + "kind = 'wait.closed'", {"wait-line", "wait-span-missing"}),
    # lines that lack something
    (
        "done",
        OF_LINE.format("claimed_at = NULL", "hop = 2 AND attempt = 1"),
        {"line-incomplete", "attempt-span-missing", "queue-span-missing"},
    ),
    ("done", OF_LINE.format("ready_at = NULL", "hop = 2 AND attempt = 3"), {"line-incomplete", "queue-span-missing"}),
    ("done", OF_LINE.format("worker = NULL", "hop = 1"), {"line-incomplete"}),
    ("done", OF_LINE.format("outcome = NULL", "hop = 1"), {"line-incomplete"}),
    ("dead", OF_LINE.format("claimed_at = now()", "kind = 'task.dead'"), {"line-incomplete"}),
    (
        "done",
        OF_LINE.format("data = data - 'opened_at'", "kind = 'wait.closed'"),
        {"line-incomplete", "wait-span-missing"},
    ),
    (
        "done",
        OF_LINE.format("data = data - 'parked_by'", "kind = 'wait.closed'"),
        {"line-incomplete", "wait-span-missing"},
    ),
    ("done", OF_LINE.format("data = data - 'resolution'", "kind = 'wait.closed'"), {"line-incomplete"}),
    ("redriven", OF_LINE.format("data = NULL", "kind = 'task.redriven'"), {"line-incomplete", "dlq-span-missing"}),
    ("abandoned", OF_LINE.format("data = NULL", "end_state = 'abandoned'"), {"line-incomplete", "dlq-span-missing"}),
    ("running", OF_LINE.format("next_mode = NULL", "next_hop = 2"), {"line-incomplete"}),
    # lines that say what cannot be
    ("done", OF_LINE.format("hop = 1", "hop = 2 AND attempt = 2"), {"line-place", "attempt-missing"}),
    ("done", OF_LINE.format("mode = 'x'", "hop = 1"), {"line-place"}),
    ("done", OF_LINE.format("attempt = 9", "hop = 2 AND attempt = 1"), {"attempt-missing"}),
    ("done", OF_LINE.format("attempt = 1", "hop = 2 AND attempt = 2"), {"attempt-missing", "attempt-doubled"}),
    (
        "done",
        OF_LINE.format("next_hop = 3", "next_hop = 2"),
        {"hop-missing", "line-place", "attempt-missing", "orphan"},
    ),
    ("done", OF_LINE.format("end_state = 'failed'", "end_state = 'done'"), {"event-ended"}),
    ("abandoned", OF_LINE.format("kind = 'effect.recorded'", "end_state IS NOT NULL"), {"event-ended", "dlq-line"}),
    ("done", OF_LINE.format("seq = 1", "hop = 1"), {"line-order"}),
    ("done", OF_LINE.format("seq = seq + 1000001", "hop = 1"), {"line-order", "line-place"}),
    # what was accepted
    ("done", UNACCEPTED, {"envelope-missing"}),
    ("ready", UNACCEPTED, {"envelope-missing"}),
    ("parked", UNACCEPTED, {"envelope-missing"}),
    ("done", "UPDATE tracekit.envelopes SET parent_span_id = NULL WHERE id = %(task)s", {"trace-id"}),
    ("ready", "UPDATE tracekit.envelopes SET trace_id = md5(trace_id) WHERE id = %(task)s", {"trace-id"}),
    ("ready", "UPDATE tracekit.envelopes SET mode = 'x' WHERE id = %(task)s", {"hop-place"}),
    # the place in the queue
    ("ready", "DELETE FROM tracekit.queue WHERE task_id = %(task)s", {"queue-missing"}),
    (
        "running",
        "UPDATE tracekit.queue SET hop = 1 WHERE task_id = %(task)s",
        {"hop-place", "attempt-missing"},
    ),
    ("running", "UPDATE tracekit.queue SET mode = 'x' WHERE task_id = %(task)s", {"hop-place"}),
    ("running", "UPDATE tracekit.queue SET worker = NULL WHERE task_id = %(task)s", {"queue-incomplete"}),
    ("running", "UPDATE tracekit.queue SET attempt = 2 WHERE task_id = %(task)s", {"attempt-missing"}),
    ("scheduled", "UPDATE tracekit.queue SET due_at = NULL WHERE task_id = %(task)s", {"queue-incomplete"}),
    ("parked", "UPDATE tracekit.queue SET due_at = NULL WHERE task_id = %(task)s", {"queue-incomplete"}),
    (
        "done",
        "INSERT INTO tracekit.queue (task_id, hop, mode, priority, state, created_at, ready_at, max_attempts)"
        " SELECT task_id, 2, 'b', 1, 'ready', now(), now(), 3 FROM tracekit.record"
        " WHERE task_id = %(task)s AND next_hop = 2",
        {"queue-leftover", "attempt-missing"},
    ),
    # waits and the DLQ
    ("parked", "DELETE FROM tracekit.waits WHERE task_id = %(task)s", {"wait-missing"}),
    ("done", "DELETE FROM tracekit.waits WHERE task_id = %(task)s", {"wait-missing", "wait-line"}),
    ("parked", "UPDATE tracekit.queue SET state = 'ready' WHERE task_id = %(task)s", {"wait-open"}),
    ("done", "UPDATE tracekit.waits SET closed_at = NULL WHERE task_id = %(task)s", {"wait-open", "wait-line"}),
    ("dead", "DELETE FROM tracekit.dead_letters WHERE task_id = %(task)s", {"dlq-missing", "queue-missing"}),
    ("dead", "DELETE FROM tracekit.envelopes WHERE id = %(review)s", {"review-missing", "envelope-missing"}),
    ("dead", "UPDATE tracekit.dead_letters SET review_task_id = NULL WHERE task_id = %(task)s", {"review-missing"}),
    (
        "abandoned",
        "UPDATE tracekit.dead_letters SET resolution = NULL, resolved_at = NULL WHERE task_id = %(task)s",
        {"dlq-leftover", "dlq-line"},
    ),
    # spans beside the record's
    ("running", KEPT.format("%(root)s", "NULL"), {"root-early"}),
    ("done", KEPT.format("%(root)s", "parent_span_id"), {"span-doubled"}),
    ("done", KEPT.format("%(root)s", "'bbbbbbbbbbbbbbbb'"), {"span-doubled", "root-parent", "orphan"}),
    ("done", KEPT.format("%(attempt)s", "%(root)s"), {"span-doubled"}),
    ("done", KEPT.format("'ffffffffffffffff'", "NULL"), {"root-second"}),
    ("done", KEPT.format("'ffffffffffffffff'", "'bbbbbbbbbbbbbbbb'"), {"orphan"}),
    (
        "done",
        KEPT.format("'ffffffffffffffff'", "%(root)s").replace("SELECT trace_id", "SELECT md5(trace_id)"),
        {"trace-other", "orphan"},
    ),
]


@pytest.mark.parametrize(("which", "statement", "expected"), BREAKS)
async def test_what_is_broken_is_named(
    queue: Queue, pool: Pool, which: str, statement: LiteralString, expected: set[str]
) -> None:
    """T11: and nothing else is, of no other task."""
    made = await histories(queue)
    task_id = made[which]
    values = {
        "task": task_id,
        "root": ids.root_span_id(task_id),
        "attempt": ids.attempt_span_id(task_id, 1, 1),
        "review": made["review"],
    }
    async with pool.connection() as connection:
        cursor = await connection.execute(statement, values)
        assert cursor.rowcount > 0, "nothing was broken"
    _, found = await findings(pool)
    assert {finding.check for finding in found} == expected, found
    about = {task_id, made["review"]} if "envelope-missing" in expected else {task_id}
    assert {finding.task_id for finding in found} <= about


SPANS = [
    ("done", "root", {"root-missing", "orphan"}),
    ("done", "send 1", {"send-missing", "orphan"}),
    ("done", "send 2", {"send-missing", "orphan"}),
    ("done", "attempt 2 1", {"attempt-span-missing"}),
    ("done", "queue 2 3", {"queue-span-missing"}),
    ("done", "wait 2 4", {"wait-span-missing"}),
    ("dead", "attempt 1 2", {"attempt-span-missing"}),
    ("abandoned", "dlq 1", {"dlq-span-missing"}),
    ("parked", "send 1", {"send-missing", "orphan"}),
    ("expired", "root", {"root-missing", "orphan"}),
]

COLUMNS = "trace_id, span_id, parent_span_id, task_id, source, name, kind, start_time, end_time"


def span_id(task_id: str, what: str) -> str:
    kind, *numbers = what.split()
    make = {
        "root": ids.root_span_id,
        "send": ids.send_span_id,
        "queue": ids.queue_span_id,
        "attempt": ids.attempt_span_id,
        "wait": ids.wait_span_id,
        "dlq": ids.review_span_id,
    }[kind]
    return make(task_id, *map(int, numbers))  # type: ignore[operator,no-any-return]


async def test_spans_that_version_1_wrote_are_looked_for_too(queue: Queue, pool: Pool) -> None:
    """T11: of a task from before the record, the spans are rows, and a row can be missing."""
    made = await histories(queue)
    async with pool.connection() as connection:
        await connection.execute(f"INSERT INTO tracekit.kept_spans ({COLUMNS}) SELECT {COLUMNS} FROM tracekit.spans")
        await connection.execute("UPDATE tracekit.record SET xid = '1'")
        await connection.execute("UPDATE tracekit.envelopes SET xid = '1'")
    assert (await findings(pool))[1] == []
    for which, what, expected in SPANS:
        span = span_id(made[which], what)
        async with pool.connection() as connection:
            cursor = await connection.execute(
                f"DELETE FROM tracekit.kept_spans WHERE span_id = %s RETURNING {COLUMNS}",
                [span],
            )
            row = await cursor.fetchone()
        assert row, "nothing was broken"
        _, found = await findings(pool)
        assert {finding.check for finding in found} == expected, found
        assert {finding.task_id for finding in found} == {made[which]}
        assert any(span in finding.detail for finding in found)
        async with pool.connection() as connection:
            await connection.execute(
                f"INSERT INTO tracekit.kept_spans ({COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
                row,
            )


SDK_SPAN = (
    "INSERT INTO tracekit.kept_spans (trace_id, span_id, parent_span_id, task_id, name, kind, start_time, end_time)"
    " SELECT trace_id, %(id)s, %(parent)s, id, 'GET', 3, clock_timestamp() - %(age)s::interval,"
    " clock_timestamp() - %(age)s::interval FROM tracekit.envelopes WHERE id = %(task)s"
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
            "UPDATE tracekit.envelopes SET created_at = now() - interval '2 days' WHERE id = ANY(%s)", [[old, alive]]
        )
        await connection.execute(
            "UPDATE tracekit.record SET at = now() - interval '1 day' WHERE task_id = %s AND end_state IS NOT NULL",
            [old],
        )
        await connection.execute("UPDATE tracekit.record SET worker = NULL")
    assert {finding.task_id for finding in (await findings(pool, since=timedelta(hours=1)))[1]} == {new, alive}
    assert {finding.task_id for finding in (await findings(pool))[1]} == {old, new, alive}
    yesterday = datetime.now(UTC) - timedelta(hours=20)
    assert {finding.task_id for finding in (await findings(pool, until=yesterday))[1]} == {old, alive}
