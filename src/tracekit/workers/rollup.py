"""The weekly roll-up: a week as a note in the vault, written once, and again where more is known.

Its front matter has the hash of the rest: what a person has changed since is theirs, and is never written over.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import yaml

from tracekit import ids
from tracekit.config import Settings
from tracekit.cost.limits import shown
from tracekit.cost.money import dollars, in_dollars
from tracekit.cost.report import Group, Sums
from tracekit.envelope import Envelope, Origin, Priority, TaskRequest
from tracekit.queue import Queue, Submission
from tracekit.queue.model import Json
from tracekit.workers.files import private_directory, write_whole
from tracekit.workers.markdown import inline, lasted, table, took
from tracekit.workers.mode import Services, Source
from tracekit.workers.plan import GuardianInput, Plan, Step
from tracekit.workers.vault import VaultError, rollup_path, summary_path
from tracekit.workers.week import Record, Week, had_tasks, read_week

SURFACE = "rollup"

_HASH = re.compile(r"^sha256: ([0-9a-f]{64})\n", re.MULTILINE)


class ChangedByHand(VaultError):
    """There is a note of that name that is not as tracekit wrote it."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Written:
    """A note of the vault."""

    path: Path
    """Below the vault."""
    sha256: str
    changed: bool
    """Whether it was not there, or said something else."""


# --- the text -------------------------------------------------------------------------------------------------------


def render(record: Record, vault: Path) -> str:
    """The note as Markdown. Links lead to the summaries that `vault` has. Of restricted tasks it has numbers (P8)."""
    total, cost = record.cost.total, record.cost
    front: dict[str, Json] = {
        "week": str(record.week),
        "from": record.week.days[0].isoformat(),
        "to": record.week.days[-1].isoformat(),
        "time_zone": record.time_zone,
        "over": record.over,
        "tasks": record.accepted,
        "model_calls": total.calls,
        "unpriced_calls": total.unpriced,
        "cost_usd": f"{total.cost:f}",
    }
    if total.synthetic:
        front["synthetic"] = True
    first, last = record.week.days[0], record.week.days[-1]
    parts = [f"# Week {record.week.number} of {record.week.year}: {first:%d %B} to {last:%d %B}"]
    if total.synthetic:
        parts.append(f"**SYNTHETIC**: {total.synthetic} of {total.calls} calls were made up by a demonstration.")
    if not record.over:
        parts.append("The week is not over: this is what there was of it so far.")
    parts += ["## Tasks", _tasks(record)]
    if record.attempts:
        parts += ["## Modes", _attempts(record)]
    if record.slowest:
        parts += ["### The slowest", _slowest(record, vault)]
    parts += ["## Approvals", _decisions(record)]
    parts += ["## Dead letters", _deaths(record)]
    parts += ["## Cost", _sums(total)]
    if total.calls:
        parts += ["### By model", _groups("model", cost.groups, total)]
        parts += ["### By mode", _groups("mode", record.by_mode, total)]
        parts += ["### By requester", _groups("requester", record.by_requester, total)]
        parts += ["### A task that calls models", _per_task(record)]
        parts += ["### The dearest", _dearest(record, vault)]
    if cost.unpriced:
        parts += ["### Without a price", _unpriced(record)]
    if cost.subscriptions:
        rows = [(one.label, dollars(one.per_month), dollars(one.cost)) for one in cost.subscriptions]
        parts += ["### Flat rates, beside it", table(("for", "a month", "this week"), rows, len(rows))]
    if record.budgets:
        parts += ["## Budgets", _budgets(record)]
    return sealed(front, "\n\n".join(parts) + "\n")


def sealed(front: Mapping[str, Json], body: str) -> str:
    """A note with its hash in its front matter."""
    head = yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True)
    digest = hashlib.sha256(f"---\n{head}---\n\n{body}".encode()).hexdigest()
    return f"---\n{head}sha256: {digest}\n---\n\n{body}"


def untouched(text: str) -> bool:
    """Whether a note is as it was sealed."""
    found = _HASH.search(text)
    if found is None:
        return False
    rest = text[: found.start()] + text[found.end() :]
    return hashlib.sha256(rest.encode()).hexdigest() == found[1]


_OUTCOMES = ("done", "failed", "rejected", "expired", "abandoned")


def _tasks(record: Record) -> str:
    lines = [f"{record.accepted} accepted; of them {record.open} have not ended."]
    if record.restricted:
        lines.append(f"{record.restricted} of them are restricted: they are counted, and not told of.")
    of = {(one.mode, one.outcome): one.tasks for one in record.ends}
    modes = sorted({one.mode for one in record.ends})
    rows = [(mode, *(str(of.get((mode, outcome), 0)) for outcome in _OUTCOMES)) for mode in modes]
    sums = [sum(of.get((mode, outcome), 0) for mode in modes) for outcome in _OUTCOMES]
    rows.append(("all", *map(str, sums)))
    return "\n\n".join([" ".join(lines), table(("ended in", *_OUTCOMES), rows, len(rows))])


def _attempts(record: Record) -> str:
    rows = [
        (one.mode, str(one.attempts), str(one.retries), str(one.failed), lasted(one.median), lasted(one.longest))
        for one in record.attempts
    ]
    return table(("mode", "attempts", "retries", "failed", "median", "longest"), rows, len(rows))


def _slowest(record: Record, vault: Path) -> str:
    return "\n".join(
        f"- {_link(record.week, vault, one.task_id, one.intent, one.created_at)}:"
        f" {one.outcome} after {took(one.created_at, one.ended_at)}"
        for one in record.slowest
    )


def _decisions(record: Record) -> str:
    waiting = f"{record.undecided} waited for a decision when the week ended." if record.undecided else ""
    if not record.decisions:
        return waiting or "Nobody was asked."
    rows = [(one.decision, str(one.approvals), lasted(one.median), lasted(one.longest)) for one in record.decisions]
    shown_ = table(("decision", "approvals", "median time to it", "longest"), rows, len(rows))
    return f"{shown_}\n\n{waiting}" if waiting else shown_


def _deaths(record: Record) -> str:
    if not record.deaths:
        return "No task died."
    rows = [(one.mode, one.reason, str(one.tasks), str(one.open)) for one in record.deaths]
    return table(("mode", "reason", "tasks", "still there"), rows, len(rows))


def _sums(total: Sums) -> str:
    if not total.calls:
        return "No model was called."
    unpriced = f", and {total.unpriced} calls without a price" if total.unpriced else ""
    retries = f"{dollars(total.retry_cost)} ({_share(total.retry_cost, total.cost)}) in {total.retry_calls} calls"
    lines = [
        f"spent: {dollars(total.cost)}{unpriced}",
        f"calls: {total.calls} in {total.tasks} tasks, {total.local} of them in the house,"
        f" {total.uncertain} estimated or lost",
        f"tokens: {total.tokens:,}: {total.input:,} input, {total.cache_read:,} cache read,"
        f" {total.cache_write:,} cache write, {total.output:,} output ({total.reasoning:,} of it reasoning)",
        f"retries: {retries} of attempts after the first",
    ]
    return "\n".join(f"- {inline(line)}" for line in lines)


def _groups(name: str, groups: Sequence[Group], total: Sums) -> str:
    rows = [
        (
            group.key or "(none)",
            in_dollars(group.sums.cost, group.sums.unpriced),
            _share(group.sums.cost, total.cost),
            str(group.sums.calls),
            f"{group.sums.tokens:,}",
            _share(group.sums.retry_cost, group.sums.cost),
        )
        for group in groups
    ]
    return table((name, "cost", "share", "calls", "tokens", "retries"), rows, len(rows))


def _per_task(record: Record) -> str:
    rows = [(f"{one.percent} %", dollars(one.cost), f"{one.tokens:,}", str(one.calls)) for one in record.cost.per_task]
    return table(("at most", "cost", "tokens", "calls"), rows, len(rows))


def _dearest(record: Record, vault: Path) -> str:
    told = [task for task in record.cost.dearest if task.task_id not in record.dear_and_secret]
    lines = [
        f"- {_link(record.week, vault, task.task_id, task.intent, record.accepted_at.get(task.task_id))}:"
        f" {inline(in_dollars(task.cost, task.unpriced))} in {task.calls} calls"
        for task in told
    ]
    if left_out := len(record.cost.dearest) - len(told):
        lines.append(f"- and {left_out} restricted")
    return "\n".join(lines)


def _unpriced(record: Record) -> str:
    rows = [
        (f"{one.provider}/{one.model}", str(one.calls), f"{one.tokens:,}", "in the house" if one.local else "remote")
        for one in record.cost.unpriced
    ]
    return table(("model", "calls", "tokens", "where"), rows, len(rows))


def _budgets(record: Record) -> str:
    rows = []
    for one in record.budgets:
        unit = one.limit.unit
        left = "" if one.amount is None else shown(unit, one.amount - one.most)
        amount = "withdrawn" if one.amount is None else shown(unit, one.amount)
        periods = "the week" if one.limit.period == "week" else f"the dearest of {one.periods} days"
        rows.append((one.limit.name, amount, periods, shown(unit, one.most), left))
    return table(("budget", "amount", "of", "spent", "left"), rows, len(rows))


def _link(week: Week, vault: Path, task_id: str, intent: str, created_at: datetime | None) -> str:
    title = inline(intent, 100) or task_id
    if created_at is None or not (vault / summary_path(task_id, created_at)).is_file():
        return f"{title} ({task_id})"
    return f"[{title}]({Path(os.path.relpath(summary_path(task_id, created_at), rollup_path(week).parent)).as_posix()})"


def _share(part: Decimal, whole: Decimal) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


# --- the file -------------------------------------------------------------------------------------------------------


def write_rollup(vault: Path, week: Week, text: str) -> Written:
    """Put the note in its place, whole, unless it is there already. Raises `ChangedByHand`, `VaultError`."""
    path = rollup_path(week)
    target = vault / path
    digest = hashlib.sha256(text.encode()).hexdigest()
    try:
        private_directory(target.parent)
        if target.is_symlink() or target.exists():
            # A link is a person's, wherever it leads.
            before = "" if target.is_symlink() else target.read_text(encoding="utf-8", errors="replace")
            if before == text:
                return Written(path, digest, changed=False)
            if not untouched(before):
                raise ChangedByHand(
                    f"the note {path} is not as tracekit wrote it, and is left alone",
                    hint="move it away to have it written anew; `--stdout` shows what it would say",
                )
        write_whole(target, text.encode(), replace=True)
    except OSError as error:
        raise VaultError(
            f"cannot write the roll-up into the vault {vault}: {error.strerror or error}",
            hint="make room, or set `vault` to a directory that can be written",
        ) from None
    return Written(path, digest, changed=True)


async def roll_up(
    queue: Queue, settings: Settings, week: Week | None = None, *, synthetic: bool = False
) -> tuple[Week, str]:
    """A week's note, as it would be now; None: of the last week that is over. Raises `NoSuchWeek`."""
    async with queue.connection() as connection:
        record = await read_week(
            connection, week, settings.cost.time_zone, synthetic=synthetic, subscriptions=settings.prices
        )
    return record.week, await asyncio.to_thread(render, record, settings.vault_dir)


# --- each week ------------------------------------------------------------------------------------------------------


class WeekSource(Source):
    """Files a task to roll the last week up, once it is over and if there was anything in it: however many processes
    look, and however often, its key is the week's.
    """

    interval = timedelta(hours=1)

    def __init__(self, services: Services) -> None:
        self._services = services

    async def poll(self) -> int:
        """One look. A week in which no worker looked is not rolled up by itself: `tracekit rollup --week`."""
        settings, queue = self._services.settings, self._services.queue
        async with queue.connection() as connection:
            row = await (await connection.execute("SELECT clock_timestamp()")).fetchone()
            assert row is not None, "a SELECT without FROM answers one row"
            week = Week.before(row[0], settings.cost.time_zone)
            if not await had_tasks(connection, week, settings.cost.time_zone):
                return 0
        step = Step(capability="rollup.write", arguments={"week": str(week)})
        envelope = Envelope.seal(
            TaskRequest(intent=f"Roll the week {week} up", idempotency_key=f"rollup:{week}", priority=Priority.LOW),
            origin=Origin.SCHEDULED,
            surface=SURFACE,
            requester=settings.system_principal,
            trace_id=ids.new_trace_id(),
        )
        given = GuardianInput(plan=Plan(steps=(step,), reason="a week is over"))
        [receipt] = await queue.enqueue([Submission(envelope, "guardian", given.model_dump(mode="json"))])
        return int(not receipt.duplicate)
