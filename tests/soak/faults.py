"""What goes wrong in a soak: worker processes and the server, dealt from a shuffled deck, so that even a short one has
met everything.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from tests.faults.breaking import BreakableServer
from tests.soak.enqueuer import DATABASE_ERRORS
from tests.soak.worker import LEASE
from tests.support.processes import Process
from tracekit.postgres import Pool

DECK = ("kill", "kill", "freeze", "freeze", "leave", "deafen", "cut", "kill enqueuer", "stop server")

StartProcess = Callable[[], Awaitable[Process]]


@dataclass
class Happened:
    """What was done, and when: wall-clock times, as the database has them too."""

    counts: Counter[str] = field(default_factory=Counter)
    killed: dict[str, float] = field(default_factory=dict)
    """Worker ids, and when each was killed."""
    frozen: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    """Worker ids, and from when to when each was frozen."""
    back: list[float] = field(default_factory=list)
    """When the server answered again."""
    strange: list[str] = field(default_factory=list)
    """Processes that ended when nobody had asked them to."""


class Slot:
    """A place where a process runs; when one ends, whyever, the next is started."""

    def __init__(self, name: str, start: StartProcess, happened: Happened) -> None:
        self.name = name
        self.process: Process | None = None
        self.frozen = False
        self._start = start
        self._happened = happened
        self._asked = False
        self._closing = False

    async def keep(self) -> None:
        while not self._closing:
            self._asked = self.frozen = False
            self.process = await self._start()
            status = await self.process.gone(within=1e9)
            if not self.process.lines:
                # It came up while the server was away, and was told so. One that never comes up is missed at the end.
                await asyncio.sleep(0.2)
            elif not self._asked:
                said = self.process.log[-2000:]
                self._happened.strange.append(f"{self.name} ended by itself with {status}: {said}")

    @property
    def serves(self) -> bool:
        """Whether it is up, and nothing is being done to it."""
        process = self.process
        return bool(process and process.lines and process.returncode is None) and not (self.frozen or self._asked)

    @property
    def id(self) -> str:
        """What it printed first: a worker's id."""
        return self.process.lines[0] if self.process and self.process.lines else ""

    def send(self, number: signal.Signals) -> None:
        """A signal that ends it."""
        assert self.process is not None
        self._asked = True
        self.process.send(number)

    async def freeze(self, seconds: float) -> None:
        process = self.process
        assert process is not None
        self.frozen = True
        process.freeze()
        began = time.time()
        try:
            await asyncio.sleep(seconds)
        finally:
            process.thaw()
            self.frozen = False
            self._happened.frozen[self.id].append((began, time.time()))

    async def close(self) -> int:
        """SIGTERM, and its exit status."""
        self._closing = True
        assert self.process is not None
        self.send(signal.SIGTERM)
        return await self.process.gone()


class Chaos:
    """Deals a fault every `every` seconds or so. The first of `workers` is spared what ends a process: its memory is
    watched from the beginning to the end.
    """

    def __init__(
        self,
        workers: list[Slot],
        enqueuer: Slot,
        server: BreakableServer,
        pool: Pool,
        chance: random.Random,
        happened: Happened,
        every: float,
    ) -> None:
        self._workers = workers
        self._enqueuer = enqueuer
        self._server = server
        self._pool = pool
        self._chance = chance
        self._happened = happened
        self._every = every
        self._freezing: set[asyncio.Task[None]] = set()
        self.all_met = asyncio.Event()
        """Every fault of the deck has happened."""

    async def run(self) -> None:
        deck: list[str] = []
        while True:
            if not deck:
                deck = list(DECK)
                self._chance.shuffle(deck)
            await asyncio.sleep(self._every * self._chance.uniform(0.5, 1.5))
            if await self._deal(deck[-1]):
                self._happened.counts[deck.pop()] += 1
            if not deck:
                self.all_met.set()

    async def end(self) -> None:
        """No fault goes on after this."""
        await asyncio.gather(*self._freezing)

    async def _deal(self, fault: str) -> bool:
        """Whether there was somebody to do it to."""
        mortal = [slot for slot in self._workers[1:] if slot.serves]
        match fault:
            case "kill" | "leave" if mortal:
                slot = self._chance.choice(mortal)
                if fault == "kill":
                    self._happened.killed[slot.id] = time.time()
                slot.send(signal.SIGKILL if fault == "kill" else signal.SIGTERM)
            case "freeze" if serving := [slot for slot in self._workers if slot.serves]:
                slot = self._chance.choice(serving)
                freezing = asyncio.create_task(slot.freeze(LEASE * self._chance.uniform(0.3, 2)))
                self._freezing.add(freezing)
                freezing.add_done_callback(self._freezing.discard)
            case "deafen":
                return await self._terminate("query LIKE 'LISTEN %'")
            case "cut":
                return await self._terminate("random() < 0.3")
            case "kill enqueuer" if self._enqueuer.serves:
                self._enqueuer.send(signal.SIGKILL)
            case "stop server":
                await self._server.stop()
                await self._server.start()
                self._happened.back.append(time.time())
            case _:
                return False
        return True

    async def _terminate(self, which: str) -> bool:
        """The server ends connections of others that fit."""
        with suppress(*DATABASE_ERRORS):
            async with self._pool.connection() as connection:
                cursor = await connection.execute(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()"
                    f" AND backend_type = 'client backend' AND application_name <> 'soak' AND {which}"
                )
                row = await cursor.fetchone()
                return row is not None and row[0] > 0
        return False
