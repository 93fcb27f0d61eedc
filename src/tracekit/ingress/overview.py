"""`/`: the overview in a browser, with the numbers of `tracekit top`. It is the operator's, changes nothing, and loads
itself again every ten seconds.

Browsers know no bearer tokens: one that comes without a credential is asked for a name and a password, and the password
is an operator's token. No other path takes it that way: what a browser keeps is of no use to somebody else's page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC
from html import escape

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tracekit.cost.limits import about
from tracekit.ingress import pages
from tracekit.ingress.context import ingress_of
from tracekit.ingress.database import ask
from tracekit.ingress.problems import Reason, Refused
from tracekit.workers.overview import Overview, Overviews
from tracekit.workers.words import age, one_line

router = APIRouter()

AGAIN = 10
"""Seconds after which a browser loads it again."""


@router.get(pages.OVERVIEW)
async def show(request: Request) -> Response:
    """What waits, runs, failed and was spent, as it is now."""
    ingress = ingress_of(request)
    try:
        ingress.operator(request, browser=True)
    except Refused as refused:
        if refused.reason is Reason.UNAUTHENTICATED:
            refused.headers["WWW-Authenticate"] = 'Basic realm="tracekit: a token as the password", charset="UTF-8"'
        raise
    overviews: Overviews = request.app.state.overviews
    found = await ask(overviews.look, patience=ingress.patience)
    return pages.page("tracekit", _body(found), again=AGAIN)


def _body(overview: Overview) -> str:
    return "".join(
        [
            f"<p>{overview.at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC {_text(overview.stale)}</p>",
            *_problems(overview),
            _table(
                ["Mode", "Ready", "Scheduled", "Running", "Parked", "Oldest", "Workers", "Per minute", "Failed"],
                [
                    [
                        one.mode, str(one.ready), str(one.scheduled), str(one.running), str(one.parked),
                        "-" if one.oldest_ready_seconds is None else age(one.oldest_ready_seconds),
                        str(one.workers), f"{one.attempts_per_minute:.0f}", f"{one.failures_per_minute:.0f}",
                    ]
                    for one in overview.modes
                ],
                numbers=range(1, 9),
            ),
            "<h2>Now</h2>",
            _facts(overview),
            _section(
                "Dead",
                ["Task", "Since", "Mode", "Why", "Intent"],
                [
                    [one.task_id, age(one.seconds), one.mode, one.error_type or one.reason, one.title]
                    for one in overview.newest_dead
                ],
            ),
            _section(
                "Waiting for a decision",
                ["Task", "Time left", "By", "Intent"],
                [
                    [one.task_id, age(one.seconds) + (" (urgent)" if one.urgent else ""), one.requester, one.title]
                    for one in overview.next_approvals
                ],
            ),
            _section(
                "Budgets",
                ["Budget", "Left", "Of", "Reserved"],
                [
                    [one.name, *(about(one.unit, amount) for amount in (one.remaining, one.amount, one.reserved))]
                    for one in overview.budgets
                ],
            ),
            _section(
                "Running",
                ["Task", "For", "Mode", "Attempt", "On", "Intent"],
                [
                    [one.task_id, age(one.seconds), one.mode, str(one.attempt), one.worker, one.title]
                    for one in overview.running
                ],
            ),
        ]
    )  # fmt: skip


def _problems(overview: Overview) -> Iterable[str]:
    for one in overview.modes:
        if one.unserved:
            yield f"<p><strong>No worker serves {_text(one.mode)}.</strong></p>"
    if overview.deaf:
        of = f"{overview.deaf} of {len(overview.workers)}"
        yield f"<p><strong>{of} workers hear no notification, and poll.</strong></p>"


def _facts(overview: Overview) -> str:
    reasons = ", ".join(f"{number} {reason}" for reason, number in overview.dead_by_reason.items())
    facts = {
        "Workers": str(len(overview.workers)),
        "In flight": str(overview.in_flight),
        "DLQ": f"{overview.dead}: {reasons}" if overview.dead else "empty",
        "Approvals": f"{overview.approvals} pending, {overview.urgent_approvals} urgent",
        "Notifications": overview.notifications,
        "Spans": overview.spans,
        "Spent today": overview.today.words,
        "Spent this week": overview.this_week.words,
    }
    return f"<dl>{''.join(f'<dt>{_text(name)}</dt><dd>{_text(told)}</dd>' for name, told in facts.items())}</dl>"


def _section(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"<h2>{_text(title)}</h2>{_table(headings, rows)}" if rows else ""


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = [' class="number"' if place in numbers else "" for place in range(len(cells))]
        inside = (f"<{tag}{kind}>{_text(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(inside)}</tr>"

    return f"<table>{line('th', headings)}{''.join(line('td', row) for row in rows)}</table>"


def _text(text: str) -> str:
    """Text from elsewhere, as HTML: it cannot pass for what it is not."""
    return escape(one_line(text))
