"""pgqueuer, with asyncpg or psycopg.

Recommended is what its documentation begins with: `PgQueuer` over one asyncpg connection, batches of 10. Options:
`driver` (asyncpg or psycopg), `batch`, `pool` (asyncpg's pool in place of one connection), `uvloop`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Any

import asyncpg  # type: ignore[import-not-found]
import psycopg
import uvloop
from pgqueuer import PgQueuer, Queries  # type: ignore[import-not-found]

from benchmarks.driver import Counter, Driver, main, parameters


class Pgqueuer(Driver):
    """Enqueues and works through the same kind of connection."""

    async def install(self) -> None:
        connection = await asyncpg.connect(**self._server())
        await Queries.from_asyncpg_connection(connection).install()
        await connection.close()

    async def open(self) -> None:
        self._connections: list[Any] = []
        self._free: list[Any] = []
        clients = self.options.get("clients", 1)
        for _ in range(1 if self.options.get("pool") else clients):
            self._free.append(await self._queries(clients))
        self._queries_for_bulk = self._free[0]

    def _server(self) -> dict[str, str]:
        of = parameters(self.dsn)
        return {"host": of["host"], "port": of["port"], "user": of["user"], "database": of["dbname"]}

    async def _queries(self, clients: int) -> Any:
        if self.options.get("driver") == "psycopg":
            connection = await psycopg.AsyncConnection.connect(self.dsn, autocommit=True)
            self._connections.append(connection)
            return Queries.from_psycopg_connection(connection)
        if self.options.get("pool"):
            pool = await asyncpg.create_pool(**self._server(), min_size=4, max_size=max(4, clients))
            self._connections.append(pool)
            return Queries.from_asyncpg_pool(pool)
        connection = await asyncpg.connect(**self._server())
        self._connections.append(connection)
        return Queries.from_asyncpg_connection(connection)

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()

    def job(self, text: str) -> bytes:
        return json.dumps({"text": text}).encode()

    async def enqueue(self, jobs: Sequence[bytes]) -> None:
        await self._queries_for_bulk.enqueue(["noop"] * len(jobs), list(jobs), [0] * len(jobs))

    async def enqueue_one(self, job: bytes) -> None:
        if self.options.get("pool"):
            await self._queries_for_bulk.enqueue("noop", job)
            return
        queries = self._free.pop()
        try:
            await queries.enqueue("noop", job)
        finally:
            self._free.append(queries)

    async def work(self, counter: Counter, stop: asyncio.Event) -> None:
        worker = PgQueuer(self._queries_for_bulk.driver)

        async def noop(job: Any) -> None:
            counter.handled(json.loads(job.payload)["text"])

        worker.entrypoint("noop")(noop)

        async def stopped() -> None:
            await stop.wait()
            worker.shutdown.set()

        stopping = asyncio.create_task(stopped())
        await worker.run(batch_size=self.options.get("batch", 10))
        stopping.cancel()


if __name__ == "__main__":
    main(Pgqueuer, uvloop.run if json.loads(sys.argv[3]).get("uvloop") else asyncio.run)
