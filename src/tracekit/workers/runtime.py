"""Everything a process runs beside the handlers: the worker, the sweeper, the listener, and what carries news out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx
import structlog

from tracekit import instruments
from tracekit.cost import Ledger
from tracekit.postgres import connect
from tracekit.queue.listener import Listener
from tracekit.tracing.instrument import instrument_handlers
from tracekit.tracing.sdk import TracingHandle
from tracekit.tracing.shipper import SpanShipper
from tracekit.workers.loops import end, keep
from tracekit.workers.mode import Mode, Services, UnknownMode, installed_modes
from tracekit.workers.notifications import Deliverer
from tracekit.workers.personas import Personas
from tracekit.workers.substrate import Substrate
from tracekit.workers.worker import Worker

log = structlog.get_logger()

HISTORY_EVERY = 3600.0
"""Seconds between looks for weeks of history that are over, or to come."""

BUDGETS_EVERY = 5.0
"""Seconds between looks whether a budget is spent too fast."""

IDLE_OUTBOX = 2.0
"""Seconds between looks at an outbox that was empty."""

LAST_NEWS = 5.0
"""Seconds that the end of the process waits for the last spans to go out."""

Loop = tuple[str, Callable[[], Awaitable[object]], float]
"""A name, a round, and the seconds between rounds."""


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


class Runtime:
    """One process's part of the work on a substrate. Any number of them may run at once."""

    def __init__(self, substrate: Substrate, tracing: TracingHandle, modes: Sequence[str] | None) -> None:
        self._substrate = substrate
        self._tracing = tracing
        self._modes = chosen_modes(modes)
        self._personas = Personas.load(substrate.settings.personas)
        self.listener_state = "starting"

    async def run(self, stop: asyncio.Event) -> None:
        """Serve the modes until `stop`, then drain. Beside the worker this runs the sweeper, the listener, the
        deliverer of notifications, the span shipper, and the sources that the modes bring.
        """
        substrate, settings = self._substrate, self._substrate.settings
        # Read once: the certificates of the two clients are the same, and take a while.
        certificates = httpx.create_ssl_context()
        async with httpx.AsyncClient(timeout=30, verify=certificates) as http:
            instrument_handlers(self._tracing.provider).client(http)
            # What carries tracekit's own news makes no spans: it belongs to no hop (T9).
            async with httpx.AsyncClient(timeout=30, verify=certificates) as plain:
                services = Services(settings, substrate.queue, http, self._personas)
                modes = [mode(services) for mode in self._modes.values()]
                worker = Worker(services, modes, settings.worker)
                shipper = SpanShipper(substrate.listen_dsn, self._tracing.collector, resource=self._tracing.resource)
                loops = [
                    *self._loops(worker, services.ledger, plain),
                    *(
                        (f"{mode.name} source", source.poll, source.interval.total_seconds())
                        for mode in modes
                        for source in mode.sources()
                    ),
                ]
                tasks = [asyncio.create_task(keep(name, round, pause=pause)) for name, round, pause in loops]
                shipping = asyncio.create_task(shipper.run(stop))
                try:
                    await worker.run(stop)
                    await asyncio.wait([shipping], timeout=LAST_NEWS)
                finally:
                    await end(*tasks, shipping)

    def _loops(self, worker: Worker, ledger: Ledger, http: httpx.AsyncClient) -> list[Loop]:
        substrate, settings = self._substrate, self._substrate.settings
        listener = Listener(
            substrate.listen_dsn,
            substrate.pool,
            worker.wake,
            connect=lambda dsn: connect(dsn, name="tracekit listener", autocommit=True),
        )
        deliverer = Deliverer(settings, http)

        async def deliver() -> None:
            if await substrate.queue.deliver(deliverer) == 0:
                await asyncio.sleep(IDLE_OUTBOX)

        async def follow_listener() -> None:
            await listener.changed.wait()
            listener.changed.clear()
            self.listener_state = worker.listener_state = listener.state.value
            instruments.listener_is(listener.state.value)

        async def sweep() -> None:
            instruments.SWEPT.inc(await substrate.queue.sweep())

        async def sweep_calls() -> None:
            await ledger.sweep()

        async def watch_budgets() -> None:
            await ledger.watch_budgets(settings.cost.warn_at)

        async def keep_history() -> None:
            kept = await substrate.queue.keep_history(settings.history.keep)
            if kept and (kept.dropped or kept.deleted or kept.held):
                log.info("history.kept", dropped=kept.dropped, deleted=kept.deleted, held=kept.held)

        loops: list[Loop] = [
            ("history", keep_history, HISTORY_EVERY),
            ("sweep", sweep, settings.worker.sweep_interval.total_seconds()),
            ("sweep calls", sweep_calls, settings.worker.sweep_interval.total_seconds()),
            ("budgets", watch_budgets, BUDGETS_EVERY),
            ("listen", listener.listen, 0),
            ("listener state", follow_listener, 0),
            ("deliver", deliver, 0),
        ]
        if substrate.lease:
            loops.append(("embedded server", substrate.ensure, 2))
        return loops
