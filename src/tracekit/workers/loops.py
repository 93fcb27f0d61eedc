"""Keeping a loop alive: whatever a round meets, the next one comes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

log = structlog.get_logger()

FIRST_REST = 0.1
LONGEST_REST = 10.0
"""Seconds between tries while something is away; a server that is back is noticed within them."""

AGAIN = 1.0
"""Seconds until a task that was cancelled, and goes on, is cancelled once more."""

_resting: set[asyncio.Event] = set()


def hurry() -> None:
    """End the rests of this process's loops: what they failed for may be back, as one of them has seen."""
    for awake in _resting:
        awake.set()


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks, and return when they are gone.

    Once is not enough: psycopg's pool takes a cancellation that comes while it tests or takes back a connection for a
    fault of that connection, and goes on.
    """
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=AGAIN)
    await asyncio.gather(*tasks, return_exceptions=True)


async def _rest(seconds: float) -> None:
    awake = asyncio.Event()
    _resting.add(awake)
    try:
        async with asyncio.timeout(seconds):
            await awake.wait()
    except TimeoutError:
        pass
    finally:
        _resting.discard(awake)


async def keep(name: str, round: Callable[[], Awaitable[object]], *, pause: float = 0.0) -> None:
    """Do `round` for ever, `pause` seconds apart. One that raises is logged once a streak, and tried again after a
    rest that doubles, with full jitter: a database that comes back must not meet all its clients at once. The first
    loop of a process to get through ends the rests of the others.
    """
    failures = 0
    while True:
        try:
            await round()
        except Exception as error:
            failures += 1
            if failures == 1:
                log.warning("loop.failing", loop=name, error=type(error).__name__, detail=str(error)[:300])
            rest = min(LONGEST_REST, FIRST_REST * 2 ** min(failures, 16))
            await _rest(random.uniform(FIRST_REST, rest))
        else:
            if failures:
                log.info("loop.recovered", loop=name, failures=failures)
                failures = 0
                hurry()
            await asyncio.sleep(pause)
