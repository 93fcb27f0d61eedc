"""Enqueueing: what a receipt says whoever else offers the same, and what is kept of tasks that are offered together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import psycopg
import pytest

from tests.queue.driving import submission
from tests.support.processes import eventually
from tracekit import ids
from tracekit.envelope import Envelope, Origin, Priority, RetryPolicy, TaskRequest
from tracekit.postgres import Connection, Pool, connect
from tracekit.queue import Queue, Receipt, Submission
from tracekit.queue.enqueue import MANY, enqueue
from tracekit.queue.submission import Received

OWN = pytest.mark.parametrize("own", [True, False], ids=["own transaction", "caller's transaction"])


async def offered(connection: Connection, own: bool, submissions: Sequence[Submission]) -> list[Receipt]:
    """By a connection in autocommit: in a transaction of its own, or of the caller's."""
    if own:
        return await enqueue(connection, submissions)
    async with connection.transaction():
        return await enqueue(connection, submissions)


async def blocked(pool: Pool, pid: int) -> None:
    async def look() -> bool:
        async with pool.connection() as connection:
            cursor = await connection.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", [pid])
            return await cursor.fetchone() == (True,)

    await eventually(look, "a backend that waits for another")


# An index between that of the id and that of the key, in which an insert that is told so is held up.
BETWEEN = (
    "CREATE FUNCTION tracekit.held(id text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS"
    " 'BEGIN IF current_setting(''tracekit.held'', true) = ''on'' THEN"
    " PERFORM pg_advisory_xact_lock_shared(4711); END IF; RETURN id; END'",
    "CREATE INDEX envelopes_held ON tracekit.envelopes (tracekit.held(id))",
    "ALTER TABLE tracekit.envelopes DROP CONSTRAINT envelopes_key,"
    " ADD CONSTRAINT envelopes_key UNIQUE (idempotency_key, origin)",
)


@OWN
@pytest.mark.parametrize("more", [0, MANY], ids=["few", "many"])
async def test_the_same_submission_offered_twice_at_once_has_one_receipt_Q5(
    queue: Queue, pool: Pool, dsn: str, own: bool, more: int
) -> None:
    """As by a request that is sent once more while the first, whose connection was lost, is being written: its id is
    in its index, and its key not yet in that of the keys.
    """
    same = submission()
    async with (
        await connect(dsn, autocommit=True) as first,
        await connect(dsn, autocommit=True) as second,
        await connect(dsn, autocommit=True) as other,
    ):
        for statement in BETWEEN:
            await other.execute(statement)
        await other.execute("SELECT pg_advisory_lock(4711)")
        await first.execute("SET tracekit.held = 'on'")
        offering = asyncio.create_task(enqueue(first, [same]))
        await blocked(pool, first.info.backend_pid)
        new = [submission() for _ in range(more)]
        once_more = asyncio.create_task(offered(second, own, [*new, same]))
        await blocked(pool, second.info.backend_pid)
        await other.execute("SELECT pg_advisory_unlock(4711)")
        [receipt] = await offering
        *others, again = await once_more
    assert not receipt.duplicate
    assert again == Receipt(receipt.task_id, receipt.trace_id, True, receipt.created_at)
    assert [(r.task_id, r.duplicate) for r in others] == [(s.envelope.id, False) for s in new]
    assert len(await queue.tasks(limit=1000)) == 1 + more


async def test_an_id_that_is_anothers_is_refused_and_takes_nobody_with_it_Q5(queue: Queue) -> None:
    taken = submission()
    await queue.enqueue([taken])
    envelope = taken.envelope.model_copy(update={"idempotency_key": "another"})
    refused, accepted = await asyncio.gather(
        queue.enqueue([Submission(envelope)]), queue.enqueue([submission()]), return_exceptions=True
    )
    assert isinstance(refused, psycopg.errors.UniqueViolation)
    assert isinstance(accepted, list)
    assert len(await queue.tasks()) == 2


@OWN
async def test_a_key_whose_task_goes_while_it_is_offered_is_a_new_task_Q5(pool: Pool, dsn: str, own: bool) -> None:
    """History that is over may go at any time: here when the key was found, and its task not yet."""
    known = submission(key="known")
    async with await connect(dsn, autocommit=True) as connection, await connect(dsn, autocommit=True) as other:
        [old] = await enqueue(connection, [known])
        # An insert is held up at its end, when all keys have been looked for.
        await connection.execute(
            "CREATE FUNCTION pg_temp.held() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM pg_advisory_xact_lock_shared(4711); RETURN NULL; END'"
        )
        await connection.execute(
            "CREATE TRIGGER held AFTER INSERT ON tracekit.envelopes EXECUTE FUNCTION pg_temp.held()"
        )
        await other.execute("SELECT pg_advisory_lock(4711)")
        again = [submission(key="before"), submission(key="known"), submission(key="after")]
        offering = asyncio.create_task(offered(connection, own, again))
        await blocked(pool, connection.info.backend_pid)
        await other.execute("DELETE FROM tracekit.queue WHERE task_id = %s", [old.task_id])
        await other.execute("DELETE FROM tracekit.envelopes WHERE id = %s", [old.task_id])
        await other.execute("SELECT pg_advisory_unlock(4711)")
        receipts = await offering
        await connection.execute("DROP TRIGGER held ON tracekit.envelopes")
    assert [(r.task_id, r.duplicate) for r in receipts] == [(s.envelope.id, False) for s in again]


@OWN
@pytest.mark.parametrize("more", [0, MANY], ids=["few", "many"])
async def test_known_keys_among_new_ones_are_answered_each_with_its_first_task_Q5(
    queue: Queue, pool: Pool, own: bool, more: int
) -> None:
    [known] = await queue.enqueue([submission(key="known")])
    twice = submission(key="twice")
    new = [submission() for _ in range(more)]
    async with pool.connection() as connection:
        receipts = await offered(connection, own, [submission(key="known"), twice, *new, submission(key="twice")])
    assert receipts[0] == Receipt(known.task_id, known.trace_id, True, known.created_at)
    assert [(r.task_id, r.duplicate) for r in receipts[1:-1]] == [(s.envelope.id, False) for s in (twice, *new)]
    assert receipts[-1] == Receipt(twice.envelope.id, twice.envelope.trace_id, True, receipts[1].created_at)
    assert len(await queue.claim("w1", {"router": 1000}, timedelta(minutes=1))) == 2 + more


async def test_tasks_offered_together_keep_each_what_is_its_own_Q1_T1(queue: Queue, pool: Pool) -> None:
    """They share a statement, and mostly nearly everything else."""
    odd = '",\\{}NULL"\\'
    policies = [RetryPolicy(), RetryPolicy(max_attempts=2, initial_delay=timedelta(seconds=0.5))]
    parent = ids.new_span_id()
    submissions = [
        Submission(
            Envelope.seal(
                TaskRequest(
                    intent=f"{odd} {number}",
                    idempotency_key=f"{odd} {number}",
                    priority=list(Priority)[number % 4],
                    destructive=number % 3 == 0,
                    ttl=timedelta(hours=1) if number % 2 else None,
                    retry_policy=policies[number % 2],
                ),
                origin=list(Origin)[number % 3],
                surface=f"surface-{number % 2}",
                requester=f"requester-{number % 5}",
                trace_id=ids.new_trace_id(),
                parent_span_id=parent if number % 4 == 1 else None,
                trace_state="vendor=x" if number % 4 == 1 else "",
            ),
            mode=f"mode {odd}" if number % 2 else "router",
            input={odd: [odd, number, 1.5, None, True, {"ü": []}]},
            received=Received("POST", 0.25, {"http.route": odd}) if number % 5 == 2 else None,
            tags=("NULL", odd) if number % 5 == 3 else (),
            review_of="dead" if number % 5 == 4 else None,
            link=(ids.new_trace_id(), parent) if number % 5 == 4 else None,
        )
        for number in range(24)
    ]
    receipts = await queue.enqueue(submissions)
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT e.id, trace_id, parent_span_id, trace_state, origin, surface, requester, intent, e.priority,"
            " destructive, idempotency_key, extract(epoch FROM e.expires_at - e.created_at)::float8, retry_policy,"
            " data_tier, tags, review_of, link, received, input, e.created_at, q.mode, q.priority, q.max_attempts"
            " FROM tracekit.envelopes AS e JOIN tracekit.queue AS q ON (q.task_id, q.mode) = (e.id, e.mode)"
            " AND q.expires_at IS NOT DISTINCT FROM e.expires_at AND (q.ready_at, q.hop) = (e.created_at, 1)"
        )
        kept = {row[0]: row for row in await cursor.fetchall()}
    for given, receipt in zip(submissions, receipts, strict=True):
        e, received, link = given.envelope, given.received, given.link
        assert kept.pop(e.id) == (
            e.id, e.trace_id, e.parent_span_id, e.trace_state, e.origin, e.surface, e.requester, e.intent,
            e.priority.rank, e.destructive, e.idempotency_key, e.ttl.total_seconds() if e.ttl else None,
            e.retry_policy.model_dump(mode="json"), e.data_tier, list(given.tags), given.review_of,
            {"trace_id": link[0], "span_id": link[1]} if link else None,
            {"name": received.name, "duration": received.duration, "attributes": received.attributes}
            if received else None,
            given.input, receipt.created_at, given.mode, e.priority.rank, e.retry_policy.max_attempts,
        )  # fmt: skip
    assert not kept
