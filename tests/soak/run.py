"""The soak itself: a server of its own, work and faults for as long as asked, then calm, and the reckoning."""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
import sys
import tempfile
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.breaking import BreakableServer
from tests.faults.database import rows, value
from tests.soak import checks
from tests.soak.enqueuer import DATABASE_ERRORS
from tests.soak.faults import Chaos, Happened, Slot
from tests.soak.modes import LEDGER, MAY_DIE
from tests.soak.watching import CONNECTIONS, SIZES, Seen, Watcher, flat
from tests.soak.worker import LEASE, SWEEP
from tests.support.postgres import ThrowawayServer
from tests.support.processes import Process, background, eventually
from tracekit.postgres import Pool, migrate, open_pool
from tracekit.queue import Queue

MB = 1024 * 1024
A_WORKERS = 16
"""Connections that one worker process may hold: its pool's, its listener's, its shipper's, and some to spare."""
SLACK = 10.0
"""Seconds that two busy cores may add to a recovery: the sweepers are processes that were just started."""
DRAIN = 120.0
"""Seconds that all that is left may take once the faults are off."""


@dataclass(frozen=True)
class Plan:
    seed: int
    minutes: float = 3.0
    workers: int = 3
    rate: float = 60.0
    """Tasks a second."""
    most_open: int = 500
    every: float = 2.0
    """Seconds between faults, on average."""
    show_every: float = 5.0


@dataclass
class Report:
    seed: int
    numbers: dict[str, float] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    """What does not hold. Empty: all is well."""
    kept: str = ""
    """Where the logs are, if something was found."""


async def soak(plan: Plan) -> Report:
    report = Report(plan.seed)
    directory = Path(tempfile.mkdtemp(prefix="tracekit-soak-"))
    async with AsyncExitStack() as stack:
        server = stack.enter_context(ThrowawayServer())
        dsn = server.create_database()
        await migrate(dsn)
        pool = await stack.enter_async_context(
            await open_pool(dsn, min_size=3, max_size=3, name="soak", autocommit=True)
        )
        try:
            await Soak(plan, report, pool, dsn, server, directory, stack).run()
        except AssertionError as unmet:  # a wait that was in vain: what did not happen is the finding
            report.findings.append(str(unmet))
        if report.findings:
            report.kept = str(directory)
            shutil.copy(server.server.status().log, directory / "postgres.log")
    if not report.findings:
        shutil.rmtree(directory)
    return report


class Soak:
    def __init__(
        self,
        plan: Plan,
        report: Report,
        pool: Pool,
        dsn: str,
        server: ThrowawayServer,
        directory: Path,
        stack: AsyncExitStack,
    ) -> None:
        self.plan = plan
        self.report = report
        self.pool = pool
        self.dsn = dsn
        self.directory = directory
        self.stack = stack
        self.receipts = directory / "receipts"
        self.ledger = directory / "ledger"
        self.chance = random.Random(plan.seed)
        self.happened = Happened()
        self.workers = [Slot(f"worker {number}", self._start_worker, self.happened) for number in range(plan.workers)]
        self.enqueuer = Slot("enqueuer", self._start_enqueuer, self.happened)
        self.watcher = Watcher(pool, self._veteran, self._show, plan.show_every)
        self.chaos = Chaos(
            self.workers, self.enqueuer, BreakableServer(server), pool, self.chance, self.happened, plan.every
        )
        self.lives = itertools.count(1)
        self.began = time.monotonic()

    async def run(self) -> None:
        keepers = [asyncio.create_task(slot.keep()) for slot in (*self.workers, self.enqueuer)]
        for slot in (*self.workers, self.enqueuer):
            await self._serves(slot)
        async with background(self.watcher.run(), self._undertake()):
            async with background(self.chaos.run()):
                await asyncio.sleep(self.plan.minutes * 60)
                await self.chaos.all_met.wait()
            await self.chaos.end()
            calm = time.monotonic()
            await self._goes(self.enqueuer)
            await eventually(self._ended, "everything accepted ends", within=DRAIN)
            self.report.numbers["drained after (s)"] = time.monotonic() - calm
        for slot in self.workers:
            await self._goes(slot)
        await asyncio.gather(*keepers)
        await self._reckon()

    # --- processes --------------------------------------------------------------------------------------------------

    async def _start(self, module: str, *arguments: str) -> Process:
        process = await Process.start(
            module,
            f"--dsn={self.dsn}",
            *arguments,
            log=self.directory / f"{module.rsplit('.', 1)[-1]}-{next(self.lives)}.log",
            env={LEDGER: str(self.ledger)},
        )
        return await self.stack.enter_async_context(process)

    async def _start_worker(self) -> Process:
        return await self._start("tests.soak.worker")

    async def _start_enqueuer(self) -> Process:
        # A name of its own for each life: keys are not used again, and what one life was about to file is not missed.
        plan = self.plan
        return await self._start(
            "tests.soak.enqueuer",
            f"--name=soak-{plan.seed}-{next(self.lives)}",
            f"--receipts={self.receipts}",
            f"--rate={plan.rate}",
            f"--most-open={plan.most_open}",
        )

    async def _serves(self, slot: Slot) -> None:
        async def up() -> bool:
            return slot.serves

        await eventually(up, f"{slot.name} is up")

    async def _goes(self, slot: Slot) -> None:
        await self._serves(slot)
        assert slot.process is not None
        if status := await slot.close():
            self.report.findings.append(f"{slot.name} went with {status}: {slot.process.log[-2000:]}")

    def _veteran(self) -> int:
        process = self.workers[0].process
        return process.pid if process else 0

    # --- the operator -----------------------------------------------------------------------------------------------

    async def _undertake(self) -> None:
        """Redrives or abandons what dies. What should not have died is redriven, and found later."""
        queue = Queue(self.pool)
        while True:
            with suppress(*DATABASE_ERRORS):
                for entry in await queue.dead_letters():
                    abandoned = entry.mode in MAY_DIE and self.chance.random() < 0.3
                    await queue.resolve_dead(entry.task_id, "abandoned" if abandoned else "redriven", "rob")
            await asyncio.sleep(0.3)

    async def _ended(self) -> bool:
        return bool(
            await value(
                self.pool,
                "SELECT NOT EXISTS (SELECT FROM tracekit.queue)"
                " AND NOT EXISTS (SELECT FROM tracekit.tasks WHERE state IN ('open', 'dead'))",
            )
        )

    # --- telling ----------------------------------------------------------------------------------------------------

    def _show(self, seen: Seen) -> None:
        counts = self.happened.counts
        depth = f"{seen.depth[-1]:.0f}" if seen.depth else "?"
        line = (
            f"{time.monotonic() - self.began:6.0f} s  {seen.ended} ended, {depth} open; "
            + ", ".join(f"{fault} {count}" for fault, count in sorted(counts.items()))
            + (f"; {seen.memory[-1] / MB:.0f} MB" if seen.memory else "")
        )
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    # --- the reckoning ----------------------------------------------------------------------------------------------

    async def _reckon(self) -> None:
        findings, seen, pool = self.report.findings, self.watcher.seen, self.pool
        findings += self.happened.strange
        with suppress(AssertionError):
            await eventually(self._alone, "all connections are closed", within=10)
        if left := await value(pool, CONNECTIONS):
            findings.append(f"{left} connections are left of processes that are gone")
        if max(seen.connections) > (most := A_WORKERS * 2 * (self.plan.workers + 1)):
            findings.append(f"{max(seen.connections):.0f} connections were open at once, more than {most}")
        async with pool.connection() as connection:
            await connection.execute("VACUUM tracekit.queue")
        [(heap, indexes)] = await rows(pool, SIZES)
        if heap > 64 * 8192:
            findings.append(f"the empty hot table still has {heap / MB:.1f} MB")
        if not flat(seen.heap, slack=4 * MB, share=0.5) or not flat(seen.indexes, slack=4 * MB, share=0.5):
            findings.append(f"the hot table grew: {_course(seen.heap)}, its indexes {_course(seen.indexes)}")
        if not flat(seen.memory, slack=12 * MB):
            findings.append(f"the memory of a worker grew: {_course(seen.memory)}")
        findings += await checks.nothing_left(pool)
        findings += await checks.accepted_ended_once(pool, self.receipts)
        findings += await checks.ends_are_right(pool)
        findings += await checks.signals_counted(pool, self.receipts)
        findings += await checks.deeds_are_on_record(pool, self.ledger)
        async with pool.connection() as connection:
            findings += await checks.audited(connection)
        recovery = await self._recoveries()
        for fault, seconds in recovery.items():
            if max(seconds, default=0.0) > LEASE + SWEEP + SLACK:
                findings.append(f"a {fault} worker's hop was back after {max(seconds):.1f} s only")
        await self._count(heap, indexes, recovery)

    async def _alone(self) -> bool:
        return bool(await value(self.pool, CONNECTIONS) == 0)

    async def _recoveries(self) -> dict[str, list[float]]:
        """Seconds from a worker's kill, or from its freeze, until each hop that it had was ready again."""
        found: dict[str, list[float]] = {"killed": [], "frozen": []}
        for worker, at in await rows(
            self.pool,
            "SELECT data->>'worker', extract(epoch FROM at)::float8 FROM tracekit.events"
            " WHERE kind = 'attempt.ended' AND data->>'outcome' = 'lease_expired'",
        ):
            # While the server is away nobody can sweep: such a recovery begins when it is back.
            back = max((when for when in self.happened.back if when <= at), default=0.0)
            if (killed := self.happened.killed.get(worker, at + 1)) <= at:
                found["killed"].append(at - max(killed, back))
            found["frozen"] += [
                at - max(began, back) for began, until in self.happened.frozen[worker] if began <= at <= until
            ]
        return found

    async def _count(self, heap: int, indexes: int, recovery: dict[str, list[float]]) -> None:
        seen, counts = self.watcher.seen, self.happened.counts
        [(tasks, hops, attempts, lost, failed, redriven, abandoned)] = await rows(
            self.pool,
            "SELECT (SELECT count(*) FROM tracekit.tasks), (SELECT count(*) FROM tracekit.hops), count(*),"
            " count(*) FILTER (WHERE data->>'outcome' = 'lease_expired'),"
            " count(*) FILTER (WHERE data->>'outcome' = 'failed'),"
            " (SELECT count(*) FROM tracekit.dead_letters WHERE resolution = 'redriven'),"
            " (SELECT count(*) FROM tracekit.dead_letters WHERE resolution = 'abandoned')"
            " FROM tracekit.events WHERE kind = 'attempt.ended'",
        )
        waits = dict(await rows(self.pool, "SELECT resolution, count(*) FROM tracekit.waits GROUP BY resolution"))
        self.report.numbers |= {
            "tasks": tasks,
            "hops": hops,
            "attempts": attempts,
            "attempts lost": lost,
            "attempts failed": failed,
            "waits ended by a signal": waits.get("signal", 0),
            "waits ended by their deadline": waits.get("deadline", 0),
            "dead letters redriven": redriven,
            "dead letters abandoned": abandoned,
            **{f"fault: {fault}": count for fault, count in sorted(counts.items())},
            "longest recovery from a kill (s)": max(recovery["killed"], default=0.0),
            "longest recovery from a freeze (s)": max(recovery["frozen"], default=0.0),
            "most open hops": max(seen.depth),
            "most connections": max(seen.connections),
            "hot table at its largest (MB)": max(seen.heap) / MB,
            "its indexes at their largest (MB)": max(seen.indexes) / MB,
            "hot table at the end (MB)": heap / MB,
            "its indexes at the end (MB)": indexes / MB,
            "worker's memory, second quarter (MB)": _quarters(seen.memory)[0] / MB,
            "worker's memory, last quarter (MB)": _quarters(seen.memory)[1] / MB,
        }


def _quarters(samples: list[float]) -> tuple[float, float]:
    quarter = max(1, len(samples) // 4)
    return max(samples[quarter : 2 * quarter] or samples), max(samples[-quarter:])


def _course(samples: list[float]) -> str:
    before, after = _quarters(samples)
    return f"{before / MB:.1f} MB in the second quarter, {after / MB:.1f} MB in the last"
