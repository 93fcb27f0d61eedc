"""What every contestant's process does: one verb of one scene, told by argv, answered in lines of JSON on stdout.

Each contestant runs in a process of its own, tracekit and the floors too: nobody's garbage or event loop is another's.
Only the standard library is used here, for this is imported in the peers' environments as well.

    python -m benchmarks.<module> DSN VERB OPTIONS

DSN is libpq's `host=… port=… user=… dbname=…` with a directory as host; OPTIONS is JSON. A process says `ready`, waits
for a line, acts, and prints its result. Times are of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

PAYLOAD_BYTES = 300

Options = dict[str, Any]


def text(number: int) -> str:
    """The one field of a payload: distinct, and such that `{"text": …}` has 300 bytes."""
    return f"{number:010d}".ljust(PAYLOAD_BYTES - len('{"text": ""}'), "x")


def number(text: str) -> int:
    """Which payload it is."""
    return int(text[:10])


def parameters(dsn: str) -> dict[str, str]:
    """A DSN's parts, for clients that take no conninfo string."""
    return dict(part.split("=", 1) for part in dsn.split())


def say(**values: object) -> None:
    """One line to whoever started this process."""
    print(json.dumps(values), flush=True)


class Counter:
    """What a no-op handler calls. It says when `goal` is reached, and notes time and memory each `every` jobs."""

    def __init__(self, options: Options) -> None:
        self.count = 0
        self.marks: list[tuple[int, float, int]] = []
        self.starts: dict[int, float] = {}
        self._goal: int = options.get("goal", 0)
        self._every: int = options.get("every", 0)
        self._starts: bool = options.get("starts", False)

    def handled(self, payload: str) -> None:
        self.count += 1
        if self._starts:
            self.starts[number(payload)] = time.monotonic()
        if self._every and self.count % self._every == 0:
            self.marks.append((self.count, time.monotonic(), resident()))
        if self.count == self._goal:
            say(goal=self.count)


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Driver(ABC):
    """A contestant, as its own documentation says that it be used."""

    def __init__(self, dsn: str, options: Options) -> None:
        self.dsn = dsn
        self.options = options

    @abstractmethod
    async def install(self) -> None:
        """Make the schema in an empty database."""

    @abstractmethod
    async def open(self) -> None:
        """Connect, with as many connections as concurrent clients."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect."""

    @abstractmethod
    def job(self, text: str) -> Any:
        """What a client hands over, made before the clock starts."""

    @abstractmethod
    async def enqueue(self, jobs: Sequence[Any]) -> None:
        """Accept these in one call; when it returns they are durable."""

    async def enqueue_one(self, job: Any) -> None:
        """Accept one, in a transaction of its own."""
        await self.enqueue([job])

    @abstractmethod
    async def work(self, counter: Counter, stop: asyncio.Event) -> None:
        """Run the no-op handler for whatever is there and comes, until `stop`."""

    # --- the verbs --------------------------------------------------------------------------------------------------

    async def bulk(self) -> Options:
        """`count` jobs, `batch` a call."""
        first, batch = self.options.get("first", 0), self.options.get("batch", 1000)
        jobs = [self.job(text(first + n)) for n in range(self.options["count"])]
        await self._go()
        began = time.monotonic()
        for start in range(0, len(jobs), batch):
            await self.enqueue(jobs[start : start + batch])
        return {"seconds": time.monotonic() - began}

    async def single(self) -> Options:
        """`count` jobs, each in a transaction of its own, from `clients` concurrent clients of this process."""
        clients = self.options.get("clients", 4)
        shares = [[self.job(text(n)) for n in range(c, self.options["count"], clients)] for c in range(clients)]

        async def client(jobs: Sequence[Any]) -> None:
            for job in jobs:
                await self.enqueue_one(job)

        await self._go()
        began = time.monotonic()
        await asyncio.gather(*map(client, shares))
        return {"seconds": time.monotonic() - began}

    async def paced(self) -> Options:
        """`count` jobs, one after another, with a pause in which the worker falls idle."""
        jobs = [self.job(text(n)) for n in range(self.options["count"])]
        began: dict[int, float] = {}
        await self._go()
        for n, job in enumerate(jobs):
            await asyncio.sleep(random.uniform(0.5, 1.5) * self.options.get("pause", 0.02))
            began[n] = time.monotonic()
            await self.enqueue_one(job)
        return {"began": began}

    async def worker(self) -> Options:
        """Work from the first line on stdin to the next."""
        counter, stop = Counter(self.options), asyncio.Event()
        before = await self._go()
        began = time.monotonic()
        working = asyncio.create_task(self.work(counter, stop))
        told = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
        await asyncio.wait([working, told], return_when=asyncio.FIRST_COMPLETED)
        used = _cpu() - before
        stop.set()
        await working
        return {
            "began": began,
            "handled": counter.count,
            "cpu": used,
            "marks": counter.marks,
            "starts": counter.starts,
        }

    async def _go(self) -> float:
        say(ready=True)
        await asyncio.to_thread(sys.stdin.readline)
        return _cpu()

    async def _run(self, verb: str) -> Options:
        if verb == "install":
            await self.install()
            return {}
        await self.open()
        try:
            verbs = {"bulk": self.bulk, "single": self.single, "paced": self.paced, "worker": self.worker}
            return await verbs[verb]()
        finally:
            await self.close()


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main(driver: type[Driver], runner: Any = asyncio.run) -> None:
    """The process. `runner` runs a coroutine: `asyncio.run`, or another event loop's."""
    dsn, verb, options = sys.argv[1:]
    chosen = driver(dsn, json.loads(options))
    say(result=runner(chosen._run(verb)))
