"""The floor: the least SQL that a durable queue can do, on the same server, with the same client.

`bare` claims a batch with SKIP LOCKED and deletes it. `recording` also writes a span row and an event row for each hop,
which is the honest limit for what tracekit records.
"""

from __future__ import annotations

import asyncio
import json
import time

from psycopg import AsyncConnection

from tracekit.postgres import Pool

SCHEMA = """
CREATE TABLE floor_jobs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, priority smallint NOT NULL DEFAULT 1,
    state text NOT NULL DEFAULT 'ready', created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    payload jsonb NOT NULL
);
CREATE INDEX floor_ready ON floor_jobs (priority DESC, created_at) WHERE state = 'ready';
CREATE TABLE floor_spans (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, job bigint NOT NULL, started timestamptz NOT NULL,
    ended timestamptz NOT NULL, attributes jsonb NOT NULL
);
CREATE TABLE floor_events (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, job bigint NOT NULL, at timestamptz NOT NULL,
    data jsonb NOT NULL
);
"""

_CLAIM = """
UPDATE floor_jobs SET state = 'running' WHERE id IN (
    SELECT id FROM floor_jobs WHERE state = 'ready' ORDER BY priority DESC, created_at LIMIT %s FOR UPDATE SKIP LOCKED
) RETURNING id, payload
"""
_ATTRIBUTES = json.dumps({"messaging.system": "floor", "messaging.operation.name": "process", "outcome": "done"})


async def create(pool: Pool) -> None:
    """Its tables, in the benchmark's own database."""
    async with pool.connection() as connection:
        await connection.execute(SCHEMA)


async def fill(connection: AsyncConnection, count: int, payload: str) -> None:
    """`count` ready jobs, in one statement."""
    await connection.execute(
        "INSERT INTO floor_jobs (payload) SELECT %s::jsonb FROM generate_series(1, %s)", [payload, count]
    )


async def insert_one(connection: AsyncConnection, payload: str) -> None:
    """One job in a transaction of its own."""
    await connection.execute("INSERT INTO floor_jobs (payload) VALUES (%s::jsonb)", [payload])


async def drain(pool: Pool, batch: int, *, recording: bool) -> int:
    """Claim and finish everything, one loop; returns how many."""
    done = 0
    async with pool.connection() as connection:
        while True:
            rows = await (await connection.execute(_CLAIM, [batch])).fetchall()
            if not rows:
                return done
            ids = [row[0] for row in rows]
            async with connection.transaction(), connection.pipeline():
                await connection.execute("DELETE FROM floor_jobs WHERE id = ANY(%s)", [ids])
                if recording:
                    await connection.execute(
                        "INSERT INTO floor_spans (job, started, ended, attributes)"
                        " SELECT id, now(), clock_timestamp(), %s::jsonb FROM unnest(%s::bigint[]) AS id",
                        [_ATTRIBUTES, ids],
                    )
                    await connection.execute(
                        "INSERT INTO floor_events (job, at, data)"
                        " SELECT id, clock_timestamp(), %s::jsonb FROM unnest(%s::bigint[]) AS id",
                        [_ATTRIBUTES, ids],
                    )
            done += len(ids)


async def latency(pool: Pool, payload: str, count: int) -> list[float]:
    """Seconds from the insert to the claim, for one job after another: the client inserts, NOTIFY wakes, a claim."""
    woken = asyncio.Event()
    found: list[float] = []
    async with pool.connection() as listener, pool.connection() as writer, pool.connection() as claimer:
        await listener.execute("LISTEN floor")

        async def listen() -> None:
            async for _ in listener.notifies():
                woken.set()

        listening = asyncio.create_task(listen())
        for _ in range(count):
            woken.clear()
            began = time.perf_counter()
            await insert_one(writer, payload)
            await writer.execute("NOTIFY floor")
            await woken.wait()
            rows = await (await claimer.execute(_CLAIM, [1])).fetchall()
            found.append(time.perf_counter() - began)
            await claimer.execute("DELETE FROM floor_jobs WHERE id = %s", [rows[0][0]])
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    return found
