"""The audit: does the record of a window hold together (T11)?

Every check is a set of rows that should be empty, each naming a task and what is missing or too much. One statement
asks them all, so they see one moment of the database, live tasks included; what is found is read in portions.

Spans are derived from the record. So the record itself is checked line by line: that each attempt has its line, that
hops follow from each other, that each line has what its spans are made of. And then the spans are looked at as whoever
receives them sees them: the ids that must be there follow from queue, waits, DLQ and the counts of hops and attempts.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import class_row

from tracekit.queue.checks import AUDIT, EXTENT, statement

SDK_LAG = timedelta(seconds=30)
"""Spans that the SDK made reach the record in batches, a child before its parent: what is younger than this may still
be incomplete. The task's own spans are there with what they describe, and need no such allowance."""

_PORTION = 500


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not hold together."""

    task_id: str
    trace_id: str
    """Empty where nothing says what the task's trace is."""
    check: str
    """What kind of thing it is, such as `root-missing`."""
    detail: str


@dataclass(frozen=True, slots=True)
class Extent:
    """What was looked at."""

    tasks: int
    ended: int
    open: int
    dead: int
    hops: int
    attempts: int
    spans: int


async def audit(
    connection: AsyncConnection[Any],
    *,
    since: datetime | timedelta | None = None,
    until: datetime | None = None,
    lag: timedelta = SDK_LAG,
) -> AsyncGenerator[Finding | Extent, None]:
    """Check the record of all tasks that were alive in the window: first its extent, then what does not hold together.

    `since`: a moment, or how long before the database's now; None: from the beginning. Findings come by task, in
    portions: however many there are, few are in memory. Nothing is changed.
    """
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        # It reads whole tables, plans for what it is asked, and may have a reader who takes his time (see `open_pool`).
        await connection.execute("SET LOCAL enable_seqscan = on")
        await connection.execute("SET LOCAL plan_cache_mode = auto")
        await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        await connection.execute("SET LOCAL work_mem = '64MB'")
        # Nor does it know how many rows there are in any of its parts, and sorts them where it need not.
        await connection.execute("SET LOCAL enable_mergejoin = off")
        if isinstance(since, timedelta):
            cursor = await connection.execute("SELECT clock_timestamp() - %s::interval", [since])
            row = await cursor.fetchone()
            assert row is not None, "a SELECT without FROM answers one row"
            since = row[0]
        whole = since is None and until is None
        window = {"since": since, "until": until, "lag": lag}
        async with connection.cursor(row_factory=class_row(Extent)) as counted:
            await counted.execute(statement(EXTENT, whole), window)
            extent = await counted.fetchone()
            assert extent is not None, "counts answer one row"
            yield extent
        async with connection.cursor(name="audit", row_factory=class_row(Finding)) as findings:
            findings.itersize = _PORTION
            await findings.execute(statement(AUDIT, whole), window)
            async for finding in findings:
                yield finding
