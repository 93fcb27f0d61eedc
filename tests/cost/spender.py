"""A worker process that spends against budgets: `python -m tests.cost.spender DSN MODELS_URL`."""

from __future__ import annotations

import asyncio
import logging
import sys
from datetime import timedelta

import httpx
from pydantic import BaseModel

from tests.cost.driving import PRICES
from tests.support.logs import plain_logs
from tracekit.config import ModelSettings, Settings, WorkerSettings
from tracekit.postgres import open_pool
from tracekit.queue import Done, Outcome, Queue
from tracekit.workers.loops import keep
from tracekit.workers.mode import Hop, Mode, Services
from tracekit.workers.models import Message, chat
from tracekit.workers.worker import Worker

SECOND = timedelta(seconds=1)


class Work(BaseModel):
    prompt: str = "so"


class Spender(Mode[Work]):
    """Asks a model once, and is done."""

    name = "spender"
    input_type = Work

    async def run(self, hop: Hop[Work]) -> Outcome:
        await chat(hop, "remote", [Message("user", hop.input.prompt)])
        return Done(summary="spent")


async def serve(dsn: str, models: str) -> None:
    settings = Settings(
        worker=WorkerSettings(concurrency=8, lease=4 * SECOND, heartbeat=SECOND, poll_interval=0.2 * SECOND),
        prices=PRICES,
        models={"remote": ModelSettings(base_url=models, model="m-1", provider="test", max_tokens=20)},
    )
    pool = await open_pool(dsn, min_size=1, max_size=8, name="spender", autocommit=True)
    async with pool, httpx.AsyncClient() as http:
        queue = Queue(pool)
        services = Services(settings, queue, http)
        worker = Worker(services, [Spender(services)], settings.worker)
        sweeps = [asyncio.create_task(keep("s", round, pause=0.2)) for round in (queue.sweep, services.ledger.sweep)]
        print(worker.id, flush=True)
        await asyncio.gather(worker.run(asyncio.Event()), *sweeps)


if __name__ == "__main__":
    plain_logs(logging.ERROR, sys.stderr)
    asyncio.run(serve(sys.argv[1], sys.argv[2]))
