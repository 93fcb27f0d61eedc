"""The ground that everything stands on: the database that the settings name, its schema, and the queue in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tracekit.config import Settings
from tracekit.postgres import (
    EmbeddedServer,
    Lease,
    Pool,
    SchemaOutdatedError,
    check_schema,
    migrate,
    open_pool,
)
from tracekit.queue import Queue


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

    async def ensure(self) -> None:
        """Bring the embedded server back if it and its supervisor are gone. Nothing to do with a DSN.

        Raises `ServerError`.
        """
        if self.lease:
            await asyncio.to_thread(self.lease.ensure)


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
    try:
        pool = await open_pool(
            dsn,
            min_size=min_size,
            max_size=max_size,
            name=name,
            autocommit=True,
            transaction_pooler=settings.pooler == "transaction",
        )
        try:
            async with pool.connection() as connection:
                try:
                    await check_schema(connection)
                except SchemaOutdatedError:
                    if lease is None:
                        raise
                    await migrate(connection)
            yield Substrate(
                settings=settings,
                queue=Queue(pool, timeout=settings.worker.database_timeout),
                pool=pool,
                dsn=dsn,
                listen_dsn=settings.listen_dsn.get_secret_value() or dsn,
                lease=lease,
            )
        finally:
            await pool.close()
    finally:
        if lease:
            await asyncio.to_thread(lease.release)
