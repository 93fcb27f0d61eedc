"""tracekit in the scenes, through its own public parts: the queue's client, and the runtime of a worker process.

All that knows tracekit from inside is here: how tracing is switched off, and how its tables are filled.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from datetime import timedelta
from typing import Any, ClassVar, LiteralString

import structlog
import uvloop
from pydantic import SecretStr

from benchmarks.driver import Counter, Driver, main
from tracekit import ids
from tracekit.config import Settings, WorkerSettings
from tracekit.envelope import Envelope, Origin, RetryPolicy, TaskRequest
from tracekit.postgres import connect, migrate
from tracekit.queue import Done, Outcome, Submission
from tracekit.tracing.sdk import configure_tracing
from tracekit.workers import attempt
from tracekit.workers.mode import Hop, Mode, NoInput
from tracekit.workers.runtime import Runtime
from tracekit.workers.substrate import open_substrate

_numbers = itertools.count()


def task(text: str) -> Submission:
    """A task with nothing to do."""
    request = TaskRequest(intent="benchmark", idempotency_key=f"bench-{next(_numbers)}-{text[:10]}")
    envelope = Envelope.seal(
        request, origin=Origin.MANUAL, surface="bench", requester="system", trace_id=ids.new_trace_id()
    )
    return Submission(envelope, mode="noop", input={"text": text})


class Noop(Mode[NoInput]):
    """Ends each task at once, and counts."""

    name = "noop"
    input_type = NoInput
    counter: ClassVar[Counter]

    async def run(self, hop: Hop[NoInput]) -> Outcome:
        payload: Any = hop.task.input
        self.counter.handled(payload["text"])
        return Done()


@contextmanager
def tracing(on: bool) -> Iterator[None]:
    """With tracing off a handler runs outside of any trace. The program itself has no such switch (T9), and the record
    stays as it is: spans are views of it.
    """
    if on:
        yield
        return
    module: Any = attempt
    enter, module.enter_hop = module.enter_hop, lambda scope: None
    try:
        yield
    finally:
        module.enter_hop = enter


_UNSHIPPED = "DROP INDEX IF EXISTS tracekit.record_shipping, tracekit.envelopes_shipping"
"""With tracing off nothing is shipped either, and these are for nothing else."""


class Tracekit(Driver):
    """A whole worker process as `tracekit worker` is one: claims, settlements, heartbeats, sweeps, listener, deliverer
    and shipper.

    Options: `concurrency` (hops in flight, default 200), `tracing` (default on).
    """

    async def install(self) -> None:
        async with await connect(self.dsn) as connection:
            await migrate(connection)

    async def open(self) -> None:
        # As a configured process logs: warnings. A line a hop on stderr would be measured otherwise.
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
        worker = WorkerSettings(concurrency=self.options.get("concurrency", 200), grace=timedelta(seconds=2))
        settings = Settings(dsn=SecretStr(self.dsn), worker=worker)
        self._stack = AsyncExitStack()
        traced = self.options.get("tracing", True)
        self._stack.enter_context(tracing(traced))
        self._substrate = await self._stack.enter_async_context(
            open_substrate(settings, name="bench", min_size=4, max_size=12)
        )
        gc.collect()
        gc.freeze()  # as the program's processes do
        if not traced:
            async with self._substrate.pool.connection() as connection:
                await connection.execute(_UNSHIPPED)

    async def close(self) -> None:
        await self._stack.aclose()

    def job(self, text: str) -> Submission:
        return task(text)

    async def enqueue(self, jobs: Sequence[Submission]) -> None:
        await self._substrate.queue.enqueue(jobs)

    async def work(self, counter: Counter, stop: asyncio.Event) -> None:
        Noop.counter = counter
        handle = configure_tracing(dsn=self.dsn)
        runtime = Runtime(self._substrate, handle, None)
        runtime._modes = {Noop.name: Noop}  # no entry point: nobody else is to be served by it
        await runtime.run(stop)
        await asyncio.to_thread(handle.shutdown)


# --- filling by SQL: what no client could enqueue in reasonable time --------------------------------------------------

# An id begins as one that is made now: `id` is the first 16 of its 26 characters.
_ENVELOPES: LiteralString = """
WITH made AS (
    SELECT %(id)s || lpad(n::text, 10, '0') AS id, n, clock_timestamp() AS now FROM generate_series(1, %(count)s) AS n
), envelope AS (
    INSERT INTO tracekit.envelopes (id, trace_id, origin, surface, requester, intent, priority, destructive,
                                    idempotency_key, retry_policy, data_tier, mode, input, created_at)
    SELECT id, md5(id), 'manual', 'bench', 'system', 'benchmark', 1, false, id, %(policy)s::json, 'internal', {mode},
           jsonb_build_object('text', rpad(lpad(n::text, 10, '0'), 288, 'x')), now
    FROM made
)
{rest}
"""
_PLACE: LiteralString = """
INSERT INTO tracekit.queue (task_id, hop, mode, priority, state, created_at, ready_at, due_at, max_attempts, attempt,
                            wait_attempt)
SELECT id, 1, {mode}, 1, {state}, now, now, {due}, 5, {attempt}, {wait} FROM made
"""
_ENDED: LiteralString = """
INSERT INTO tracekit.record (task_id, at, kind, hop, mode, attempt, worker, outcome, ready_at, claimed_at, end_state)
SELECT id, now, 'attempt.ended', 1, {mode}, 1, 'bench', 'done', now, now, 'done' FROM made
"""
_WAITING: LiteralString = """
, wait AS (
    INSERT INTO tracekit.waits (task_id, hop, attempt, kind, key, data, deadline, on_deadline, opened_at)
    SELECT id, 1, 1, 'approval', 'approval:' || id, '{{}}', {due}, 'expire', now FROM made
)
"""


def _fill(rest: LiteralString, **given: LiteralString) -> LiteralString:
    usual: dict[str, LiteralString] = {
        "mode": "'noop'", "state": "'ready'", "due": "NULL", "attempt": "0", "wait": "NULL"
    }  # fmt: skip
    values = {**usual, **given}
    return _ENVELOPES.format(mode=values["mode"], rest=rest.format(**values))


_LATER: LiteralString = "now + interval '1 day'"
FILLS: dict[str, LiteralString] = {
    "waiting": _fill(_PLACE),
    "finished": _fill(_ENDED),
    "later": _fill(_PLACE, state="'scheduled'", due=_LATER),
    "elsewhere": _fill(_PLACE, mode="'another'"),
    "parked": _fill(_WAITING + _PLACE, state="'parked'", due=_LATER, attempt="1", wait="1"),
}
"""How hops of each kind come to be, `count` of them."""


def fill_parameters() -> dict[str, str]:
    """For one of `FILLS`, once."""
    return {"id": ids.new_task_id()[:16], "policy": RetryPolicy().model_dump_json()}


if __name__ == "__main__":
    main(Tracekit, uvloop.run)
