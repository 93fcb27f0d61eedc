"""Ways to break the database for its users: a server that stops, and a way to it that hangs."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.postgres import ThrowawayServer


class BreakableServer:
    """A server that can be stopped at once, without any checkpoint, and brought back."""

    def __init__(self, server: ThrowawayServer) -> None:
        self.server = server

    async def stop(self) -> None:
        """`pg_ctl stop -m immediate`: what was not on disk is gone."""
        await asyncio.to_thread(self.server.server.stop, mode="immediate")

    async def start(self) -> None:
        """Returns when it answers, its crash recovery done."""
        await asyncio.to_thread(self.server._lease.ensure)


class Proxy:
    """A way to a server that can stop forwarding without closing anything, or break."""

    def __init__(self, server_socket: str, directory: Path) -> None:
        self.directory = directory
        self._server_socket = server_socket
        self._open = asyncio.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()

    def hang(self) -> None:
        """From now on nothing passes, on no connection, in no direction; connections stay open."""
        self._open.clear()

    def heal(self) -> None:
        """What waited passes, and new connections do. Those that should stay dead: `cut` first."""
        self._open.set()

    def cut(self) -> None:
        """Close all connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._open.wait()
        try:
            to_server = await asyncio.open_unix_connection(self._server_socket)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(self._forward(reader, to_server[1]), self._forward(to_server[0], writer))

    async def _forward(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        self._writers.add(target)
        try:
            while data := await source.read(65_536):
                await self._open.wait()
                target.write(data)
                await target.drain()
        except OSError:
            pass
        finally:
            self._writers.discard(target)
            target.transport.abort()


@asynccontextmanager
async def proxied(dsn: str) -> AsyncIterator[tuple[str, Proxy]]:
    """The DSN of a way around, and what breaks it."""
    with tempfile.TemporaryDirectory(prefix="tk-", dir="/tmp") as name:
        directory = Path(name)
        parts: dict[str, Any] = conninfo_to_dict(dsn)
        proxy = Proxy(f"{parts['host']}/.s.PGSQL.{parts['port']}", directory)
        server = await asyncio.start_unix_server(proxy.serve, directory / f".s.PGSQL.{parts['port']}")
        try:
            yield make_conninfo(dsn, host=str(directory)), proxy
        finally:
            server.close()
            proxy.heal()
            proxy.cut()
