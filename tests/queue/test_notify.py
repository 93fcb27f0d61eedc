"""Wake-ups: what they say, how large they are, and that nobody is told who does not sleep (Q9)."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from psycopg import AsyncConnection

from tests.queue.driving import accept, settle, submission, take
from tests.support.processes import PATIENCE
from tracekit import ids
from tracekit.postgres import Pool, connect
from tracekit.queue import Done, HandOff, Park, Queue
from tracekit.queue.claim import Ask
from tracekit.queue.model import Wakeup
from tracekit.queue.notify import CHANNEL, FORGOTTEN_AFTER, MAX_PAYLOAD, MOST_TOLD, payload, telling
from tracekit.queue.sweep import GONE_AFTER

HOUR = timedelta(hours=1)
_hexadecimal = st.text("0123456789abcdef", min_size=32, max_size=32)
_modes = st.none() | st.text(max_size=200) | st.text("é\N{WOMAN}", max_size=120)
_wakeups = st.lists(
    st.builds(
        lambda trace_id, mode, rank: Wakeup(
            ids.new_task_id(), trace_id, ids.traceparent(trace_id, trace_id[:16]), mode, rank
        ),
        _hexadecimal,
        _modes,
        st.integers(0, 3),
    ),
    max_size=120,
)


@given(_wakeups)
def test_a_payload_says_what_it_says_whole_and_fits_into_a_notify_Q9_T1(wakeups: list[Wakeup]) -> None:
    text = payload(wakeups)
    assert len(text.encode()) <= MAX_PAYLOAD < 8_000
    said = json.loads(text)
    known = {
        wakeup.task_id: {
            "task": wakeup.task_id,
            "trace_id": wakeup.trace_id,
            "traceparent": wakeup.traceparent,
            "mode": wakeup.mode,
            "priority": wakeup.rank,
        }
        for wakeup in wakeups
    }
    assert all(item == known.pop(item["task"]) for item in said)
    # Of each mode the first comes before any second one; and what is left out would not have fitted.
    modes = list(dict.fromkeys(wakeup.mode for wakeup in wakeups))
    assert [item["mode"] for item in said][: len(modes)] == modes[: len(said)]
    if known:
        assert len(text) + max(len(json.dumps(item, separators=(",", ":"))) for item in known.values()) >= MAX_PAYLOAD


@given(_wakeups)
def test_few_are_told_one_by_one_and_every_mode_is_among_them_Q9(wakeups: list[Wakeup]) -> None:
    made: list[int] = []

    def make(number: int) -> Wakeup:
        made.append(number)
        return wakeups[number]

    parameters = telling([wakeup.mode for wakeup in wakeups], make, "{}")
    modes = {wakeup.mode for wakeup in wakeups}
    assert {wakeups[number].mode for number in made} == modes
    assert len(made) <= MOST_TOLD + len(modes)
    assert parameters["wakeups"] == payload([wakeups[number] for number in made])


async def asleep(queue: Queue, worker: str, *modes: str) -> list[str]:
    """`worker` says that it sleeps, and looks once more; what it finds."""
    turn = await queue.turn([], Ask(worker, dict.fromkeys(modes, 10), HOUR, sleep=modes))
    return [position.task_id for position in turn.claimed or ()]


async def heard(listening: AsyncConnection[Any], pool: Pool) -> list[dict[str, Any]]:
    """What was told up to now. Notifications come in the order of commits, so a last one marks the end."""
    async with pool.connection() as connection:
        await connection.execute("SELECT pg_notify(%s, 'end')", [CHANNEL])
    found: list[dict[str, Any]] = []
    async for notification in listening.notifies(timeout=PATIENCE):
        if notification.payload == "end":
            return found
        found += json.loads(notification.payload)
    raise AssertionError("the end was not heard")


async def test_nobody_is_told_while_nobody_sleeps_Q9(queue: Queue, pool: Pool, dsn: str) -> None:
    async with await connect(dsn, autocommit=True) as listening:
        await listening.execute(f"LISTEN {CHANNEL}")
        task = await accept(queue)
        await settle(queue, await take(queue), HandOff("executor"))
        await settle(queue, await take(queue, "executor"), Park("ci", "ci:1", HOUR))
        await queue.signal("ci:1", {}, dedupe_key="1", sent_by="ci")
        await settle(queue, await take(queue, "executor"), Done())
        assert await heard(listening, pool) == []
        assert (await queue.task(task)).state == "done"


async def test_a_sleeper_is_told_of_its_modes_and_a_follower_of_its_task_Q9_T1(
    queue: Queue, pool: Pool, dsn: str
) -> None:
    async with await connect(dsn, autocommit=True) as listening:
        await listening.execute(f"LISTEN {CHANNEL}")
        assert await asleep(queue, "w1", "executor") == []
        task = await accept(queue)
        assert await heard(listening, pool) == [], "of a mode that nobody sleeps for"
        first = await take(queue)
        await settle(queue, first, HandOff("executor"))
        [told] = await heard(listening, pool)
        assert told == {
            "task": task,
            "trace_id": first.trace_id,
            "traceparent": f"00-{first.trace_id}-{ids.send_span_id(task, 2)}-01",
            "mode": "executor",
            "priority": 1,
        }
        # Of what a signal brings back as well, and of a task's end only its follower.
        await settle(queue, await take(queue, "executor"), Park("ci", "ci:1", HOUR))
        await queue.signal("ci:1", {}, dedupe_key="1", sent_by="ci")
        assert [item["mode"] for item in await heard(listening, pool)] == ["executor"]
        await queue.sleep("follower", task)
        await settle(queue, await take(queue, "executor"), Done())
        assert [(item["task"], item["mode"]) for item in await heard(listening, pool)] == [(task, None)]
        # Awake again, none is told.
        await queue.awake("follower")
        await queue.turn([], Ask("w1", {"executor": 1}, HOUR, sleep=()))
        await accept(queue, "executor")
        assert await heard(listening, pool) == []


async def test_many_at_once_are_one_notification_Q9(queue: Queue, pool: Pool, dsn: str) -> None:
    async with await connect(dsn, autocommit=True) as listening:
        await listening.execute(f"LISTEN {CHANNEL}")
        await asleep(queue, "w1", "router", "executor")
        many = [submission("router") for _ in range(200)] + [submission("executor")]
        await queue.enqueue(many)
        told = await heard(listening, pool)
    assert {item["mode"] for item in told} == {"router", "executor"}
    assert len(told) <= MOST_TOLD + 2


async def test_what_comes_before_the_sleep_is_found_by_the_look_after_it_Q9(queue: Queue) -> None:
    """Either the writer sees the sleeper or the sleeper sees the task: the row is committed before the look."""
    task = await accept(queue)
    assert await asleep(queue, "w1", "router") == [task]


@pytest.mark.parametrize("age", [FORGOTTEN_AFTER - timedelta(minutes=1), FORGOTTEN_AFTER + timedelta(minutes=1)])
async def test_a_sleeper_that_went_without_a_word_is_forgotten_Q9(queue: Queue, pool: Pool, age: timedelta) -> None:
    await asleep(queue, "w1", "router")
    async with pool.connection() as connection:
        await connection.execute("UPDATE tracekit.sleepers SET seen_at = seen_at - %s::interval", [age])
        await queue.sweep()
        cursor = await connection.execute("SELECT count(*) FROM tracekit.sleepers")
        assert await cursor.fetchone() == (int(age < FORGOTTEN_AFTER),)


@pytest.mark.parametrize("age", [GONE_AFTER - timedelta(minutes=1), GONE_AFTER + timedelta(minutes=1)])
async def test_a_worker_that_is_gone_for_a_day_is_forgotten(queue: Queue, pool: Pool, age: timedelta) -> None:
    """Each start of a worker leaves a row, whose id never comes back."""
    await queue.heartbeat("w1", ["router"], "listening", {}, HOUR)
    async with pool.connection() as connection:
        await connection.execute("UPDATE tracekit.workers SET seen_at = seen_at - %s::interval", [age])
        await queue.heartbeat("w2", ["router"], "listening", {}, HOUR)
        await queue.sweep()
        cursor = await connection.execute("SELECT array_agg(id ORDER BY id) FROM tracekit.workers")
        assert await cursor.fetchone() == (["w1", "w2"] if age < GONE_AFTER else ["w2"],)


async def test_a_heartbeat_says_again_who_sleeps_Q9(queue: Queue, pool: Pool) -> None:
    """After a switchover or a restored dump the row may be gone, and the worker would only poll."""
    await queue.heartbeat("w1", ["router"], "listening", {}, HOUR, asleep=True)
    await queue.heartbeat("w2", ["router"], "listening", {}, HOUR)
    async with pool.connection() as connection:
        cursor = await connection.execute("SELECT id, modes FROM tracekit.sleepers")
        assert await cursor.fetchall() == [("w1", ["router"])]
