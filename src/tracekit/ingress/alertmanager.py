"""`/ingress/alertmanager`: Alertmanager's webhook, version 4. Each alert is a task, a resolved one too.

Alertmanager sends a group again after a 5xx, and never after a 4xx. So one bad member must not fail the group (its good
members would be lost), and a group of which nothing can be used is refused for good. Alerts about tracekit itself are
left out: an Alertmanager that sends everything here must not make a loop.
"""

from __future__ import annotations

import structlog
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tracekit import ids
from tracekit.envelope import EnvelopeError, Fault, Origin
from tracekit.ingress.context import ingress_of
from tracekit.ingress.exchange import exchange_of
from tracekit.ingress.problems import MOST_FAULTS, Reason, Refused, answer
from tracekit.queue import PayloadRefused, Submission
from tracekit.workers import incidents
from tracekit.workers.words import one_line

log = structlog.get_logger()

router = APIRouter()


@router.post("/ingress/alertmanager")
async def receive(request: Request) -> Response:
    """Accept a group: 200 with what became of its members."""
    ingress, exchange = ingress_of(request), exchange_of(request)
    caller = ingress.identify(request)
    if caller.surface != incidents.SURFACE and caller.origin is not Origin.OBSERVER:
        raise Refused(
            Reason.FORBIDDEN,
            f"the token is for the surface {caller.surface}",
            hint=f"give Alertmanager a token of its own, for the surface {incidents.SURFACE} with the origin observer",
        )
    ingress.require_room()
    body = await ingress.json(request)
    group = incidents.parse_webhook(body)
    faults = list(group.faults)
    # One alert is one trace. A caller's trace is continued where it is about one alert; for several it is none's.
    parent = exchange.parent if len(group.alerts) == 1 else None
    submissions: list[Submission] = []
    own = sum(alert.about_tracekit for alert in group.alerts)
    for alert in group.alerts:
        if alert.about_tracekit:
            # Its labels are the sender's word: that it was let be is told.
            log.warning("alert.about_tracekit", alertname=one_line(alert.labels.get("alertname", ""))[:100])
            continue
        try:
            submission = incidents.submission(
                alert,
                requester=caller.principal,
                trace_id=parent.trace_id if parent else ids.new_trace_id(),
                parent_span_id=parent.span_id if parent else None,
                trace_state=parent.trace_state if parent else "",
                received=exchange.received(200),
            )
            submission.text()
        except EnvelopeError as error:
            faults += error.faults
        except PayloadRefused as error:
            faults.append(Fault(field="alerts", message=str(error)))
        else:
            submissions.append(submission)
    refused = None
    if faults:
        refused = Refused(
            Reason.MALFORMED if not submissions else Reason.INVALID,
            "no alert of this group can be read" if not submissions else "some alerts of this group cannot be read",
            faults=faults,
            hint="it must be what Alertmanager's webhook_config sends, version 4",
        )
        if not submissions:
            raise refused
    receipts = await ingress.enqueue(submissions)
    if refused:
        request.app.state.refusals.note(exchange, refused, answered=200)
    return answer(
        {
            "accepted": sum(not receipt.duplicate for receipt in receipts),
            "duplicates": sum(receipt.duplicate for receipt in receipts),
            "about_tracekit": own,
            "refused": len(body["alerts"]) - len(submissions) - own,
            "faults": [fault.model_dump() for fault in faults[:MOST_FAULTS]],
            "tasks": [receipt.task_id for receipt in receipts],
        }
    )
