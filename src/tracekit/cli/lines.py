"""A task's record as plain lines, one for each thing that happened.

A line says only what its own event does, so reading on from any point gives the lines that reading from the start
gives.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from tracekit.cli.output import duration, timestamp, tokens
from tracekit.cost.money import dollars
from tracekit.queue.tasks import Event, Task
from tracekit.workers.words import one_line

_ENDED = {
    "handed_off": "handed off",
    "retry_later": "will try later",
    "given_up": "gave up",
    "parked": "parked",
    "released": "was given back by its worker",
    "lease_expired": "lost its worker",
}


def line(task: Task, event: Event) -> str:
    """The event in one line: its number, when (and how long after the task's acceptance), where, and what."""
    since = duration(event.at - task.created_at)
    where = event.mode or "-"
    return f"{event.seq} {timestamp(event.at)} +{since} {where}: {one_line(_what(event))}"


def as_json(task: Task, event: Event) -> dict[str, Any]:
    """The event for scripts."""
    return {
        "seq": event.seq,
        "task_id": event.task_id,
        "trace_id": task.trace_id,
        "at": event.at,
        "kind": event.kind,
        "hop": event.hop,
        "mode": event.mode,
        "attempt": event.attempt,
        "data": event.data,
    }


def _what(event: Event) -> str:
    data = event.data
    match event.kind:
        case "task.accepted":
            return f"accepted from {data.get('requester')} via {data.get('surface')} ({data.get('origin')})"
        case "attempt.ended":
            return _attempt(event)
        case "wait.closed":
            by = f" by {data['sent_by']}" if data.get("sent_by") else ""
            return f"wait for {data.get('wait')} ended: {data.get('resolution')}{by}"
        case "usage.booked":
            return f"attempt {event.attempt} {usage_line(data)}"
        case "effect.recorded":
            return f"attempt {event.attempt} did {data.get('step')}"
        case "task.dead":
            review = f"; review task {data['review_task']}" if data.get("review_task") else ""
            return f"dead: {data.get('reason')} ({data.get('error_type')}){review}"
        case "task.redriven":
            return f"redriven by {data.get('by')} as hop {data.get('hop')}"
        case "task.ended":
            summary = f": {data['summary']}" if data.get("summary") else ""
            return f"task {data.get('outcome')}{summary}"
        case other:
            return other


def usage_line(data: dict[str, Any]) -> str:
    """What a call of a model spent, as the record has it."""
    said = "called" if data["version"] == 1 else "called, as is known now,"
    size = sum(data[f"{kind}_tokens"] for kind in ("input", "cache_read", "cache_write", "output"))
    price = dollars(Decimal(data["cost"])) if data.get("cost") is not None else "unpriced"
    how = {"lost": "usage lost", "estimated": f"about {tokens(size)} tokens"}.get(
        data["basis"], f"{tokens(size)} tokens"
    )
    return f"{said} {data['model']}: {how}, {price}" + (" (synthetic)" if data.get("synthetic") else "")


def _attempt(event: Event) -> str:
    data = event.data
    claimed_at, ready_at = datetime.fromisoformat(data["claimed_at"]), datetime.fromisoformat(data["ready_at"])
    said = str(_ENDED.get(data["outcome"], data["outcome"]))
    if following := data.get("next"):
        said += f" to {following['mode']}"
    if wait := data.get("wait"):
        said += f" for {wait['kind']} until {timestamp(datetime.fromisoformat(wait['deadline']))}"
    text = f"attempt {event.attempt} {said}"
    if error := data.get("error"):
        text += f": {error.get('type')}: {error.get('message')}"
    elif data.get("reason"):
        text += f": {data['reason']}"
    if data.get("due_at"):
        rest = datetime.fromisoformat(data["due_at"]) - event.at
        text += f", again in {duration(max(rest, timedelta(0)))}"
    queued, worked = duration(claimed_at - ready_at), duration(event.at - claimed_at)
    return f"{text} [{data.get('worker')}, queued {queued}, worked {worked}]"
