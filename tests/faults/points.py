"""A worker that dies or waits at named points of a hop's life: `python -m tests.faults.points`, with the arguments of
`tests.faults.worker`.

Points, in the order of a hop's life:

    claim           before the claim, with work in sight
    claimed         the claim is committed, no handler has begun
    begin_effect    in the handler, before its deed
    record_effect   the deed is done and not recorded
    settle          before the completing commit
    settled         right after it, before the worker knows
    heartbeat       before a lease is extended; where it is held, once everything else to be held is

`point:mode` is the point in the life of a hop of that mode. At those that `KILL` names the process kills itself. At
those that `HOLD` names the call waits for SIGCONT, and then goes to the database, whoever holds the lease by then: what
becomes of it is printed.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.faults import running, worker
from tests.faults.modes import LEDGER
from tests.support.processes import Process
from tracekit.queue import LeaseLost, Position, Queue, Settlement
from tracekit.queue.claim import Ask
from tracekit.queue.model import Json
from tracekit.queue.turn import Turn

KILL = "TRACEKIT_TEST_KILL"
HOLD = "TRACEKIT_TEST_HOLD"
"""Variables with points, separated by blanks."""


class Mortal(Queue):
    """The queue of such a worker."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._kill = set(os.environ.get(KILL, "").split())
        self._hold = set(os.environ.get(HOLD, "").split())
        self._resumed = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGCONT, self._resumed.set)

    async def turn(self, settlements: Sequence[Settlement], ask: Ask | None = None) -> Turn:
        ended = {settlement.position.mode for settlement in settlements}
        if ask is not None and "claim" in self._kill and await self._work_in_sight():
            await self._reach("claim", ())
        held = bool(ended) and await self._reach("settle", ended)
        turn = await super().turn(settlements, ask)
        self._say(held, f"settle lost {len(turn.lost)} of {len(settlements)}")
        if ended:
            await self._reach("settled", ended)
        if turn.claimed:
            await self._reach("claimed", {position.mode for position in turn.claimed})
        return turn

    async def begin_effect(self, at: Position, step: str, *, uncertain: str) -> tuple[bool, Json]:
        held = await self._reach("begin_effect", [at.mode])
        try:
            return await super().begin_effect(at, step, uncertain=uncertain)
        except LeaseLost:
            self._say(held, f"begin_effect:{at.mode} LeaseLost")
            raise

    async def record_effect(self, at: Position, step: str, result: Json) -> None:
        held = await self._reach("record_effect", [at.mode])
        try:
            await super().record_effect(at, step, result)
        except LeaseLost:
            self._say(held, f"record_effect:{at.mode} LeaseLost")
            raise

    async def heartbeat(
        self,
        worker: str,
        modes: Sequence[str],
        listener: str,
        leases: Mapping[str, int],
        lease: timedelta,
        **keywords: Any,
    ) -> set[int]:
        held = self._hold == {"heartbeat"} and await self._reach("heartbeat", ())
        kept = await super().heartbeat(worker, modes, listener, leases, lease, **keywords)
        self._say(held, f"heartbeat kept {len(kept)} of {len(leases)}")
        return kept

    async def _work_in_sight(self) -> bool:
        async with self.connection() as connection:
            cursor = await connection.execute("SELECT FROM tracekit.queue WHERE state = 'ready' LIMIT 1")
            return cursor.rowcount > 0

    async def _reach(self, point: str, modes: Iterable[str]) -> bool:
        """Whether it was held."""
        names = {point, *(f"{point}:{mode}" for mode in modes)}
        if names & self._kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if held := names & self._hold:
            self._hold -= held
            print(f"held at {' '.join(held)}", flush=True)
            await self._resumed.wait()
        return bool(held)

    def _say(self, held: bool, what: str) -> None:
        if held:
            print(what, flush=True)


@asynccontextmanager
async def mortal(
    dsn: str, *arguments: str, log: Path, ledger: Path, kill: str = "", hold: str = ""
) -> AsyncIterator[Process]:
    """Such a worker, serving. Its first line is its id, or that it is held."""
    env = {LEDGER: str(ledger), KILL: kill, HOLD: hold}
    async with await Process.start("tests.faults.points", f"--dsn={dsn}", *arguments, log=log, env=env) as process:
        await process.prints()
        yield process


if __name__ == "__main__":
    vars(running)["Queue"] = Mortal  # what `running` makes
    worker.main()
