"""`/v1/tasks/{task_id}/usage`: what is learnt of a model call after it was booked (C1)."""

from __future__ import annotations

import re

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tracekit import ids
from tracekit.cost import UsageError, late
from tracekit.cost.late import LateReport, NoSuchCall
from tracekit.envelope import parse
from tracekit.ingress.context import Ingress, ingress_of
from tracekit.ingress.database import ask
from tracekit.ingress.problems import Reason, Refused, answer, hinted
from tracekit.queue import TaskNotFound

router = APIRouter()


@router.post("/v1/tasks/{task_id}/usage")
async def settle(request: Request, task_id: str) -> Response:
    """Take a late report of a call: an operator's, or a program's of the house. The same one twice is one: 200 both
    times, and `new` says whether it told something. `task_id` may be the id of the task's trace.
    """
    ingress = ingress_of(request)
    caller = ingress.identify(request)
    if caller.role == "household":
        raise Refused(Reason.FORBIDDEN, "only an operator or a program may do that", hint="use a token of theirs")
    report = parse(LateReport, await ingress.json(request))
    found = await _task(ingress, task_id)
    try:
        booked = await ask(
            lambda: late.settle(ingress.ledger, found, report, by=caller.principal), patience=ingress.patience
        )
    except NoSuchCall as error:
        raise hinted(Reason.NOT_FOUND, error) from None
    except UsageError as error:
        raise hinted(Reason.INVALID, error) from None
    calls = [
        {
            "call": one.key,
            "version": one.version,
            "new": one.new,
            "cost": None if one.cost is None else f"{one.cost:f}",
            "price_source": one.price_source,
        }
        for one in booked
    ]
    return answer({"task_id": found, "calls": calls})


async def _task(ingress: Ingress, reference: str) -> str:
    missing = Refused(Reason.NOT_FOUND, "there is no such task", hint="it is the id of a task, or of its trace")
    if not ids.is_task_id(reference) and not re.fullmatch("[0-9a-f]{32}", reference):
        raise missing
    try:
        return await ask(lambda: ingress.queue.resolve_id(reference), patience=ingress.patience)
    except TaskNotFound:
        raise missing from None
