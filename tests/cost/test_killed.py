"""A worker killed with the model's answer in its hands, before it is booked (C1, C3, Q2)."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path

from tests.cost.budgeting import counters, holds_together, let_hold, limit
from tests.cost.driving import all_counted, all_spent, rows
from tests.cost.server import ModelServer
from tests.queue.driving import submission
from tests.support.processes import Process, eventually
from tracekit.cost.counting import ALONE
from tracekit.postgres import Pool
from tracekit.queue import Queue
from tracekit.queue.audit import Finding, audit
from tracekit.tracing import semconv


async def test_c1_c3_a_worker_killed_between_the_answer_and_the_ledger_has_a_lost_call(
    queue: Queue, pool: Pool, dsn: str, tmp_path: Path
) -> None:
    await let_hold(queue, limit("total", "day", "requests"), 2, policy="refuse")
    await let_hold(queue, limit("total", "day", "usd"), 1, policy="refuse")
    [receipt] = await queue.enqueue([submission("spender", {"prompt": "so"})])
    async with ModelServer().serving() as server:
        server.held = asyncio.Event()
        first = await Process.start("tests.cost.spender", dsn, server.url, log=tmp_path / "first.log")
        async with first:
            await server.asked.wait()
            async with pool.connection() as connection, connection.transaction(force_rollback=True):
                # Whoever books waits for this one: the answer has come, and the worker can get no further.
                await connection.execute(ALONE)
                server.held.set()

                async def books() -> bool:
                    return bool(await rows(queue, "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))

                await eventually(books, "the worker is about to book")
                await first.kill()
        async with await Process.start("tests.cost.spender", dsn, server.url, log=tmp_path / "second.log"):

            async def done() -> bool:
                return (await queue.task(receipt.task_id)).state == "done"

            await eventually(done, "another worker does it again")
    assert len(server.requests) == 2
    calls = await rows(queue, "SELECT attempt, basis, requests, cost FROM tracekit.spend ORDER BY attempt")
    assert calls == [(1, "lost", 1, None), (2, "reported", 1, Decimal("0.00033"))]
    # What is lost counts with all that it may have cost, and nothing is reserved any more.
    [(bound,)] = await rows(queue, "SELECT usd FROM tracekit.reservations WHERE outcome = 'lost'")
    assert await counters(queue) == {"requests": (2, 0), "usd": (bound + Decimal("0.00033"), 0)}
    await holds_together(queue, within=True)
    assert await all_counted(queue) == await all_spent(queue)
    spans = await rows(
        queue, "SELECT attributes ->> %s FROM tracekit.spans WHERE name = 'chat m-1' ORDER BY start_time",
        semconv.ERROR_TYPE,
    )  # fmt: skip
    assert spans == [(semconv.LEASE_EXPIRED,), (None,)]
    async with pool.connection() as connection:
        assert [one async for one in audit(connection) if isinstance(one, Finding)] == []
