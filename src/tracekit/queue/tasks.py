"""Looking tasks up: by id, by trace, by a unique prefix of either, and in lists."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import class_row

from tracekit import ids
from tracekit.queue.model import Json, TaskNotFound

SYNTHETIC_SURFACE = "demo-week"
"""The surface of tasks that never were: a demonstration made them up. The view `grafana.tasks` goes by it too. Tags are
no mark of it, since a requester chooses them.
"""


@dataclass(frozen=True, slots=True)
class Task:
    """A task as it stands: its envelope, its state, and where it is now."""

    id: str
    trace_id: str
    origin: str
    surface: str
    requester: str
    intent: str
    rank: int
    destructive: bool
    data_tier: str
    tags: list[str]
    review_of: str | None
    state: str
    summary: str | None
    created_at: datetime
    expires_at: datetime | None
    ended_at: datetime | None
    hop: int | None
    """The current hop; None once the task has left the queue."""
    mode: str | None
    hop_state: str | None
    """`ready`, `scheduled`, `running` or `parked`."""
    attempt: int | None
    max_attempts: int | None
    worker: str | None
    ready_at: datetime | None
    claimed_at: datetime | None
    due_at: datetime | None
    wait_kind: str | None
    now: datetime
    """The database's time of this reading."""

    @property
    def synthetic(self) -> bool:
        """Whether a demonstration made it up."""
        return self.surface == SYNTHETIC_SURFACE


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a task's record. `seq` grows within a task in the order of commits."""

    seq: int
    task_id: str
    at: datetime
    kind: str
    hop: int | None
    mode: str | None
    attempt: int | None
    data: dict[str, Json]


_TASK = """
SELECT t.id, t.trace_id, t.origin, t.surface, t.requester, t.intent, t.priority AS rank, t.destructive, t.data_tier,
       t.tags, t.review_of, t.state, t.summary, t.created_at, t.expires_at, t.ended_at, q.hop, q.mode,
       q.state AS hop_state, q.attempt, q.max_attempts, q.worker, q.ready_at, q.claimed_at, q.due_at,
       CASE q.state WHEN 'parked' THEN w.kind END AS wait_kind, clock_timestamp() AS now
FROM tracekit.tasks AS t
LEFT JOIN tracekit.queue AS q ON q.task_id = t.id
LEFT JOIN tracekit.waits AS w ON (w.task_id, w.hop, w.attempt) = (q.task_id, q.hop, q.wait_attempt)
"""


async def task(connection: AsyncConnection[Any], task_id: str) -> Task:
    """The task of an id. Raises `TaskNotFound`."""
    async with connection.cursor(row_factory=class_row(Task)) as cursor:
        await cursor.execute(f"{_TASK} WHERE t.id = %s", [task_id])
        found = await cursor.fetchone()
    if found is None:
        raise TaskNotFound(f"there is no task {task_id}", hint="`tracekit tasks` lists the newest")
    return found


async def resolve_id(connection: AsyncConnection[Any], reference: str) -> str:
    """The id of the one task that `reference` names: a task id, a trace id, or a prefix that fits only one.

    Raises `TaskNotFound`, which lists the candidates where there are several; for what is no text UnicodeEncodeError.
    """
    reference.encode()
    if not re.fullmatch("[0-9A-Za-z]{1,32}", reference):
        raise TaskNotFound(f"no task or trace begins with {reference!r}", hint="`tracekit tasks` lists the newest")
    # A trace that began here has its task's id in hex: what its prefix fits is a range of ids. Ranges, not LIKE: for
    # that the planner would have to know the value to use an index.
    cursor = await connection.execute(
        "(SELECT id, intent FROM tracekit.envelopes WHERE id BETWEEN %(id)s AND %(id)s || '~' ORDER BY id LIMIT 6)"
        " UNION (SELECT id, intent FROM tracekit.envelopes"
        "  WHERE parent_span_id IS NOT NULL AND trace_id BETWEEN %(trace)s AND %(trace)s || '~' ORDER BY id LIMIT 6)"
        " UNION (SELECT id, intent FROM tracekit.envelopes"
        "  WHERE parent_span_id IS NULL AND id BETWEEN %(first)s AND %(last)s ORDER BY id LIMIT 6)"
        " ORDER BY id LIMIT 6",
        {"id": reference.upper(), "trace": reference.lower(), **_ids_of_trace(reference.lower())},
    )
    found = await cursor.fetchall() if reference else []
    if len(found) == 1:
        return str(found[0][0])
    if not found:
        raise TaskNotFound(f"no task or trace begins with {reference!r}", hint="`tracekit tasks` lists the newest")
    listed = ", ".join(row[0] for row in found[:5]) + (", …" if len(found) > 5 else "")
    raise TaskNotFound(f"{reference!r} fits several tasks: {listed}", hint="give more of the id")


def _ids_of_trace(prefix: str) -> dict[str, str | None]:
    if not re.fullmatch("[0-9a-f]{1,32}", prefix):
        return {"first": None, "last": None}
    return {"first": ids.task_id_of(prefix.ljust(32, "0")), "last": ids.task_id_of(prefix.ljust(32, "f"))}


async def tasks(
    connection: AsyncConnection[Any],
    *,
    states: Sequence[str] = (),
    mode: str | None = None,
    requester: str | None = None,
    origin: str | None = None,
    limit: int = 50,
) -> list[Task]:
    """Tasks, the newest first. An empty filter filters nothing."""
    async with connection.cursor(row_factory=class_row(Task)) as cursor:
        await cursor.execute(
            f"{_TASK} WHERE (cardinality(%(states)s::text[]) = 0 OR t.state = ANY(%(states)s))"
            " AND (%(mode)s::text IS NULL OR q.mode = %(mode)s)"
            " AND (%(requester)s::text IS NULL OR t.requester = %(requester)s)"
            " AND (%(origin)s::text IS NULL OR t.origin = %(origin)s)"
            " ORDER BY t.id DESC LIMIT %(limit)s",
            {"states": list(states), "mode": mode, "requester": requester, "origin": origin, "limit": limit},
        )
        return await cursor.fetchall()


async def events(connection: AsyncConnection[Any], task_id: str, *, since_seq: int = 0) -> list[Event]:
    """A task's record after `since_seq`. What is read once need not be read again: nothing is added before it."""
    async with connection.cursor(row_factory=class_row(Event)) as cursor:
        await cursor.execute(
            "SELECT seq, task_id, at, kind, hop, mode, attempt, data FROM tracekit.events"
            " WHERE task_id = %s AND seq > %s ORDER BY seq",
            [task_id, since_seq],
        )
        return await cursor.fetchall()
