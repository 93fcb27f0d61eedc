"""A worker with all that runs beside it, in this process or as one of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx

from tests.support.processes import background
from tracekit.config import Settings, WorkerSettings
from tracekit.postgres import connect, open_pool
from tracekit.queue import Queue
from tracekit.queue.listener import Listener, Wake
from tracekit.tracing.otlp import collector_from_environment
from tracekit.tracing.shipper import SpanShipper
from tracekit.workers.loops import keep
from tracekit.workers.mode import Mode, Services
from tracekit.workers.worker import Worker

BATCH_SPANS = 256
BATCH_ROWS = BATCH_SPANS // 4
"""Spans in one shipment: what a shipper's death may repeat."""


@dataclass(frozen=True, slots=True)
class Running:
    worker: Worker
    listener: Listener
    queue: Queue
    stop: asyncio.Event


@asynccontextmanager
async def running(
    dsn: str,
    modes: Sequence[type[Mode[Any]]],
    settings: WorkerSettings,
    *,
    listen_dsn: str = "",
    notify: bool = True,
    sweep: bool = True,
    transaction_pooler: bool = False,
    test_interval: timedelta = timedelta(seconds=20),
    test_timeout: timedelta = timedelta(seconds=5),
) -> AsyncIterator[Running]:
    """A worker and its loops until the block ends; then it drains. Without `notify` every NOTIFY to it is lost."""
    stop = asyncio.Event()
    pool = await open_pool(
        dsn, min_size=1, max_size=8, name="faults", autocommit=True, transaction_pooler=transaction_pooler
    )
    async with pool, httpx.AsyncClient() as http:
        queue = Queue(pool, timeout=settings.database_timeout)
        services = Services(Settings(worker=settings), queue, http)
        worker = Worker(services, [mode(services) for mode in modes], settings)
        listener = Listener(
            listen_dsn or dsn,
            pool,
            worker.wake if notify else _losing(worker.wake),
            connect=lambda to: connect(to, autocommit=True),
            test_interval=test_interval,
            test_timeout=test_timeout,
        )
        shipper = SpanShipper(
            listen_dsn or dsn, collector_from_environment(), batch_rows=BATCH_ROWS, interval=0.2, backoff=(0.1, 1.0)
        )

        async def follow() -> None:
            await listener.changed.wait()
            listener.changed.clear()
            worker.listener_state = listener.state.value

        loops: list[tuple[str, Callable[[], Awaitable[object]], float]] = [
            ("listen", listener.listen, 0),
            ("listener state", follow, 0),
        ]
        if sweep:
            loops.append(("sweep", queue.sweep, settings.sweep_interval.total_seconds()))
        async with background(*(keep(name, round, pause=pause) for name, round, pause in loops), shipper.run(stop)):
            working = asyncio.create_task(worker.run(stop))
            try:
                yield Running(worker, listener, queue, stop)
            finally:
                stop.set()
                await working


def _losing(wake: Wake) -> Wake:
    """Passes on that the listener listens, and nothing of what it hears."""

    def hear(wakeups: list[dict[str, Any]]) -> None:
        if not wakeups:
            wake([])

    return hear
