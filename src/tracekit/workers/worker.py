"""The worker: claims hops, runs their handlers, keeps their leases, and goes in good order."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import socket
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
import structlog

from tracekit import instruments
from tracekit.config import WorkerSettings
from tracekit.queue import LeaseLost, Position, Settlement
from tracekit.queue.claim import BY_AGE_EVERY, MOST
from tracekit.queue.model import Failed, Released
from tracekit.workers.attempt import Answer, run_attempt
from tracekit.workers.loops import end, hurry, keep
from tracekit.workers.mode import Mode, Services
from tracekit.workers.settler import Settler

log = structlog.get_logger()

DEAF = timedelta(seconds=5)
"""How long a cancelled handler may take to go, before its lease is given back over its head."""


@dataclass(slots=True)
class _Running:
    position: Position
    task: asyncio.Task[None]
    since: float
    """Monotonic time of the claim, in seconds."""
    lost: bool = False
    settling: bool = False
    """Its handler has answered: whether the lease held is the settlement's to say."""


class Worker:
    """Serves `modes` until it is stopped, as `settings` say.

    `id` names it in leases, spans and metrics: host, process and a random part, so that a restarted one is another.
    """

    def __init__(self, services: Services, modes: Sequence[Mode[Any]], settings: WorkerSettings) -> None:
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self.listener_state = "starting"
        self._services = services
        self._queue = services.queue
        self._modes = {mode.name: mode for mode in modes}
        self._settings = settings
        self._settler = Settler(services.queue)
        # As many threads as handlers may run at once: a blocking handler never waits for another mode's.
        self._threads = ThreadPoolExecutor(settings.concurrency * max(1, len(modes)), thread_name_prefix="handler")
        self._running: dict[int, _Running] = {}
        self._free = Counter(dict.fromkeys(self._modes, settings.concurrency))
        self._backlog: set[str] = set()
        self._wake = asyncio.Event()
        self._notified: float | None = None
        self._claims = 0
        self._under_way: asyncio.Future[list[Position]] | None = None
        self._held_at = time.monotonic()

    def wake(self, items: list[dict[str, Any]]) -> None:
        """Look for work now; `items` are a NOTIFY's wake-ups, none of them means that some may have been missed."""
        if not items or any(item.get("mode") in self._modes for item in items):
            if self._notified is None and items:
                self._notified = time.monotonic()
            self._wake.set()
        if not items:
            hurry()  # the database is back, or was never away

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`, then drain: no new claims, a grace for what runs, the rest given back at once (Q13)."""
        settling = asyncio.create_task(keep("settle", self._settler.round))
        beating = asyncio.create_task(
            keep("heartbeat", self._heartbeat, pause=self._settings.heartbeat.total_seconds())
        )
        watching = asyncio.create_task(self._watch_leases())
        claiming = asyncio.create_task(keep("claim", self._claim))
        try:
            log.info("worker.started", worker=self.id, modes=sorted(self._modes))
            await stop.wait()
            await end(claiming)
            await self._drain()
        finally:
            await end(claiming, watching, beating, settling)
            self._threads.shutdown(wait=False, cancel_futures=True)
            log.info("worker.stopped", worker=self.id)

    # --- claiming ---------------------------------------------------------------------------------------------------

    async def _claim(self) -> None:
        """One claim, then rest until woken, unless there is more to be had."""
        self._wake.clear()
        notified, self._notified = self._notified, None
        free = {mode: count for mode, count in self._free.items() if count > 0}
        if free:
            self._claims += 1
            by_age = self._claims % BY_AGE_EVERY == 0
            # Shielded: what the database has given out must not be forgotten because the worker was told to stop.
            self._under_way = asyncio.ensure_future(
                self._queue.claim(self.id, free, self._settings.lease, by_age=by_age)
            )
            positions = await asyncio.shield(self._under_way)
            self._under_way = None
            if notified is not None and positions:
                instruments.NOTIFY_TO_CLAIM.observe(time.monotonic() - notified)
            taken = Counter(position.mode for position in positions)
            self._backlog -= free.keys()
            self._backlog |= {mode for mode, count in free.items() if taken[mode] == count}
            for position in positions:
                self._start(position)
            if len(positions) >= MOST:
                self._wake.set()
        try:
            async with asyncio.timeout(self._settings.poll_interval.total_seconds()):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _start(self, position: Position) -> None:
        self._free[position.mode] -= 1
        instruments.IN_FLIGHT.labels(position.mode).inc()
        task = asyncio.create_task(self._work(position), name=f"{position.mode} {position.task_id}/{position.hop}")
        self._running[position.token] = _Running(position, task, time.monotonic())
        if position.claimed_at:
            waited = (position.claimed_at - position.ready_at).total_seconds()
            instruments.HOP_QUEUE_WAIT.labels(position.mode).observe(
                max(0.0, waited), instruments.exemplar(position.trace_id, position.span_id)
            )
        if position.attempt > 1:
            instruments.RETRIES.labels(position.mode).inc()

    def _finished(self, position: Position) -> None:
        self._running.pop(position.token, None)
        self._free[position.mode] += 1
        instruments.IN_FLIGHT.labels(position.mode).dec()
        if position.mode in self._backlog:
            self._wake.set()

    # --- working ----------------------------------------------------------------------------------------------------

    async def _work(self, position: Position) -> None:
        mode = self._modes[position.mode]
        running = self._running[position.token]
        began = time.monotonic()
        outcome = "lost"
        try:
            try:
                answer: Answer | Released = await run_attempt(
                    mode, position, self._services, self._threads, mode.timeout or self._settings.handler_timeout
                )
            except LeaseLost:
                self._lost(position)
                return
            except asyncio.CancelledError:
                if running.lost:
                    return
                answer = Released()
            running.settling = True
            if await self._settler.settle(Settlement(position, answer)):
                outcome = _outcome(answer)
            else:
                self._lost(position)
        finally:
            instruments.ATTEMPTS.labels(position.mode, outcome).inc()
            instruments.HOP_DURATION.labels(position.mode, outcome).observe(
                time.monotonic() - began, instruments.exemplar(position.trace_id, position.span_id)
            )
            self._finished(position)

    def _lost(self, position: Position) -> None:
        instruments.LEASES_LOST.labels(position.mode).inc()
        log.warning("lease.lost", task_id=position.task_id, trace_id=position.trace_id, mode=position.mode)

    # --- leases -----------------------------------------------------------------------------------------------------

    async def _heartbeat(self) -> None:
        began = time.monotonic()
        mine = sorted(self._running)
        # A task whose lease was lost and that was claimed anew is here twice: the greater token is the one to extend.
        asked = {self._running[token].position.task_id: token for token in mine}
        held = await self._queue.heartbeat(
            self.id, sorted(self._modes), self.listener_state, asked, self._settings.lease
        )
        self._held_at = began
        for token in set(mine) - held:
            self._cancel(token)

    async def _watch_leases(self) -> None:
        """When no heartbeat got through for a whole lease, a hop may run elsewhere: stop working on it here."""
        lease = self._settings.lease.total_seconds()
        while True:
            await asyncio.sleep(lease / 10)
            now = time.monotonic()
            for token, running in list(self._running.items()):
                if running.lost:
                    # Once is not enough: psycopg swallows a cancellation that comes at certain moments.
                    running.task.cancel()
                elif now - max(self._held_at, running.since) > lease:
                    self._cancel(token)

    def _cancel(self, token: int) -> None:
        running = self._running.get(token)
        if running is not None and not running.lost and not running.settling:
            running.lost = True
            self._lost(running.position)
            running.task.cancel()

    # --- leaving ----------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        log.info("worker.draining", worker=self.id, in_flight=len(self._running))
        returning = asyncio.create_task(self._return_late_claim())
        await self._all_gone(self._settings.grace)
        for running in list(self._running.values()):
            if not running.settling:
                running.task.cancel()
        await self._all_gone(DEAF)
        deaf = [running.position for running in self._running.values() if not running.settling]
        for position in deaf:
            log.warning("handler.deaf", task_id=position.task_id, mode=position.mode)
        try:
            async with asyncio.timeout(self._settings.grace.total_seconds()):
                await asyncio.shield(returning)
                await self._give_back(deaf)
                # What was given back is another worker's to take up now, not at its next poll.
                await self._queue.notifier.flush()
        except (TimeoutError, psycopg.Error):
            log.warning("worker.drain_incomplete", worker=self.id, in_flight=len(self._running))
        finally:
            await end(returning)

    async def _return_late_claim(self) -> None:
        """Give back what a claim that was under way at the stop has taken."""
        if self._under_way is not None:
            with suppress(TimeoutError, psycopg.Error):  # it came to nothing, or its leases end by themselves
                await self._give_back(await self._under_way)

    async def _give_back(self, positions: Sequence[Position]) -> None:
        await asyncio.gather(*(self._settler.settle(Settlement(position, Released())) for position in positions))

    async def _all_gone(self, within: timedelta) -> None:
        tasks = [running.task for running in self._running.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=within.total_seconds())


def _outcome(answer: Answer | Released) -> str:
    """The label: `failed`, `timeout`, or the kind of answer. An error's own type would not be bounded."""
    if isinstance(answer, Failed):
        return "timeout" if answer.error_type == "timeout" else "failed"
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(answer).__name__).lower()
