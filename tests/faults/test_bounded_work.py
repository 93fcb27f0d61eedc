"""What a worker holds is bounded: slow handlers, a slow database, a collector that does not answer (Q11, Q13, T6)."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.faults.conftest import StartWorker
from tests.faults.database import rows, value
from tests.faults.modes import read_ledger
from tests.faults.network import Weather, network
from tests.queue.driving import submission
from tests.soak.watching import rss
from tests.support.otlp import OtlpReceiver
from tests.support.processes import Process, background, eventually
from tracekit.postgres import Pool
from tracekit.queue import Queue

MB = 1024 * 1024
CONCURRENCY = 4
GROWTH = 8 * MB
"""What a process may grow by once it is warm. Hundreds of hops that pile up with what belongs to them are more."""


def done(pool: Pool, count: int) -> Callable[[], Awaitable[bool]]:
    async def so_many() -> bool:
        return bool(await value(pool, "SELECT count(*) FROM tracekit.tasks WHERE state = 'done'") >= count)

    return so_many


class Held:
    """The most hops of each mode that were seen under a lease at once, for as long as `watch` runs."""

    def __init__(self, pool: Pool) -> None:
        self.most: Counter[str] = Counter()
        self._pool = pool

    async def watch(self) -> None:
        while True:
            for mode, count in await rows(
                self._pool, "SELECT mode, count(*) FROM tracekit.queue WHERE state = 'running' GROUP BY mode"
            ):
                self.most[mode] = max(self.most[mode], count)
            await asyncio.sleep(0.01)


async def test_slow_handlers_are_never_more_than_the_concurrency_Q11(
    queue: Queue, pool: Pool, dsn: str, start_worker: StartWorker, ledger: Path
) -> None:
    slow, fast = 40, 60
    await queue.enqueue([submission("slow", {"seconds": 0.2}) for _ in range(slow)])
    await queue.enqueue([submission("fast") for _ in range(fast)])
    held = Held(pool)
    async with background(held.watch()):
        await start_worker(dsn, f"--concurrency={CONCURRENCY}")
        await eventually(done(pool, slow + fast), "all are done")
    # The file has them in order: what has begun and not finished is in flight.
    in_flight, most = 0, 0
    for _, step, _ in read_ledger(ledger):
        in_flight += 1 if step == "begun" else -1
        most = max(most, in_flight)
    print(f"in flight at most {most} of {slow}, under a lease at most {dict(held.most)}")
    # All of it is used, no more, and of each mode: what waits is another worker's to take.
    assert most == CONCURRENCY
    assert held.most["slow"] == CONCURRENCY
    assert held.most["fast"] <= CONCURRENCY


async def test_a_slow_database_slows_the_claims_and_nothing_piles_up_Q11(
    queue: Queue, pool: Pool, dsn: str, start_worker: StartWorker
) -> None:
    """Nothing that the database is told or says arrives at once."""
    hops, latest = 120, 0.02
    held = Held(pool)
    async with network(dsn) as (through, between), background(held.watch()):
        between.weather = Weather(delay=1.0, latest=latest)
        worker = await start_worker(through, f"--concurrency={CONCURRENCY}", "--lease=30")
        await queue.enqueue([submission("fast") for _ in range(hops)])
        await eventually(done(pool, hops // 4), "some are done")
        warm, began = rss(worker.pid), time.monotonic()
        await eventually(done(pool, hops), "all are done")
        took = time.monotonic() - began
        grown = rss(worker.pid) - warm
        worker.send(signal.SIGTERM)
        assert await worker.gone() == 0
    print(
        f"{hops * 3 / 4 / took:.0f} hops/s with up to {latest * 1000:g} ms each way; under a lease at most"
        f" {held.most['fast']}; {grown / MB:+.1f} MB"
    )
    assert held.most["fast"] <= CONCURRENCY
    assert grown < GROWTH


async def test_a_collector_that_hangs_costs_no_work_and_no_memory_Q11_Q13_T6(
    queue: Queue, pool: Pool, dsn: str, tmp_path: Path
) -> None:
    hops = 450
    with OtlpReceiver(tmp_path) as receiver:
        receiver.answer("hang")
        environment = {**receiver.environment(), "OTEL_EXPORTER_OTLP_TIMEOUT": "30"}

        async def start(name: str) -> Process:
            worker = await Process.start("tests.soak.chatty", f"--dsn={dsn}", log=tmp_path / name, env=environment)
            await worker.prints()
            return worker

        async with await start("hung") as worker:
            await queue.enqueue([submission("chatty") for _ in range(hops)])
            # From here on the SDK's queue is full as well.
            await eventually(done(pool, hops // 3), "some are done")
            warm = rss(worker.pid)
            await eventually(done(pool, hops), "all are done, whatever the collector does")
            grown = rss(worker.pid) - warm
            began = time.monotonic()
            worker.send(signal.SIGTERM)
            assert await worker.gone() == 0
            left = time.monotonic() - began
            dropped = int(worker.lines[-1])
        print(
            f"{grown / MB:+.1f} MB over {hops * 2 // 3} hops; {dropped} spans of the SDK dropped; gone in {left:.1f} s"
        )
        assert grown < GROWTH
        # Detail that had no place was counted; what the record needs is in the database.
        assert dropped > 0
        written = await value(pool, "SELECT count(*) FROM tracekit.spans")
        assert written >= 4 * hops
        receiver.answer("ok")
        async with await start("well") as worker:
            await asyncio.to_thread(receiver.wait, distinct=written)
            worker.send(signal.SIGTERM)
            assert await worker.gone() == 0
