"""Running the app on uvicorn inside somebody else's process: no signal handlers, no logging set-up, and it drains."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from datetime import timedelta

import uvicorn
from fastapi import FastAPI

from tracekit.config import Settings
from tracekit.errors import TracekitError

BACKLOG = 512


class ListenError(TracekitError):
    """The address cannot be listened on."""


def bind(settings: Settings) -> socket.socket:
    """The listening socket of `[ingress] host` and `port`. With port 0 its `getsockname()` tells which one it got.

    Callers are kept waiting, not turned away, from here on. Raises `ListenError`.
    """
    host, port = settings.ingress.host, settings.ingress.port
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(address[:2], family=family, backlog=BACKLOG)
        # asyncio sets this only where a socket names its protocol. Without it the second packet of an answer waits up
        # to 40 ms for the first to be acknowledged. Accepted sockets inherit it.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except (OSError, OverflowError) as error:
        raise ListenError(
            f"cannot listen on {host}:{port}: {error}",
            hint="stop the tracekit that has it, or set --port (TRACEKIT_INGRESS__PORT); 0: any free one",
        ) from None


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the process's business, not its server's."""
        yield


async def serve(
    app: FastAPI,
    settings: Settings,
    stop: asyncio.Event,
    *,
    sock: socket.socket | None = None,
    grace: timedelta = timedelta(seconds=10),
) -> None:
    """Serve until `stop`, then answer what has been asked, for at most `grace`. Closes `sock`.

    Raises `ListenError` where no `sock` is given and the address cannot be had.
    """
    with sock or bind(settings) as listening:
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="on",
            log_config=None,
            # A line for each request would hold the tokens of approval links.
            access_log=False,
            server_header=False,
            # Behind a proxy nothing here depends on who it says it speaks for.
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=max(1, round(grace.total_seconds())),
        )
        server = _Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            server.should_exit = True
            await serving
        finally:
            stopping.cancel()
            if not serving.done():
                # Not `force_exit`: it would leave the lifespan, and what runs in it, behind.
                config.timeout_graceful_shutdown = 0
                server.should_exit = True
                await asyncio.gather(serving, return_exceptions=True)
