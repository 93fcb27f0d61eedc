"""procrastinate, over its psycopg connector.

Recommended is what its documentation begins with: a worker of concurrency 1. Option: `concurrency`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from procrastinate import App, PsycopgConnector  # type: ignore[import-not-found]

from benchmarks.driver import Counter, Driver, main


class Procrastinate(Driver):
    """One app; bulk goes by `batch_defer_async`."""

    async def install(self) -> None:
        await self.open()
        await self._app.schema_manager.apply_schema_async()
        await self.close()

    async def open(self) -> None:
        logging.getLogger("procrastinate").setLevel(logging.ERROR)
        concurrency = self.options.get("concurrency", 1)
        self._counter: Counter | None = None
        connector = PsycopgConnector(conninfo=self.dsn, min_size=4, max_size=max(6, min(20, concurrency + 4)))
        self._app = App(connector=connector)
        self._task = self._app.task(name="noop", queue="bench")(self._noop)
        await self._app.open_async()

    async def close(self) -> None:
        await self._app.close_async()

    async def _noop(self, text: str) -> None:
        assert self._counter is not None
        self._counter.handled(text)

    def job(self, text: str) -> dict[str, str]:
        return {"text": text}

    async def enqueue(self, jobs: Sequence[dict[str, str]]) -> None:
        await self._task.batch_defer_async(*jobs)

    async def enqueue_one(self, job: dict[str, str]) -> None:
        await self._task.defer_async(**job)

    async def work(self, counter: Counter, stop: asyncio.Event) -> None:
        self._counter = counter
        working = asyncio.create_task(
            self._app.run_worker_async(
                queues=["bench"], concurrency=self.options.get("concurrency", 1), install_signal_handlers=False
            )
        )
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        stopping.cancel()


if __name__ == "__main__":
    main(Procrastinate)
