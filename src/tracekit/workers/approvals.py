"""Approvals: how a person is asked, and how their answer is bound to what they saw.

The guardian parks a plan under a key that names the task, the plan's hash and the round of asking. A decision is a
signal on that key, and the first one counts (P5). The executor looks the decision up before the first step.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import dict_row
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tracekit.envelope import DataTier, Priority
from tracekit.errors import TracekitError
from tracekit.queue import Queue, TaskNotFound
from tracekit.queue.model import Json, Signal
from tracekit.queue.payload import plain_text

KIND = "approval"
"""Of the wait."""

Decision = Literal["approve", "reject", "defer"]
DECISIONS: tuple[Decision, ...] = ("approve", "reject", "defer")
PAST: dict[str, str] = {"approve": "approved", "reject": "rejected", "defer": "deferred"}

SHORTEST_DEFERRAL = timedelta(minutes=1)
LONGEST_DEFERRAL = timedelta(days=30)


class ApprovalRefused(TracekitError):
    """A decision that does not count, and why; nothing was changed."""

    exit_code = 2

    def __init__(self, reason: str, *, hint: str = "`tracekit approvals` lists what waits for a decision") -> None:
        super().__init__(reason, hint=hint)


@dataclass(frozen=True, slots=True)
class Approval:
    """A plan that waits for a person, as they are shown it."""

    task_id: str
    trace_id: str
    key: str
    plan_hash: str
    plan: dict[str, Json]
    requester: str
    intent: str
    urgent: bool
    opened_at: datetime
    deadline: datetime
    """When the task expires, unexecuted: the wait's deadline, or the task's own ttl where that is sooner."""
    round: int
    data_tier: DataTier = DataTier.INTERNAL
    what: tuple[str, ...] = ()
    """Each step in plain words."""
    why: tuple[str, ...] = ()
    """Why a person is asked."""

    @property
    def of_a_budget(self) -> bool:
        """Whether it is a call beyond its budget (`workers.over_budget`), and no plan."""
        return "over" in self.plan


@dataclass(frozen=True, slots=True)
class Decided:
    """What became of a decision. `accepted` False: somebody decided first, and the rest is what they decided."""

    accepted: bool
    decision: str
    by: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Claimed:
    """The plan, the round of asking and the decision that somebody names: by a link, or as an operator."""

    task_id: str
    key: str
    plan_hash: str
    decision: Decision
    expires_at: datetime


class Verdict(BaseModel):
    """What the signal of a decision carries."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    decision: Decision
    plan_hash: str
    reason: Annotated[str, Field(max_length=1_000)] = ""
    defer_seconds: Annotated[float, Field(ge=0, le=LONGEST_DEFERRAL.total_seconds())] = 3600


def in_utc(at: datetime) -> str:
    """`at` for people, to the minute: in UTC, whatever the time zone of the database's session."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def approval_key(task_id: str, plan_hash: str, round: int) -> str:
    """The key of one round of asking about one plan of one task."""
    return f"approval:{task_id}:{plan_hash}:{round}"


async def next_round(queue: Queue, task_id: str) -> tuple[int, datetime]:
    """The number of the task's next round of asking, and the database's time."""
    async with queue.connection() as connection:
        cursor = await connection.execute(
            "SELECT count(*) + 1, clock_timestamp() FROM tracekit.waits WHERE task_id = %s AND kind = %s",
            [task_id, KIND],
        )
        row = await cursor.fetchone()
    assert row is not None, "an aggregate answers one row"
    return row[0], row[1]


_APPROVALS: LiteralString = """
SELECT t.id AS task_id, t.trace_id, w.key, w.data, t.requester, t.intent, t.priority, t.data_tier, w.opened_at,
       least(w.deadline, q.expires_at) AS deadline, w.closed_at, w.resolution, t.state,
       s.payload, s.sent_by, s.received_at, clock_timestamp() < least(w.deadline, q.expires_at) AS in_time
FROM tracekit.waits AS w
JOIN tracekit.tasks AS t ON t.id = w.task_id
LEFT JOIN tracekit.queue AS q ON q.task_id = w.task_id
LEFT JOIN tracekit.signals AS s ON s.id = w.signal_id
WHERE w.kind = 'approval'
"""


async def pending(queue: Queue) -> list[Approval]:
    """What waits for a decision, the most urgent and the soonest to expire first."""
    async with queue.connection() as connection:
        rows = await _rows(connection, f"{_APPROVALS} AND w.closed_at IS NULL AND t.state = 'open'", {})
    approvals = [_approval(row) for row in rows]
    return sorted(approvals, key=lambda approval: (not approval.urgent, approval.deadline, approval.task_id))


async def find(queue: Queue, task_id: str) -> Approval:
    """What a task (its id, its trace's, or a prefix of one) waits for. Raises `TaskNotFound`."""
    known = await queue.resolve_id(task_id)
    async with queue.connection() as connection:
        rows = await _rows(
            connection, f"{_APPROVALS} AND w.task_id = %(task)s AND w.closed_at IS NULL", {"task": known}
        )
    if not rows:
        state = (await queue.task(known)).state
        raise TaskNotFound(
            f"task {known} waits for no approval: it is {state}",
            hint="`tracekit approvals` lists what waits for a decision",
        )
    return _approval(rows[0])


async def look_up(queue: Queue, claimed: Claimed) -> tuple[Approval, Decided | None]:
    """The approval that a link speaks of, and the decision where one was made already. Changes nothing.

    Raises `ApprovalRefused` where the link's time is over, or where it speaks of no plan that anybody was shown.
    """
    async with queue.connection() as connection:
        row = await _row(connection, claimed.task_id, claimed.key)
    if row is None or row["data"].get("plan_hash") != claimed.plan_hash:
        raise ApprovalRefused("this link belongs to no plan that waits here, or ever did")
    approval = _approval(row)
    return approval, _decided(row, approval)


async def decide(
    queue: Queue,
    approval: Approval,
    decision: Decision,
    *,
    by: str,
    reason: str = "",
    defer_for: timedelta = timedelta(hours=1),
) -> Decided:
    """Decide on exactly the plan that `approval` shows, as `by`. The first decision of a round counts, and is answered
    to whoever comes later (P5).

    Raises `ApprovalRefused` where the time is over or where another plan waits now.
    """
    if decision not in DECISIONS:
        raise ApprovalRefused(f"there is no decision {decision!r}", hint="approve, reject or defer")
    if decision == "defer" and not SHORTEST_DEFERRAL <= defer_for <= LONGEST_DEFERRAL:
        raise ApprovalRefused("a plan can be deferred by a minute at least and 30 days at most", hint="defer by 1 h")
    async with queue.connection() as connection:
        row = await _row(connection, approval.task_id, approval.key)
    if row is None or row["data"].get("plan_hash") != approval.plan_hash:
        raise ApprovalRefused(f"task {approval.task_id} does not wait for a decision on this plan")
    if (decided := _decided(row, approval)) is not None:
        return decided
    verdict = Verdict(
        decision=decision,
        plan_hash=approval.plan_hash,
        reason=plain_text(reason, 1_000),
        defer_seconds=defer_for.total_seconds(),
    )
    sent = await queue.signal(approval.key, verdict.model_dump(mode="json"), dedupe_key="decision", sent_by=by)
    if sent.accepted and not sent.resumed:
        raise ApprovalRefused(f"task {approval.task_id} expired a moment ago: it was not executed")
    return _answer(sent.first, accepted=sent.accepted)


async def approved(queue: Queue, task_id: str, plan_hash: str) -> str | None:
    """The key under which a person has approved exactly this plan for this task, or None. The last word counts."""
    async with queue.connection() as connection:
        cursor = await connection.execute(
            "SELECT w.key, w.data->>'plan_hash', w.resolution, s.key, s.payload FROM tracekit.waits AS w"
            " LEFT JOIN tracekit.signals AS s ON s.id = w.signal_id"
            # What was asked about money says nothing of a plan.
            " WHERE w.task_id = %s AND w.kind = %s AND NOT w.data ? 'over_budget'"
            " ORDER BY w.hop DESC, w.attempt DESC LIMIT 1",
            [task_id, KIND],
        )
        row = await cursor.fetchone()
    if row is None:
        return None
    key, shown, resolution, signalled, payload = row
    if (shown, resolution, signalled) != (plan_hash, "signal", key):
        return None
    verdict = read_verdict(payload)
    if verdict is None or verdict.decision != "approve" or verdict.plan_hash != plan_hash:
        return None
    return str(key)


def read_verdict(payload: Json) -> Verdict | None:
    """The decision in a signal's payload, or None where it is none."""
    try:
        return Verdict.model_validate(payload)
    except ValidationError:
        return None


async def _row(connection: AsyncConnection[Any], task_id: str, key: str) -> dict[str, Any] | None:
    rows = await _rows(
        connection, f"{_APPROVALS} AND w.task_id = %(task)s AND w.key = %(key)s", {"task": task_id, "key": key}
    )
    return rows[0] if rows else None


async def _rows(connection: AsyncConnection[Any], statement: LiteralString, values: dict[str, Any]) -> list[Any]:
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(statement, values)
        return await cursor.fetchall()


def _approval(row: dict[str, Any]) -> Approval:
    data = row["data"]
    return Approval(
        task_id=row["task_id"],
        trace_id=row["trace_id"],
        key=row["key"],
        plan_hash=data["plan_hash"],
        plan=data["plan"],
        requester=row["requester"],
        intent=row["intent"],
        urgent=row["priority"] == Priority.URGENT.rank,
        opened_at=row["opened_at"],
        deadline=row["deadline"],
        round=data["round"],
        data_tier=DataTier(data["data_tier"]),
        what=tuple(data["what"]),
        why=tuple(data["why"]),
    )


def _decided(row: dict[str, Any], approval: Approval) -> Decided | None:
    """The decision that closed the wait; None while it is open. Raises `ApprovalRefused` where time closed it."""
    verdict = read_verdict(row["payload"])
    if verdict is not None:
        return Decided(False, verdict.decision, row["sent_by"], row["received_at"])
    if row["closed_at"] is not None or not row["in_time"] or row["state"] != "open":
        raise ApprovalRefused(
            f"the time to decide on task {approval.task_id} ended at {in_utc(approval.deadline)}: it was not executed",
            hint="ask for it again if it is still wanted",
        )
    return None


def _answer(first: Signal, *, accepted: bool) -> Decided:
    verdict = read_verdict(first.payload)
    return Decided(accepted, verdict.decision if verdict else "unreadable", first.sent_by, first.received_at)
