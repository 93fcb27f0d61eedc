"""What must hold when all is well again, whatever died: nothing accepted is lost, nothing ended twice, each trace
whole, and a collector that knows nothing of the database has the same spans.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.faults.database import rows
from tests.faults.modes import LEDGER, read_ledger
from tests.faults.running import BATCH_SPANS
from tests.support.otlp import OtlpReceiver
from tests.support.processes import ALL_DAY, eventually
from tracekit import ids
from tracekit.postgres import Pool
from tracekit.queue import Queue, Submission
from tracekit.queue.audit import Extent, audit
from tracekit.tracing.otlp import collector_from_environment
from tracekit.tracing.shipper import SpanShipper

FINAL = {"handed_off", "done"}
"""Outcomes of attempts after which their hop is finished."""


class Aftermath:
    """What was accepted in a test, and how it must end."""

    def __init__(
        self, pool: Pool, dsn: str, receiver: OtlpReceiver, ledger: Path, note: Callable[[str, object], None]
    ) -> None:
        self.pool = pool
        self.queue = Queue(pool)
        self.receiver = receiver
        self.ledger = ledger
        self.ends: dict[str, str] = {}
        """Task ids, and the state that each must end in."""
        self._dsn = dsn
        self._note = note

    async def accept(self, *offered: Submission, ends: str = "done") -> list[str]:
        """Enqueue in one transaction; the ids."""
        accepted = [receipt.task_id for receipt in await self.queue.enqueue(offered)]
        self.ends |= dict.fromkeys(accepted, ends)
        return accepted

    def report(self, told: str) -> None:
        """A line of numbers for the log, and for the report of the run."""
        print(f"\n{told}")
        self._note("recovery", told)

    async def until_ended(self) -> None:
        """Wait until no task is left, in the queue or in the DLQ."""

        async def none_left() -> bool:
            return not await rows(self.pool, "SELECT FROM tracekit.tasks WHERE state IN ('open', 'dead') LIMIT 1")

        await eventually(none_left, "all tasks end", within=ALL_DAY)

    async def until_ledger(self, step: str, count: int = 1) -> None:
        """Wait until the world has seen `step` so often."""

        async def seen() -> bool:
            return sum(deed == step for _, deed, _ in read_ledger(self.ledger)) >= count

        await eventually(seen, f"{count} times {step}")

    async def check(self, *, shippers_cut: int = 0) -> None:
        """All of it, once everything has ended. A shipper that was cut off, by a kill or by the end of a
        `tests.faults.worker`, may have shipped one batch that another one shipped again.
        """
        await self._check_ends()
        await self._check_deeds()
        async with self.pool.connection() as connection:
            extent, *findings = [found async for found in audit(connection)]
        assert findings == []
        assert isinstance(extent, Extent)
        await self._check_trace(shippers_cut * BATCH_SPANS)

    async def _check_ends(self) -> None:
        tasks = {task.id: task for task in await self.queue.tasks(limit=1_000_000)}
        buried = [entry.task_id for entry in await self.queue.dead_letters(resolved=True, limit=1_000_000)]
        reviews = [task for task in tasks.values() if task.review_of is not None]
        assert sorted(task.review_of or "" for task in reviews) == sorted(buried), "one review for each death"
        states = {task_id: task.state for task_id, task in tasks.items()}
        assert states == self.ends | {task.id: "done" for task in reviews}
        assert await rows(self.pool, "SELECT task_id, state FROM tracekit.queue") == []
        for task_id, state in states.items():
            events = await self.queue.events(task_id)
            kinds = Counter(event.kind for event in events)
            assert (kinds["task.accepted"], kinds["task.ended"]) == (1, 1)
            finals = Counter(
                event.hop for event in events if event.kind == "attempt.ended" and event.data["outcome"] in FINAL
            )
            # What expired or was given up did not finish its last hop; any other hop was finished, once.
            hops = max(event.hop or 0 for event in events)
            assert finals == dict.fromkeys(range(1, hops + (state == "done")), 1)

    async def _check_deeds(self) -> None:
        """Each attempt did a step at most once, and nobody did it after it was on record."""
        deeds = read_ledger(self.ledger)
        recorded = await rows(
            self.pool, "SELECT task_id, step, attempt FROM tracekit.effects WHERE finished_at IS NOT NULL"
        )
        for task_id, step, attempt in recorded:
            attempts = [by for deed_of, done, by in deeds if (deed_of, done) == (task_id, step)]
            assert attempts == sorted(set(attempts))
            assert attempts[-1] == attempt
            records = [event for event in await self.queue.events(task_id) if event.kind == "effect.recorded"]
            assert [event.attempt for event in records if event.data["step"] == step] == [attempt]

    async def _check_trace(self, repeats: int) -> None:
        written = set(await rows(self.pool, "SELECT trace_id, span_id FROM tracekit.spans"))
        await self._ship(len(written))
        spans = self.receiver.spans()
        received = Counter((span["trace_id"], span["span_id"]) for span in spans)
        assert set(received) == written
        assert received.total() - len(received) <= repeats
        orphans = [
            span["name"]
            for span in spans
            if span["parent_span_id"] and (span["trace_id"], span["parent_span_id"]) not in received
        ]
        assert orphans == []
        roots = {(span["trace_id"], span["span_id"]) for span in spans if not span["parent_span_id"]}
        tasks = await rows(self.pool, "SELECT trace_id, id FROM tracekit.tasks")
        assert roots == {(trace_id, ids.root_span_id(task_id)) for trace_id, task_id in tasks}

    async def _ship(self, distinct: int) -> None:
        """What no worker lived to ship. While another one does, this one waits for it."""
        shipper = SpanShipper(self._dsn, collector_from_environment(), interval=0.02)
        stop = asyncio.Event()
        shipping = asyncio.create_task(shipper.run(stop))
        try:
            await asyncio.to_thread(self.receiver.wait, distinct=distinct)
        finally:
            stop.set()
            await shipping


@asynccontextmanager
async def aftermath(request: pytest.FixtureRequest, pool: Pool, dsn: str) -> AsyncIterator[Aftermath]:
    """What must hold in a database of the test's own, with a collector that the shippers started meanwhile find."""
    ledger: Path = request.getfixturevalue("ledger")
    monkeypatch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    monkeypatch.setenv(LEDGER, str(ledger))
    receiver = OtlpReceiver(ledger.parent)
    await asyncio.to_thread(receiver.start)
    try:
        for name, setting in receiver.environment().items():
            monkeypatch.setenv(name, setting)
        yield Aftermath(pool, dsn, receiver, ledger, request.getfixturevalue("record_property"))
    finally:
        receiver.stop()
