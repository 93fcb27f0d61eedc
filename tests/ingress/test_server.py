"""How the ingress runs in somebody else's process."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from datetime import timedelta

import httpx
import pytest

from tests.ingress.conftest import OPERATOR
from tests.ingress.test_refusals import head
from tests.ingress.test_tasks import wish
from tests.support.processes import patience
from tracekit.config import Settings
from tracekit.ingress import bind, create_app, serve
from tracekit.ingress.server import ListenError
from tracekit.instruments import DatabaseGauges
from tracekit.queue import Queue


async def test_what_was_asked_before_the_stop_is_answered(settings: Settings, queue: Queue) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    sock = bind(settings)
    port = sock.getsockname()[1]
    stop = asyncio.Event()
    serving = asyncio.create_task(
        serve(create_app(settings, queue, gauges=DatabaseGauges()), settings, stop, sock=sock)
    )
    # From `bind` on callers wait, they are not turned away.
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        assert (await http.get("/healthz")).status_code == 200
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers

    body = json.dumps(wish()).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head(len(body)) + body[:10])
    await writer.drain()
    stop.set()
    writer.write(body[10:])
    answer = await reader.read()
    writer.close()
    await serving
    assert answer.startswith(b"HTTP/1.1 202 ")
    assert len(await queue.tasks()) == 1
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()


async def test_a_caller_that_never_ends_does_not_hold_the_stop_up(settings: Settings, queue: Queue) -> None:
    sock = bind(settings)
    stop = asyncio.Event()
    app = create_app(settings, queue, gauges=DatabaseGauges())
    serving = asyncio.create_task(serve(app, settings, stop, sock=sock, grace=timedelta(seconds=1)))
    _, writer = await asyncio.open_connection("127.0.0.1", sock.getsockname()[1])
    writer.write(head(100))
    await writer.drain()
    stop.set()
    async with patience():
        await serving
    writer.close()
    assert await queue.tasks() == []


async def test_an_address_that_is_taken_is_said_so(settings: Settings) -> None:
    with bind(settings) as taken:
        port = taken.getsockname()[1]
        ingress = settings.ingress.model_copy(update={"port": port})
        with pytest.raises(ListenError, match=f"cannot listen on 127.0.0.1:{port}"):
            bind(settings.model_copy(update={"ingress": ingress}))
    ingress = settings.ingress.model_copy(update={"host": "no-such-host.invalid"})
    with pytest.raises(ListenError, match="no-such-host"):
        bind(settings.model_copy(update={"ingress": ingress}))


async def test_cancelling_it_closes_what_it_opened(settings: Settings, queue: Queue) -> None:
    before = asyncio.all_tasks()
    sock = bind(settings)
    port = sock.getsockname()[1]
    app = create_app(settings, queue, gauges=DatabaseGauges())
    serving = asyncio.create_task(serve(app, settings, asyncio.Event(), sock=sock))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        headers = {"Authorization": f"Bearer {OPERATOR}"}
        assert (await http.post("/v1/tasks", json=wish(), headers=headers)).status_code == 202
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()
    assert asyncio.all_tasks() <= before
