"""A network between the program and its database that can do what networks do: cut, delay, halve, and swallow."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Weather:
    """How likely each thing is to happen to a portion of data, in either direction."""

    cut: float = 0.0
    """Half of it arrives, then the connection is reset."""
    halve: float = 0.0
    """It arrives in two halves, the second one late."""
    delay: float = 0.0
    """It arrives late, and what comes after it waits."""
    latest: float = 0.05
    """Seconds that something is late at most."""


FAIR = Weather()


class Connection:
    """One connection through the network, and its two ends."""

    def __init__(self, network: Network, *writers: asyncio.StreamWriter) -> None:
        self.silent = False
        self.opening = b""
        """The first that its client said, which names the program."""
        self._network = network
        self._writers = writers

    @property
    def is_shipper(self) -> bool:
        return b"tracekit shipper" in self.opening

    def reset(self) -> None:
        """Both ends get a reset, as from a router that forgot the connection."""
        for writer in self._writers:
            with suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()

    async def carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65_536):
                self.opening = self.opening or data
                self._network.may_swallow(self, data)
                # What vanishes is acknowledged to nobody, and no end is told when the other one closes.
                if not self.silent and not await self._pass(data, target):
                    break
            if self.silent:
                return
        self.reset()

    async def _pass(self, data: bytes, target: asyncio.StreamWriter) -> bool:
        network, weather = self._network, self._network.weather
        happens = network.chance.random()
        half = len(data) // 2
        if happens < weather.cut:
            network.cuts += 1
            target.write(data[:half])
            return False
        if happens < weather.cut + weather.halve:
            target.write(data[:half])
            await asyncio.sleep(network.chance.uniform(0, weather.latest))
            data = data[half:]
        elif happens < weather.cut + weather.halve + weather.delay:
            await asyncio.sleep(network.chance.uniform(0, weather.latest))
        if not self.silent:
            target.write(data)
            await target.drain()
        return True


class Network:
    """TCP connections to a server's Unix socket. What happens by chance follows from the seed."""

    def __init__(self, server_socket: str, seed: int) -> None:
        self._server_socket = server_socket
        self._connections: set[Connection] = set()
        self.chance = random.Random(seed)
        self.weather = FAIR
        self.closed = False
        """Whether new connections are reset at once."""
        self.cuts = 0
        """How many connections the weather has cut."""
        self._word = b""
        self.to_swallow = 0
        """What `swallow` has still before it."""

    def silence(self) -> None:
        """The connections that there are carry nothing any more, and nobody is told. New ones work.

        The shipper's is spared. Should it die in the middle of a turn, the server ends that turn after minutes, and
        only then another shipper gets its own: nothing is lost by it, but a test would have to wait.
        """
        for connection in self._connections:
            connection.silent = not connection.is_shipper

    def reset(self) -> None:
        """The connections that there are get a reset. New ones work."""
        for connection in list(self._connections):
            connection.reset()

    def swallow(self, word: bytes, times: int) -> None:
        """The next portions that hold this word do not arrive, and their connections are silent from then on; but for
        the shipper's, as in `silence`.
        """
        self._word, self.to_swallow = word, times

    def may_swallow(self, connection: Connection, data: bytes) -> None:
        if self.to_swallow and self._word in data and not connection.silent and not connection.is_shipper:
            self.to_swallow -= 1
            connection.silent = True

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.closed:
            Connection(self, writer).reset()
            return
        try:
            from_server, to_server = await asyncio.open_unix_connection(self._server_socket)
        except OSError:
            writer.transport.abort()
            return
        connection = Connection(self, writer, to_server)
        self._connections.add(connection)
        try:
            await asyncio.gather(connection.carry(reader, to_server), connection.carry(from_server, writer))
        finally:
            self._connections.discard(connection)
            connection.reset()


@asynccontextmanager
async def network(dsn: str, *, seed: int = 0) -> AsyncIterator[tuple[str, Network]]:
    """The DSN of a way over the network, and what breaks it."""
    parts: dict[str, Any] = conninfo_to_dict(dsn)
    between = Network(f"{parts['host']}/.s.PGSQL.{parts['port']}", seed)
    server = await asyncio.start_server(between.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield make_conninfo(dsn, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable"), between
    finally:
        server.close()
        between.reset()
