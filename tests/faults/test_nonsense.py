"""Handlers that answer what no table takes: a failed attempt for them, and nothing for their neighbours (Q4)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from tests.faults.database import outcomes, rows, state
from tests.faults.modes import Fast, Work
from tests.faults.running import running
from tests.queue.driving import accept
from tests.support.processes import eventually
from tracekit.config import WorkerSettings
from tracekit.postgres import Pool
from tracekit.queue import Done, GiveUp, HandOff, Notice, Outcome, Park, Queue, RetryLater
from tracekit.workers.mode import Hop, Mode

QUICK = WorkerSettings(
    lease=timedelta(seconds=30),
    heartbeat=timedelta(milliseconds=200),
    poll_interval=timedelta(milliseconds=50),
    sweep_interval=timedelta(milliseconds=50),
    grace=timedelta(seconds=5),
    database_timeout=timedelta(seconds=5),
)
HOUR = timedelta(hours=1)
RANDOM = "".join(chr(0x4E00 + (n * 7919) % 20_000) for n in range(4_000))
"""Text that compression does not make fit into an index."""
ANY: Any = None

NONSENSE: dict[str, Callable[[], Any]] = {
    "a key longer than an index takes": lambda: Park("ci", RANDOM, HOUR),
    "a mode longer than an index takes": lambda: HandOff(RANDOM),
    "no mode": lambda: HandOff(ANY),
    "a mode with NUL": lambda: HandOff("a\x00"),
    "an end that does not exist": lambda: Done("banana"),  # type: ignore[arg-type]
    "a summary that is no text": lambda: Done(summary=ANY, notify=True),
    "a rest beyond all time": lambda: RetryLater(timedelta.max, "later"),
    "a wait beyond all time": lambda: Park("ci", "k", timedelta.max),
    "a deadline that does nothing": lambda: Park("ci", "k", HOUR, on_deadline="shrug"),  # type: ignore[arg-type]
    "no key": lambda: Park("ci", ANY, HOUR),
    "a delay that is no time": lambda: RetryLater(5, "later"),  # type: ignore[arg-type]
    "a reason that is no text": lambda: GiveUp(object()),  # type: ignore[arg-type]
    "tags that are no list": lambda: HandOff("fast", tags=7),  # type: ignore[arg-type]
    "a notice that is none": lambda: Park("ci", "k", HOUR, notice="hello"),  # type: ignore[arg-type]
    "a notice with data that is no JSON": lambda: Park("ci", "k", HOUR, notice=Notice("x", "x", "x", data={"x": {1}})),
    "input that is no JSON": lambda: HandOff("fast", {"x": object()}),
    "input of bottomless depth": lambda: HandOff("fast", _deep()),
}


def _deep() -> Any:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    return deep


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE.keys())
async def test_nonsense_is_a_failed_attempt_and_harms_nobody_else_Q4(
    queue: Queue, pool: Pool, dsn: str, answer: Callable[[], Any]
) -> None:
    class Nonsense(Mode[Work]):
        name = "nonsense"
        input_type = Work

        async def run(self, hop: Hop[Work]) -> Outcome:
            return answer()  # type: ignore[no-any-return]

    # Of one commit, so that they are claimed, and settled, together.
    bad = await accept(queue, "nonsense")
    good = [await accept(queue, "fast") for _ in range(3)]
    async with running(dsn, [Nonsense, Fast], QUICK):

        async def is_dead() -> bool:
            return await state(pool, bad) == "dead"

        await eventually(is_dead, "the nonsense is in the DLQ")
        good.append(await accept(queue, "fast"))

        async def all_done() -> bool:
            return {await state(pool, task_id) for task_id in good} == {"done"}

        await eventually(all_done, "the others end")
    assert await outcomes(pool, bad) == ["failed"] * 3
    assert await rows(
        pool, "SELECT DISTINCT data->'error'->>'type' FROM tracekit.events WHERE task_id = %s AND data ? 'error'", bad
    ) == [("InvalidOutcome",)]
