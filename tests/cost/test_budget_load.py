"""A load of tasks against a set budget, by real workers of which one is killed: it stops exactly where it says (C3)."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.cost.budgeting import holds_together, let_hold, limit
from tests.cost.driving import rows
from tests.cost.server import ModelServer
from tests.queue.driving import submission
from tests.support.processes import ALL_DAY, Process, eventually
from tracekit.queue import Queue

TASKS = 60
CONCURRENCY = 8
KILLED_AT = 7
PRICE = Decimal("0.00033")
"""Of one call: 10 tokens in and 20 out."""


class DeadlyServer(ModelServer):
    """From some request on it answers only once a worker has been killed, while all of them wait."""

    def __init__(self) -> None:
        super().__init__()
        self.answered = 0
        self.asked_enough = asyncio.Event()
        self.killed = asyncio.Event()

    async def _whole(self, writer: asyncio.StreamWriter) -> None:
        if len(self.requests) >= KILLED_AT:
            self.asked_enough.set()
            await self.killed.wait()
        self.answered += 1
        await super()._whole(writer)


@pytest.mark.parametrize(("unit", "calls"), [("requests", 20), ("usd", None)])
async def test_c3_a_load_stops_exactly_where_the_budget_says(
    queue: Queue, dsn: str, tmp_path: Path, unit: str, calls: int | None
) -> None:
    amount = Decimal(calls) if calls else Decimal("0.0080")
    of: Any = unit
    await let_hold(queue, limit("total", "day", of), amount, policy="refuse")
    await let_hold(queue, limit("mode", "week", of, "spender"), amount * 10, policy="refuse")
    await queue.enqueue([submission("spender", {"prompt": f"{number:04}"}) for number in range(TASKS)])
    server = DeadlyServer()
    async with server.serving():
        workers = [
            await Process.start("tests.cost.spender", dsn, server.url, log=tmp_path / f"{number}.log")
            for number in range(3)
        ]
        try:
            await server.asked_enough.wait()
            await workers[0].kill()
            server.killed.set()

            async def over() -> bool:
                await holds_together(queue, within=True)
                alive = await rows(queue, "SELECT FROM tracekit.queue WHERE mode = 'spender'")
                return not alive and not await rows(queue, "SELECT FROM tracekit.reservations WHERE closed_at IS NULL")

            await eventually(over, "every task is done or has been refused", within=ALL_DAY)
        finally:
            for worker in workers:
                await worker.kill()
    [(spent, lost, cost, at_most)] = await rows(
        queue,
        "SELECT count(*) FILTER (WHERE basis = 'reported'), count(*) FILTER (WHERE basis = 'lost'),"
        " coalesce(sum(cost), 0), coalesce(sum(usd) FILTER (WHERE basis = 'lost'), 0)"
        " FROM tracekit.spend JOIN tracekit.reservations USING (task_id, key)",
    )
    done = await rows(queue, "SELECT FROM tracekit.tasks WHERE state = 'done'")
    dead = await rows(queue, "SELECT error FROM tracekit.dead_letters")
    assert len(done) + len(dead) == TASKS
    assert all("was not asked: the total budget for today" in error for (error,) in dead)
    [(taken, reserved)] = await rows(
        queue, "SELECT spent, reserved FROM tracekit.budget_counters WHERE scope = 'total' AND unit = %s", unit
    )
    assert reserved == 0
    # A lost call is one that may have been made, and counts with the most that it may have cost.
    if unit == "requests":
        assert taken == spent + lost == amount
    else:
        bound = max(usd for (usd,) in await rows(queue, "SELECT usd FROM tracekit.reservations"))
        assert cost == spent * PRICE
        assert taken == cost + at_most <= amount
        # It went on as long as a whole call had room, and not one more.
        assert amount - bound < taken
    # All that the server answered was booked, or its worker was dead by then.
    assert spent <= server.answered <= spent + lost
    # A task whose worker died between its call and its end was asked for once more.
    assert 0 <= spent - len(done) <= lost + CONCURRENCY
