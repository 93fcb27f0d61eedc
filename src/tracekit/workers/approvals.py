"""Approvals: what needs a person's yes, how they are asked, and how their answer is bound to what they saw.

The guardian parks a plan under a key that names the task, the plan's hash and the round of asking. A decision is a
signal on that key, and the first one counts (P5). A link to decide carries the same three things under an HMAC: it
works for that plan, in that round, until the deadline. The executor looks the decision up before the first step.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
import struct
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import dict_row
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ulid import ULID

from tracekit.config import ConfigError, Settings
from tracekit.envelope import DataTier, Priority
from tracekit.errors import TracekitError
from tracekit.queue import Position, Queue, TaskNotFound
from tracekit.queue.model import Json, Signal
from tracekit.queue.payload import plain_text
from tracekit.workers.capabilities import Capabilities
from tracekit.workers.plan import Plan

KIND = "approval"
"""Of the wait."""

Decision = Literal["approve", "reject", "defer"]
DECISIONS: tuple[Decision, ...] = ("approve", "reject", "defer")
PAST: dict[str, str] = {"approve": "approved", "reject": "rejected", "defer": "deferred"}

SHORTEST_DEFERRAL = timedelta(minutes=1)
LONGEST_DEFERRAL = timedelta(days=30)
_LEAST_SECRET = 16


class ApprovalRefused(TracekitError):
    """A decision that does not count, and why; nothing was changed."""

    exit_code = 2

    def __init__(self, reason: str, *, hint: str = "`tracekit approvals` lists what waits for a decision") -> None:
        super().__init__(reason, hint=hint)
        self.reason = reason


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


@dataclass(frozen=True, slots=True)
class Decided:
    """What became of a decision. `accepted` False: somebody decided first, and the rest is what they decided."""

    accepted: bool
    decision: str
    by: str
    at: datetime


class Verdict(BaseModel):
    """What the signal of a decision carries."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    decision: Decision
    plan_hash: str
    reason: Annotated[str, Field(max_length=1_000)] = ""
    defer_seconds: Annotated[float, Field(ge=0, le=LONGEST_DEFERRAL.total_seconds())] = 3600


# --- what needs a yes -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the rules say of a plan for a task."""

    destructive: bool
    why: tuple[str, ...]
    """Why a person must be asked; empty: it may run."""
    tags: tuple[str, ...]


def judge(plan: Plan, task: Position, settings: Settings, capabilities: Capabilities) -> Judgement:
    """Whether `plan` may run for `task` without asking. The same rules for the planner, the guardian and the executor.

    Destructive is what the envelope, the plan or the capability calls so (P4). Of a household member, and of anybody
    unknown, only the allowlist's categories pass (P2). Raises `UnknownCapability`.
    """
    why = []
    destructive = task.destructive
    if task.destructive and not plan.destructive:
        why.append("the task was filed as destructive")
    outside = set()
    for step in plan.steps:
        capability = capabilities.get(step.capability)
        arguments = capability.parse(step.arguments)
        if step.destructive or capability.destructive(arguments):
            destructive = True
            why.append(f"{plain_text(capability.describe(arguments), 200)} is destructive")
        category = capability.category(arguments)
        if category not in settings.guardian.household_allowlist:
            outside.add(category)
    tags: tuple[str, ...] = ()
    if settings.role(task.requester) == "household":
        why += [f"{task.requester} may not use {category} without asking" for category in sorted(outside)]
        if why:
            tags = (f"{task.requester}-originated",)
    return Judgement(destructive, tuple(dict.fromkeys(why)), tags)


def describe(plan: Plan, capabilities: Capabilities) -> tuple[str, ...]:
    """Each step of a plan in plain words. Raises `UnknownCapability`."""
    described = []
    for step in plan.steps:
        capability = capabilities.get(step.capability)
        described.append(capability.describe(capability.parse(step.arguments)))
    return tuple(described)


# --- the wait -------------------------------------------------------------------------------------------------------


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
            " WHERE w.task_id = %s AND w.kind = %s ORDER BY w.hop DESC, w.attempt DESC LIMIT 1",
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
            f"the time to decide on task {approval.task_id} ended at {approval.deadline:%Y-%m-%d %H:%M} UTC:"
            " it was not executed",
            hint="ask for it again if it is still wanted",
        )
    return None


def _answer(first: Signal, *, accepted: bool) -> Decided:
    verdict = read_verdict(first.payload)
    return Decided(accepted, verdict.decision if verdict else "unreadable", first.sent_by, first.received_at)


# --- links ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a link says, once its signature was found good."""

    task_id: str
    key: str
    plan_hash: str
    decision: Decision
    expires_at: datetime


def load_secret(settings: Settings) -> bytes:
    """The key of the links' HMAC: the configured one, or one that is made once and kept, readable by this user alone.

    Processes on several machines need a configured one, or each refuses the others' links. Raises `ConfigError`.
    """
    configured = settings.guardian.approval_secret.get_secret_value()
    if configured:
        if len(configured) < _LEAST_SECRET:
            raise ConfigError(
                f"guardian.approval_secret must have at least {_LEAST_SECRET} characters",
                hint="leave it empty and one is made",
            )
        return configured.encode()
    path = settings.data_home / "approval.key"
    try:
        if not path.exists():
            _make_secret(path)
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"others can read {path}", hint=f"make it private: chmod 600 {path}; or delete it")
        secret = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot keep the key of the approval links in {path}: {error.strerror}") from None
    if len(secret) < _LEAST_SECRET:
        raise ConfigError(f"{path} is damaged", hint="delete it: a new one is made, and open links stop working")
    return secret


def _make_secret(path: Path) -> None:
    """Write a new secret under another name and link it in whole: of two processes the first one's counts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(new, path)
    finally:
        new.unlink(missing_ok=True)


_VERSION = 1
_FIELDS = struct.Struct(">B16s32sIBQ")
"""Version, task, hash of the plan, round, decision, expiry in seconds since 1970."""
_MAC = hashlib.sha256().digest_size
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,200}")
_CONTEXT = b"tracekit approval link\x00"


def sign(secret: bytes, approval: Approval, decision: Decision, *, expires_at: datetime) -> str:
    """A token that lets its bearer take `decision` on exactly this plan, in this round, until `expires_at`.

    Compact and URL-safe. It works once: the first decision of a round counts, and the next round has another key.
    """
    if approval.key != approval_key(approval.task_id, approval.plan_hash, approval.round):
        raise ValueError("the approval's key is not the key of its own plan and round")
    body = _FIELDS.pack(
        _VERSION,
        ULID.from_str(approval.task_id).bytes,
        bytes.fromhex(approval.plan_hash),
        approval.round,
        DECISIONS.index(decision),
        int(expires_at.timestamp()),
    )
    return base64.urlsafe_b64encode(body + _mac(secret, body)).rstrip(b"=").decode()


def verify(secret: bytes, token: str, *, now: datetime) -> Claimed:
    """What a token says. Raises `ApprovalRefused` for one that is malformed, forged or expired."""
    unusable = ApprovalRefused("this link is not valid: it is incomplete, or was not made here")
    if not _TOKEN.fullmatch(token):
        raise unusable
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (binascii.Error, ValueError):
        raise unusable from None
    body, mac = raw[: _FIELDS.size], raw[_FIELDS.size :]
    # One token has one spelling: base64 leaves bits over, which a decoder would ignore.
    if len(raw) != _FIELDS.size + _MAC or base64.urlsafe_b64encode(raw).rstrip(b"=").decode() != token:
        raise unusable
    if not hmac.compare_digest(mac, _mac(secret, body)):
        raise unusable
    version, task, plan, round, decision, expiry = _FIELDS.unpack(body)
    if version != _VERSION or decision >= len(DECISIONS):
        raise unusable
    expires_at = datetime.fromtimestamp(expiry, UTC)
    if now >= expires_at:
        raise ApprovalRefused(f"this link expired at {expires_at:%Y-%m-%d %H:%M} UTC; the plan was not executed")
    task_id, plan_hash = str(ULID.from_bytes(task)), plan.hex()
    return Claimed(task_id, approval_key(task_id, plan_hash, round), plan_hash, DECISIONS[decision], expires_at)


def _mac(secret: bytes, body: bytes) -> bytes:
    return hmac.digest(secret, _CONTEXT + body, "sha256")


def links(settings: Settings, secret: bytes, approval: Approval) -> dict[Decision, str]:
    """The address of each decision. Opening one changes nothing: it shows the plan and asks."""
    return {
        decision: f"{settings.public_url}/approvals/{sign(secret, approval, decision, expires_at=approval.deadline)}"
        for decision in DECISIONS
    }
