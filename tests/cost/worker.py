"""A worker process whose modes spend: `python -m tests.cost.worker DSN MODELS_URL`. It prints a line once it serves."""

from __future__ import annotations

import asyncio
import logging
import sys
from datetime import timedelta

import httpx
from pydantic import BaseModel

from tests.cost.driving import PRICES, usage
from tests.support.logs import plain_logs
from tracekit.config import ModelSettings, Settings, WorkerSettings
from tracekit.postgres import open_pool
from tracekit.queue import Done, HandOff, Outcome, Queue
from tracekit.tracing.instrument import instrument_handlers
from tracekit.tracing.sdk import configure_tracing
from tracekit.workers.loops import keep
from tracekit.workers.mode import Hop, Mode, Services
from tracekit.workers.models import Message, chat
from tracekit.workers.worker import Worker

SECOND = timedelta(seconds=1)


class Work(BaseModel):
    calls: int = 1
    failures: int = 0


class Asker(Mode[Work]):
    """Asks a model some times, and fails some times after it."""

    name = "asker"
    input_type = Work

    async def run(self, hop: Hop[Work]) -> Outcome:
        for number in range(hop.input.calls):
            await chat(hop, "remote", [Message("user", f"call {number}")], stream=number % 2 == 1)
        if hop.task.attempt <= hop.input.failures:
            raise RuntimeError("not yet")
        return HandOff("teller", {}, persona="narrator")


class Teller(Mode[Work]):
    """Says from a thread what it has spent elsewhere."""

    name = "teller"
    input_type = Work

    def run(self, hop: Hop[Work]) -> Outcome:
        hop.blocking.usage(usage("m-2", cache_read=7, cache_write=5, reasoning=3, key="told"), usage("unknown"))
        return Done(summary="told")


async def serve(dsn: str, models: str) -> None:
    settings = Settings(
        worker=WorkerSettings(concurrency=4, lease=4 * SECOND, heartbeat=SECOND, poll_interval=0.2 * SECOND),
        prices=PRICES,
        models={"remote": ModelSettings(base_url=models, model="m-1", provider="test")},
    )
    pool = await open_pool(dsn, min_size=1, max_size=8, name="cost", autocommit=True)
    tracing = configure_tracing("cost", dsn)
    async with pool, httpx.AsyncClient() as http:
        instrument_handlers(tracing.provider).client(http)
        queue = Queue(pool)
        services = Services(settings, queue, http)
        worker = Worker(services, [Asker(services), Teller(services)], settings.worker)
        sweeps = [asyncio.create_task(keep("s", round, pause=0.2)) for round in (queue.sweep, services.ledger.sweep)]
        print(worker.id, flush=True)
        await asyncio.gather(worker.run(asyncio.Event()), *sweeps)


if __name__ == "__main__":
    plain_logs(logging.WARNING, sys.stderr)
    asyncio.run(serve(sys.argv[1], sys.argv[2]))
