"""Wake-ups: what they say, how large they are, and how few of them there are (Q9)."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import hypothesis.strategies as st
from hypothesis import given
from psycopg import AsyncConnection

from tests.queue.driving import accept, settle, take
from tests.support.processes import background
from tracekit import ids
from tracekit.postgres import Pool, connect
from tracekit.queue import Done, HandOff, Queue
from tracekit.queue.model import Wakeup
from tracekit.queue.notify import CHANNEL, MAX_PAYLOAD, payloads

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
def test_payloads_say_all_and_fit_into_a_notify_Q9_T1(wakeups: list[Wakeup]) -> None:
    texts = list(payloads(wakeups))
    assert all(len(text.encode()) <= MAX_PAYLOAD < 8_000 for text in texts)
    said = [item for text in texts for item in json.loads(text)]
    assert said == [
        {
            "task": wakeup.task_id,
            "trace_id": wakeup.trace_id,
            "traceparent": wakeup.traceparent,
            "mode": wakeup.mode,
            "priority": wakeup.rank,
        }
        for wakeup in wakeups
    ]
    # Few: two neighbours would not have fitted into one.
    assert all(len(one) + len(next) > MAX_PAYLOAD for one, next in itertools.pairwise(texts))


async def heard(listening: AsyncConnection[Any], tasks: int) -> list[list[dict[str, Any]]]:
    """The notifications, up to the one that makes `tasks` wake-ups complete."""
    received: list[list[dict[str, Any]]] = []
    async with asyncio.timeout(20):
        async for notification in listening.notifies():
            received.append(json.loads(notification.payload))
            if sum(map(len, received)) >= tasks:
                break
    return received


async def test_a_commit_sends_none_and_the_notifier_sends_few_Q9(queue: Queue, pool: Pool, dsn: str) -> None:
    async with await connect(dsn, autocommit=True) as listening:
        await listening.execute(f"LISTEN {CHANNEL}")
        tasks = [await accept(queue) for _ in range(100)]
        first = await take(queue)
        await settle(queue, first, HandOff("executor"))
        last = await take(queue, "executor")
        await settle(queue, last, Done())
        # Notifications come in the order of commits: had the writers sent any, this would not be the first.
        async with pool.connection() as connection:
            await connection.execute("SELECT pg_notify(%s, '[{}]')", [CHANNEL])
        assert await heard(listening, 1) == [[{}]]
        # NOTIFY merges equal payloads of one transaction only: the count is the notifier's own doing.
        async with background(queue.notifier.round()):
            received = await heard(listening, 102)
    assert len(received) < 6
    assert [item["task"] for payload in received for item in payload] == [*tasks, first.task_id, last.task_id]
    assert [item["mode"] for payload in received for item in payload][-3:] == ["router", "executor", None]
    [handed_on] = [item for payload in received for item in payload if item["mode"] == "executor"]
    assert handed_on["traceparent"] == f"00-{first.trace_id}-{ids.send_span_id(first.task_id, 2)}-01"
