"""Everything a process runs beside the handlers: the worker, the sweeper, the listener, and what carries news out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx
import structlog

from tracekit import instruments
from tracekit.postgres import connect
from tracekit.queue.listener import Listener
from tracekit.tracing import SpanShipper, instrument_http
from tracekit.workers.depths import DepthReader
from tracekit.workers.loops import keep
from tracekit.workers.mode import Mode, Services, UnknownMode, installed_modes
from tracekit.workers.notifications import Deliverer
from tracekit.workers.substrate import Substrate
from tracekit.workers.worker import Worker

log = structlog.get_logger()

IDLE_OUTBOX = 2.0
"""Seconds between looks at an outbox that was empty."""


def chosen_modes(names: Sequence[str] | None) -> dict[str, type[Mode[Any]]]:
    """The installed modes of these names, or all of them. Raises `UnknownMode`."""
    installed = installed_modes()
    unknown = [name for name in names or () if name not in installed]
    if unknown:
        raise UnknownMode(
            f"no installed package brings the mode {', '.join(unknown)}",
            hint=f"installed are: {', '.join(sorted(installed))}",
        )
    return {name: installed[name] for name in names or sorted(installed)}


async def run_workers(substrate: Substrate, modes: Sequence[str] | None, stop: asyncio.Event) -> None:
    """Serve modes (None: all that are installed) until `stop`, then drain.

    Beside the worker this runs the sweeper, the listener, the notifier, the deliverer of notifications, the span
    shipper and the sources that the modes bring. All of them may run in any number of processes at once.
    """
    settings = substrate.settings
    async with httpx.AsyncClient(timeout=30, follow_redirects=False) as http:
        instrument_http(http)
        services = Services(settings, substrate.queue, http)
        served = [mode(services) for mode in chosen_modes(modes).values()]
        worker = Worker(services, served, settings.worker)
        listener = Listener(
            substrate.listen_dsn, substrate.pool, worker.wake, connect=lambda dsn: connect(dsn, autocommit=True)
        )
        shipper = SpanShipper(substrate.pool)
        deliverer = Deliverer(settings, http)

        async def deliver() -> None:
            if await substrate.queue.deliver(deliverer) == 0:
                await asyncio.sleep(IDLE_OUTBOX)

        async def follow_listener() -> None:
            await listener.changed.wait()
            listener.changed.clear()
            worker.listener_state = listener.state.value
            instruments.listener_is(listener.state.value)

        async def sweep() -> None:
            instruments.SWEPT.inc(await substrate.queue.sweep())

        sources = [(mode.name, source) for mode in served for source in mode.sources()]
        loops: list[tuple[str, Callable[[], Awaitable[object]], float]] = [
            ("sweep", sweep, settings.worker.sweep_interval.total_seconds()),
            ("listen", listener.listen, 0),
            ("listener state", follow_listener, 0),
            ("notify", substrate.queue.notifier.round, 0),
            ("deliver", deliver, 0),
            ("depths", DepthReader(substrate.queue).read, 5),
            *((f"{name} source", source.poll, source.interval.total_seconds()) for name, source in sources),
        ]
        tasks = [asyncio.create_task(keep(name, round, pause=pause)) for name, round, pause in loops]
        shipping = asyncio.create_task(shipper.run(stop))
        try:
            await worker.run(stop)
            # What the last handlers ended is worth a wake-up and a shipment before this process goes.
            await asyncio.wait([shipping], timeout=5)
        finally:
            for task in (*tasks, shipping):
                task.cancel()
            await asyncio.gather(*tasks, shipping, return_exceptions=True)
