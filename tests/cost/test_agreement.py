"""Ledger, metrics and spans agree to the last digit, after a run in which workers were killed and attempts failed."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.cost.driving import all_counted, all_spent, exactly, rows
from tests.cost.server import DONE, ModelServer, answer, chunk
from tests.queue.driving import AT_ONCE, submission
from tests.support.processes import ALL_DAY, Process, eventually
from tracekit import metrics
from tracekit.instruments import DatabaseGauges
from tracekit.postgres import Pool
from tracekit.queue import Queue
from tracekit.queue.audit import Finding, audit
from tracekit.tracing import genai, semconv
from tracekit.workers.depths import DepthReader

TASKS = 24
INNOCENT = AT_ONCE.model_copy(update={"max_attempts": 25})
"""A task may be under way in each worker that is killed."""
KILLED_AT = (5, 17, 30, 44)
"""Requests to the model during which the worker that made them is killed."""


class CountingServer(ModelServer):
    """Answers each request with another number of tokens; during some it has the worker killed that waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.killed = 0
        self.kill: Any = None

    async def _whole(self, writer: asyncio.StreamWriter) -> None:
        number = len(self.requests)
        given, cached, made = 100 + 7 * number, number, 3 + number
        if number in KILLED_AT:
            await self.kill()
            self.killed += 1
            return
        used = {
            "prompt_tokens": given,
            "completion_tokens": made,
            "total_tokens": given + made,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": made // 2},
        }
        if self.requests[-1]["body"].get("stream"):
            await super()._stream(writer, [chunk("so"), chunk(reason="stop"), chunk(usage=used), DONE])
        else:
            self.body = answer("so", used)
            await super()._whole(writer)


async def test_c2_t5_ledger_metrics_and_spans_agree_to_the_last_digit(
    queue: Queue, pool: Pool, dsn: str, tmp_path: Path
) -> None:
    receipts = await queue.enqueue(
        [
            submission("asker", {"calls": 1 + number % 3, "failures": number % 2}, retry_policy=INNOCENT)
            for number in range(TASKS)
        ]
    )
    server = CountingServer()
    async with server.serving():
        started: list[Process] = []

        async def start() -> None:
            log = tmp_path / f"worker-{len(started)}.log"
            started.append(await Process.start("tests.cost.worker", dsn, server.url, log=log))

        async def kill() -> None:
            # The one process that works: whoever asks is it.
            await started[-1].kill()
            await start()

        server.kill = kill
        await start()

        async def over() -> bool:
            open_tasks = await rows(queue, "SELECT FROM tracekit.tasks WHERE state = 'open'")
            calls = await rows(queue, "SELECT FROM tracekit.reservations WHERE closed_at IS NULL")
            return not open_tasks and not calls

        await eventually(over, "every task has ended, and every call is settled", within=ALL_DAY)
        for process in started:
            await process.kill()
    assert server.killed == len(KILLED_AT)
    assert await rows(queue, "SELECT DISTINCT state FROM tracekit.tasks") == [("done",)]

    # Every request that the server saw is in the ledger: those of killed workers as lost, and with them some that were
    # about to be made.
    [(seen, lost)] = await rows(
        queue,
        "SELECT count(*) FILTER (WHERE basis = 'reported'), count(*) FILTER (WHERE basis = 'lost')"
        " FROM tracekit.spend WHERE mode = 'asker'",
    )
    assert lost >= len(server.requests) - seen >= len(KILLED_AT)
    print(f"{len(server.requests)} requests, {lost} lost with their workers, {len(started)} workers")
    spent = await all_spent(queue)
    calls, unpriced, fresh, read, written, output, reasoning, requests, cost = spent
    assert cost > 0
    # The teller's call of an unknown model, once an attempt, and those that were lost.
    told = await rows(queue, "SELECT FROM tracekit.spend WHERE model = 'unknown'")
    assert unpriced == lost + len(told)

    # The metrics, as Prometheus would read them.
    assert await all_counted(queue) == spent
    gauges = DatabaseGauges()
    await DepthReader(queue, gauges).look()
    shown: dict[tuple[str, str], Decimal] = {}
    for family in gauges.collect():
        for sample in family.samples:
            key = (sample.name, sample.labels.get("kind", ""))
            shown[key] = shown.get(key, Decimal(0)) + exactly(sample.value)
    assert shown[metrics.COST.name, ""] == cost
    assert shown[metrics.MODEL_CALLS.name, ""] == calls
    assert shown[metrics.UNPRICED_CALLS.name, ""] == unpriced
    assert shown[metrics.REASONING_TOKENS.name, ""] == reasoning
    by_kind = {"input": fresh, "cache_read": read, "cache_write": written, "output": output}
    assert {kind: shown[metrics.TOKENS.name, kind] for kind in by_kind} == by_kind

    # The spans of the calls.
    spans = [
        said for (said,) in await rows(queue, "SELECT attributes FROM tracekit.spans WHERE name LIKE %s", "chat %")
    ]
    assert len(spans) == calls
    assert sum(exactly(said.get(genai.COST_AMOUNT, 0.0)) for said in spans) == cost
    assert sum(said[genai.INPUT_TOKENS] for said in spans) == fresh + read + written
    assert sum(said[genai.CACHE_READ] for said in spans) == read
    assert sum(said[genai.CACHE_CREATION] for said in spans) == written
    assert sum(said[genai.OUTPUT_TOKENS] for said in spans) == output
    assert sum(said[genai.REASONING] for said in spans) == reasoning
    assert sum(said[genai.REQUESTS] for said in spans) == requests

    # The root of each task, with what its task spent.
    by_task: dict[str, Decimal] = dict(
        await rows(queue, "SELECT task_id, sum(cost) FROM tracekit.spend GROUP BY task_id")
    )
    roots = dict(await rows(queue, "SELECT task_id, attributes FROM tracekit.spans WHERE name = 'task manual'"))
    assert set(roots) == {receipt.task_id for receipt in receipts}
    assert {task: exactly(float(said[semconv.COST_USD])) for task, said in roots.items()} == by_task
    assert sum(said[semconv.USAGE_INPUT] for said in roots.values()) == fresh
    assert sum(said[semconv.USAGE_OUTPUT] for said in roots.values()) == output

    # And every span that a killed worker had handed over has its parent.
    async with pool.connection() as connection:
        found = [one async for one in audit(connection) if isinstance(one, Finding)]
    assert found == []
