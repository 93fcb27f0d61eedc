"""`Queue`: the one object through which the rest of the program reaches the queue.

Each method is one round against the database under one timeout, on a connection of the pool. The work is in the modules
beside this one, as functions of a connection, so that a caller who has a transaction of their own can use them inside
it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Literal

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from tracekit.postgres import writable
from tracekit.queue import claim, deadletters, effects, notify, outbox, retention, signals, sweep
from tracekit.queue import tasks as record
from tracekit.queue.claim import Ask
from tracekit.queue.enqueue import Enqueuer
from tracekit.queue.model import Json, Position, Receipt, Settlement
from tracekit.queue.submission import Submission
from tracekit.queue.turn import Turn, take_turn


class Queue:
    """The queue, over a pool of connections to the database.

    `timeout` (default 30 s) bounds every call: shorter notices a database that is gone sooner, longer rides out a slow
    one. A call that runs into it raises `TimeoutError` and has either committed whole or not at all.
    """

    def __init__(self, pool: AsyncConnectionPool[Any], *, timeout: timedelta = timedelta(seconds=30)) -> None:
        self._pool = pool
        self._timeout = timeout.total_seconds()
        self._enqueuer = Enqueuer(pool, timeout=self._timeout)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection[Any]]:
        """A connection of the pool, all use of it under the queue's timeout."""
        async with asyncio.timeout(self._timeout), writable(self._pool) as connection:
            yield connection

    async def enqueue(self, submissions: Sequence[Submission]) -> list[Receipt]:
        """Accept tasks. What has a receipt survives any crash (Q1); a known key gets the first task's (Q5).

        Raises `PayloadRefused`, and then none is accepted.
        """
        async with asyncio.timeout(self._timeout):
            return await self._enqueuer.enqueue(submissions)

    async def turn(self, settlements: Sequence[Settlement], ask: Ask | None = None) -> Turn:
        """Write the ends of attempts and take what is asked for, in one round. See `take_turn`."""
        async with self.connection() as connection:
            return await take_turn(connection, settlements, ask)

    async def claim(
        self, worker: str, free: Mapping[str, int], lease: timedelta, *, by_age: bool = False
    ) -> list[Position]:
        """Take up to `free[mode]` ready hops of each mode under new leases."""
        async with self.connection() as connection:
            return await claim.claim(connection, Ask(worker, free, lease, free if by_age else ()))

    async def heartbeat(
        self,
        worker: str,
        modes: Sequence[str],
        listener: str,
        leases: Mapping[str, int],
        lease: timedelta,
        *,
        asleep: bool = False,
    ) -> set[int]:
        """Extend leases (task id to token); returns the tokens still held. `asleep`: and say so once more."""
        async with self.connection() as connection:
            return await claim.heartbeat(connection, worker, list(modes), listener, leases, lease, asleep)

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        """Write the ends of attempts; returns those whose lease was lost, of which nothing was written."""
        return (await self.turn(settlements)).lost

    async def sweep(self) -> int:
        """Do what time asks for, until nothing is due. Returns how many tasks moved."""
        total = 0
        while True:
            async with self.connection() as connection:
                moved = await sweep.sweep(connection)
                if moved == 0:
                    await sweep.forget(connection)
                    return total
            total += moved

    async def keep_history(self, keep: timedelta) -> retention.Kept | None:
        """Let go of what is older than `keep`, and make room for what comes, untimed. See `retention`."""
        async with writable(self._pool) as connection:
            return await retention.keep_history(connection, keep)

    async def sleep(self, sleeper: str, task_id: str) -> None:
        """Ask to be notified, as `sleeper`, of whatever happens to a task; to be said again now and then."""
        async with self.connection() as connection:
            await connection.execute(notify.SLEEP, {"id": sleeper, "modes": "{}", "task": task_id})

    async def awake(self, sleeper: str) -> None:
        """Ask no more to be notified."""
        async with self.connection() as connection:
            await connection.execute(notify.AWAKE, {"id": sleeper})

    async def signal(self, key: str, payload: Json, *, dedupe_key: str, sent_by: str) -> signals.Sent:
        """Send a fact to whoever waits for it, now or later."""
        async with self.connection() as connection:
            return await signals.send_signal(connection, key, payload, dedupe_key=dedupe_key, sent_by=sent_by)

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
            await deadletters.resolve(connection, task_id, resolution, by)

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
