"""The historian: writes down what came of a task, from its record, and ends it. It has each week rolled up, too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml
from psycopg.rows import class_row

from tracekit.envelope import DataTier
from tracekit.queue import Done, Outcome, Queue
from tracekit.queue.model import Json
from tracekit.queue.tasks import Event, Task
from tracekit.tracing.secrets import redact_value
from tracekit.workers.files import private_directory, write_whole
from tracekit.workers.markdown import inline, table, timestamp, took
from tracekit.workers.mode import Hop, Mode, Source
from tracekit.workers.plan import Reviewed
from tracekit.workers.rollup import WeekSource
from tracekit.workers.vault import VaultError, summary_path

RESTRICTED_SUMMARY = "The task's data is restricted: what was asked and what came of it is not written down."

_ENDED = {"done": "Done", "failed": "Failed"}
_PLAIN = {"done": "Done.", "failed": "It did not work."}
"""What anybody may be told of a restricted task's end."""


@dataclass(frozen=True, slots=True)
class Wait:
    """A wait of the task, and what ended it."""

    hop: int
    kind: str
    opened_at: datetime
    closed_at: datetime | None
    deadline: datetime
    resolution: str | None
    sent_by: str | None
    decision: str | None


@dataclass(frozen=True, slots=True)
class Effect:
    """Something that the task did to the world. `finished_at` None: begun, and nobody knows."""

    step: str
    hop: int
    attempt: int
    started_at: datetime
    finished_at: datetime | None
    result: Json


@dataclass(frozen=True, slots=True)
class ModelCalls:
    """What the task's calls of one model came to."""

    model: str
    mode: str
    calls: int
    unpriced: int
    input: int
    cached: int
    output: int
    cost: Decimal


@dataclass(frozen=True, slots=True)
class Record:
    """All that the database knows of a task."""

    task: Task
    events: Sequence[Event]
    waits: Sequence[Wait]
    effects: Sequence[Effect]
    calls: Sequence[ModelCalls]
    restricted: bool
    """The task's data is restricted, or a plan of it had a step whose data is."""


class Historian(Mode[Reviewed]):
    """Writes `<vault>/<YYYY>/<MM>/<date>-<task id>.md`, dated by the task's acceptance (UTC), and ends the task.

    A repeat writes the same file again, whole: under another name, synced, and renamed over it.
    """

    name = "historian"
    input_type = Reviewed
    timeout = timedelta(minutes=2)

    def sources(self) -> list[Source]:
        """Weeks that are over."""
        return [WeekSource(self.services)]

    async def run(self, hop: Hop[Reviewed]) -> Outcome:
        """Write the summary once, then end the task with the reviewer's outcome."""

        async def write() -> Json:
            record = await read_record(hop.services.queue, hop.task.task_id)
            vault = hop.services.settings.vault_dir
            path = summary_path(record.task.id, record.task.created_at)
            await asyncio.to_thread(write_summary, vault, path, render(record, hop.input))
            return {"path": str(path), "restricted": record.restricted}

        written = await hop.effect("summary", write)
        hop.log.info("summary.written", path=written["path"])
        if written["restricted"]:
            return Done(hop.input.outcome, _PLAIN[hop.input.outcome])
        return Done(hop.input.outcome, hop.input.summary)


async def read_record(queue: Queue, task_id: str) -> Record:
    """The record of a task. Raises `TaskNotFound`."""
    task = await queue.task(task_id)
    events = await queue.events(task_id)
    async with queue.connection() as connection:
        async with connection.cursor(row_factory=class_row(Wait)) as cursor:
            await cursor.execute(
                "SELECT w.hop, w.kind, w.opened_at, w.closed_at, w.deadline, w.resolution, s.sent_by,"
                " CASE jsonb_typeof(s.payload) WHEN 'object' THEN s.payload ->> 'decision' END AS decision"
                " FROM tracekit.waits AS w LEFT JOIN tracekit.signals AS s ON s.id = w.signal_id"
                " WHERE w.task_id = %s ORDER BY w.opened_at, w.hop, w.attempt",
                [task_id],
            )
            waits = await cursor.fetchall()
        async with connection.cursor(row_factory=class_row(Effect)) as cursor:
            # The summary itself is one that has only begun.
            await cursor.execute(
                "SELECT step, hop, attempt, started_at, finished_at, result FROM tracekit.effects"
                " WHERE task_id = %s AND step <> 'summary' ORDER BY started_at, step",
                [task_id],
            )
            effects = await cursor.fetchall()
        async with connection.cursor(row_factory=class_row(ModelCalls)) as cursor:
            await cursor.execute(
                "SELECT model, mode, count(*) AS calls, count(*) FILTER (WHERE cost IS NULL) AS unpriced,"
                " sum(input_tokens + cache_write_tokens)::bigint AS input, sum(cache_read_tokens)::bigint AS cached,"
                " sum(output_tokens)::bigint AS output, coalesce(sum(cost), 0) AS cost"
                " FROM tracekit.spend WHERE task_id = %s GROUP BY model, mode ORDER BY cost DESC, model, mode",
                [task_id],
            )
            calls = await cursor.fetchall()
        found = await connection.execute(
            "SELECT EXISTS (SELECT FROM tracekit.hops WHERE task_id = %s"
            """ AND input @? '$.plan.steps[*] ? (@.data_tier == "restricted")')""",
            [task_id],
        )
        [restricted] = await found.fetchone() or [False]
    return Record(task, events, waits, effects, calls, restricted or task.data_tier == DataTier.RESTRICTED.value)


# --- the text -------------------------------------------------------------------------------------------------------


def render(record: Record, reviewed: Reviewed) -> str:
    """The summary as Markdown. Of a restricted task: who, when and how long, and nothing of its content (P8)."""
    task = record.task
    restricted = record.restricted
    front: dict[str, Json] = {
        "task_id": task.id,
        "trace_id": task.trace_id,
        "requester": task.requester,
        "origin": task.origin,
        "outcome": reviewed.outcome,
        "started": timestamp(task.created_at),
        "ended": timestamp(task.now),
        "data_tier": DataTier.RESTRICTED.value if restricted else task.data_tier,
    }
    if record.calls:
        front |= {
            "cost_usd": f"{sum((call.cost for call in record.calls), Decimal(0)):f}",
            "model_calls": sum(call.calls for call in record.calls),
            "unpriced_calls": sum(call.unpriced for call in record.calls),
        }
    title = "Restricted task" if restricted else inline(task.intent, 200)
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {title}",
        f"**{_ENDED[reviewed.outcome]}.** " + (RESTRICTED_SUMMARY if restricted else inline(reviewed.summary, 2_000)),
        _facts(task),
    ]
    if reviewed.steps and not restricted:
        parts += ["## What was done", _steps(reviewed)]
    parts += ["## Hops", _hops(record.events, restricted)]
    if record.calls:
        parts += ["## Cost", _cost(record.calls)]
    if record.waits:
        parts += ["## Waits and approvals", _waits(record.waits)]
    if record.effects:
        parts += ["## Effects", _effects(record.effects, restricted)]
    return "\n\n".join(parts) + "\n"


def _facts(task: Task) -> str:
    lasted = took(task.created_at, task.now)
    lines = [f"Asked by {inline(task.requester)} through {inline(task.surface)}; took {lasted}."]
    if task.destructive:
        lines.append("It was destructive.")
    if task.tags:
        lines.append("Tags: " + ", ".join(inline(tag) for tag in task.tags) + ".")
    if task.review_of:
        lines.append(f"It was about the dead task {task.review_of}.")
    return " ".join(lines)


def _steps(reviewed: Reviewed) -> str:
    rows = (
        (str(number), step.capability, step.what, step.outcome, step.detail)
        for number, step in enumerate(reviewed.steps, 1)
    )
    return table(("step", "capability", "what", "outcome", "detail"), rows, len(reviewed.steps))


def _hops(events: Sequence[Event], restricted: bool) -> str:
    ended = [event for event in events if event.kind == "attempt.ended"]
    return table(
        ("hop", "mode", "persona", "attempt", "waited", "took", "outcome", "error"),
        (_attempt(event, restricted) for event in ended),
        len(ended),
    )


def _attempt(event: Event, restricted: bool) -> tuple[str, ...]:
    data = event.data
    ready_at, claimed_at = (_parsed(data.get(name)) for name in ("ready_at", "claimed_at"))
    error = data.get("error")
    told = ""
    if isinstance(error, dict):
        # An error's message may quote the data that it failed on.
        told = str(error.get("type", "")) if restricted else f"{error.get('type', '')}: {error.get('message', '')}"
    return (
        str(event.hop),
        event.mode or "",
        str(data.get("persona") or ""),
        str(event.attempt),
        took(ready_at, claimed_at),
        took(claimed_at, event.at),
        str(data.get("outcome", "")),
        told,
    )


def _cost(calls: Sequence[ModelCalls]) -> str:
    rows = (
        (
            call.model,
            call.mode,
            str(call.calls),
            f"{call.input:,}",
            f"{call.cached:,}",
            f"{call.output:,}",
            f"{call.cost:f}" + (f" and {call.unpriced} unpriced" if call.unpriced else ""),
        )
        for call in calls
    )
    head = ("model", "mode", "calls", "tokens in", "from cache", "tokens out", "US dollars")
    return table(head, rows, len(calls))


def _waits(waits: Sequence[Wait]) -> str:
    rows = (
        (
            wait.kind,
            str(wait.hop),
            timestamp(wait.opened_at),
            took(wait.opened_at, wait.closed_at),
            (wait.decision if wait.kind == "approval" and wait.decision else wait.resolution) or "open",
            wait.sent_by or "",
        )
        for wait in waits
    )
    return table(("wait", "hop", "opened", "lasted", "ended by", "who"), rows, len(waits))


def _effects(effects: Sequence[Effect], restricted: bool) -> str:
    rows = (
        (
            # A step's name is its author's, and may say what it is about.
            f"effect {number}" if restricted else effect.step,
            str(effect.hop),
            timestamp(effect.finished_at) if effect.finished_at else "begun, not known whether it happened",
            "" if restricted or effect.finished_at is None else _json(effect.result),
        )
        for number, effect in enumerate(effects, 1)
    )
    return table(("effect", "hop", "done", "result"), rows, len(effects))


def _json(value: Json) -> str:
    return "" if value is None else json.dumps(redact_value("", value), ensure_ascii=False)


def _parsed(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None


# --- the file -------------------------------------------------------------------------------------------------------


def write_summary(vault: Path, path: Path, text: str) -> None:
    """Write `vault / path`: whoever looks sees the old file or the new one, whole. Raises `VaultError`."""
    target = vault / path
    try:
        private_directory(target.parent)
        write_whole(target, text.encode(), replace=True)
    except OSError as error:
        raise VaultError(
            f"cannot write the summary into the vault {vault}: {error.strerror or error}",
            hint="make room, or set `vault` to a directory that can be written",
        ) from None
