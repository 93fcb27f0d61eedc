"""The worker: claims hops, runs their handlers, keeps their leases, and goes in good order."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import socket
import time
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, get_args

import psycopg
import structlog

from tracekit.config import WorkerSettings
from tracekit.queue import Done, LeaseLost, Position, Settlement
from tracekit.queue.claim import BY_AGE_EVERY, MOST, Ask
from tracekit.queue.model import Ending, Failed, Released
from tracekit.workers.attempt import Answer, run_attempt
from tracekit.workers.loops import end, hurry, keep
from tracekit.workers.meters import Meters
from tracekit.workers.mode import Mode, Services
from tracekit.workers.passage import Passage
from tracekit.workers.settler import checked, take_turn

log = structlog.get_logger()

DEAF = timedelta(seconds=5)
"""How long a cancelled handler may take to go, before its lease is given back over its head."""

LANES = 2
"""Turns under way at once: while one waits for the database, handlers of the other run."""

AT_ONCE = 8
"""Handlers that begin in one round of the event loop. With a whole turn's in one the other lane could not send."""


@dataclass(slots=True, eq=False)
class _Running:
    position: Position
    task: asyncio.Task[None] | None
    since: float
    """Monotonic time of the claim, in seconds."""
    deadline: float
    """Monotonic time by which its handler must have answered."""
    lost: bool = False
    late: bool = False
    """Past its deadline, and told to stop."""
    settlement: Settlement | None = None
    """Its handler has answered: whether the lease held is the settlement's to say."""
    took: float = 0.0
    """Seconds that its handler ran."""


class Worker:
    """Serves `modes` until it is stopped, as `settings` say.

    `id` names it in leases, spans and metrics: host, process and a random part, so that a restarted one is another.

    It works in turns (`Queue.turn`): each writes what has ended and claims what there is room for. A hop takes its room
    until its end is written, so a slow database slows the claims, and nothing piles up.
    """

    def __init__(self, services: Services, modes: Sequence[Mode[Any]], settings: WorkerSettings) -> None:
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self.listener_state = "starting"
        self._services = services
        self._queue = services.queue
        self._modes = {mode.name: mode for mode in modes}
        self._settings = settings
        self._meters = Meters(list(self._modes), OUTCOMES)
        self._longest = {
            mode.name: (mode.timeout or settings.handler_timeout).total_seconds() for mode in self._modes.values()
        }
        # As many threads as handlers may run at once: a blocking handler never waits for another mode's.
        self._threads = ThreadPoolExecutor(settings.concurrency * max(1, len(modes)), thread_name_prefix="handler")
        self._running: dict[int, _Running] = {}
        self._ended: list[_Running] = []
        self._free = Counter(dict.fromkeys(self._modes, settings.concurrency))
        # A part of the room is one turn's, so that there is another to work on while it is written.
        self._share = -(-settings.concurrency // LANES)
        self._claims: Counter[str] = Counter()
        self._look = True
        self._missed = False
        self._looked_at = 0.0
        self._some = asyncio.Event()
        self._busy = False
        self._asleep = False
        self._changing = False
        self._turns = 0
        self._passage = Passage()
        self._changed = asyncio.Event()
        self._stopping = False
        self._notified: float | None = None
        self._held_at = time.monotonic()

    def wake(self, items: list[dict[str, Any]]) -> None:
        """Look for work now; `items` are a NOTIFY's wake-ups, none of them means that some may have been missed."""
        if not items or any(item.get("mode") in self._modes for item in items):
            if self._notified is None and items:
                self._notified = time.monotonic()
            self._look = True
            self._some.set()
        if not items:
            hurry()  # the database is back, or was never away

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`, then drain: no new claims, a grace for what runs, the rest given back at once (Q13)."""
        beating = asyncio.create_task(
            keep("heartbeat", self._heartbeat, pause=self._settings.heartbeat.total_seconds())
        )
        watching = asyncio.create_task(self._watch())
        lanes = [asyncio.create_task(keep("turn", self._turn)) for _ in range(LANES)]
        try:
            log.info("worker.started", worker=self.id, modes=sorted(self._modes))
            await stop.wait()
            self._stopping = True
            await self._drain()
        finally:
            await end(*lanes, watching, beating)
            self._threads.shutdown(wait=False, cancel_futures=True)
            log.info("worker.stopped", worker=self.id)

    # --- turns ------------------------------------------------------------------------------------------------------

    async def _turn(self) -> None:
        """One turn, as soon as there is something to write or to look for."""
        if not self._ended and not self._look:
            self._some.clear()
            poll = self._settings.poll_interval.total_seconds()
            try:
                async with asyncio.timeout(poll):
                    await self._some.wait()
            except TimeoutError:
                if time.monotonic() - self._looked_at >= poll:
                    self._look = True
            if not self._ended and not self._look:
                return
        if self._busy and self._passage.taken:
            await self._passage.clear()
            if not self._ended and not self._look:
                return
        batch = self._ended[: min(MOST_SETTLED, self._share * len(self._modes))]
        del self._ended[: len(batch)]
        mine = Counter(running.position.mode for running in batch)
        ask = self._ask(mine)
        if ask is None and not batch:
            return
        notified, self._notified = self._notified, None
        asked: dict[str, int] = dict(ask.free) if ask else {}
        self._free.update(mine)
        self._free.subtract(asked)
        settlements = [running.settlement for running in batch if running.settlement]
        changes = ask is not None and ask.sleep is not None
        self._changing = self._changing or changes
        self._turns += 1
        try:
            try:
                with self._passage.entered():
                    turn = await take_turn(self._queue, settlements, ask)
            except BaseException:
                self._free.subtract(mine)
                self._free.update(asked)
                self._ended[:0] = batch
                self._look = self._look or ask is not None
                raise
            finally:
                self._changing = self._changing and not changes
            if ask is not None and ask.sleep is not None and turn.claimed is not None:
                self._asleep = bool(ask.sleep)
            await self._passage.let_next()  # its turn is sent before this one's hops begin
            self._free.update(asked)
            self._written(batch, {settlement.position.token for settlement in turn.lost})
            if turn.claimed is None:
                self._look = self._look or ask is not None
                return
            await self._claimed(turn.claimed, asked, notified)
        finally:
            self._turns -= 1
            self._changed.set()

    def _ask(self, ending: Counter[str]) -> Ask | None:
        """For as much as there is room for: what is free, and what this turn frees."""
        self._look = False
        if self._stopping:
            return None
        self._looked_at = time.monotonic()
        free = {mode: min(self._share, self._free[mode] + ending[mode]) for mode in self._modes}
        free = {mode: count for mode, count in free.items() if count > 0}
        if not free:
            # Another turn may have asked for all the room, and may have looked already.
            self._missed = True
            return None
        by_age = [mode for mode in free if self._claims[mode] % BY_AGE_EVERY == BY_AGE_EVERY - 1]
        self._claims.update(free.keys())
        # Nobody need tell a worker that has plenty. Being told begins and ends in one turn at a time: two might come to
        # the database out of order.
        sleep: Collection[str] | None = None
        if self._asleep == self._busy and not self._changing:
            sleep = () if self._busy else list(self._modes)
        return Ask(self.id, free, self._settings.lease, by_age, sleep)

    async def _claimed(self, positions: list[Position], asked: dict[str, int], notified: float | None) -> None:
        if positions and notified is not None:
            self._meters.notified(time.monotonic() - notified)
        taken = Counter(position.mode for position in positions)
        # A claim that found nothing was no turn in the order of priority and age.
        self._claims.subtract(mode for mode in asked if not taken[mode])
        full = any(taken[mode] == count for mode, count in asked.items()) or len(positions) >= MOST
        self._busy = full
        # More may be waiting; or the worker is about to sleep, and looks once more when it has said so: the turn that
        # says so does.
        if full or self._missed or not (self._asleep or self._changing):
            self._look, self._missed = True, False
            self._some.set()
        self._free.subtract(taken)
        self._meters.claimed(positions)
        now, loop = time.monotonic(), asyncio.get_running_loop()
        new = [_Running(position, None, now, now + self._longest[position.mode]) for position in positions]
        self._running.update((running.position.token, running) for running in new)
        for number, running in enumerate(new):
            if number and number % AT_ONCE == 0:
                await asyncio.sleep(0)
            if self._stopping:
                self._end(running, Released())
            elif running.lost:
                self._forget(running)
            else:
                running.task = loop.create_task(self._work(running))

    def _written(self, batch: Sequence[_Running], lost: set[int]) -> None:
        ends = []
        for running in batch:
            position, outcome = running.position, "lost"
            self._running.pop(position.token, None)
            if position.token in lost:
                self._lost(position)
            elif running.settlement:
                outcome = _outcome(running.settlement.ending)
                if isinstance(running.settlement.ending, Done):
                    self._meters.task_ended(position, running.settlement.ending.outcome)
            ends.append((position, outcome, running.took))
        self._meters.ended(ends)
        self._changed.set()

    # --- working ----------------------------------------------------------------------------------------------------

    async def _work(self, running: _Running) -> None:
        position = running.position
        mode = self._modes[position.mode]
        try:
            answer: Answer | Released = await run_attempt(mode, position, self._services, self._threads)
        except LeaseLost:
            if not running.lost:
                self._lost(position)
            self._forget(running)
            return
        except asyncio.CancelledError:
            if running.lost:
                self._forget(running)
                return
            answer = Released()
            if running.late:
                answer = Failed("timeout", f"{mode.name} took longer than {self._longest[mode.name]:g} s")
        except Exception as error:
            # No fault of the handler's is known to come here. Should one, its hop must not keep its lease for ever.
            log.exception("attempt.broken", task_id=position.task_id, mode=position.mode)
            answer = Failed(type(error).__qualname__, "the attempt broke outside of its handler")
        if running.lost:
            # It was told to stop, and answered all the same: too late.
            self._forget(running)
            return
        self._end(running, answer)

    def _end(self, running: _Running, answer: Answer | Released) -> None:
        running.took = time.monotonic() - running.since
        running.settlement = checked(Settlement(running.position, answer))
        self._ended.append(running)
        self._some.set()

    def _forget(self, running: _Running) -> None:
        """Nothing is to be written of a lost lease; its room is free."""
        if running.settlement:
            return  # given back over its head
        running.took = time.monotonic() - running.since
        self._free[running.position.mode] += 1
        self._running.pop(running.position.token, None)
        self._meters.ended([(running.position, "lost", running.took)])
        self._changed.set()
        self._look = True
        self._some.set()

    def _lost(self, position: Position) -> None:
        self._meters.lost(position)
        log.warning("lease.lost", task_id=position.task_id, trace_id=position.trace_id, mode=position.mode)

    # --- leases -----------------------------------------------------------------------------------------------------

    async def _heartbeat(self) -> None:
        began = time.monotonic()
        mine = sorted(self._running)
        # A task whose lease was lost and that was claimed anew is here twice: the greater token is the one to extend.
        asked = {self._running[token].position.task_id: token for token in mine}
        held = await self._queue.heartbeat(
            self.id, sorted(self._modes), self.listener_state, asked, self._settings.lease, asleep=self._asleep
        )
        self._held_at = began
        for token in set(mine) - held:
            self._cancel(token)

    async def _watch(self) -> None:
        """When no heartbeat got through for a whole lease, a hop may run elsewhere: stop working on it here. And what
        takes too long is stopped too: one look at all of them, for a timer each would cost more than a short hop.
        """
        lease = self._settings.lease.total_seconds()
        longest_rest = min(lease / 10, *self._longest.values()) if self._longest else lease / 10
        while True:
            now = time.monotonic()
            next_look = now + longest_rest
            for token, running in list(self._running.items()):
                if running.settlement or running.task is None:
                    continue
                if running.lost or running.late:
                    # Once is not enough: psycopg swallows a cancellation that comes at certain moments.
                    running.task.cancel()
                elif now - max(self._held_at, running.since) > lease:
                    self._cancel(token)
                elif now >= running.deadline:
                    running.late = True
                    running.task.cancel()
                else:
                    next_look = min(next_look, running.deadline)
            await asyncio.sleep(max(0.0, next_look - time.monotonic()))

    def _cancel(self, token: int) -> None:
        running = self._running.get(token)
        if running is not None and not running.lost and not running.settlement:
            running.lost = True
            self._lost(running.position)
            if running.task:
                running.task.cancel()

    # --- leaving ----------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        log.info("worker.draining", worker=self.id, in_flight=len(self._running))
        self._some.set()
        await self._handlers_gone(self._settings.grace)
        for running in list(self._running.values()):
            if not running.settlement and running.task:
                running.task.cancel()
        await self._handlers_gone(DEAF)
        for running in list(self._running.values()):
            if not running.settlement:
                log.warning("handler.deaf", task_id=running.position.task_id, mode=running.position.mode)
                running.lost = True  # whatever it may still answer is too late
                self._end(running, Released())
        try:
            async with asyncio.timeout(self._settings.grace.total_seconds()):
                while self._running or self._turns:
                    self._changed.clear()
                    await self._changed.wait()
                await self._queue.awake(self.id)
        except (TimeoutError, psycopg.Error):
            log.warning("worker.drain_incomplete", worker=self.id, in_flight=len(self._running))

    async def _handlers_gone(self, within: timedelta) -> None:
        tasks = [running.task for running in self._running.values() if running.task and not running.settlement]
        if tasks:
            await asyncio.wait(tasks, timeout=within.total_seconds())


MOST_SETTLED = 500
"""Ends of attempts in one turn."""


_NAMES = {kind: re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower() for kind in (*get_args(Answer), Released)}


OUTCOMES = (*_NAMES.values(), "timeout", "lost")
"""How attempts end, as the metrics' label says it."""


def _outcome(answer: Ending) -> str:
    """The label: `failed`, `timeout`, or the kind of answer. An error's own type would not be bounded."""
    if isinstance(answer, Failed):
        return "timeout" if answer.error_type == "timeout" else "failed"
    return _NAMES[type(answer)]
