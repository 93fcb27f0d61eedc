"""`/v1/tasks`: a task is asked for, and asked after."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tracekit import ids
from tracekit.envelope import Envelope, EnvelopeError, Fault, Priority, TaskRequest, parse
from tracekit.ingress.context import ingress_of
from tracekit.ingress.database import ask
from tracekit.ingress.exchange import exchange_of
from tracekit.ingress.problems import Reason, Refused, answer
from tracekit.queue import Submission, TaskNotFound
from tracekit.queue.tasks import Task

router = APIRouter()

PAGE = 1_000
"""Events in one answer; `links.next` leads to the others."""

_KEY = "idempotency_key"


@router.post("/v1/tasks")
async def submit(request: Request) -> Response:
    """Accept a task: 202, or 200 with the first one where its idempotency key is known."""
    ingress, exchange = ingress_of(request), exchange_of(request)
    caller = ingress.identify(request)
    ingress.require_room()
    wanted = parse(TaskRequest, _with_key(request, await ingress.json(request)))
    envelope = Envelope.seal(
        wanted,
        origin=caller.origin,
        surface=caller.surface,
        requester=caller.principal,
        trace_id=exchange.trace_id,
        parent_span_id=exchange.parent.span_id if exchange.parent else None,
        trace_state=exchange.parent.trace_state if exchange.parent else "",
    )
    (receipt,) = await ingress.enqueue([Submission(envelope, received=exchange.received(202))])
    # Of a duplicate this is the first task's trace, which is where what was asked for happens.
    traceparent = ids.traceparent(receipt.trace_id, ids.root_span_id(receipt.task_id))
    location = f"/v1/tasks/{receipt.task_id}"
    return answer(
        {
            "task_id": receipt.task_id,
            "trace_id": receipt.trace_id,
            "traceparent": traceparent,
            "duplicate": receipt.duplicate,
            "links": {"self": location},
        },
        200 if receipt.duplicate else 202,
        {"Location": location, "traceparent": traceparent},
    )


@router.get("/v1/tasks/{task_id}")
async def show(request: Request, task_id: str) -> Response:
    """A task: to an operator all of it, to anybody else their own in plain words (P7)."""
    ingress = ingress_of(request)
    caller = ingress.identify(request)
    since = _since(request)
    missing = Refused(Reason.NOT_FOUND, "there is no such task", hint="the answer to POST /v1/tasks has the id")
    if not ids.is_task_id(task_id):
        raise missing
    try:
        task = await ask(lambda: ingress.queue.task(task_id), patience=ingress.patience)
    except TaskNotFound:
        raise missing from None
    location = f"/v1/tasks/{task.id}"
    if caller.role != "operator":
        # Somebody else's task and none at all look the same.
        if task.requester != caller.principal:
            raise missing
        status, finished = plain_status(task)
        return answer({"task_id": task.id, "status": status, "finished": finished, "links": {"self": location}})
    events = await ask(lambda: ingress.queue.events(task_id, since_seq=since), patience=ingress.patience)
    links = {"self": location}
    if len(events) > PAGE:
        links["next"] = f"{location}?since_seq={events[PAGE - 1].seq}"
    return answer(
        {
            "task": _without({**asdict(task), "priority": list(Priority)[task.rank].value}, "rank"),
            "events": [_without(asdict(event), "task_id") for event in events[:PAGE]],
            "links": links,
        }
    )


def plain_status(task: Task) -> tuple[str, bool]:
    """A task's state in words for whoever asked, and whether that is the end of it. No detail: the summary and the
    errors are the operator's.
    """
    match task.state:
        case "open" if task.hop_state == "parked" and task.wait_kind == "approval":
            return "Somebody has to say yes to this first. They have been asked.", False
        case "open" if task.attempt:
            return "It is being worked on.", False
        case "open":
            return "It will be looked at in a moment.", False
        case "dead":
            return "Something went wrong. It is being looked into.", False
        case "done":
            return "It is done.", True
        case "expired":
            return "It was not done in time, so it was left.", True
        case "rejected":
            return "The answer was no.", True
    return "It did not work.", True


def _with_key(request: Request, value: Any) -> Any:
    """The body with the idempotency key of the header, where it has none of its own."""
    given = {_unquoted(key) for key in request.headers.getlist("idempotency-key")}
    if not given or not isinstance(value, dict):
        return value
    keys = given | ({value[_KEY]} if isinstance(value.get(_KEY), str) else set())
    if len(keys) > 1:
        fault = Fault(field=_KEY, message="differs from the header Idempotency-Key")
        raise EnvelopeError("the request", [fault])
    return {_KEY: given.pop(), **value}


def _unquoted(key: str) -> str:
    """The draft of that header has it as a quoted string; most senders leave the quotes out."""
    key = key.strip()
    return key[1:-1] if len(key) >= 2 and key[0] == key[-1] == '"' else key


def _since(request: Request) -> int:
    text = request.query_params.get("since_seq", "0")
    if not re.fullmatch(r"[0-9]{1,18}", text):
        fault = Fault(field="since_seq", message="must be the seq of an event, a number from 0")
        raise Refused(Reason.INVALID, "1 fault", faults=[fault])
    return int(text)


def _without(row: dict[str, Any], left_out: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != left_out}
