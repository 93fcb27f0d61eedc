"""What each setback, each deadline and each decision does to a task: worked out here, written by `Changes`.

Nothing here talks to the database. Every function takes the position as it is under the row's lock and adds the rows of
one step: the next position, the line of the record, the notifications.
"""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import assert_never

from tracekit import ids
from tracekit.envelope import DataTier, Envelope, Origin, RetryPolicy, TaskRequest
from tracekit.queue.changes import Changes
from tracekit.queue.model import (
    Failed,
    GiveUp,
    Json,
    LeaseExpired,
    Notice,
    Park,
    Position,
    Released,
    RetryLater,
    Setback,
    Signal,
)
from tracekit.queue.payload import plain_text
from tracekit.queue.submission import Submission
from tracekit.tracing import semconv

REVIEW_TTL = timedelta(days=14)
"""How long a review task waits for the operator. The dead task itself stays in the DLQ after it."""


def end_attempt(
    changes: Changes, position: Position, ending: Setback, kept: Signal | None, signal_id: int | None
) -> None:
    """The end of a claimed hop's attempt that neither ends the task nor hands it on (those are `finish`'s). `kept`: the
    signal that came before the wait that `ending` opens.
    """
    match ending:
        case RetryLater():
            _retry_later(changes, position, ending)
        case GiveUp():
            reason = plain_text(ending.reason)
            _attempt(changes, position, "given_up", reason=reason, failure=("given_up", reason))
            _die(changes, position, "given_up", "given_up", reason)
        case Park():
            _park(changes, position, ending, kept, signal_id)
        case Released():
            _attempt(changes, position, "released")
            changes.move(
                position,
                "ready",
                expires_at=position.expires_at,
                max_attempts=position.max_attempts + 1,
                wait_attempt=position.wait_attempt,
            )
        case Failed():
            _fail(changes, position, "failed", ending.error_type, ending.message)
        case LeaseExpired():
            message = "the worker died or could not be reached; its lease ended"
            _fail(changes, position, semconv.LEASE_EXPIRED, semconv.LEASE_EXPIRED, message)
        case _:
            assert_never(ending)


def close_wait(
    changes: Changes, position: Position, resolution: str, signal: Signal | None, signal_id: int | None
) -> None:
    """The wait that `position` is parked on is over; where the task goes from here is the caller's to add."""
    wait = position.resumption
    assert wait is not None, "a parked hop has a wait"
    assert position.wait_attempt is not None, "a parked hop has a wait"
    changes.closed_waits.append(
        {
            "task_id": position.task_id,
            "hop": position.hop,
            "attempt": position.wait_attempt,
            "closed_at": changes.now.isoformat(),
            "resolution": resolution,
            "signal_id": signal_id,
        }
    )
    changes.line(
        position,
        "wait.closed",
        wait=wait.kind,
        resolution=resolution,
        sent_by=signal.sent_by if signal else None,
        opened_at=wait.opened_at.isoformat(),
        parked_by=position.wait_attempt,
    )


def resume(changes: Changes, position: Position) -> None:
    """A parked hop is ready again, with what its wait brought. Parking is not held against its attempts."""
    changes.move(
        position,
        "ready",
        expires_at=position.expires_at,
        max_attempts=position.max_attempts + 1,
        wait_attempt=position.wait_attempt,
    )


def expire(changes: Changes, position: Position, why: str) -> None:
    """The task's time is over: it ends unexecuted, and the operator is told what it was."""
    if position.state == "parked":
        close_wait(changes, position, "deadline", None, None)
    summary = f"Expired in {position.mode}: {why}."
    changes.notice(position.task_id, summary_notice(position, "expired", summary))
    waited = {"ready_at": position.ready_at.isoformat()} if position.state == "ready" else {}
    changes.end(position, "expired", summary, waited)


def redrive(changes: Changes, position: Position, hop: int, dead_since: datetime, by: str) -> None:
    """A dead task goes on: its dead hop again, as a new hop with its attempts unspent. The ttl does not return: the
    operator has just said that the task is worth doing.
    """
    new = {"next_hop": hop, "next_mode": position.mode, "next_persona": position.persona, "next_input": position.input}
    changes.line(position, "task.redriven", new, by=by, dead_since=dead_since.isoformat())
    changes.move(
        position, "ready", hop=hop, attempt=0, max_attempts=position.retry_policy.max_attempts, expires_at=None
    )


def abandon(changes: Changes, position: Position, dead_since: datetime, by: str) -> None:
    """A dead task ends for good."""
    summary = f"Abandoned by {by} after {position.attempt} attempts in {position.mode}."
    changes.end(position, "abandoned", summary, {}, dead_since=dead_since.isoformat())


# --- the ends of an attempt -----------------------------------------------------------------------------------------


def _retry_later(changes: Changes, position: Position, ending: RetryLater) -> None:
    due_at = changes.now + ending.delay
    _attempt(changes, position, "retry_later", reason=plain_text(ending.reason), due_at=due_at.isoformat())
    expires_at = position.expires_at
    if ending.extend_ttl and expires_at:
        changes.extend_ttl(position, ending.delay)
        expires_at += ending.delay
    changes.move(position, "scheduled", due_at=due_at, expires_at=expires_at, max_attempts=position.max_attempts + 1)


def _park(changes: Changes, position: Position, ending: Park, kept: Signal | None, signal_id: int | None) -> None:
    deadline = changes.now + ending.within
    _attempt(
        changes,
        position,
        "parked",
        wait={"kind": ending.kind, "deadline": deadline.isoformat()},
    )
    changes.waits.append(
        {
            "task_id": position.task_id,
            "hop": position.hop,
            "attempt": position.attempt,
            "kind": ending.kind,
            "key": ending.key,
            "data": ending.data,
            "deadline": deadline.isoformat(),
            "on_deadline": ending.on_deadline,
            "opened_at": changes.now.isoformat(),
            "closed_at": changes.now.isoformat() if kept else None,
            "resolution": "signal" if kept else None,
            "signal_id": signal_id,
        }
    )
    if ending.notice and not kept:
        changes.notice(position.task_id, ending.notice)
    if kept:
        changes.line(position, "wait.closed", wait=ending.kind, resolution="signal", sent_by=kept.sent_by)
        changes.move(
            position,
            "ready",
            expires_at=position.expires_at,
            max_attempts=position.max_attempts + 1,
            wait_attempt=position.attempt,
        )
    else:
        changes.move(position, "parked", due_at=deadline, expires_at=position.expires_at, wait_attempt=position.attempt)


def _fail(changes: Changes, position: Position, outcome: str, error_type: str, message: str) -> None:
    message = plain_text(message)
    if position.attempt >= position.max_attempts:
        _attempt(changes, position, outcome, failure=(error_type, message))
        _die(changes, position, "attempts_exhausted", error_type, message)
        return
    if error_type == semconv.LEASE_EXPIRED:
        # Its lease was rest enough: Q2 promises it back within the lease and one sweep.
        _attempt(changes, position, outcome, failure=(error_type, message))
        changes.move(position, "ready", expires_at=position.expires_at, wait_attempt=position.wait_attempt)
        return
    # The failures so far, not the claims: parked and released claims widened `max_attempts` by one each.
    failures = position.attempt - (position.max_attempts - position.retry_policy.max_attempts)
    ceiling = position.retry_policy.ceiling(max(1, failures))
    due_at = changes.now + ceiling * random.random()
    _attempt(changes, position, outcome, failure=(error_type, message), due_at=due_at.isoformat())
    changes.move(
        position, "scheduled", due_at=due_at, expires_at=position.expires_at, wait_attempt=position.wait_attempt
    )


def _die(changes: Changes, position: Position, reason: str, error_type: str, message: str) -> None:
    review = None if position.review_of else _review(position, reason)
    changes.dead_letters.append(
        {
            "task_id": position.task_id,
            "hop": position.hop,
            "mode": position.mode,
            "reason": reason,
            "error_type": error_type,
            "error": plain_text(message),
            "attempts": position.attempt,
            "trace_id": position.trace_id,
            "died_at": changes.now.isoformat(),
            "review_task_id": review.envelope.id if review else None,
        }
    )
    changes.line(position, "task.dead", reason=reason, error_type=error_type, review_task=review and review.envelope.id)
    body = f"{position.mode} gave up after {position.attempt} attempts: {error_type}."
    changes.notice(
        position.task_id,
        Notice(
            kind="dead_letter",
            title="A task is in the DLQ",
            body=body,
            urgent=position.rank == 3,
            data={"trace_id": position.trace_id, "review_task": review.envelope.id if review else None},
        ),
    )
    changes.bury(position)
    if review:
        changes.submissions.append(review)


def _review(position: Position, reason: str) -> Submission:
    """The one task that asks the operator about a dead one. It says nothing of the dead task's content."""
    envelope = Envelope.seal(
        TaskRequest(
            intent=f"Review dead task {position.task_id}: {position.mode} ended with {reason}",
            idempotency_key=f"dlq:{position.task_id}/{position.hop}",
            priority=position.priority,
            ttl=REVIEW_TTL,
            retry_policy=RetryPolicy(),
            data_tier=position.data_tier,
        ),
        origin=Origin.OBSERVER,
        surface="dlq",
        requester="system",
        trace_id=ids.new_trace_id(),
    )
    return Submission(
        envelope,
        mode="guardian",
        input={"review": {"task_id": position.task_id, "hop": position.hop, "reason": reason}},
        review_of=position.task_id,
        link=(position.trace_id, position.span_id),
    )


def review_key(task_id: str, hop: int) -> str:
    """The key of the signal that tells a review task what became of the dead one."""
    return f"dlq:{task_id}/{hop}"


# --- the record -----------------------------------------------------------------------------------------------------


def _attempt(
    changes: Changes, position: Position, outcome: str, *, failure: tuple[str, str] | None = None, **data: Json
) -> None:
    """The record of a claim: since when it was waited for, by whom and when it was made, and how it ended."""
    assert position.claimed_at is not None, "an attempt begins with a claim"
    columns = {
        "worker": position.worker,
        "outcome": outcome,
        "ready_at": position.ready_at.isoformat(),
        "claimed_at": position.claimed_at.isoformat(),
    }
    error = {"type": failure[0], "message": failure[1]} if failure else None
    changes.line(position, "attempt.ended", columns, error=error, **data)


def summary_notice(position: Position, outcome: str, summary: str) -> Notice:
    """What the operator is told of an ended task. Restricted content stays in the database."""
    about = "a restricted task" if position.data_tier is DataTier.RESTRICTED else plain_text(position.intent, 300)
    if position.data_tier is DataTier.RESTRICTED:
        summary = f"See `tracekit tasks show {position.task_id}`."
    return Notice(
        kind=f"task_{outcome}",
        title=f"Task {outcome}: {plain_text(about, 80)}",
        body=plain_text(f"{about}\n{summary}", 2_000),
        urgent=position.rank == 3,
        data={"trace_id": position.trace_id},
    )
