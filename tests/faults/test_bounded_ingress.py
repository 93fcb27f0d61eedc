"""What the ingress takes in is bounded: a full queue, a database that hangs, and callers are told so (Q11)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.cli.running import environment
from tests.faults.breaking import proxied
from tests.faults.database import value
from tests.queue.driving import LEASE
from tests.soak.watching import rss
from tests.support.processes import Process, eventually, patience
from tracekit.postgres import Pool
from tracekit.queue import Done, Queue, Settlement

MB = 1024 * 1024
TOKEN = "operator-token"
CALLERS = 16


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Served:
    """`tracekit serve` as a process. Each request is a connection: a client with a pool would be busier than it."""

    process: Process
    port: int

    async def post(self, key: str) -> Answer:
        body = json.dumps({"intent": "turn on the kitchen light " * 20, "idempotency_key": key}).encode()
        head = (
            f"POST /v1/tasks HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {TOKEN}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        began = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(head.encode() + body)
        said, _, content = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        status, *lines = said.decode().split("\r\n")
        headers = {name.lower(): text for name, text in (line.split(": ", 1) for line in lines)}
        return Answer(int(status.split()[1]), headers, json.loads(content), time.monotonic() - began)

    async def flood(self, name: str, count: int) -> list[Answer]:
        """So many requests, of `CALLERS` at a time."""
        numbers = iter(range(count))

        async def caller() -> list[Answer]:
            return [await self.post(f"{name}-{number}") for number in numbers]

        return [answer for answers in await asyncio.gather(*(caller() for _ in range(CALLERS))) for answer in answers]

    async def accepts(self, key: str) -> Answer:
        """The 202 for this key, once there is one."""

        async def look() -> Answer | None:
            answer = await self.post(key)
            return answer if answer.status == 202 else None

        answer = await eventually(look, f"{key} is accepted")
        assert answer is not None
        return answer


@asynccontextmanager
async def served(dsn: str, home: Path, **settings: str) -> AsyncIterator[Served]:
    tokens = [{"surface": "shell", "principal": "rob", "sha256": hashlib.sha256(TOKEN.encode()).hexdigest()}]
    variables = {**environment(home, dsn), "TRACEKIT_TOKENS": json.dumps(tokens), "TRACEKIT_LOG_FORMAT": "json"}
    process = await Process.start(
        "tracekit", "serve", "--port=0", log=home / "serve.log", env={**variables, **settings}
    )

    async def port() -> int:
        assert process.returncode is None, process.log
        lines = [json.loads(line) for line in process.log.splitlines() if line.startswith("{")]
        return next((urlsplit(line["url"]).port or 0 for line in lines if line.get("event") == "process.ready"), 0)

    async with process:
        yield Served(process, await eventually(port, "it serves"))


async def test_a_full_queue_tells_its_callers_and_holds_no_more_Q11(
    queue: Queue, pool: Pool, dsn: str, tmp_path: Path
) -> None:
    depth = 200
    async with served(dsn, tmp_path, TRACEKIT_INGRESS__MAX_DEPTH=str(depth)) as ingress:
        filling = await ingress.flood("filling", depth + 100)
        warm = rss(ingress.process.pid)
        refused = await ingress.flood("refused", 600)
        grown = rss(ingress.process.pid) - warm
        statuses = Counter(answer.status for answer in [*filling, *refused])
        kept = await value(pool, "SELECT count(*) FROM tracekit.tasks")
        print(f"answers {dict(statuses)}; {kept} tasks of at most {depth}; {grown / MB:+.1f} MB over 600 refusals")
        assert set(statuses) == {202, 429}
        # What was accepted is there, and nothing else; callers that were on their way in together may all have got in.
        assert depth <= kept == statuses[202] < depth + CALLERS
        for answer in refused:
            assert answer.status == 429
            assert int(answer.headers["retry-after"]) > 0
            assert answer.body["type"] == "urn:tracekit:problem:queue-full"
        assert grown < 4 * MB
        # With room again it takes more, and what was refused is welcome under its key.
        taken = await queue.claim("w1", {"router": depth // 2}, LEASE)
        assert await queue.settle([Settlement(position, Done()) for position in taken]) == []
        assert not (await ingress.accepts("refused-0")).body["duplicate"]


async def test_a_database_that_hangs_leaves_nobody_waiting_and_nothing_behind_Q11(
    pool: Pool, dsn: str, tmp_path: Path
) -> None:
    waves, size = 2, 200
    async with proxied(dsn) as (through, proxy), served(through, tmp_path) as ingress:
        assert (await ingress.post("before")).status == 202
        proxy.hang()
        held, longest = [], 0.0
        for wave in range(waves):
            async with patience():
                answers = await asyncio.gather(*(ingress.post(f"wave-{wave}-{number}") for number in range(size)))
            held.append(rss(ingress.process.pid))
            assert {answer.status for answer in answers} == {503}
            assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)
            longest = max(longest, *(answer.seconds for answer in answers))
        print(f"{size} callers a wave, all told within {longest:.1f} s; {[f'{one / MB:.0f} MB' for one in held]}")
        assert held[-1] - held[0] < 8 * MB
        proxy.cut()
        proxy.heal()
        await ingress.accepts("after")
        # A refused one may have been on its way: each is there once, or not at all.
        assert (await ingress.post("wave-0-0")).status in (200, 202)
        assert await value(pool, "SELECT count(*) FROM tracekit.tasks WHERE idempotency_key = 'wave-0-0'") == 1
