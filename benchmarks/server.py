"""The benchmarks' own PostgreSQL: its databases, fresh for each measurement, and the processor time that it uses."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from psycopg import AsyncConnection, sql
from psycopg.conninfo import conninfo_to_dict

from tracekit.postgres import EmbeddedServer, connect

SETTINGS = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "autovacuum")


class Server:
    """An embedded server with PostgreSQL's default settings, and one connection to look after it."""

    def __init__(self, dsn: str, postmaster: int, connection: AsyncConnection[Any]) -> None:
        self._dsn = conninfo_to_dict(dsn)
        self._postmaster = postmaster
        self._connection = connection

    def dsn(self, database: str) -> str:
        """In the form that `driver.parameters` reads."""
        of = {**self._dsn, "dbname": database}
        return " ".join(f"{name}={of[name]}" for name in ("host", "port", "user", "dbname"))

    async def create(self, database: str, template: str = "template0") -> str:
        """A new database in the place of any of that name; returns its DSN."""
        await self.drop(database)
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        await self._connection.execute(create.format(sql.Identifier(database), sql.Identifier(template)))
        return self.dsn(database)

    async def drop(self, database: str) -> None:
        """And whoever is connected."""
        await self._connection.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database))
        )

    async def settle(self, database: str) -> None:
        """Statistics and visibility as after a while of running, and no checkpoint due in what is measured next."""
        async with await connect(self.dsn(database), autocommit=True) as connection:
            await connection.execute("VACUUM (ANALYZE)")
            await connection.execute("CHECKPOINT")

    async def settings(self) -> dict[str, str]:
        """What the durability and the speed of all contestants hang on."""
        rows = await (
            await self._connection.execute("SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [[*SETTINGS]])
        ).fetchall()
        return dict(rows)

    def cpu(self) -> float:
        """Seconds of processor time of all the server's processes so far, those that are gone included."""
        ticks = 0
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(entry.name) == self._postmaster:
                    ticks += sum(map(int, fields[11:15]))
                elif int(fields[1]) == self._postmaster:
                    ticks += sum(map(int, fields[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def running() -> AsyncIterator[Server]:
    """A server for as long as this is entered; nothing of it stays."""
    home = await asyncio.to_thread(_home)
    server = EmbeddedServer(home)
    try:
        lease = await asyncio.to_thread(server.acquire)
        try:
            pid = server.status().pid
            assert pid is not None
            async with await connect(lease.dsn, autocommit=True) as connection:
                yield Server(lease.dsn, pid, connection)
        finally:
            await asyncio.to_thread(server.stop)
            lease.release()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _home() -> Path:
    # Short, for a socket's path has 107 bytes; open to pass through, for root's server runs as another user.
    home = Path(tempfile.mkdtemp(prefix="tkb-", dir="/tmp"))
    home.chmod(0o711)
    return home
