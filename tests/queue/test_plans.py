"""How PostgreSQL runs the statements of every second: by their indexes, whatever the queue's size (Q12)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from tests.queue.driving import submission, take
from tracekit.postgres import Connection, Pool, connect
from tracekit.queue import Done, HandOff, Position, Queue, Settlement
from tracekit.queue import claim as claiming
from tracekit.queue.claim import Ask
from tracekit.queue.finish import finish
from tracekit.queue.submission import ACCEPT, offer
from tracekit.queue.sweep import _DUE, _EXPIRED

ROWS = 20_000
MINUTE = timedelta(minutes=1)


async def fill(connection: Connection) -> None:
    """A queue with a backlog in some modes, leases and waits, and history that is larger."""
    await connection.execute(
        "INSERT INTO tracekit.envelopes (id, trace_id, origin, surface, requester, intent, priority, destructive,"
        "  idempotency_key, retry_policy, data_tier, mode, input, created_at)"
        " SELECT 't' || n, md5(n::text), 'manual', 'test', 'rob', 'x', n %% 4, false, n::text, '{}', 'internal', 'm1',"
        "  'null', now() FROM generate_series(1, 2 * %s) AS n",
        [ROWS],
    )
    await connection.execute(
        "INSERT INTO tracekit.record (task_id, at, kind, hop, mode, attempt, next_hop, next_mode)"
        " SELECT id, now(), 'attempt.ended', 1, 'm1', 1, 2, 'm2' FROM tracekit.envelopes"
    )
    await connection.execute(
        "INSERT INTO tracekit.queue (task_id, hop, mode, priority, state, created_at, ready_at, due_at, expires_at,"
        "  max_attempts, token, worker, claimed_at, attempt)"
        " SELECT 't' || n, 2, 'm' || n %% 4, n %% 4,"
        "  CASE WHEN n %% 10 = 0 THEN 'parked' WHEN n %% 100 = 1 THEN 'running' ELSE 'ready' END, now(), now(),"
        "  CASE WHEN n %% 10 = 0 OR n %% 100 = 1 THEN now() + interval '1 hour' END,"
        "  CASE WHEN n %% 3 = 0 THEN now() + interval '1 day' END, 3, n, CASE WHEN n %% 100 = 1 THEN 'w' END,"
        "  CASE WHEN n %% 100 = 1 THEN now() END, 1 FROM generate_series(1, %s) AS n",
        [ROWS],
    )


class Statement:
    """One of them, with the indexes that it must use and the pages that it may touch, of some 2,000."""

    def __init__(self, name: str, text: Any, parameters: dict[str, Any], indexes: set[str], pages: int) -> None:
        self.name, self.text, self.parameters, self.indexes, self.pages = name, text, parameters, indexes, pages


def held(at: Position, task_id: str, token: int) -> Position:
    return at._replace(task_id=task_id, token=token)


async def statements(queue: Queue) -> list[Statement]:
    """Asking for a few each. `at` is any position: what is finished are rows of `fill`."""
    await queue.enqueue([submission("first")])
    at = await take(queue, "first")
    free = {"m1": 4, "m2": 4}
    claim, claimed = Ask("w", free, MINUTE).statement()
    by_age, oldest = Ask("w", free, MINUTE, by_age=free).statement()
    [(end, ended, _)] = finish([Settlement(held(at, f"t{n}", n), Done()) for n in (1, 101)])
    [(on, handed, _)] = finish([Settlement(held(at, f"t{n}", n), HandOff("m3")) for n in (201, 301)])
    beat = {"tasks": ["t1", "t101"], "tokens": [1, 101], "lease": MINUTE, "worker": "w", "modes": ["m1"]}
    return [
        Statement("claim", claim, claimed, {"queue_ready", "envelopes_pkey"}, 500),
        Statement("claim by age", by_age, oldest, {"queue_ready", "envelopes_pkey"}, 600),
        Statement("end", end, ended, {"queue_pkey"}, 100),
        Statement("hand off", on, handed, {"queue_pkey"}, 150),
        Statement("accept", ACCEPT, offer([submission() for _ in range(4)]), set(), 150),
        Statement("sweep for ttls", _EXPIRED, {}, {"queue_expiring"}, 20),
        Statement("sweep for what is due", _DUE, {}, {"queue_due"}, 20),
        Statement(
            "heartbeat",
            claiming._HEARTBEAT,
            {**beat, "listener": "listening", "asleep": False},
            {"queue_pkey"},
            60,
        ),
    ]


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


async def test_the_statements_of_every_second_read_by_index_Q12(queue: Queue, pool: Pool, dsn: str) -> None:
    asked = await statements(queue)
    async with pool.connection() as connection:
        await fill(connection)
        await connection.execute("VACUUM ANALYZE")
    for statement in asked:
        async with await connect(dsn, autocommit=True) as connection, connection.transaction(force_rollback=True):
            cursor = await connection.execute(
                "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + statement.text, statement.parameters
            )
            row = await cursor.fetchone()
        assert row is not None
        explained = row[0] if isinstance(row[0], list) else json.loads(row[0])
        found = list(nodes(explained[0]["Plan"]))
        scanned = {node["Relation Name"] for node in found if node["Node Type"] == "Seq Scan"}
        assert {name for name in scanned if name != "sleepers"} == set(), statement.name
        used = {node["Index Name"] for node in found if "Index Name" in node}
        assert used >= statement.indexes, (statement.name, used)
        pages = explained[0]["Plan"]["Shared Hit Blocks"] + explained[0]["Plan"]["Shared Read Blocks"]
        print(f"{statement.name}: {pages} pages, {sorted(used)}")
        # Not only the right nodes: an index that is read from end to end is a right node too.
        assert pages < statement.pages, statement.name


async def test_plans_made_when_the_tables_were_empty_serve_when_they_are_not_Q12(
    queue: Queue, pool: Pool, dsn: str
) -> None:
    """A plan that was prepared is kept, and a queue fills faster than statistics are gathered."""
    asked = await statements(queue)
    for statement in asked:
        async with await connect(dsn, autocommit=True) as connection:
            async with pool.connection() as other:
                await other.execute("TRUNCATE tracekit.envelopes, tracekit.record, tracekit.queue")
                await other.execute("ANALYZE")
            await connection.execute(statement.text, statement.parameters, prepare=True)
            async with pool.connection() as other:
                await fill(other)
            async with connection.transaction(force_rollback=True):
                await connection.execute(statement.text, statement.parameters, prepare=True)
                cursor = await connection.execute(
                    "SELECT coalesce(sum(seq_tup_read), 0), coalesce(sum(idx_tup_fetch), 0)"
                    " FROM pg_stat_xact_user_tables WHERE schemaname = 'tracekit' AND relname <> 'sleepers'"
                )
                read, fetched = await cursor.fetchone() or (None, None)
        print(f"{statement.name}: {read} rows by reading on, {fetched} by index")
        assert read == 0, statement.name
        assert fetched < 200, statement.name
