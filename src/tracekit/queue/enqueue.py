"""Enqueueing: tasks into the queue, in one statement, inside whatever transaction the caller has."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool

from tracekit.postgres import is_away, writable
from tracekit.queue.model import Receipt
from tracekit.queue.submission import ACCEPT, ACCEPT_NEW, Submission, offer


async def enqueue(
    connection: AsyncConnection[Any], submissions: Sequence[Submission], texts: Sequence[str] | None = None
) -> list[Receipt]:
    """Accept tasks, one receipt for each submission, in order. Raises `PayloadRefused`, and then none is accepted.

    In a transaction of the caller's the tasks become real, and sleeping workers are woken, with its commit. `texts` are
    the inputs as JSON, where somebody has them already.
    """
    if not submissions:
        return []
    texts = [submission.text() for submission in submissions] if texts is None else texts
    if not connection.autocommit and connection.info.transaction_status is TransactionStatus.IDLE:
        # The caller's transaction begins here. `transaction()` would begin one of its own, and commit it.
        await connection.execute("SELECT 1")
    statement = ACCEPT_NEW if len(submissions) >= MANY else ACCEPT
    for left in reversed(range(TRIES)):
        try:
            if connection.info.transaction_status is TransactionStatus.IDLE:
                # One statement is one transaction: a commit with a single round.
                return await _accept(connection, statement, submissions, texts)
            async with connection.transaction():
                return await _accept(connection, statement, submissions, texts)
        except psycopg.errors.UniqueViolation:
            # Not all of many were new. Or the same submission is offered elsewhere at the same moment, such as a
            # request that was sent once more: before its key is found its id is, once that one is committed.
            if not left:
                raise
            statement = ACCEPT
    raise AssertionError("the last try returns or raises")


async def _accept(
    connection: AsyncConnection[Any], statement: LiteralString, submissions: Sequence[Submission], texts: Sequence[str]
) -> list[Receipt]:
    cursor = await connection.execute(statement, offer(submissions, texts), prepare=True)
    row = await cursor.fetchone()
    assert row is not None
    accepted_at, accepted, _ = row
    if accepted is None:
        return [Receipt(s.envelope.id, s.envelope.trace_id, False, accepted_at) for s in submissions]
    new = set(accepted)
    first = await _first(connection, [s for s in submissions if s.envelope.id not in new])
    receipts = [
        Receipt(s.envelope.id, s.envelope.trace_id, False, accepted_at)
        if s.envelope.id in new
        else first.get((s.envelope.origin.value, s.envelope.idempotency_key))
        for s in submissions
    ]
    if gone := [number for number, receipt in enumerate(receipts) if receipt is None]:
        # History went between the two statements, and with it the tasks whose keys these have.
        offered_again = [submissions[number] for number in gone]
        again = await _accept(connection, ACCEPT, offered_again, [texts[number] for number in gone])
        for number, receipt in zip(gone, again, strict=True):
            receipts[number] = receipt
    return [receipt for receipt in receipts if receipt is not None]


async def _first(connection: AsyncConnection[Any], known: Sequence[Submission]) -> dict[tuple[str, str], Receipt]:
    """The receipts of the tasks that were first with these keys, by origin and key. A statement of its own has a newer
    snapshot: it sees the task that the one before ran into.
    """
    cursor = await connection.execute(
        "SELECT e.origin, e.idempotency_key, e.id, e.trace_id, e.created_at FROM tracekit.envelopes AS e"
        " JOIN unnest(%s::text[], %s::text[]) AS k(origin, idempotency_key) USING (origin, idempotency_key)",
        [[s.envelope.origin.value for s in known], [s.envelope.idempotency_key for s in known]],
    )
    return {
        (origin, key): Receipt(task_id, trace_id, True, created_at)
        async for origin, key, task_id, trace_id, created_at in cursor
    }


@dataclass(frozen=True, slots=True)
class _Waiting:
    """One call, and what it waits for."""

    submissions: Sequence[Submission]
    texts: Sequence[str]
    answer: asyncio.Future[list[Receipt]]


class Enqueuer:
    """Enqueues what a process's callers offer at the same time in one commit.

    A lone call is written at once. What is offered while `WRITERS` commits are under way goes with the next one:
    waiting for the disk is most of a commit, and shared it costs each a fraction. No call waits for a batch to fill.

    `timeout`: seconds for one commit.
    """

    def __init__(self, pool: AsyncConnectionPool[Any], *, timeout: float = 30.0) -> None:
        self._pool = pool
        self._timeout = timeout
        self._waiting: list[_Waiting] = []
        self._writing: set[asyncio.Task[None]] = set()
        self._under_way = 0

    async def enqueue(self, submissions: Sequence[Submission]) -> list[Receipt]:
        """As `enqueue`, in a transaction of its own or shared. What the database refuses fails alone."""
        answer: asyncio.Future[list[Receipt]] = asyncio.get_running_loop().create_future()
        # What cannot be kept is refused before it meets the others.
        texts = [submission.text() for submission in submissions]
        self._waiting.append(_Waiting(submissions, texts, answer))
        if len(self._writing) < WRITERS:
            self._writing.add(asyncio.create_task(self._write_all()))
        return await answer

    async def _write_all(self) -> None:
        batch: Sequence[_Waiting] = ()
        try:
            while self._waiting:
                try:
                    async with writable(self._pool) as connection:
                        while batch := self._next():
                            self._under_way += 1
                            try:
                                await self._write(connection, batch)
                            finally:
                                self._under_way -= 1
                            # Whoever has got an answer may have more, and the connection is at hand.
                            await asyncio.sleep(0)
                except Exception as error:
                    # Without a connection nobody's call can be written.
                    _fail(batch or self._waiting, error)
                    batch = ()
                    self._waiting = [one for one in self._waiting if not one.answer.done()]
        except BaseException as error:
            _fail([*batch, *self._waiting], error)
            raise
        finally:
            # In the same breath as the look that found nothing: who comes after it begins anew.
            writer = asyncio.current_task()
            assert writer is not None, "it runs as a task"
            self._writing.discard(writer)

    def _next(self) -> Sequence[_Waiting]:
        """What goes into the next commit: what waits, shared with the other writers that are free."""
        self._waiting = [one for one in self._waiting if not one.answer.done()]
        share = max(WHOLE, -(-len(self._waiting) // (WRITERS - self._under_way)))
        count, tasks = 0, 0
        for one in self._waiting[:share]:
            tasks += len(one.submissions)
            if count and tasks > MOST:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    async def _write(self, connection: AsyncConnection[Any], batch: Sequence[_Waiting]) -> None:
        submissions = [s for one in batch for s in one.submissions]
        texts = [text for one in batch for text in one.texts]
        try:
            async with asyncio.timeout(self._timeout):
                receipts = await enqueue(connection, submissions, texts)
        except Exception as error:
            if is_away(error):
                raise
            if len(batch) == 1:
                _fail(batch, error)
                return
            for one in batch:
                await self._write(connection, [one])
            return
        at = 0
        for one in batch:
            if not one.answer.done():
                one.answer.set_result(receipts[at : at + len(one.submissions)])
            at += len(one.submissions)


MANY = 100
"""Tasks that are first offered as if all were new: looking for each key, and an insert that can be taken back, are a
seventh of what they cost. Where one was known all are offered once more, and PostgreSQL logs an error.
"""

TRIES = 3
"""How often the same tasks are offered where somebody else is offering some of them at the same time."""

WRITERS = 2
"""Commits under way at once: while one waits for the disk, the next is made."""

WHOLE = 8
"""Calls that are not worth parting: a commit of few costs nearly as much as one of twice as many."""

MOST = 1_000
"""Tasks in one commit; a single call may bring more."""


def _fail(batch: Sequence[_Waiting], error: BaseException) -> None:
    for one in batch:
        if not one.answer.done():
            if isinstance(error, asyncio.CancelledError):
                one.answer.cancel()
            else:
                one.answer.set_exception(error)
