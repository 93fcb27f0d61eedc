"""Files the soak's tasks and sends their signals: `python -m tests.soak.enqueuer --dsn … --receipts …`.

A line goes into the file of receipts for each receipt (`task <id> <mode> <key>`) and for each signal that the queue has
taken (`signal <key>`): what is in it must hold, whatever dies, this process too. SIGTERM lets it send what it owes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from tests.queue.driving import submission
from tests.soak.modes import signal_key
from tests.soak.worker import end_with_parent
from tests.support.processes import background
from tracekit.envelope import Priority, RetryPolicy
from tracekit.postgres import open_pool
from tracekit.queue import Queue, Submission

T = TypeVar("T")

DATABASE_ERRORS = (psycopg.Error, TimeoutError, OSError)
TICK = 0.1

PATIENT = RetryPolicy(
    max_attempts=25, initial_delay=timedelta(seconds=0.02), multiplier=2, max_delay=timedelta(seconds=0.5)
)
"""An innocent task may be under way in many a worker that is killed."""
BRIEF = PATIENT.model_copy(update={"max_attempts": 2})

KINDS = {"chain": 30, "slow": 10, "flaky": 10, "later": 8, "deeds": 12, "once": 6, "parker": 15, "doomed": 4, "ttl": 5}
"""What is filed, and how often."""


async def stubborn(ask: Callable[[], Awaitable[T]]) -> T:
    """As a client does it: until there is an answer."""
    while True:
        try:
            return await ask()
        except DATABASE_ERRORS:
            await asyncio.sleep(0.1)


class Enqueuer:
    def __init__(self, queue: Queue, name: str, receipts: Path, chance: random.Random) -> None:
        self._queue = queue
        self._name = name
        self._chance = chance
        self._receipts = os.open(receipts, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._count = 0
        self._known: list[Submission] = []
        """Some that were accepted, to be offered again."""
        self._owed: set[asyncio.Task[None]] = set()
        self._leaving = asyncio.Event()

    async def run(self, rate: float, most_open: int, stop: asyncio.Event) -> None:
        """About `rate` tasks a second while fewer than `most_open` are open, until `stop`."""
        while not stop.is_set():
            if await stubborn(self._open) < most_open:
                await self._file(round(rate * TICK * self._chance.uniform(0.5, 1.5)) or 1)
            await asyncio.sleep(TICK)
        self._leaving.set()
        await asyncio.gather(*self._owed)

    async def _open(self) -> int:
        async with self._queue.connection() as connection:
            row = await (await connection.execute("SELECT count(*) FROM tracekit.queue")).fetchone()
            assert row is not None
            return int(row[0])

    async def _file(self, count: int) -> None:
        offered = [await self._one() for _ in range(count)]
        if self._known and self._chance.random() < 0.1:
            offered.append(self._chance.choice(self._known))
        # One by one, as requests come, or in bulk.
        size = self._chance.choice((1, len(offered)))
        for first in range(0, len(offered), size):
            await self._accept(offered[first : first + size])
        self._known = [*self._known, *offered][-50:]

    async def _accept(self, batch: list[Submission]) -> None:
        for receipt, one in zip(await stubborn(lambda: self._queue.enqueue(batch)), batch, strict=True):
            self._write(f"task {receipt.task_id} {one.mode} {one.envelope.idempotency_key}")

    async def _one(self) -> Submission:
        kind = self._chance.choices(list(KINDS), list(KINDS.values()))[0]
        key = f"{self._name}-{self._count}"
        self._count += 1
        work: dict[str, Any] = {"key": key}
        fields: dict[str, Any] = {"priority": self._chance.choice(list(Priority)), "retry_policy": PATIENT}
        match kind:
            case "chain":
                work["hops"] = self._chance.randrange(4)
            case "slow":
                work["seconds"] = self._chance.uniform(0.05, 0.8)
            case "flaky":
                work["failures"] = self._chance.randrange(1, 4)
            case "later":
                work["seconds"] = self._chance.uniform(0, 1)
            case "deeds":
                work["seconds"] = self._chance.uniform(0, 0.05)
            case "parker":
                work["seconds"] = self._chance.uniform(2, 6)
                await self._send(key)
            case "doomed":
                fields["retry_policy"] = BRIEF
            case "ttl":
                kind, work["hops"] = "chain", 2
                fields["ttl"] = timedelta(seconds=self._chance.uniform(0.2, 2))
        return submission(kind, work, key=key, **fields)

    async def _send(self, key: str) -> None:
        """The signal of a task that is about to be filed: before it, after a while, or never; once, or twice."""
        times = self._chance.choice((1, 1, 2))
        match self._chance.choices(("early", "late", "never"), (4, 5, 1))[0]:
            case "early":
                await self._signal(key, times)
            case "late":
                task = asyncio.create_task(self._late(key, times, self._chance.uniform(0.05, 3)))
                self._owed.add(task)
                task.add_done_callback(self._owed.discard)

    async def _late(self, key: str, times: int, after: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._leaving.wait(), after)
        await self._signal(key, times)

    async def _signal(self, key: str, times: int) -> None:
        for _ in range(times):
            await stubborn(
                lambda: self._queue.signal(signal_key(key), {"key": key}, dedupe_key="run", sent_by="github")
            )
            self._write(f"signal {key}")

    def _write(self, line: str) -> None:
        os.write(self._receipts, f"{line}\n".encode())


async def enqueue(arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with await open_pool(arguments.dsn, min_size=2, max_size=4, name="soak enqueuer", autocommit=True) as pool:
        enqueuer = Enqueuer(Queue(pool), arguments.name, arguments.receipts, random.Random(arguments.name))
        print("enqueuing", flush=True)
        async with background(end_with_parent()):
            await enqueuer.run(arguments.rate, arguments.most_open, stop)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--receipts", type=Path, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--most-open", type=int, required=True)
    asyncio.run(enqueue(parser.parse_args()))


if __name__ == "__main__":
    main()
