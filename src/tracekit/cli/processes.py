"""The long-running processes: what `tracekit up`, `worker` and `serve` start, and how they stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager

import structlog
from prometheus_client import CollectorRegistry, start_http_server

from tracekit import __version__, config, ingress, instruments
from tracekit.cli.app import App
from tracekit.config import Settings
from tracekit.tracing.logexport import export_logs
from tracekit.tracing.logs import configure_logging, register_secret
from tracekit.tracing.sdk import TracingHandle, configure_tracing
from tracekit.workers.depths import DepthReader
from tracekit.workers.loops import end
from tracekit.workers.runtime import Runtime, chosen_modes
from tracekit.workers.substrate import Substrate, open_substrate

log = structlog.get_logger()

CONNECTIONS = 12
"""Of one process's pool: enough for handlers' effects beside claims, settlements and requests."""


GO = 1.0
"""Seconds that handlers which are left at the end have to go."""


async def up(app: App, host: str | None, port: int | None) -> None:
    """HTTP, all modes and the sweeper, in one process."""
    chosen_modes(None)  # Their modules are among what stays.
    settings = _at(app.settings, host, port)
    with ingress.bind(settings) as listening:
        settings = _at(settings, None, _port(listening))
        async with _process("up", settings, app.debug) as (substrate, tracing, stop):
            runtime = Runtime(substrate, tracing, None)
            serving = _serve(substrate, stop, listening, lambda: runtime.listener_state)
            await _together(stop, substrate.watch_schema(stop), runtime.run(stop), serving)
    await _leave_the_deaf()


async def worker(app: App, modes: list[str] | None, metrics_port: int | None) -> None:
    """A worker, and its metrics where they are asked for."""
    chosen_modes(modes)  # A name that is wrong is said before anything is opened.
    async with AsyncExitStack() as stack:
        substrate, tracing, stop = await stack.enter_async_context(_process("worker", app.settings, app.debug))
        runtime = Runtime(substrate, tracing, modes)
        if metrics_port is not None:
            registry = CollectorRegistry(auto_describe=False)
            registry.register(instruments.TOGETHER)
            server, thread = start_http_server(metrics_port, addr=app.settings.ingress.host, registry=registry)
            log.info("metrics.ready", url=f"http://{app.settings.ingress.host}:{server.server_port}/metrics")
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            # Counting what waits is work for the database: nobody does it whom nobody asks.
            stack.push_async_callback(end, asyncio.create_task(DepthReader(substrate.queue).keep()))
        log.info("process.ready", modes=modes or "all")
        await _together(stop, substrate.watch_schema(stop), runtime.run(stop))
    await _leave_the_deaf()


async def serve(app: App, host: str | None, port: int | None) -> None:
    """HTTP only."""
    settings = _at(app.settings, host, port)
    with ingress.bind(settings) as listening:
        settings = _at(settings, None, _port(listening))
        async with _process("serve", settings, app.debug) as (substrate, _, stop):
            await _together(stop, substrate.watch_schema(stop), _serve(substrate, stop, listening, None))


async def _leave_the_deaf() -> None:
    """End the process over the heads of handlers that do not hear. Their leases have been given back; asyncio would
    wait for such a coroutine, and the interpreter for such a thread, without end.
    """
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    deadline = time.monotonic() + GO
    if tasks:
        await asyncio.wait(tasks, timeout=GO)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("handler")]
    for thread in threads:
        await asyncio.to_thread(thread.join, max(0.0, deadline - time.monotonic()))
    left = [task.get_name() for task in tasks if not task.done()]
    left += [thread.name for thread in threads if thread.is_alive()]
    if left:
        log.warning("process.left_handlers", handlers=left)
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _at(settings: Settings, host: str | None, port: int | None) -> Settings:
    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    return settings.model_copy(update={"ingress": settings.ingress.model_copy(update=given)})


def _port(listening: socket.socket) -> int:
    return int(listening.getsockname()[1])


@asynccontextmanager
async def _process(
    name: str, settings: Settings, debug: bool
) -> AsyncIterator[tuple[Substrate, TracingHandle, asyncio.Event]]:
    configure_logging(
        settings.log_format or ("console" if sys.stderr.isatty() else "json"), "debug" if debug else settings.log_level
    )
    for secret in config.secrets(settings):
        register_secret(secret)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # The second signal does what signals do: whoever sends it does not want to wait for the drain.
        loop.add_signal_handler(number, _stop, number, stop)
    async with open_substrate(settings, name=f"tracekit {name}", min_size=2, max_size=CONNECTIONS) as substrate:
        tracing = configure_tracing(dsn=substrate.dsn)
        exported = export_logs(tracing.resource)
        log.info("process.starting", version=__version__, database="embedded" if substrate.lease else "configured")
        # A hundred thousand objects are there by now, modules mostly, and stay. Under load the collector would go
        # through all of them twice a second, and nothing else runs for the tenth of a second that it takes.
        gc.collect()
        gc.freeze()
        try:
            yield substrate, tracing, stop
        finally:
            await asyncio.to_thread(tracing.shutdown)
            if exported:
                await asyncio.to_thread(exported.shutdown)


def _stop(number: signal.Signals, stop: asyncio.Event) -> None:
    stop.set()
    asyncio.get_running_loop().remove_signal_handler(number)


async def _serve(
    substrate: Substrate, stop: asyncio.Event, listening: socket.socket, listener: ingress.ListenerState | None
) -> None:
    application = ingress.create_app(substrate.settings, substrate.queue, listener=listener)
    log.info("process.ready", url=f"http://{substrate.settings.ingress.host}:{_port(listening)}")
    await ingress.serve(application, substrate.settings, stop, sock=listening)


async def _together(stop: asyncio.Event, *parts: Awaitable[None]) -> None:
    """Run the parts until `stop`. One that ends or fails stops the others, in good order; of several that failed the
    first one here is raised.
    """
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.set()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        task.result()
