"""Keeping a loop alive: whatever a round meets, the next one comes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

log = structlog.get_logger()

FIRST_REST = 0.1
LONGEST_REST = 10.0
"""Seconds between tries while something is away; a server that is back is noticed within them."""


async def keep(name: str, round: Callable[[], Awaitable[object]], *, pause: float = 0.0) -> None:
    """Do `round` for ever, `pause` seconds apart. One that raises is logged once a streak, and tried again after a
    rest that doubles, with full jitter: a database that comes back must not meet all its clients at once.
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
            await asyncio.sleep(random.uniform(FIRST_REST, rest))
        else:
            if failures:
                log.info("loop.recovered", loop=name, failures=failures)
                failures = 0
            await asyncio.sleep(pause)
