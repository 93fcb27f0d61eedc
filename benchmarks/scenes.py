"""tracekit in the same scenes as the floor, through its own public parts."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any

import httpx

from tracekit import ids
from tracekit.config import Settings, WorkerSettings
from tracekit.envelope import Envelope, Origin, TaskRequest
from tracekit.postgres import Pool, connect
from tracekit.queue import Done, Outcome, Queue, Submission
from tracekit.queue.changes import Changes
from tracekit.queue.listener import Listener, ListenerState
from tracekit.workers.loops import keep
from tracekit.workers.mode import Hop, Mode, NoInput, Services
from tracekit.workers.worker import Worker

PAYLOAD = {"text": "x" * 280}
"""300 bytes as JSON."""

_numbers = itertools.count()


def task() -> Submission:
    """A task with nothing to do."""
    request = TaskRequest(intent="benchmark", idempotency_key=f"bench-{next(_numbers)}")
    envelope = Envelope.seal(
        request, origin=Origin.MANUAL, surface="bench", requester="system", trace_id=ids.new_trace_id()
    )
    return Submission(envelope, mode="noop", input=PAYLOAD)


class Noop(Mode[NoInput]):
    """Ends each task at once, and counts."""

    name = "noop"
    input_type = NoInput

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self.started: dict[str, float] = {}
        self.changed = asyncio.Event()

    async def run(self, hop: Hop[NoInput]) -> Outcome:
        self.started[hop.task.task_id] = time.perf_counter()
        self.changed.set()
        return Done()


@asynccontextmanager
async def working(pool: Pool, queue: Queue, dsn: str, concurrency: int) -> AsyncIterator[Noop]:
    """A worker process's loops in this process, listening."""
    settings = WorkerSettings(concurrency=concurrency, grace=timedelta(seconds=5))
    stop = asyncio.Event()
    async with httpx.AsyncClient() as http:
        services = Services(Settings(worker=settings), queue, http)
        mode = Noop(services)
        worker = Worker(services, [mode], settings)
        listener = Listener(dsn, pool, worker.wake, connect=lambda dsn: connect(dsn, autocommit=True))
        loops = [
            asyncio.create_task(keep("notify", queue.notifier.round)),
            asyncio.create_task(keep("listen", listener.listen)),
        ]
        running = asyncio.create_task(worker.run(stop))
        try:
            while listener.state is not ListenerState.LISTENING:
                await listener.changed.wait()
                listener.changed.clear()
            yield mode
        finally:
            stop.set()
            await running
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)


@contextmanager
def tracing(on: bool) -> Iterator[None]:
    """With tracing off no span row is written; the program itself has no such switch (T9)."""
    if on:
        yield
        return
    write, spans = Changes.write, Submission._spans

    async def write_without_spans(self: Changes, connection: Any) -> None:
        self.spans.clear()
        await write(self, connection)

    Changes.write = write_without_spans  # type: ignore[method-assign]
    Submission._spans = lambda self: []  # type: ignore[method-assign]
    try:
        yield
    finally:
        Changes.write = write  # type: ignore[method-assign]
        Submission._spans = spans  # type: ignore[method-assign]


async def drain(pool: Pool, queue: Queue, dsn: str, count: int, concurrency: int) -> float:
    """Seconds to work off `count` waiting tasks, from the worker's start to the last task's end in the database."""
    for _ in range(0, count, 1000):
        await queue.enqueue([task() for _ in range(1000)])
    began = time.perf_counter()
    async with working(pool, queue, dsn, concurrency), pool.connection() as connection:
        while True:
            left = await (await connection.execute("SELECT count(*) FROM tracekit.queue")).fetchone()
            if left == (0,):
                return time.perf_counter() - began
            await asyncio.sleep(0.01)


async def latency(pool: Pool, queue: Queue, dsn: str, count: int) -> list[float]:
    """Seconds from calling enqueue to the handler's start, one task after another, the worker idle in between."""
    found: list[float] = []
    async with working(pool, queue, dsn, 8) as mode:
        for _ in range(count):
            submission = task()
            mode.changed.clear()
            began = time.perf_counter()
            await queue.enqueue([submission])
            while submission.envelope.id not in mode.started:
                await mode.changed.wait()
                mode.changed.clear()
            found.append(mode.started[submission.envelope.id] - began)
            async with asyncio.timeout(10):
                while (await queue.task(submission.envelope.id)).state == "open":  # noqa: ASYNC110 - a row, not an event
                    await asyncio.sleep(0.001)
    return found


def payload() -> str:
    """The floor's payload, of the same size."""
    return json.dumps(PAYLOAD)
