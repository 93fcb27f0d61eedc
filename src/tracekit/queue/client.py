"""`Queue`: the one object through which the rest of the program reaches the queue.

Each method is one round against the database under one timeout, on a connection of the pool; what it wakes is announced
after its commit. The work is in the modules beside this one, as functions of a connection, so that a caller who has a
transaction of their own can use them inside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Literal

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from tracekit.queue import claim, deadletters, effects, outbox, settle, signals, sweep
from tracekit.queue import tasks as record
from tracekit.queue.enqueue import enqueue
from tracekit.queue.model import Json, Position, Receipt, Settlement, Wakeup
from tracekit.queue.notify import Notifier
from tracekit.queue.submission import Submission


class Queue:
    """The queue, over a pool of connections to the database.

    `timeout` (default 30 s) bounds every call: shorter notices a database that is gone sooner, longer rides out a slow
    one. A call that runs into it raises `TimeoutError` and has either committed whole or not at all.
    """

    def __init__(self, pool: AsyncConnectionPool[Any], *, timeout: timedelta = timedelta(seconds=30)) -> None:
        self._pool = pool
        self._timeout = timeout.total_seconds()
        self.notifier = Notifier(pool, timeout=self._timeout)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection[Any]]:
        """A connection of the pool, all use of it under the queue's timeout."""
        async with asyncio.timeout(self._timeout), self._pool.connection() as connection:
            yield connection

    async def enqueue(self, submissions: Sequence[Submission]) -> list[Receipt]:
        """Accept tasks. What has a receipt survives any crash (Q1); a known key gets the first task's (Q5).

        Raises `PayloadRefused`, and then none is accepted.
        """
        async with self.connection() as connection:
            receipts = await enqueue(connection, submissions)
        new = {receipt.task_id for receipt in receipts if not receipt.duplicate}
        self.notifier.announce(s.wakeup() for s in submissions if s.envelope.id in new)
        return receipts

    async def claim(
        self, worker: str, free: Mapping[str, int], lease: timedelta, *, by_age: bool = False
    ) -> list[Position]:
        """Take up to `free[mode]` ready hops of each mode under new leases."""
        async with self.connection() as connection:
            return await claim.claim(connection, worker, free, lease, by_age=by_age)

    async def heartbeat(
        self, worker: str, modes: Sequence[str], listener: str, leases: Mapping[str, int], lease: timedelta
    ) -> set[int]:
        """Extend leases (task id to token); returns the tokens still held."""
        async with self.connection() as connection:
            return await claim.heartbeat(connection, worker, list(modes), listener, leases, lease)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        """Write the ends of attempts; returns those whose lease was lost, of which nothing was written."""
        async with self.connection() as connection:
            settled = await settle.settle(connection, settlements)
        self.notifier.announce(settled.wakeups)
        return settled.lost

    async def sweep(self) -> int:
        """Do what time asks for, until nothing is due. Returns how many tasks moved."""
        total = 0
        while True:
            async with self.connection() as connection:
                moved, wakeups = await sweep.sweep(connection)
            self.notifier.announce(wakeups)
            total += moved
            if moved == 0:
                return total

    async def signal(self, key: str, payload: Json, *, dedupe_key: str, sent_by: str) -> signals.Sent:
        """Send a fact to whoever waits for it, now or later."""
        async with self.connection() as connection:
            sent = await signals.send_signal(connection, key, payload, dedupe_key=dedupe_key, sent_by=sent_by)
        self.notifier.announce(sent.wakeups)
        return sent

    async def begin_effect(self, at: Position, step: str, *, uncertain: str) -> tuple[bool, Json]:
        """See `effects.begin`."""
        async with self.connection() as connection:
            return await effects.begin(connection, at, step, uncertain=uncertain)

    async def record_effect(self, at: Position, step: str, result: Json) -> None:
        """See `effects.record`."""
        async with self.connection() as connection:
            await effects.record(connection, at, step, result)

    async def undo_effect(self, at: Position, step: str) -> None:
        """See `effects.undo`."""
        async with self.connection() as connection:
            await effects.undo(connection, at, step)

    async def resolve_dead(self, task_id: str, resolution: Literal["redriven", "abandoned"], by: str) -> None:
        """Redrive or abandon a dead task. Raises `TaskNotFound`, `QueueError`."""
        async with self.connection() as connection:
            wakeups = await deadletters.resolve(connection, task_id, resolution, by)
        self.notifier.announce(wakeups)

    async def dead_letters(
        self, *, task_id: str | None = None, resolved: bool = False, limit: int = 100
    ) -> list[deadletters.DeadLetter]:
        """The DLQ's entries, the newest first."""
        async with self.connection() as connection:
            return await deadletters.dead_letters(connection, task_id=task_id, resolved=resolved, limit=limit)

    async def resolve_id(self, reference: str) -> str:
        """A task's id from a task id, a trace id, or a unique prefix of either. Raises `TaskNotFound`."""
        async with self.connection() as connection:
            return await record.resolve_id(connection, reference)

    async def task(self, task_id: str) -> record.Task:
        """A task as it stands. Raises `TaskNotFound`."""
        async with self.connection() as connection:
            return await record.task(connection, task_id)

    async def tasks(
        self,
        *,
        states: Sequence[str] = (),
        mode: str | None = None,
        requester: str | None = None,
        origin: str | None = None,
        limit: int = 50,
    ) -> list[record.Task]:
        """Tasks, the newest first."""
        async with self.connection() as connection:
            return await record.tasks(
                connection, states=states, mode=mode, requester=requester, origin=origin, limit=limit
            )

    async def events(self, task_id: str, *, since_seq: int = 0) -> list[record.Event]:
        """A task's record after `since_seq`."""
        async with self.connection() as connection:
            return await record.events(connection, task_id, since_seq=since_seq)

    async def deliver(self, deliver: outbox.Deliver) -> int:
        """Deliver one due notification by `deliver`; returns 0 when none was due."""
        return await outbox.deliver_one(self.connection, deliver)

    def announce(self, wakeups: Iterable[Wakeup]) -> None:
        """Wake sleepers for what a caller committed in a transaction of their own."""
        self.notifier.announce(wakeups)
