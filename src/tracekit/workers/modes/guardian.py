"""guardian: lets a plan pass, or asks a person and waits for the answer to exactly that plan.

It also holds the review tasks of the DLQ until the operator has redriven or abandoned the dead task.
"""

from __future__ import annotations

from tracekit.envelope import DataTier
from tracekit.queue import Done, GiveUp, HandOff, Outcome, Park
from tracekit.queue.transitions import REVIEW_TTL, review_key
from tracekit.workers.approvals import KIND, Verdict, read_verdict
from tracekit.workers.asking import Question, ask, because, deferred
from tracekit.workers.capabilities import UnknownCapability, installed
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
        return await ask(hop, _question(hop, plan, judgement, what))


def _question(hop: Hop[GuardianInput], plan: Plan, judgement: Judgement, what: tuple[str, ...]) -> Question:
    return Question(
        plan=plan.model_dump(mode="json"),
        plan_hash=plan_hash(plan),
        what=what,
        why=judgement.why,
        restricted=hop.task.data_tier is DataTier.RESTRICTED or plan.restricted,
        title="Approve?",
        restricted_title="A restricted task waits for your decision",
        unanswered="is not executed",
    )


def _pass(plan: Plan, approval: str | None, judgement: Judgement) -> HandOff:
    return HandOff(
        "executor",
        ApprovedPlan(plan=plan, approval=approval).model_dump(mode="json"),
        destructive=judgement.destructive,
        tags=judgement.tags,
    )


def _act(plan: Plan, judgement: Judgement, key: str, verdict: Verdict, by: str) -> Outcome:
    match verdict.decision:
        case "approve":
            return _pass(plan, key, judgement)
        case "reject":
            return Done("rejected", f"{by} rejected it{because(verdict)}. Nothing was done.")
        case "defer":
            return deferred(verdict, by)


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
