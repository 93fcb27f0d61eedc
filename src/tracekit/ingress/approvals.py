"""Decisions: by the link of a notification, and by an operator's token (P5).

Opening a link changes nothing, since phones, proxies and chat programs open links by themselves; only a POST decides.
The answers are made for ntfy, whose button takes any 2xx for success: a repeated tap is 200, a contrary one 409.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from tracekit import ids
from tracekit.config import Settings
from tracekit.envelope import EnvelopeError, Seconds, Text, parse
from tracekit.ingress import pages
from tracekit.ingress.body import is_json, media_type, parse_form, parse_json
from tracekit.ingress.context import Ingress, ingress_of
from tracekit.ingress.database import ask
from tracekit.ingress.problems import Reason, Refused, answer, hinted
from tracekit.queue import TaskNotFound
from tracekit.workers import approvals
from tracekit.workers.approvals import Approval, ApprovalRefused, Claimed, Decided, Decision, in_utc
from tracekit.workers.links import LinkExpired, verify

router = APIRouter()

_HINT = "`tracekit approvals` lists what waits for a decision"

Found = TypeVar("Found")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class LinkDecision(_Strict):
    """What may come with a link: nothing, as the link says it all, or a word more."""

    decision: Decision | None = None
    """None: the link's own."""
    reason: Annotated[Text, Field(max_length=1_000)] = ""


class OperatorDecision(_Strict):
    """An operator's decision, on the plan that they were shown."""

    decision: Decision
    plan_hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    reason: Annotated[Text, Field(max_length=1_000)] = ""
    defer_for: Annotated[Seconds, Field(ge=approvals.SHORTEST_DEFERRAL, le=approvals.LONGEST_DEFERRAL)] = timedelta(
        hours=1
    )


# --- by link ----------------------------------------------------------------------------------------------------------


@router.get(pages.ROUTE)
async def show(request: Request, token: str) -> Response:
    """The exact plan that a link is about, and a form to decide. Changes nothing."""
    ingress = ingress_of(request)
    claimed = _claimed(ingress, token)
    approval, decided = await _look_up(ingress, claimed)
    if decided:
        return pages.decided(decided.decision, decided.by, in_utc(decided.at))
    facts = {
        "Wanted": approval.intent,
        "By": approval.requester,
        "Why you are asked": "; ".join(approval.why),
        "What will be done": "; ".join(approval.what),
        "Until": f"{in_utc(approval.deadline)}, then it expires and is not done",
        "Task": approval.task_id,
        "Hash of the plan": approval.plan_hash,
    }
    return pages.approval(facts, approval.plan, _open_to(claimed))


@router.post(pages.ROUTE)
async def decide_by_link(request: Request, token: str) -> Response:
    """Take the link's decision."""
    ingress = ingress_of(request)
    claimed = _claimed(ingress, token)
    body = await ingress.body(request)
    given = LinkDecision()
    if body.strip():
        media = media_type(request)
        if media == "application/x-www-form-urlencoded":
            given = _parse(LinkDecision, parse_form(body))
        elif is_json(media):
            given = _parse(LinkDecision, parse_json(body))
        else:
            raise Refused(Reason.UNSUPPORTED, "the body is neither a form nor JSON", hint="a link needs no body")
    decision = given.decision or claimed.decision
    if decision not in _open_to(claimed):
        raise Refused(Reason.FORBIDDEN, f"this link can only {claimed.decision}", hint="use the link for it")
    approval, decided = await _look_up(ingress, claimed)
    if decided is None:
        by = f"{_operator(ingress.settings)} (link)"
        decided = await _decide(ingress, approval, decision, by=by, reason=given.reason)
    _agree(decided, decision)
    if "text/html" in request.headers.get("accept", "").lower():
        return pages.decided(decided.decision, decided.by, in_utc(decided.at))
    return answer(_decided(approval, decided))


def _claimed(ingress: Ingress, token: str) -> Claimed:
    try:
        return verify(ingress.approval_secret, token, now=datetime.now(UTC))
    except LinkExpired as error:
        raise hinted(Reason.EXPIRED, error) from None
    except ApprovalRefused as error:
        raise hinted(Reason.FORBIDDEN, error) from None


def _open_to(claimed: Claimed) -> tuple[Decision, ...]:
    """What a link may be used for. Who may approve may also say no; a link to say no is none to say yes."""
    return approvals.DECISIONS if claimed.decision == "approve" else (claimed.decision,)


def _operator(settings: Settings) -> str:
    """Who holds the links: they are sent to the operator."""
    named = [name for name, principal in settings.principals.items() if principal.role == "operator"]
    return named[0] if len(named) == 1 else "operator"


# --- by token ---------------------------------------------------------------------------------------------------------


@router.get("/v1/approvals")
async def pending(request: Request) -> Response:
    """What waits for a decision, the most urgent first."""
    ingress = ingress_of(request)
    ingress.operator(request)
    found = await ask(lambda: approvals.pending(ingress.queue), patience=ingress.patience)
    return answer({"approvals": [asdict(approval) for approval in found]})


@router.post("/v1/approvals/{task_id}")
async def decide(request: Request, task_id: str) -> Response:
    """Decide on the plan that the operator was shown, named by its hash."""
    ingress = ingress_of(request)
    caller = ingress.operator(request)
    wanted = _parse(OperatorDecision, await ingress.json(request))
    approval, decided = await _look_up(ingress, await _latest(ingress, task_id, wanted))
    if decided is None:
        decided = await _decide(
            ingress,
            approval,
            wanted.decision,
            by=caller.principal,
            reason=wanted.reason,
            defer_for=wanted.defer_for,
        )
    _agree(decided, wanted.decision)
    return answer(_decided(approval, decided))


async def _latest(ingress: Ingress, task_id: str, wanted: OperatorDecision) -> Claimed:
    """The task's last round of asking, which must be about the plan that the operator means."""
    row: tuple[str, str, datetime] | None = None
    if ids.is_task_id(task_id):

        async def read() -> tuple[str, str, datetime] | None:
            async with ingress.queue.connection() as connection:
                cursor = await connection.execute(
                    "SELECT key, data->>'plan_hash', deadline FROM tracekit.waits WHERE task_id = %s AND kind = %s"
                    " ORDER BY hop DESC, attempt DESC LIMIT 1",
                    [task_id, approvals.KIND],
                )
                return await cursor.fetchone()

        row = await ask(read, patience=ingress.patience)
    if row is None:
        raise Refused(Reason.NOT_FOUND, "no plan of this task waits for a decision", hint=_HINT)
    key, plan_hash, deadline = row
    if plan_hash != wanted.plan_hash:
        raise Refused(Reason.CONFLICT, "another plan of this task waits now", hint="look at it: GET /v1/approvals")
    return Claimed(task_id, key, plan_hash, wanted.decision, deadline)


# --- both -------------------------------------------------------------------------------------------------------------


async def _look_up(ingress: Ingress, claimed: Claimed) -> tuple[Approval, Decided | None]:
    return await _in_time(ingress, claimed.task_id, lambda: approvals.look_up(ingress.queue, claimed))


async def _decide(ingress: Ingress, approval: Approval, decision: Decision, **how: Any) -> Decided:
    return await _in_time(ingress, approval.task_id, lambda: approvals.decide(ingress.queue, approval, decision, **how))


async def _in_time(ingress: Ingress, task_id: str, question: Callable[[], Awaitable[Found]]) -> Found:
    """The answer, or a refusal that tells a task that nobody knows from a plan whose time is over."""
    try:
        return await ask(question, patience=ingress.patience)
    except ApprovalRefused as error:
        try:
            await ask(lambda: ingress.queue.task(task_id), patience=ingress.patience)
        except TaskNotFound:
            raise hinted(Reason.NOT_FOUND, error) from None
        raise hinted(Reason.EXPIRED, error) from None


def _agree(decided: Decided, decision: Decision) -> None:
    if decided.decision != decision:
        raise Refused(
            Reason.CONFLICT,
            f"it was {approvals.PAST.get(decided.decision, decided.decision)} by {decided.by}"
            f" at {in_utc(decided.at)}; the first decision counts",
        )


def _decided(approval: Approval, decided: Decided) -> dict[str, Any]:
    return {
        "task_id": approval.task_id,
        "plan_hash": approval.plan_hash,
        "decision": decided.decision,
        "by": decided.by,
        "at": decided.at,
        "repeated": not decided.accepted,
    }


Decisions = TypeVar("Decisions", LinkDecision, OperatorDecision)


def _parse(model: type[Decisions], value: object) -> Decisions:
    try:
        return parse(model, value)
    except EnvelopeError as error:
        raise Refused(Reason.INVALID, "this is no decision", faults=error.faults, hint=_HINT) from None
