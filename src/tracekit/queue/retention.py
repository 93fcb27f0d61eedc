"""Retention: partitions of the record for the weeks to come, and the end of those that nobody need remember (Q12).

A task's id begins with the time of its making, and the record is partitioned by it: a week of tasks is one partition,
dropped whole together with their envelopes and all else that tells of them. A week in which a task is still open, or
lies in the DLQ, is kept until it is not. What has no partition (made before there were any, or under a clock that was
far off) is deleted task by task.

Any process may do it, and any number at once: an advisory lock lets one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

from psycopg import AsyncConnection, sql

from tracekit import ids

AHEAD = 2
"""Weeks that have a partition before they begin. Each partition makes a claim dearer, which looks a hop's input up in
the one that has it, but whose plan is of all: with 23 in place of 10 a claim of one hop takes a sixth longer.
"""

_NAME = re.compile(r"record_(\d{4})w(\d{2})")
_WEEK = timedelta(weeks=1)
_PORTION = 1_000

# Of each table, the column that says which task a row tells of. The record itself goes by partition.
_TABLES: tuple[tuple[LiteralString, LiteralString], ...] = (
    ("envelopes", "id"),
    ("waits", "task_id"),
    ("effects", "task_id"),
    ("dead_letters", "task_id"),
    ("outbox", "task_id"),
    ("kept_spans", "task_id"),
    ("usage", "task_id"),
    ("reservations", "task_id"),
    ("budget_counters", "task_id"),
    ("budget_grants", "task_id"),
)

_LIVE: LiteralString = """
SELECT EXISTS (SELECT FROM tracekit.queue WHERE task_id >= %(first)s AND task_id < %(next)s)
    OR EXISTS (SELECT FROM tracekit.dead_letters
               WHERE resolved_at IS NULL AND task_id >= %(first)s AND task_id < %(next)s)
"""

_OLD_WITHOUT_PARTITION: LiteralString = """
SELECT DISTINCT r.task_id FROM tracekit.record_rest AS r
WHERE r.task_id < %(before)s
  AND NOT EXISTS (SELECT FROM tracekit.queue AS q WHERE q.task_id = r.task_id)
  AND NOT EXISTS (SELECT FROM tracekit.dead_letters AS d WHERE d.task_id = r.task_id AND d.resolved_at IS NULL)
LIMIT %(portion)s
"""

# Signals name a key and no task; one that still stands for the end of a wait is its wait's.
_OLD_SIGNALS: LiteralString = """
DELETE FROM tracekit.signals AS s
WHERE s.received_at < %(before)s AND NOT EXISTS (SELECT FROM tracekit.waits AS w WHERE w.signal_id = s.id)
"""
_OLD_REFUSALS: LiteralString = "DELETE FROM tracekit.kept_spans WHERE task_id IS NULL AND end_time < %(before)s"


@dataclass(frozen=True, slots=True)
class Kept:
    """What was done."""

    made: list[str]
    """Partitions for weeks to come."""
    dropped: list[str]
    """Partitions that went, each with its week of tasks."""
    deleted: int
    """Tasks that had no partition, and went."""
    held: list[str]
    """Partitions old enough to go, with a task that is not over."""


async def keep_history(connection: AsyncConnection[Any], keep: timedelta) -> Kept | None:
    """Make partitions ahead, and let go of tasks made longer than `keep` ago. None: somebody else is at it.

    `connection` is in autocommit. No lock is waited for longer than half a second, since everybody would queue
    behind it: what does not succeed is for the next time. Raises `psycopg.errors.LockNotAvailable`.
    """
    async with connection.transaction():
        if not await _may(connection):
            return None
        now = (await _row(connection, "SELECT statement_timestamp()"))[0].astimezone(UTC)
        made = await _make(connection, now)
    dropped, held = [], []
    for name, first, after in await _partitions(connection):
        if after > now - keep:
            break
        bounds = {"first": ids.first_task_id(first), "next": ids.first_task_id(after)}
        async with connection.transaction():
            if not await _may(connection):
                return None
            if (await _row(connection, _LIVE, bounds))[0]:
                held.append(name)
                continue
            for table, column in _TABLES:
                statement: LiteralString = (
                    f"DELETE FROM tracekit.{table} WHERE {column} >= %(first)s AND {column} < %(next)s"
                )
                await connection.execute(statement, bounds)
            # Last, for it is in everybody's way until the commit.
            await connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier("tracekit", name)))
            dropped.append(name)
    return Kept(made, dropped, await _delete_rest(connection, now - keep), held)


async def _make(connection: AsyncConnection[Any], now: datetime) -> list[str]:
    there = {name for name, _, _ in await _partitions(connection)}
    made = []
    week = _monday(now)
    for first in (week + n * _WEEK for n in range(AHEAD + 1)):
        name = f"record_{first.isocalendar().year}w{first.isocalendar().week:02}"
        bounds = {"first": ids.first_task_id(first), "next": ids.first_task_id(first + _WEEK)}
        if name in there:
            continue
        rest = "SELECT EXISTS (SELECT FROM tracekit.record_rest WHERE task_id >= %(first)s AND task_id < %(next)s)"
        if (await _row(connection, rest, bounds))[0]:
            continue  # it has begun without one
        await connection.execute(
            sql.SQL("CREATE TABLE {} PARTITION OF tracekit.record FOR VALUES FROM ({}) TO ({})").format(
                sql.Identifier("tracekit", name), bounds["first"], bounds["next"]
            )
        )
        made.append(name)
    return made


async def _delete_rest(connection: AsyncConnection[Any], before: datetime) -> int:
    deleted = 0
    while True:
        async with connection.transaction():
            if not await _may(connection):
                return deleted
            await connection.execute(_OLD_SIGNALS, {"before": before})
            await connection.execute(_OLD_REFUSALS, {"before": before})
            parameters = {"before": ids.first_task_id(before), "portion": _PORTION}
            cursor = await connection.execute(_OLD_WITHOUT_PARTITION, parameters)
            old = [row[0] for row in await cursor.fetchall()]
            await forget(connection, old)
        deleted += len(old)
        if len(old) < _PORTION:
            return deleted


async def forget(connection: AsyncConnection[Any], task_ids: list[str]) -> None:
    """Delete all that tells of these tasks, in the caller's transaction."""
    for table, column in (*_TABLES, ("record", "task_id")):
        statement: LiteralString = f"DELETE FROM tracekit.{table} WHERE {column} = ANY(%s)"
        await connection.execute(statement, [task_ids])


async def _may(connection: AsyncConnection[Any]) -> bool:
    await connection.execute("SET LOCAL lock_timeout = '500ms'")
    found = await _row(connection, "SELECT pg_try_advisory_xact_lock(hashtext('tracekit.retention'))")
    return bool(found[0])


async def _partitions(connection: AsyncConnection[Any]) -> list[tuple[str, datetime, datetime]]:
    """The weeks that have one, the oldest first: its name, when it begins, and when the next one does."""
    cursor = await connection.execute(
        "SELECT c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = 'tracekit.record'::regclass"
    )
    found = []
    for (name,) in await cursor.fetchall():
        if match := _NAME.fullmatch(name):
            first = datetime.fromisocalendar(int(match[1]), int(match[2]), 1).replace(tzinfo=UTC)
            found.append((name, first, first + _WEEK))
    return sorted(found, key=lambda partition: partition[1])


def _monday(moment: datetime) -> datetime:
    day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    return day - timedelta(days=day.weekday())


async def _row(connection: AsyncConnection[Any], query: LiteralString, parameters: Any = None) -> Any:
    row = await (await connection.execute(query, parameters)).fetchone()
    assert row is not None, "it asks for one row"
    return row
