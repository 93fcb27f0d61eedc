"""The historian: writes down what came of a task, from its record, and ends it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from psycopg.rows import class_row

from tracekit.envelope import DataTier
from tracekit.errors import TracekitError
from tracekit.queue import Done, Outcome, Queue
from tracekit.queue.model import Json
from tracekit.queue.payload import plain_text
from tracekit.queue.tasks import Event, Task
from tracekit.tracing.secrets import redact_text, redact_value
from tracekit.workers.files import private_directory, write_whole
from tracekit.workers.mode import Hop, Mode
from tracekit.workers.plan import Reviewed

MOST_ROWS = 500
"""Rows of one table; a task that rested for months has more attempts than anybody reads."""
CELL = 300
"""Characters of a table's cell."""

RESTRICTED_SUMMARY = "The task's data is restricted: what was asked and what came of it is not written down."

_ENDED = {"done": "Done", "failed": "Failed"}
_PLAIN = {"done": "Done.", "failed": "It did not work."}
"""What anybody may be told of a restricted task's end."""


class VaultError(TracekitError):
    """The summary cannot be written. Tried again: a full disk may be given room."""


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
class Record:
    """All that the database knows of a task."""

    task: Task
    events: Sequence[Event]
    waits: Sequence[Wait]
    effects: Sequence[Effect]
    restricted: bool
    """The task's data is restricted, or a plan of it had a step whose data is."""


class Historian(Mode[Reviewed]):
    """Writes `<vault>/<YYYY>/<MM>/<date>-<task id>.md`, dated by the task's acceptance (UTC), and ends the task.

    A repeat writes the same file again, whole: under another name, synced, and renamed over it.
    """

    name = "historian"
    input_type = Reviewed
    timeout = timedelta(minutes=2)

    async def run(self, hop: Hop[Reviewed]) -> Outcome:
        """Write the summary once, then end the task with the reviewer's outcome."""

        async def write() -> Json:
            record = await read_record(hop.services.queue, hop.task.task_id)
            vault = hop.services.settings.vault_dir
            path = summary_path(record.task)
            await asyncio.to_thread(write_summary, vault, path, render(record, hop.input))
            return {"path": str(path), "restricted": record.restricted}

        written = await hop.effect("summary", write)
        hop.log.info("summary.written", path=written["path"])
        if written["restricted"]:
            return Done(hop.input.outcome, _PLAIN[hop.input.outcome])
        return Done(hop.input.outcome, hop.input.summary)


def summary_path(task: Task) -> Path:
    """Where a task's summary lies in the vault: the same for ever."""
    day = task.created_at.astimezone(UTC)
    return Path(f"{day:%Y}", f"{day:%m}", f"{day:%Y-%m-%d}-{task.id}.md")


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
        found = await connection.execute(
            "SELECT EXISTS (SELECT FROM tracekit.hops WHERE task_id = %s"
            """ AND input @? '$.plan.steps[*] ? (@.data_tier == "restricted")')""",
            [task_id],
        )
        [restricted] = await found.fetchone() or [False]
    return Record(task, events, waits, effects, restricted or task.data_tier == DataTier.RESTRICTED.value)


# --- the text -------------------------------------------------------------------------------------------------------


def render(record: Record, reviewed: Reviewed) -> str:
    """The summary as Markdown. Of a restricted task: who, when and how long, and nothing of its content (P8)."""
    task = record.task
    restricted = record.restricted
    front = {
        "task_id": task.id,
        "trace_id": task.trace_id,
        "requester": task.requester,
        "origin": task.origin,
        "outcome": reviewed.outcome,
        "started": _time(task.created_at),
        "ended": _time(task.now),
        "data_tier": DataTier.RESTRICTED.value if restricted else task.data_tier,
    }
    title = "Restricted task" if restricted else _inline(task.intent, 200)
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {title}",
        f"**{_ENDED[reviewed.outcome]}.** " + (RESTRICTED_SUMMARY if restricted else _inline(reviewed.summary, 2_000)),
        _facts(task),
    ]
    if reviewed.steps and not restricted:
        parts += ["## What was done", _steps(reviewed)]
    parts += ["## Hops", _hops(record.events, restricted)]
    if record.waits:
        parts += ["## Waits and approvals", _waits(record.waits)]
    if record.effects:
        parts += ["## Effects", _effects(record.effects, restricted)]
    return "\n\n".join(parts) + "\n"


def _facts(task: Task) -> str:
    took = _took(task.created_at, task.now)
    lines = [f"Asked by {_inline(task.requester)} through {_inline(task.surface)}; took {took}."]
    if task.destructive:
        lines.append("It was destructive.")
    if task.tags:
        lines.append("Tags: " + ", ".join(_inline(tag) for tag in task.tags) + ".")
    if task.review_of:
        lines.append(f"It was about the dead task {task.review_of}.")
    return " ".join(lines)


def _steps(reviewed: Reviewed) -> str:
    rows = (
        (str(number), step.capability, step.what, step.outcome, step.detail)
        for number, step in enumerate(reviewed.steps, 1)
    )
    return _table(("step", "capability", "what", "outcome", "detail"), rows, len(reviewed.steps))


def _hops(events: Sequence[Event], restricted: bool) -> str:
    ended = [event for event in events if event.kind == "attempt.ended"]
    return _table(
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
        _took(ready_at, claimed_at),
        _took(claimed_at, event.at),
        str(data.get("outcome", "")),
        told,
    )


def _waits(waits: Sequence[Wait]) -> str:
    rows = (
        (
            wait.kind,
            str(wait.hop),
            _time(wait.opened_at),
            _took(wait.opened_at, wait.closed_at),
            (wait.decision if wait.kind == "approval" and wait.decision else wait.resolution) or "open",
            wait.sent_by or "",
        )
        for wait in waits
    )
    return _table(("wait", "hop", "opened", "lasted", "ended by", "who"), rows, len(waits))


def _effects(effects: Sequence[Effect], restricted: bool) -> str:
    rows = (
        (
            # A step's name is its author's, and may say what it is about.
            f"effect {number}" if restricted else effect.step,
            str(effect.hop),
            _time(effect.finished_at) if effect.finished_at else "begun, not known whether it happened",
            "" if restricted or effect.finished_at is None else _json(effect.result),
        )
        for number, effect in enumerate(effects, 1)
    )
    return _table(("effect", "hop", "done", "result"), rows, len(effects))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], count: int) -> str:
    lines = [_row(head), _row(["---"] * len(head))]
    for number, row in enumerate(rows):
        if number == MOST_ROWS:
            return "\n".join(lines) + f"\n\n… and {count - MOST_ROWS} more."
        lines.append(_row([_inline(cell, CELL) for cell in row]))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


_MARKDOWN = re.compile(r"([\\`*_\[\]<>#|~$%=])")
_BARE_URL = re.compile(r"(?i)\b(https?|file|javascript|data):")


def _inline(text: str, limit: int = CELL) -> str:
    """`text` as one line that shows as it is: a vault's reader may run code blocks and follow links and embeds."""
    line = plain_text(" ".join(redact_text(text).split()), limit)
    return _BARE_URL.sub(r"\1\\:", _MARKDOWN.sub(r"\\\1", line))


def _json(value: Json) -> str:
    return "" if value is None else json.dumps(redact_value("", value), ensure_ascii=False)


def _time(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _parsed(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None


def _took(start: datetime | None, end: datetime | None) -> str:
    if start is None or end is None:
        return ""
    seconds = max(0.0, (end - start).total_seconds())
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds >= 0.1 else f"{seconds * 1000:.0f} ms"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


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
