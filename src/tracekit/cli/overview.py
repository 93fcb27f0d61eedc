"""An overview as lines: for a screen of a given size, or whole, for a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC
from decimal import Decimal

from rich.text import Text

from tracekit.cli.output import count, table, tokens
from tracekit.cost.limits import about
from tracekit.workers.overview import ApprovalNow, BudgetNow, DeadNow, ModeNow, Overview
from tracekit.workers.words import age, one_line

_BAR = 20
"""Cells of a budget's bar."""
_LOW = Decimal("0.2")
"""The share of a budget from which on little is left."""
_LABEL = 12
_DIM = "bright_black"


def lines(overview: Overview, width: int | None = None, height: int | None = None) -> list[Text]:
    """All of it, none wider than `width` cells. Where there are more than `height`, modes with nothing to tell are left
    out, and then the end.
    """
    found = _lines(overview, overview.modes, width)
    if height is None or len(found) <= height:
        return found
    busy = [one for one in overview.modes if not one.idle]
    return fitted(_lines(overview, busy, width), height)


def _lines(overview: Overview, modes: Sequence[ModeNow], width: int | None) -> list[Text]:
    idle = len(overview.modes) - len(modes)
    shown = [
        _header(overview, whole=width is None),
        Text(),
        *([] if overview.modes else [Text("No hop waits, and no worker was seen lately: tracekit up", style=_DIM)]),
        *_modes(modes, width),
        *([Text(f"{count(idle, 'mode is', 'modes are')} idle", style=_DIM)] if idle else []),
        *_problems(overview),
        Text(),
        *_dead(overview),
        *_approvals(overview),
        *_outgoing(overview),
        *_spent(overview),
        *_budgets(overview.budgets),
        Text(),
        *_running(overview, width),
    ]
    if width is not None:
        for text in shown:
            text.truncate(width, overflow="ellipsis")
    return shown


def _header(overview: Overview, *, whole: bool) -> Text:
    at = f"{overview.at.astimezone(UTC):{'%Y-%m-%d ' if whole else ''}%H:%M:%S} UTC"
    text = Text().append("tracekit", style="bold").append(f"  {at}")
    text.append(f"  {count(len(overview.workers), 'worker')}", style="" if overview.workers else "yellow")
    text.append(f"  {tokens(overview.in_flight)} in flight  {tokens(overview.ready)} waiting")
    if overview.stale:
        text.append(f"  {overview.stale}", style="yellow")
    return text


def _modes(modes: Sequence[ModeNow], width: int | None) -> list[Text]:
    if not modes:
        return []
    headings = ["MODE", "READY", "SCHED", "RUN", "PARKED", "OLDEST", "WORKERS", "/MIN", "FAILED"]
    rows = [
        [
            one.mode,
            *(tokens(hops) for hops in (one.ready, one.scheduled, one.running, one.parked)),
            "-" if one.oldest_ready_seconds is None else age(one.oldest_ready_seconds),
            str(one.workers),
            tokens(round(one.attempts_per_minute)),
            tokens(round(one.failures_per_minute)),
        ]
        for one in modes
    ]
    styles = ["red" if one.unserved or one.failures_per_minute else "green" if one.running else "" for one in modes]
    return table(
        headings, rows, styles, right=headings[1:], expendable=["SCHED", "WORKERS", "/MIN", "PARKED"], width=width
    )


def _problems(overview: Overview) -> Iterable[Text]:
    for one in overview.modes:
        if one.unserved:
            mode = one_line(one.mode)
            yield Text(f"! no worker serves {mode}: tracekit worker --modes {mode}", style="yellow")
    if overview.deaf:
        workers = count(overview.deaf, "worker hears", "workers hear")
        yield Text(f"! {workers} no notification, and polls: does the DSN lead through a pooler?", style="yellow")


def _labelled(label: str, told: str, style: str = "") -> Text:
    return Text().append(label.ljust(_LABEL), style="bold").append(told, style=style)


def _below(told: str) -> Text:
    return Text(" " * _LABEL + told)


def _dead(overview: Overview) -> Iterable[Text]:
    if not overview.dead:
        yield _labelled("DLQ", "empty", _DIM)
        return
    reasons = ", ".join(f"{number} {one_line(reason)}" for reason, number in overview.dead_by_reason.items())
    yield _labelled("DLQ", f"{overview.dead}: {reasons}", "bold red")
    for one in overview.newest_dead:
        yield _below(_dead_letter(one))


def _dead_letter(one: DeadNow) -> str:
    what = one_line(f"{one.mode} {one.error_type or one.reason}")
    return f"{one.task_id}  {age(one.seconds)} ago  {what}  {one.title}"


def _approvals(overview: Overview) -> Iterable[Text]:
    if not overview.approvals:
        yield _labelled("APPROVALS", "none pending", _DIM)
        return
    urgent = f", {overview.urgent_approvals} urgent" if overview.urgent_approvals else ""
    yield _labelled("APPROVALS", f"{overview.approvals} pending{urgent}", "bold yellow")
    for one in overview.next_approvals:
        yield _below(_approval(one))


def _approval(one: ApprovalNow) -> str:
    urgent = " urgent" if one.urgent else ""
    return f"{one.task_id}  {age(one.seconds)} left{urgent}  {one_line(one.requester)}  {one.title}"


def _outgoing(overview: Overview) -> Iterable[Text]:
    style = "yellow" if overview.given_up else "" if overview.undelivered else _DIM
    yield _labelled("MESSAGES", overview.notifications, style)
    yield _labelled("SPANS", overview.spans, "" if overview.unshipped else _DIM)


def _spent(overview: Overview) -> Iterable[Text]:
    yield _labelled("TODAY", overview.today.words, "" if overview.today.calls else _DIM)
    yield _labelled("THIS WEEK", overview.this_week.words, "" if overview.this_week.calls else _DIM)


def _budgets(budgets: Sequence[BudgetNow]) -> Iterable[Text]:
    for number, one in enumerate(budgets):
        left = one.remaining / one.amount if one.amount else Decimal(0)
        full = max(0, min(_BAR, round(_BAR * left)))
        style = "red" if one.used_up or one.remaining <= 0 else "yellow" if left < _LOW else ""
        text = _labelled("BUDGETS" if number == 0 else "", "")
        text.append("█" * full + "░" * (_BAR - full), style=style or "green")
        told = f" {about(one.unit, one.remaining)} left of {about(one.unit, one.amount)}  {one_line(one.name)}"
        yield text.append(told, style=style)


def _running(overview: Overview, width: int | None) -> list[Text]:
    if not overview.running:
        return [_labelled("RUNNING", "nothing", _DIM)]
    rows = [
        [one.task_id, age(one.seconds), one.mode, f"#{one.attempt}", one.worker, one.title] for one in overview.running
    ]
    return table(
        ["RUNNING", "FOR", "MODE", "ATTEMPT", "ON", "INTENT"],
        rows,
        right=["FOR"],
        expendable=["ON", "ATTEMPT", "MODE"],
        width=width,
    )


def fitted(lines: Sequence[Text], height: int) -> list[Text]:
    """What a screen of `height` lines has room for: the first, and how many are left out."""
    if len(lines) <= height:
        return list(lines)
    left_out = len(lines) - height + 1
    return [*lines[: height - 1], Text(f"… {count(left_out, 'line')} more, in a taller window", style=_DIM)][:height]
