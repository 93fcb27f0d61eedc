"""Looking at a soak from outside, while it runs: memory, connections, the size of the hot table."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.faults.database import rows
from tests.soak.enqueuer import DATABASE_ERRORS
from tracekit.postgres import Pool

LOOK = 0.5
"""Seconds between looks."""

CONNECTIONS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND application_name <> 'soak'
"""
SIZES = "SELECT pg_relation_size('tracekit.queue'), pg_indexes_size('tracekit.queue')"


def rss(pid: int) -> int:
    """Bytes of memory that a process holds; 0 once it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


def flat(samples: list[float], slack: float, share: float = 0.15) -> bool:
    """Whether the last quarter of `samples` lies no higher than the second: the first is warming up."""
    quarter = len(samples) // 4
    if quarter < 2:
        return True
    before, after = median(samples[quarter : 2 * quarter]), median(samples[-quarter:])
    return after <= before * (1 + share) + slack


@dataclass
class Seen:
    """Samples, in the order of time."""

    memory: list[float] = field(default_factory=list)
    connections: list[float] = field(default_factory=list)
    heap: list[float] = field(default_factory=list)
    indexes: list[float] = field(default_factory=list)
    depth: list[float] = field(default_factory=list)
    ended: int = 0


class Watcher:
    """Samples until cancelled, and shows a line of progress now and then. `pid`: of whose memory is watched."""

    def __init__(self, pool: Pool, pid: Callable[[], int], show: Callable[[Seen], None], every: float) -> None:
        self.seen = Seen()
        self._pool = pool
        self._pid = pid
        self._show = show
        self._every = every

    async def run(self) -> None:
        shown = time.monotonic()
        while True:
            await asyncio.sleep(LOOK)
            if bytes_held := rss(self._pid()):
                self.seen.memory.append(bytes_held)
            with suppress(*DATABASE_ERRORS):
                await self._look()
            if time.monotonic() - shown >= self._every:
                shown = time.monotonic()
                with suppress(*DATABASE_ERRORS):
                    [(self.seen.ended,)] = await rows(
                        self._pool, "SELECT count(*) FROM tracekit.tasks WHERE state NOT IN ('open', 'dead')"
                    )
                self._show(self.seen)

    async def _look(self) -> None:
        [(connections,)] = await rows(self._pool, CONNECTIONS)
        [(heap, indexes)] = await rows(self._pool, SIZES)
        [(depth,)] = await rows(self._pool, "SELECT count(*) FROM tracekit.queue")
        self.seen.connections.append(connections)
        self.seen.heap.append(heap)
        self.seen.indexes.append(indexes)
        self.seen.depth.append(depth)
