"""Asking the operator: the wait that a decision ends, and the notification that brings the links to decide.

What is asked about is a plan (`workers.modes.guardian`) or one call beyond its budget (`workers.over_budget`); how a
decision comes back is `workers.approvals`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from tracekit.envelope import DataTier, Priority
from tracekit.queue import Park, RetryLater
from tracekit.queue.model import Json, Notice
from tracekit.queue.payload import plain_text
from tracekit.workers.approvals import KIND, Approval, Decision, Verdict, approval_key, in_utc, next_round
from tracekit.workers.links import links, load_secret
from tracekit.workers.mode import Hop


@dataclass(frozen=True, slots=True)
class Question:
    """What a person is to decide, and how it is put to them."""

    plan: dict[str, Json]
    """What is shown, whole."""
    plan_hash: str
    """Of exactly that."""
    what: tuple[str, ...]
    """Each step in plain words."""
    why: tuple[str, ...]
    """Why a person is asked."""
    restricted: bool
    """Nothing of it may be in the notification but that it waits."""
    title: str
    """Before the first step, such as `Approve?`."""
    restricted_title: str
    unanswered: str
    """What does not happen without a decision, such as `is not executed`."""
    again_at: datetime | None = None
    """When the attempt is made again without a decision, where that is before the deadline."""
    again_why: str = ""
    data: Mapping[str, Json] = field(default_factory=dict)
    """Kept with the wait, beside the plan."""


async def ask(hop: Hop[Any], question: Question) -> Park:
    """The end of the attempt that asks: its hop waits for the decision, and the operator is told."""
    task, policy = hop.task, hop.services.settings.guardian
    round, now = await next_round(hop.services.queue, task.task_id)
    urgent = task.priority is Priority.URGENT
    within = min(policy.approval_ttl, policy.urgent_ttl) if urgent else policy.approval_ttl
    if task.expires_at is not None:
        within = max(min(within, task.expires_at - now), timedelta(0))
    again = question.again_at is not None and timedelta(0) < question.again_at - now <= within
    if again:
        assert question.again_at is not None
        within = question.again_at - now
    approval = Approval(
        task_id=task.task_id,
        trace_id=task.trace_id,
        key=approval_key(task.task_id, question.plan_hash, round),
        plan_hash=question.plan_hash,
        plan=question.plan,
        requester=task.requester,
        intent=task.intent,
        urgent=urgent,
        opened_at=now,
        deadline=now + within,
        round=round,
        data_tier=DataTier.RESTRICTED if question.restricted else task.data_tier,
        what=question.what,
        why=question.why,
    )
    return Park(
        kind=KIND,
        key=approval.key,
        within=within,
        on_deadline="resume" if again else "expire",
        data={
            **question.data,
            "plan": approval.plan,
            "plan_hash": approval.plan_hash,
            "requester": task.requester,
            "data_tier": approval.data_tier.value,
            "round": round,
            "what": list(question.what),
            "why": list(question.why),
        },
        notice=_notice(hop, question, approval, again),
    )


def because(verdict: Verdict) -> str:
    """What whoever decided gave as the reason, to end a sentence with."""
    return f": {verdict.reason}" if verdict.reason else ""


def deferred(verdict: Verdict, by: str) -> RetryLater:
    """The attempt is made again after the rest that `by` chose, and asks under a key of its own: links of this round
    stay used.
    """
    rest = timedelta(seconds=verdict.defer_seconds)
    return RetryLater(rest, f"{by} deferred it{because(verdict)}", extend_ttl=True)


def _notice(hop: Hop[Any], question: Question, approval: Approval, again: bool) -> Notice:
    """What the operator is told: all of it, or of what is restricted nothing but that it waits."""
    if again:
        ends = f"Without a decision it is tried again at {in_utc(approval.deadline)}, {question.again_why}."
    else:
        ends = f"Without a decision it expires at {in_utc(approval.deadline)} and {question.unanswered}."
    to_decide: dict[Decision, str] = {}
    if approval.data_tier is DataTier.RESTRICTED:
        title = question.restricted_title
        body = f"`tracekit approvals approve {approval.task_id}` shows it, and asks.\n{ends}"
    else:
        title = plain_text(f"{question.title} {approval.what[0]}", 100)
        steps = "\n".join(f"{number}. {step}" for number, step in enumerate(approval.what, 1))
        why = "\n".join(f"- {reason}" for reason in approval.why)
        asked = f"{approval.requester} asked: {plain_text(approval.intent, 300)}"
        # What is restricted has none: whoever can read the notification could open the page that shows it.
        to_decide = links(hop.services.settings, load_secret(hop.services.settings), approval)
        body = plain_text(f"{asked}\nTo be done:\n{steps}\nYou are asked because:\n{why}\n{ends}", 3_000)
    return Notice(
        kind=KIND,
        title=title,
        body=body,
        urgent=approval.urgent,
        data={
            "trace_id": approval.trace_id,
            "round": approval.round,
            "deadline": approval.deadline.isoformat(timespec="seconds"),
            "links": to_decide,
        },
    )
