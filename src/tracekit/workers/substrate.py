"""The ground that everything stands on: the database that the settings name, its schema, and the queue in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import psycopg
import structlog

from tracekit.config import Settings
from tracekit.postgres import (
    Connection,
    DatabaseError,
    EmbeddedServer,
    Lease,
    Pool,
    SchemaError,
    SchemaOutdatedError,
    check_schema,
    hold_schema,
    migrate,
    open_pool,
)
from tracekit.queue import Queue
from tracekit.workers.loops import end

log = structlog.get_logger()

Result = TypeVar("Result")

LOOK_S = 5.0
"""Between looks whether the schema still fits. Mostly somebody who migrates is noticed at once, because they cut our
connections; through a pooler in transaction mode they cannot."""

UNKNOWN = (psycopg.Error, DatabaseError, TimeoutError)
"""Raised by a look at the schema where the database is away."""


@dataclass(frozen=True, slots=True)
class Substrate:
    """An open database with a schema that fits, for as long as `open_substrate` is entered."""

    settings: Settings
    queue: Queue
    pool: Pool
    dsn: str
    """For connections of the pool's kind; it may lead through a pooler."""
    listen_dsn: str
    """For LISTEN: straight to the server."""
    lease: Lease | None
    """The embedded server's, or None where a DSN is configured."""
    fit: Fit

    async def while_it_fits(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What `work` returns. As soon as the schema is not this program's any more `work` is ended, and `SchemaError`
        raised; also in place of a refusal that may come of it.
        """
        working = asyncio.ensure_future(work)
        watching = asyncio.create_task(self.fit.lost(self.pool))
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            worked = working.done()
        finally:
            await end(working, watching)
        if not worked:
            watching.result()
        try:
            return working.result()
        except psycopg.Error:
            with suppress(*UNKNOWN):
                await self.fit.look(self.pool)
            raise

    async def watch_schema(self, stop: asyncio.Event) -> None:
        """Returns at `stop`; raises `SchemaError` as soon as the schema is not this program's any more."""
        await self.while_it_fits(stop.wait())

    async def ensure(self) -> None:
        """Bring the embedded server back if it and its supervisor are gone. Nothing to do with a DSN.

        Raises `ServerError`.
        """
        if self.lease:
            await asyncio.to_thread(self.lease.ensure)


class Fit:
    """Whether the schema is this program's: looked at on each new connection, and now and then."""

    def __init__(self, *, transaction_pooler: bool) -> None:
        self._enter = check_schema if transaction_pooler else hold_schema
        self._refused: SchemaError | None = None
        self._told = asyncio.Event()

    async def admit(self, connection: Connection) -> None:
        """For a connection before its use. Raises `DatabaseError`."""
        await self._asking(self._enter(connection))

    async def look(self, pool: Pool) -> None:
        """Raises `SchemaError` if the schema does not fit, any of `UNKNOWN` if that cannot be found out."""
        async with asyncio.timeout(LOOK_S), pool.connection() as connection:
            await self._asking(check_schema(connection))

    async def lost(self, pool: Pool) -> NoReturn:
        """Waits until the schema does not fit any more, then closes the pool and raises `SchemaError`."""
        while self._refused is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._told.wait()
            if self._refused is None:
                with suppress(SchemaError, *UNKNOWN):
                    await self.look(pool)
        log.error("schema.changed", detail=str(self._refused))
        # There will be no connection any more: whoever waits for one is told at once.
        await pool.close(timeout=1)
        raise self._refused

    async def _asking(self, question: Coroutine[Any, Any, None]) -> None:
        try:
            await question
        except SchemaError as error:
            self._refused = error
            self._told.set()
            raise


@asynccontextmanager
async def open_substrate(
    settings: Settings, *, name: str, min_size: int = 1, max_size: int = 8
) -> AsyncIterator[Substrate]:
    """Open what `settings` names; `name` is what the server shows as the application.

    Without a DSN that is the embedded server, started if need be, kept for as long as this is entered, and migrated by
    itself. With one the schema must fit already: changing somebody's database is theirs to say (`tracekit db migrate`).
    Raises `DatabaseError`.
    """
    dsn = settings.dsn.get_secret_value()
    lease: Lease | None = None
    if not dsn:
        lease = await asyncio.to_thread(EmbeddedServer(settings.data_home).acquire)
        dsn = lease.dsn
    pooler = lease is None and settings.pooler == "transaction"
    fit = Fit(transaction_pooler=pooler)

    async def opened() -> Pool:
        return await open_pool(
            dsn,
            min_size=min_size,
            max_size=max_size,
            name=name,
            autocommit=True,
            transaction_pooler=pooler,
            admit=fit.admit,
        )

    try:
        try:
            pool = await opened()
        except SchemaOutdatedError:
            if lease is None:
                raise
            await migrate(dsn)
            fit = Fit(transaction_pooler=pooler)
            pool = await opened()
        try:
            yield Substrate(
                settings=settings,
                queue=Queue(pool, timeout=settings.worker.database_timeout),
                pool=pool,
                dsn=dsn,
                listen_dsn=settings.listen_dsn.get_secret_value() or dsn,
                lease=lease,
                fit=fit,
            )
        finally:
            await pool.close()
    finally:
        if lease:
            await asyncio.to_thread(lease.release)
