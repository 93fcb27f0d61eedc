"""How PostgreSQL runs the statements of every second: by their indexes, whatever the queue's size (Q12)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, LiteralString

import pytest

from tracekit.postgres import Pool
from tracekit.queue import claim, sweep

ROWS = 20_000


@pytest.fixture
async def filled(pool: Pool) -> Pool:
    """A queue with a backlog in some modes, leases and waits, and history that is larger."""
    async with pool.connection() as connection:
        await connection.execute(
            "INSERT INTO tracekit.tasks (id, trace_id, origin, surface, requester, intent, priority, destructive,"
            "  idempotency_key, retry_policy, data_tier, created_at)"
            " SELECT 't' || n, md5(n::text), 'manual', 'test', 'rob', 'x', n %% 4, false, n::text, '{}', 'internal',"
            "  now() FROM generate_series(1, 2 * %s) AS n",
            [ROWS],
        )
        await connection.execute(
            "INSERT INTO tracekit.hops (task_id, hop, mode, input, created_at)"
            " SELECT id, 1, 'm1', 'null', created_at FROM tracekit.tasks"
        )
        await connection.execute(
            "INSERT INTO tracekit.queue (task_id, hop, mode, priority, state, created_at, ready_at, due_at,"
            "  expires_at, max_attempts, token)"
            " SELECT 't' || n, 1, 'm' || n %% 4, n %% 4,"
            "  CASE WHEN n %% 10 = 0 THEN 'parked' WHEN n %% 100 = 1 THEN 'running' ELSE 'ready' END, now(), now(),"
            "  CASE WHEN n %% 10 = 0 OR n %% 100 = 1 THEN now() + interval '1 hour' END,"
            "  CASE WHEN n %% 3 = 0 THEN now() + interval '1 day' END, 3, n FROM generate_series(1, %s) AS n",
            [ROWS],
        )
        await connection.execute("VACUUM ANALYZE")
    return pool


# Name, statement, parameters, the indexes it must use, and the pages it may touch (of some 700 in queue and hops).
STATEMENTS: list[tuple[str, LiteralString, dict[str, Any], set[str], int]] = [
    (
        "claim",
        claim._BY_PRIORITY,
        {"modes": ["m1", "m2"], "limits": [4, 4], "worker": "w", "lease": timedelta(minutes=1)},
        {"queue_ready"},
        300,
    ),
    (
        "claim by age",
        claim._BY_AGE,
        {"modes": ["m1", "m2"], "limits": [4, 4], "worker": "w", "lease": timedelta(minutes=1)},
        {"queue_ready_by_age"},
        300,
    ),
    ("sweep for ttls", sweep._EXPIRED, {}, {"queue_expiring"}, 20),
    ("sweep for what is due", sweep._DUE, {}, {"queue_due"}, 20),
    (
        "heartbeat",
        claim._HEARTBEAT,
        {
            "tasks": ["t1", "t101"],
            "tokens": [1, 101],
            "lease": timedelta(minutes=1),
            "worker": "w",
            "modes": ["m1"],
            "listener": "listening",
        },
        {"queue_pkey"},
        60,
    ),
]


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


@pytest.mark.parametrize("generic", [False, True], ids=["as executed first", "as prepared"])
async def test_claim_sweep_and_heartbeat_read_by_index_Q12(filled: Pool, generic: bool) -> None:
    for name, statement, parameters, indexes, most in STATEMENTS:
        # Prepared statements may be planned without their values: psycopg prepares what is repeated.
        async with filled.connection() as connection, connection.transaction(force_rollback=True):
            mode = "force_generic_plan" if generic else "force_custom_plan"
            await connection.execute(f"SET LOCAL plan_cache_mode = {mode}")
            cursor = await connection.execute(
                "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + statement, parameters, prepare=generic
            )
            row = await cursor.fetchone()
        assert row is not None
        explained = row[0] if isinstance(row[0], list) else json.loads(row[0])
        found = list(nodes(explained[0]["Plan"]))
        scanned = {node["Relation Name"] for node in found if node["Node Type"] == "Seq Scan"}
        assert scanned & {"queue", "tasks", "hops"} == set(), name
        used = {node["Index Name"] for node in found if "Index Name" in node}
        assert used >= indexes, (name, used)
        pages = explained[0]["Plan"]["Shared Hit Blocks"] + explained[0]["Plan"]["Shared Read Blocks"]
        print(f"{name}: {pages} pages, {sorted(used)}")
        # Not only the right nodes: an index that is read from end to end is a right node too.
        assert pages < most, name
