"""What a reservation costs: a call that is settled at once, without a budget, with one and with four, by 1, 8 and 32
callers of one process at a time.

The call itself takes no time here: what is measured is its accounting, and beside a model that takes a second all of it
is next to nothing. **unreserved** books the same usage without a reservation before it. All callers spend from the same
budgets: their counters are the contention.
"""

from __future__ import annotations

import asyncio
import resource
import statistics
import time
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

from benchmarks.scenes import task
from benchmarks.server import Server
from tracekit import ids
from tracekit.config import PriceSettings
from tracekit.cost import Ledger, PriceBook, Usage
from tracekit.cost.budgets import Budget, set_budgets
from tracekit.cost.limits import Limit
from tracekit.cost.reservations import Intended
from tracekit.postgres import connect, migrate, open_pool
from tracekit.queue import Position, Queue

CALLERS = (1, 8, 32)
_TEMPLATE = "template_reserving"
_PRICES = (PriceSettings.model_validate({"model": "m", "input": "3", "output": "15"}),)
_PLENTY = Decimal(10**9)
_NAMES = (
    Limit("total", "", "day", "usd"),
    Limit("total", "", "week", "tokens"),
    Limit("mode", "noop", "day", "usd"),
    Limit("task", "", "task", "requests"),
)


@dataclass(frozen=True)
class Way:
    """A way of accounting for a call."""

    name: str
    reserved: bool
    budgets: int


UNRESERVED = Way("unreserved", False, 0)
WAYS = (
    UNRESERVED,
    Way("no budget", True, 0),
    Way("one budget", True, 1),
    Way("four budgets", True, 4),
)


async def prepare(server: Server) -> None:
    """Make the template that each measurement begins with."""
    async with await connect(await server.create(_TEMPLATE)) as connection:
        await migrate(connection)


async def measure(server: Server, way: Way, callers: int, calls: int) -> dict[str, float]:
    """`calls` calls by `callers` at once, each caller with a task of its own: milliseconds of a call's accounting as
    its caller sees it (`latency`), calls a second (`rate`), and milliseconds of processor time a call, the client's and
    the server's (`cpu`).
    """
    dsn = await server.create("measured", _TEMPLATE)
    pool = await open_pool(dsn, min_size=8, max_size=8, name="bench", autocommit=True)
    async with pool:
        queue = Queue(pool)
        ledger = Ledger(queue, PriceBook(_PRICES))
        async with queue.connection() as connection:
            wanted = [Budget(name, _PLENTY, "refuse", "UTC", "bench") for name in _NAMES[: way.budgets]]
            await set_budgets(connection, wanted)
        await queue.enqueue([task(f"{number:010}") for number in range(callers)])
        places = await queue.claim("bench", {"noop": callers}, timedelta(minutes=10))
        each = max(1, calls // callers)
        await asyncio.gather(*(_calls(ledger, at, way, 10) for at in places))
        await server.settle("measured")
        used = _client() + server.cpu()
        began = time.monotonic()
        took = await asyncio.gather(*(_calls(ledger, at, way, each) for at in places))
        passed = time.monotonic() - began
        used = _client() + server.cpu() - used
    latencies = [one for caller in took for one in caller]
    return {
        "latency": statistics.median(latencies) * 1e3,
        "rate": len(latencies) / passed,
        "cpu": used / len(latencies) * 1e3,
    }


async def _calls(ledger: Ledger, at: Position, way: Way, calls: int) -> list[float]:
    took = []
    usage: dict[str, Any] = {"provider": "bench", "model": "m", "input": 100, "output": 50}
    for _ in range(calls):
        key = ids.new_span_id()
        began = time.monotonic()
        if way.reserved:
            await ledger.reserve(at, key, Intended("bench", "m", False, 100, 200), key)
        await ledger.book(at, [await ledger.report(Usage(**usage, key=key))])
        took.append(time.monotonic() - began)
    return took


def _client() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
