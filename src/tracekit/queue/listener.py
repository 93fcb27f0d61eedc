"""The listener: one connection a process that LISTENs, tests itself, and says when it cannot (Q9, Q10).

LISTEN through a pooler in transaction mode succeeds and delivers nothing, and a connection that was cut on the way
looks alive. So the listener sends itself a NOTIFY through the pool now and then, and believes only what comes back.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum
from typing import Any

import structlog
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from tracekit.queue.notify import CHANNEL

log = structlog.get_logger()


CONNECT_S = 60.0
"""Seconds to find a server that is writable. Meanwhile the queue is polled."""


class ListenerState(StrEnum):
    """What the listener knows of itself."""

    STARTING = "starting"
    LISTENING = "listening"
    POLLING = "polling"
    """Notifications do not arrive; only the poll finds work."""


Wake = Callable[[list[dict[str, Any]]], None]
"""Gets the wake-ups of one NOTIFY. An empty list: something may have been missed, look for yourself."""


class Listener:
    """Receives wake-ups on a connection of its own to `dsn` (never through a pooler).

    `test_interval` (default 20 s) is how long a silent connection is believed in: shorter notices a dead one sooner, at
    the price of two small statements each time.
    """

    def __init__(
        self,
        dsn: str,
        pool: AsyncConnectionPool[Any],
        wake: Wake,
        *,
        connect: Callable[[str], Any] | None = None,
        test_interval: timedelta = timedelta(seconds=20),
        test_timeout: timedelta = timedelta(seconds=5),
    ) -> None:
        self._dsn = dsn
        self._pool = pool
        self._wake = wake
        self._connect = connect or (lambda dsn: AsyncConnection.connect(dsn, autocommit=True))
        self._test_interval = test_interval.total_seconds()
        self._test_timeout = test_timeout.total_seconds()
        self._echo: asyncio.Event = asyncio.Event()
        self._nonce = ""
        self._heard = False
        self.state = ListenerState.STARTING
        self.changed = asyncio.Event()
        """Set at each change of `state`; whoever waits clears it."""

    def _is(self, state: ListenerState, **why: str) -> None:
        if state is not self.state:
            level = log.warning if state is ListenerState.POLLING else log.info
            level("listener." + state.value, **why)
            self.state = state
            self.changed.set()

    async def listen(self) -> None:
        """LISTEN until the connection fails or the self-test does; then raises. The caller tries again with backoff."""
        try:
            # A DSN may name several hosts, and each has its own `connect_timeout` before the next is tried.
            async with asyncio.timeout(CONNECT_S):
                connection = await self._connect(self._dsn)
            async with connection:
                async with asyncio.timeout(self._test_timeout):
                    await connection.execute(f"LISTEN {CHANNEL}")
                # After a restart each idle connection of the pool would fail its next user once, and one that was cut
                # silently would hold him up. `check` would ask each, and swallows the time limit that it runs into.
                if self._heard:
                    await self._pool.drain()
                    self._heard = False
                receiving = asyncio.create_task(self._receive(connection))
                try:
                    await self._prove(receiving)
                finally:
                    receiving.cancel()
                    await asyncio.gather(receiving, return_exceptions=True)
        except Exception as error:
            self._is(ListenerState.POLLING, error=type(error).__name__, detail=str(error)[:300])
            raise

    async def _receive(self, connection: AsyncConnection[Any]) -> None:
        async for notification in connection.notifies():
            if notification.payload == self._nonce:
                self._echo.set()
                continue
            try:
                wakeups = json.loads(notification.payload)
            except (ValueError, RecursionError):
                continue  # whoever may connect may notify
            if isinstance(wakeups, list):
                items = [item for item in wakeups if isinstance(item, dict)]
                # None of them would say that some may have been missed.
                if items := [item for item in items if isinstance(item.get("mode"), str | None)]:
                    self._wake(items)

    async def _prove(self, receiving: asyncio.Task[None]) -> None:
        while True:
            self._nonce = f"echo {secrets.token_hex(8)}"
            self._echo.clear()
            try:
                async with asyncio.timeout(self._test_timeout):
                    async with self._pool.connection() as sender:
                        await sender.execute("SELECT pg_notify(%s, %s)", [CHANNEL, self._nonce])
                    await self._first(receiving, self._echo.wait())
            except TimeoutError:
                raise ConnectionError(
                    "a NOTIFY to itself did not come back; where a pooler stands before the server, set listen_dsn"
                ) from None
            self._heard = True
            if self.state is not ListenerState.LISTENING:
                self._is(ListenerState.LISTENING)
                self._wake([])
            await self._first(receiving, asyncio.sleep(self._test_interval))

    @staticmethod
    async def _first(receiving: asyncio.Task[None], other: Any) -> None:
        """Wait for `other`; raise what ended `receiving`, should that come first."""
        waiting = asyncio.ensure_future(other)
        try:
            await asyncio.wait({receiving, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if receiving.done():
                receiving.result()
                raise ConnectionError("the listening connection ended")
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
