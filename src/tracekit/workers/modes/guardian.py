"""guardian: lets a plan pass, or asks a person and waits for the answer to exactly that plan.

It also holds the review tasks of the DLQ until the operator has redriven or abandoned the dead task.
"""

from __future__ import annotations

from datetime import timedelta

from tracekit.envelope import DataTier, Priority
from tracekit.queue import Done, GiveUp, HandOff, Notice, Outcome, Park, RetryLater
from tracekit.queue.payload import plain_text
from tracekit.queue.transitions import REVIEW_TTL, review_key
from tracekit.workers.approvals import (
    KIND,
    Approval,
    Decision,
    Verdict,
    approval_key,
    in_utc,
    next_round,
    read_verdict,
)
from tracekit.workers.capabilities import UnknownCapability, installed
from tracekit.workers.links import links, load_secret
from tracekit.workers.mode import Hop, Mode, Services
from tracekit.workers.plan import ApprovedPlan, GuardianInput, Plan, Review, plan_hash
from tracekit.workers.policy import Judgement, describe, judge


class Guardian(Mode[GuardianInput]):
    """The one place where policy is decided, and where people are asked."""

    name = "guardian"
    input_type = GuardianInput

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._capabilities = installed()

    async def run(self, hop: Hop[GuardianInput]) -> Outcome:
        """Pass the plan, act on the decision, or ask."""
        if hop.input.review is not None:
            return _review(hop, hop.input.review)
        plan = hop.input.plan
        if plan is None:
            return GiveUp("the guardian was given neither a plan nor a dead task to review")
        try:
            judgement = judge(plan, hop.task, self.services.settings, self._capabilities)
            what = describe(plan, self._capabilities)
        except UnknownCapability as error:
            return GiveUp(f"the plan cannot be used: {error}")
        if not judgement.why:
            return _pass(plan, None, judgement)
        resumption = hop.resumption
        if resumption is not None and resumption.kind == KIND and resumption.signal is not None:
            verdict = read_verdict(resumption.signal.payload)
            if verdict is not None and verdict.plan_hash == plan_hash(plan):
                return _act(plan, judgement, resumption.key, verdict, resumption.signal.sent_by)
            hop.log.warning("guardian.decision_refused", key=resumption.key)
        return await self._ask(hop, plan, judgement, what)

    async def _ask(self, hop: Hop[GuardianInput], plan: Plan, judgement: Judgement, what: tuple[str, ...]) -> Outcome:
        task, policy = hop.task, self.services.settings.guardian
        round, now = await next_round(self.services.queue, task.task_id)
        urgent = task.priority is Priority.URGENT
        within = min(policy.approval_ttl, policy.urgent_ttl) if urgent else policy.approval_ttl
        if task.expires_at is not None:
            within = max(min(within, task.expires_at - now), timedelta(0))
        digest = plan_hash(plan)
        restricted = task.data_tier is DataTier.RESTRICTED or plan.restricted
        approval = Approval(
            task_id=task.task_id,
            trace_id=task.trace_id,
            key=approval_key(task.task_id, digest, round),
            plan_hash=digest,
            plan=plan.model_dump(mode="json"),
            requester=task.requester,
            intent=task.intent,
            urgent=urgent,
            opened_at=now,
            deadline=now + within,
            round=round,
            data_tier=DataTier.RESTRICTED if restricted else task.data_tier,
            what=what,
            why=judgement.why,
        )
        return Park(
            kind=KIND,
            key=approval.key,
            within=within,
            on_deadline="expire",
            data={
                "plan": approval.plan,
                "plan_hash": digest,
                "requester": task.requester,
                "data_tier": approval.data_tier.value,
                "round": round,
                "what": list(what),
                "why": list(judgement.why),
            },
            notice=self._notice(approval),
        )

    def _notice(self, approval: Approval) -> Notice:
        """What the operator is told: all of the plan, or of a restricted one nothing but that it waits."""
        links_of_plan: dict[Decision, str] = {}
        ends = f"Without a decision it expires at {in_utc(approval.deadline)} and is not executed."
        if approval.data_tier is DataTier.RESTRICTED:
            title = "A restricted task waits for your decision"
            body = f"`tracekit approvals approve {approval.task_id}` shows it, and asks.\n{ends}"
        else:
            title = plain_text(f"Approve? {approval.what[0]}", 100)
            steps = "\n".join(f"{number}. {step}" for number, step in enumerate(approval.what, 1))
            why = "\n".join(f"- {reason}" for reason in approval.why)
            asked = f"{approval.requester} asked: {plain_text(approval.intent, 300)}"
            # A restricted plan has none: whoever can read the notification could open the page that shows it.
            links_of_plan = links(self.services.settings, load_secret(self.services.settings), approval)
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
                "links": links_of_plan,
            },
        )


def _pass(plan: Plan, approval: str | None, judgement: Judgement) -> HandOff:
    return HandOff(
        "executor",
        ApprovedPlan(plan=plan, approval=approval).model_dump(mode="json"),
        destructive=judgement.destructive,
        tags=judgement.tags,
    )


def _act(plan: Plan, judgement: Judgement, key: str, verdict: Verdict, by: str) -> Outcome:
    why = f": {verdict.reason}" if verdict.reason else ""
    match verdict.decision:
        case "approve":
            return _pass(plan, key, judgement)
        case "reject":
            return Done("rejected", f"{by} rejected it{why}. Nothing was done.")
        case "defer":
            # The next round asks under a key of its own, so that links of this one stay used.
            return RetryLater(timedelta(seconds=verdict.defer_seconds), f"{by} deferred it{why}", extend_ttl=True)


def _review(hop: Hop[GuardianInput], review: Review) -> Outcome:
    resumption = hop.resumption
    if resumption is None or resumption.signal is None:
        return Park(
            kind="review",
            key=review_key(review.task_id, review.hop),
            within=REVIEW_TTL,
            on_deadline="expire",
            data=review.model_dump(mode="json"),
        )
    payload = resumption.signal.payload
    resolution = payload.get("resolution", "resolved") if isinstance(payload, dict) else "resolved"
    return Done(summary=f"Task {review.task_id} was {resolution} by {resumption.signal.sent_by}.")
