"""The skeleton of a task's trace: the span of each thing that the queue does to it, ready to be written with it.

Names and attributes follow the semantic conventions for messaging: `send` is a hop's creation (PRODUCER), `process` an
attempt (CONSUMER), whose parent is the creation, and which is linked to it.
"""

from __future__ import annotations

from datetime import datetime

from tracekit import ids
from tracekit.envelope import DataTier
from tracekit.queue.model import EndState, Position
from tracekit.queue.payload import plain_text
from tracekit.tracing import semconv
from tracekit.tracing.spans import AttributeValue, Span, SpanKind, SpanLink, StatusCode

END_STATUS: dict[EndState, StatusCode] = {
    "done": StatusCode.OK,
    "failed": StatusCode.ERROR,
    "abandoned": StatusCode.ERROR,
    # A task that a person or the clock stopped did as it was told: no error, no success.
    "expired": StatusCode.UNSET,
    "rejected": StatusCode.UNSET,
}


def send_attributes(task_id: str, hop: int, mode: str) -> dict[str, AttributeValue]:
    """Attributes of a hop's creation (semantic conventions for messaging, `send`)."""
    return {
        semconv.MESSAGING_SYSTEM: semconv.SYSTEM,
        semconv.MESSAGING_OPERATION: "send",
        semconv.MESSAGING_OPERATION_TYPE: "send",
        semconv.MESSAGING_DESTINATION: mode,
        semconv.MESSAGING_MESSAGE_ID: f"{task_id}/{hop}",
        semconv.TASK_ID: task_id,
        semconv.HOP: hop,
        semconv.MODE: mode,
    }


def send_span(position: Position, now: datetime, hop: int, mode: str) -> Span:
    """The creation of the next hop, by `position`'s attempt."""
    return Span(
        trace_id=position.trace_id,
        span_id=ids.send_span_id(position.task_id, hop),
        parent_span_id=position.root_span_id,
        task_id=position.task_id,
        name=f"send {mode}",
        kind=SpanKind.PRODUCER,
        start_time=now,
        end_time=now,
        attributes=dict(send_attributes(position.task_id, hop, mode)),
        links=(_link(position, position.attempt, "handed_off_by"),),
    )


def queue_span(position: Position, attempt: int, until: datetime) -> Span:
    """The time that a hop was ready and no worker had it: up to the claim of `attempt`, or to the task's expiry."""
    return _wait(
        position,
        ids.queue_span_id(position.task_id, position.hop, attempt),
        "queue",
        position.ready_at,
        until,
        {semconv.ATTEMPT: attempt},
        name=f"wait queue {position.mode}",
    )


def attempt_span(position: Position, now: datetime, outcome: str, failure: tuple[str, str] | None) -> Span:
    """One claim, from its beginning to `now`. `failure`: the error's type and message."""
    assert position.claimed_at is not None, "an attempt begins with a claim"
    send = ids.send_span_id(position.task_id, position.hop)
    links = [SpanLink(position.trace_id, send, "creation")]
    if position.attempt > 1:
        links.append(_link(position, position.attempt - 1, "retry_of"))
    # What went wrong may quote what the task is about: of a restricted task the trace gets the error's type alone.
    message = failure[1] if failure and position.data_tier is not DataTier.RESTRICTED else ""
    return Span(
        trace_id=position.trace_id,
        span_id=position.span_id,
        parent_span_id=send,
        task_id=position.task_id,
        name=f"process {position.mode}",
        kind=SpanKind.CONSUMER,
        start_time=position.claimed_at,
        end_time=now,
        status=StatusCode.ERROR if failure else StatusCode.UNSET,
        status_message=plain_text(message, 500),
        attributes={
            **_identity(position),
            semconv.ATTEMPT: position.attempt,
            semconv.MESSAGING_SYSTEM: semconv.SYSTEM,
            semconv.MESSAGING_OPERATION: "process",
            semconv.MESSAGING_OPERATION_TYPE: "process",
            semconv.MESSAGING_DESTINATION: position.mode,
            semconv.MESSAGING_MESSAGE_ID: f"{position.task_id}/{position.hop}",
            semconv.MESSAGING_CLIENT_ID: position.worker,
            semconv.OUTCOME: outcome,
            semconv.ERROR_TYPE: failure[0] if failure else None,
        },
        links=tuple(links),
    )


def wait_span(position: Position, now: datetime, resolution: str) -> Span:
    """The wait that `position` is parked on, from its opening to `now`."""
    wait = position.resumption
    assert wait is not None, "a parked hop has a wait"
    assert position.wait_attempt is not None, "a parked hop has a wait"
    return _wait(
        position,
        ids.wait_span_id(position.task_id, position.hop, position.wait_attempt),
        wait.kind,
        wait.opened_at,
        now,
        {semconv.WAIT_RESOLUTION: resolution},
        links=(_link(position, position.wait_attempt, "parked_by"),),
    )


def dlq_span(position: Position, dead_since: datetime, now: datetime, resolution: str) -> Span:
    """The time that a dead hop lay in the DLQ."""
    return _wait(
        position,
        ids.review_span_id(position.task_id, position.hop),
        "dlq",
        dead_since,
        now,
        {semconv.WAIT_RESOLUTION: resolution},
        links=(_link(position, position.attempt, "parked_by"),),
    )


def root_span(position: Position, now: datetime, outcome: EndState) -> Span:
    """The whole task, written once, at its end (T5)."""
    return Span(
        trace_id=position.trace_id,
        span_id=position.root_span_id,
        parent_span_id=position.parent_span_id,
        task_id=position.task_id,
        name=f"task {position.origin}",
        kind=SpanKind.INTERNAL,
        start_time=position.task_created_at,
        end_time=now,
        status=END_STATUS[outcome],
        attributes={
            semconv.TASK_ID: position.task_id,
            semconv.ORIGIN: position.origin,
            semconv.SURFACE: position.surface,
            semconv.REQUESTER: position.requester,
            semconv.PRIORITY: position.priority.value,
            semconv.DATA_TIER: position.data_tier.value,
            semconv.OUTCOME: outcome,
        },
    )


def _identity(position: Position) -> dict[str, AttributeValue | None]:
    return {
        semconv.TASK_ID: position.task_id,
        semconv.HOP: position.hop,
        semconv.MODE: position.mode,
        semconv.PERSONA: position.persona,
    }


def _link(position: Position, attempt: int, why: str) -> SpanLink:
    return SpanLink(position.trace_id, ids.attempt_span_id(position.task_id, position.hop, attempt), why)


def _wait(
    position: Position,
    span_id: str,
    kind: str,
    start: datetime,
    end: datetime,
    attributes: dict[str, AttributeValue],
    *,
    name: str = "",
    links: tuple[SpanLink, ...] = (),
) -> Span:
    """Waiting is visible (T3): a child of the hop's creation."""
    return Span(
        trace_id=position.trace_id,
        span_id=span_id,
        parent_span_id=ids.send_span_id(position.task_id, position.hop),
        task_id=position.task_id,
        name=name or f"wait {kind}",
        kind=SpanKind.INTERNAL,
        start_time=start,
        end_time=end,
        attributes={**_identity(position), semconv.WAIT_KIND: kind, **attributes},
        links=links,
    )
