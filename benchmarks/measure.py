"""One measurement each: a contestant in a scene, in a fresh database, verified there."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, LiteralString

from psycopg import AsyncConnection

from benchmarks.contestants import Contestant, Options, fill_values
from benchmarks.process import Failed, Process, started
from benchmarks.server import Server
from tracekit.postgres import connect

CHUNK = 50_000
"""Rows that are filled in one statement."""

WARMING = 20
"""Enqueues before those that count: connections are made and statements prepared."""

PATIENCE = 300.0
"""Seconds that a drain may take."""

Figure = dict[str, float]


@dataclass
class Bench:
    """The server, and which families have their template in it."""

    server: Server
    _made: set[str] = field(default_factory=set)

    async def fresh(self, contestant: Contestant, name: str = "measured") -> str:
        """A database with the contestant's schema and nothing in it; returns its DSN."""
        template = f"template_{contestant.family.name}"
        if template not in self._made:
            dsn = await self.server.create(template)
            async with self.process(contestant, dsn, "install", {}) as process:
                await process.answer("result")
            self._made.add(template)
        return await self.server.create(name, template)

    def process(self, contestant: Contestant, dsn: str, verb: str, options: Options) -> Any:
        """See `process.started`."""
        given = {**contestant.options, **options}
        return started(contestant.family.python, contestant.family.module, dsn, verb, given)

    # --- the scenes -------------------------------------------------------------------------------------------------

    async def drain(self, contestant: Contestant, jobs: int, processes: int) -> Figure:
        """Jobs a second from the word go to the last one's end in the database, and how many processors were busy."""
        jobs = max(500, int(jobs * contestant.share))
        dsn = await self.fresh(contestant)
        filler = {"count": jobs, **contestant.family.filler}
        async with self.process(contestant, dsn, "bulk", filler) as process:
            await _ready(process)
            await process.tell()
            await process.answer("result")
        await self.server.settle("measured")
        async with AsyncExitStack() as stack:
            workers = [
                await stack.enter_async_context(self.process(contestant, dsn, "worker", {})) for _ in range(processes)
            ]
            connection = await stack.enter_async_context(await connect(dsn, autocommit=True))
            for worker in workers:
                await _ready(worker)
            used = self.server.cpu()
            began = min([await worker.tell() for worker in workers])
            ended = await _finished(connection, contestant, jobs)
            used = self.server.cpu() - used
            results = await _stop(workers)
            handled = sum(result["handled"] for result in results)
            if handled != jobs:
                raise Failed(f"{contestant.name}: {handled} handlers ran for {jobs} jobs")
        took = ended - began
        clients = sum(result["cpu"] for result in results)
        return {"rate": jobs / took, "clients": clients / took, "server": used / took}

    async def enqueue(self, contestant: Contestant, jobs: int, verb: str) -> Figure:
        """Jobs a second that clients of one process hand over, `bulk` or `single`; all are there afterwards."""
        dsn = await self.fresh(contestant)
        await self.server.settle("measured")
        options = {"count": jobs, **({"clients": 4} if verb == "single" else {})}
        async with self.process(contestant, dsn, verb, options) as process:
            await _ready(process)
            await process.tell()
            seconds: float = (await process.answer("result"))["seconds"]
        return {"rate": jobs / seconds}

    async def latency(self, contestant: Contestant, samples: int) -> Figure:
        """Milliseconds from calling enqueue in one process to the handler's start in another that was idle."""
        dsn = await self.fresh(contestant)
        await self.server.settle("measured")
        samples += WARMING
        async with (
            self.process(contestant, dsn, "worker", {"starts": True, "goal": samples}) as worker,
            self.process(contestant, dsn, "paced", {"count": samples, "notify": True}) as client,
        ):
            await _ready(worker)
            await _ready(client)
            await worker.tell()
            await asyncio.sleep(1.0)  # what a worker does when it starts is over; nobody tells when
            await client.tell()
            began = (await client.answer("result"))["began"]
            await worker.answer("goal", PATIENCE)
            [result] = await _stop([worker])
        found = sorted((result["starts"][n] - began[n]) * 1000 for n in began if int(n) >= WARMING)
        return {"p50": found[len(found) // 2], "p99": found[int(len(found) * 0.99)]}

    async def claims(self, contestant: Contestant, database: str, jobs: int, longest: float) -> tuple[Figure, int]:
        """Jobs a second from the 500th to the `jobs`th of a backlog that stays, the server's microseconds of processor
        time for each, and how many were taken from it.
        """
        await self.server.settle(database)
        options = {"every": 50, "goal": jobs}
        async with self.process(contestant, self.server.dsn(database), "worker", options) as worker:
            await _ready(worker)
            used = self.server.cpu()
            began = await worker.tell()
            with suppress(TimeoutError):  # then its rate is of what it did until now
                await worker.answer("goal", longest)
            [result] = await _stop([worker])
            used = self.server.cpu() - used
        figure = {"server": used / max(1, result["handled"]) * 1e6}
        marks = [(done, at) for done, at, _ in result["marks"] if done <= jobs]
        steady = [mark for mark in marks if mark[0] >= min(500, jobs // 4)]
        if len(steady) < 2:
            figure["rate"] = result["handled"] / (time.monotonic() - began)
        else:
            figure["rate"] = (steady[-1][0] - steady[0][0]) / (steady[-1][1] - steady[0][1])
        return figure, result["handled"]

    async def memory(self, contestant: Contestant, jobs: int) -> list[tuple[int, int]]:
        """A worker's resident bytes, twenty times on its way through `jobs`."""
        await self.fresh(contestant)
        await self.fill(contestant, "measured", "waiting", jobs)
        await self.server.settle("measured")
        options = {"every": jobs // 20, "goal": jobs}
        async with self.process(contestant, self.server.dsn("measured"), "worker", options) as worker:
            await _ready(worker)
            await worker.tell()
            await worker.answer("goal", 3600)
            [result] = await _stop([worker])
        return [(done, resident) for done, _, resident in result["marks"]]

    async def fill(self, contestant: Contestant, database: str, kind: str, rows: int) -> None:
        """Put `rows` of a kind there by SQL."""
        statement = contestant.family.fills[kind]
        async with await connect(self.server.dsn(database), autocommit=True) as connection:
            for start in range(0, rows, CHUNK):
                values = {**fill_values(kind), **contestant.family.fill_parameters()}
                await connection.execute(statement, {**values, "count": min(CHUNK, rows - start)})


async def _ready(process: Process) -> None:
    await process.answer("ready", 60)


async def _stop(workers: list[Process]) -> list[Any]:
    for worker in workers:
        await worker.tell()
    return [await worker.answer("result", 60) for worker in workers]


async def _finished(connection: AsyncConnection[Any], contestant: Contestant, jobs: int) -> float:
    """When the database had nothing unfinished any more; and everything finished, where that can be seen."""
    family = contestant.family
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        asked = time.monotonic()
        left = await _number(connection, family.left)
        at = time.monotonic()
        if left == 0 and (family.done is None or await _number(connection, family.done) >= jobs):
            return at
        # Looking must cost the measured ones nothing that shows.
        await asyncio.sleep(max(0.004, 20 * (time.monotonic() - asked)))
    raise Failed(f"{contestant.name}: {jobs} jobs were not finished within {PATIENCE:.0f} s")


async def _number(connection: AsyncConnection[Any], query: LiteralString) -> int:
    row = await (await connection.execute(query)).fetchone()
    assert row is not None
    return int(row[0])
