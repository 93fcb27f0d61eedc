"""awa (the package `awa-pg`): a Rust core with Python bindings, on its queue storage.

Recommended is a queue with 64 workers. Options: `queue` (what its `start` takes for a queue, over that), `connections`,
`poll_ms`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from awa import AsyncClient  # type: ignore[import-not-found]

from benchmarks.driver import Counter, Driver, main, parameters


@dataclass
class Noop:
    text: str


class Awa(Driver):
    """Bulk goes by COPY (`enqueue_many_copy`)."""

    async def install(self) -> None:
        await self.open()
        await self._client.migrate()
        await self._client.install_queue_storage()
        await self.close()

    async def open(self) -> None:
        of = parameters(self.dsn)
        url = f"postgres://{of['user']}@localhost/{of['dbname']}?host={quote(of['host'], safe='')}&port={of['port']}"
        self._client = AsyncClient(url, self.options.get("connections", 10))

    async def close(self) -> None:
        await self._client.close()

    def job(self, text: str) -> Noop:
        return Noop(text)

    async def enqueue(self, jobs: Sequence[Noop]) -> None:
        await self._client.enqueue_many_copy(list(jobs), queue="bench")

    async def enqueue_one(self, job: Noop) -> None:
        await self._client.insert(job, queue="bench")

    async def work(self, counter: Counter, stop: asyncio.Event) -> None:
        async def noop(job: Any) -> None:
            counter.handled(job.args.text)

        self._client.task(Noop, queue="bench")(noop)
        queue = {"name": "bench", "max_workers": 64, **self.options.get("queue", {})}
        await self._client.start([queue], poll_interval_ms=self.options.get("poll_ms", 200))
        await stop.wait()
        await self._client.shutdown()


if __name__ == "__main__":
    main(Awa)
