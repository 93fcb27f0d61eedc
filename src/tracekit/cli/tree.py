"""Drawing a task: its hops as a tree, each with its place in time as a bar of a waterfall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from rich.text import Text

from tracekit.cli.lines import usage_line
from tracekit.cli.output import STATES, count, duration, tokens
from tracekit.cli.story import HopStory, Kind, Part, Stretch, Totals
from tracekit.cost.money import dollars
from tracekit.envelope import Priority
from tracekit.queue.tasks import Task
from tracekit.workers.words import one_line

GLYPHS: dict[Kind, tuple[str, str]] = {
    "queue": ("·", "bright_black"),
    "work": ("━", "green"),
    "wait": ("╌", "yellow"),
    "rest": ("┈", "magenta"),
    "dlq": ("╍", "red"),
}
"""How a stretch of each kind is drawn. The glyphs differ too: colour may be off."""

_LEGEND: dict[Kind, str] = {"queue": "queued", "work": "working", "wait": "waiting", "rest": "resting", "dlq": "dead"}
_RANK: dict[Kind, int] = {"work": 4, "wait": 3, "dlq": 2, "rest": 1, "queue": 0}

MARKS: dict[str | None, tuple[str, str]] = {
    None: ("▶", "cyan"),
    "handed_off": ("✔", "green"),
    "done": ("✔", "green"),
    "signal": ("✔", "green"),
    "redriven": ("↻", "green"),
    "parked": ("⏸", "yellow"),
    "retry_later": ("↻", "magenta"),
    "released": ("↻", "magenta"),
    "rejected": ("✘", "yellow"),
    "expired": ("✘", "yellow"),
    "deadline": ("✘", "yellow"),
    "cancelled": ("✘", "yellow"),
    "failed": ("✘", "red"),
    "lease_expired": ("✘", "red"),
    "given_up": ("✘", "red"),
    "abandoned": ("✘", "magenta"),
}

END_MARKS = {"done": "✔", "open": "▶", "dead": "✘"}

_NARROWEST_BAR = 12
_WIDEST_BAR = 60
_WIDEST_LABEL = 34


@dataclass(slots=True)
class _Row:
    label: Text
    mark: tuple[str, str]
    time: str
    stretches: Sequence[Stretch] = ()
    note: Text = field(default_factory=Text)
    details: list[Text] = field(default_factory=list)


def header(task: Task, width: int) -> list[Text]:
    """What the task is: its intent, and who asked for it from where."""
    title = Text(one_line(task.intent) or "(no intent)", style="bold", no_wrap=True, overflow="ellipsis")
    title.truncate(width, overflow="ellipsis")
    about = [f"{task.requester} via {task.surface}", list(Priority)[task.rank].value]
    about += [
        word
        for word, said in (("destructive", task.destructive), ("restricted", task.data_tier == "restricted"))
        if said
    ]
    about += [one_line(tag) for tag in task.tags]
    lines = [title]
    for text in (f"{task.id}  {' · '.join(about)}", f"trace {task.trace_id}"):
        line = Text(text, style="bright_black")
        line.truncate(width, overflow="ellipsis")
        lines.append(line)
    return lines


def tree(task: Task, hops: list[HopStory], width: int) -> list[Text]:
    """The hops as lines no wider than `width`, with the scale of time under them."""
    end = task.ended_at or task.now
    rows: list[_Row] = []
    for i, hop in enumerate(hops):
        rows += _hop_rows(hop, end, "└─ " if i == len(hops) - 1 else "├─ ", "   " if i == len(hops) - 1 else "│  ")
    label = min(_WIDEST_LABEL, max((row.label.cell_len for row in rows), default=0))
    times = max((len(row.time) for row in rows), default=0)
    fixed = label + 2 + 1 + 1 + times + 2
    note = max((row.note.cell_len for row in rows), default=0)
    bar = min(_WIDEST_BAR, width - fixed - (note + 2 if note else 0))
    if bar < _NARROWEST_BAR:
        bar = max(0, min(_WIDEST_BAR, width - fixed - 2 - min(note, 20)))
        bar = bar if bar >= 8 else 0
    lines = []
    for row in rows:
        line = row.label.copy()
        line.truncate(label, overflow="ellipsis", pad=True)
        line.append("  ").append(*row.mark).append(" ").append(row.time.rjust(times), "default")
        line.append("  ").append_text(_bar(row.stretches, task.created_at, end, bar))
        if row.note:
            line.append("  ").append_text(row.note)
        line.rstrip()
        line.truncate(width, overflow="ellipsis")
        lines.append(line)
        for detail in row.details:
            detail.truncate(width, overflow="ellipsis")
            lines.append(detail)
    if bar:
        lines += _scale(hops, task.created_at, end, fixed, bar, width)
    return lines


def _hop_rows(hop: HopStory, now: datetime, branch: str, trunk: str) -> list[_Row]:
    label = Text(branch, style="bright_black").append(hop.mode, "bold")
    if hop.persona:
        label.append(f" {one_line(hop.persona)}", "italic bright_black")
    spent = sum((s.length(now) for s in hop.stretches), timedelta(0))
    if not hop.parts:
        return [_Row(label, MARKS[None] if not hop.over else ("·", "bright_black"), "")]
    if len(hop.parts) == 1:
        # One thing happened here: it needs no branch of its own.
        row = _part_row(hop.parts[0], now, label, trunk)
        row.time = duration(spent)
        return [row]
    last = hop.parts[-1]
    mark = _mark(last) if hop.over or last.outcome not in ("parked", "signal") else MARKS[None]
    rows = [_Row(label, mark, duration(spent), hop.stretches)]
    for i, part in enumerate(hop.parts):
        end = i == len(hop.parts) - 1
        name = Text(trunk + ("└─ " if end else "├─ "), style="bright_black").append(_part_name(part), "default")
        rows.append(_part_row(part, now, name, trunk + ("   " if end else "│  ")))
    return rows


def _part_name(part: Part) -> str:
    return f"wait {one_line(part.name)}" if part.kind == "wait" else one_line(part.name)


def _part_row(part: Part, now: datetime, label: Text, trunk: str) -> _Row:
    shown = [stretch for stretch in part.stretches if stretch.kind != "rest"]
    time = sum((s.length(now) for s in shown), timedelta(0))
    row = _Row(label, _mark(part), duration(time) if shown else "", part.stretches, _note(part, now))
    for step in part.effects:
        row.details.append(
            Text(f"{trunk}  ", style="bright_black").append("• ", "green").append(one_line(step), "bright_black")
        )
    for call in part.calls.values():
        row.details.append(
            Text(f"{trunk}  ", style="bright_black").append("$ ", "cyan").append(usage_line(call), "bright_black")
        )
    if part.error:
        kind, message = map(one_line, part.error)
        text = message if kind in ("given_up", "lease_expired") else f"{kind}: {message}"
        row.details.append(Text(f"{trunk}  ", style="bright_black").append(text, "red"))
    elif part.reason and part.kind == "attempt":
        row.details.append(Text(f"{trunk}  ", style="bright_black").append(one_line(part.reason), "magenta"))
    return row


def _mark(part: Part) -> tuple[str, str]:
    if part.kind == "dlq" and part.outcome is None:
        return ("✘", "bold red")
    if part.kind == "wait" and part.outcome is None:
        return ("⏸", "yellow")
    if part.kind == "queue" and part.outcome is None:
        return ("·", "bright_black")
    return MARKS.get(part.outcome, ("?", "red"))


def _note(part: Part, now: datetime) -> Text:
    who = one_line(part.who or "")
    note = Text(style="bright_black")
    match part.kind:
        case "attempt" if part.outcome is None:
            note.append(f"on {who}" if who else "", "cyan")
        case "attempt":
            note.append(who)
            if part.outcome in ("failed", "lease_expired", "retry_later") and part.until:
                rest = next((s for s in part.stretches if s.kind == "rest"), None)
                if rest and rest.end is None:
                    ahead = part.until - now
                    word = f"again in {duration(ahead)}" if ahead > timedelta(0) else "again any moment"
                    note.append(f", {word}", "magenta")
                elif rest:
                    note.append(f", rested {duration(rest.length(now))}")
        case "wait" if part.outcome is None:
            left = f", {duration(part.until - now)} left" if part.until and part.until > now else ""
            note.append(f"waiting for {one_line(part.name)}{left}", "yellow")
        case "wait":
            note.append(f"{one_line(part.outcome or '')}{f' by {who}' if who else ''}")
        case "dlq" if part.outcome is None:
            note.append("in the DLQ", "bold red")
        case "dlq":
            note.append(f"{part.outcome}{f' by {who}' if who else ''}")
        case "queue" if part.outcome is None:
            note.append("waiting for a worker")
        case "queue":
            note.append("no worker took it in time")
    return note


def _bar(stretches: Sequence[Stretch], start: datetime, end: datetime, width: int) -> Text:
    """Stretches on a line of `width` cells from `start` to `end`; each has a cell at least."""
    cells: list[tuple[int, str, str]] = [(-1, " ", "")] * width
    span = max((end - start).total_seconds(), 1e-6)
    for stretch in stretches:
        if not width or (stretch.end is not None and stretch.end == stretch.start and stretch.kind != "work"):
            continue
        first = (stretch.start - start).total_seconds() / span * width
        after = ((stretch.end or end) - start).total_seconds() / span * width
        low = min(max(int(first), 0), width - 1)
        high = min(max(round(after), low + 1), width)
        glyph, style = GLYPHS[stretch.kind]
        if stretch.kind == "work":
            style = "red" if stretch.failed else "cyan" if stretch.end is None else style
        rank = _RANK[stretch.kind] + (1 if stretch.failed else 0)
        for i in range(low, high):
            if cells[i][0] < rank:
                cells[i] = (rank, glyph, style)
    bar = Text()
    for _, glyph, style in cells:
        bar.append(glyph, style)
    return bar


def _scale(hops: list[HopStory], start: datetime, end: datetime, indent: int, bar: int, width: int) -> list[Text]:
    left, right = "0", duration(end - start)
    middle = duration((end - start) / 2) if bar >= 36 else ""
    gap = bar - len(left) - len(right) - len(middle)
    text = left + middle.center(gap + len(middle)) + right if middle else left + " " * gap + right
    kinds = {stretch.kind for hop in hops for stretch in hop.stretches}
    legend = Text(" " * indent)
    for kind, word in _LEGEND.items():
        if kind in kinds:
            legend.append(GLYPHS[kind][0] * 2, GLYPHS[kind][1]).append(f" {word}  ", "bright_black")
    legend.rstrip()
    legend.truncate(width)
    return [Text(" " * indent).append(text, "bright_black"), legend]


def summary(task: Task, totals: Totals, note: str | None, width: int | None = None) -> list[Text]:
    """How it ended, and where the time went."""
    colour = STATES.get(task.state, "")
    end = Text().append(f"{END_MARKS.get(task.state, '✘')} {task.state}", f"bold {colour}".replace("bold bold", "bold"))
    end.append(f" {'after' if task.state == 'dead' else 'in'} {duration(totals.total)}")
    lines = [end]
    if task.summary:
        lines.append(Text(f"  {one_line(task.summary)}"))
    waits = [f"{one_line(kind)} {duration(time)}" for kind, time in totals.waits.items() if time]
    waits += [f"queue {duration(totals.queued)}"] if totals.queued else []
    waits += [f"rests {duration(totals.resting)}"] if totals.resting else []
    waits += [f"DLQ {duration(totals.dead)}"] if totals.dead else []
    listed = f" ({', '.join(waits)})" if waits else ""
    lines.append(Text(f"  working {duration(totals.working)} · waiting {duration(totals.waiting)}{listed}"))
    retries = f", {count(totals.retries, 'retry', 'retries')}" if totals.retries else ""
    lines.append(Text(f"  {count(totals.attempts, 'attempt')} in {count(totals.hops, 'hop')}{retries}"))
    if totals.calls:
        unpriced = f", {totals.unpriced} of them without a price" if totals.unpriced else ""
        spent = f"{dollars(totals.cost)} for {tokens(totals.tokens)} tokens in {count(totals.calls, 'call')}"
        lines.append(Text(f"  {spent}{unpriced}"))
    if task.state == "dead":
        lines.append(Text(f"  `tracekit dlq show {task.id}` says why; then `dlq redrive` or `dlq abandon`"))
    if note:
        lines.append(Text(f"  summary {one_line(note)}"))
    if width:
        for line in lines[2:]:
            line.truncate(width, overflow="ellipsis")
    return lines
