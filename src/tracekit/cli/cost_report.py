"""The report of costs on paper: for people with small charts, as CSV, and for scripts."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal

import click

from tracekit.cli.output import (
    colour,
    console,
    count,
    is_terminal,
    print_fields,
    print_prose,
    print_table,
    timestamp,
    tokens,
)
from tracekit.cost.money import dollars, in_dollars
from tracekit.cost.report import CostReport, Sums, Unpriced
from tracekit.workers.words import one_line

_BAR = 32
"""Cells of the widest bar."""
_PARTS = " ▏▎▍▌▋▊▉█"


def print_csv(found: CostReport) -> None:
    """The groups, with exact dollars."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(
        [
            found.by, "cost_usd", "unpriced_calls", "calls", "requests", "input_tokens", "cache_read_tokens",
            "cache_write_tokens", "output_tokens", "reasoning_tokens", "retry_cost_usd", "retry_calls",
            "uncertain_calls", "synthetic_calls",
        ]
    )  # fmt: skip
    for group in found.groups:
        sums = group.sums
        writer.writerow(
            [
                _cell(group.key), f"{sums.cost:f}", sums.unpriced, sums.calls, sums.requests, sums.input,
                sums.cache_read,
                sums.cache_write, sums.output, sums.reasoning, f"{sums.retry_cost:f}", sums.retry_calls,
                sums.uncertain, sums.synthetic,
            ]
        )  # fmt: skip


def _cell(text: str) -> str:
    """A name from elsewhere, such as a model server's, as no spreadsheet takes it for a formula or a screen for an
    order: OWASP's way, an apostrophe before it.
    """
    shown = one_line(text)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown


def as_data(found: CostReport) -> dict[str, object]:
    """The report for scripts."""
    return {
        "since": found.since,
        "until": found.until,
        "time_zone": found.time_zone,
        "by": found.by,
        "total": found.total,
        "groups": found.groups,
        "days": found.days,
        "per_task": found.per_task,
        "dearest": [
            {
                "task_id": task.task_id,
                "trace_id": task.trace_id,
                "requester": task.requester,
                "origin": task.origin,
                "intent": task.intent,
                "state": task.state,
                "calls": task.calls,
                "unpriced": task.unpriced,
                "tokens": task.tokens,
                "cost": task.cost,
                "synthetic": task.synthetic,
            }
            for task in found.dearest
        ],
        "unpriced": found.unpriced,
        "subscriptions": found.subscriptions,
    }


def print_report(found: CostReport) -> None:
    """The report for people: totals, days, groups, tasks, and what has no price."""
    total = found.total
    last = found.until - timedelta(days=1)
    days = len(found.days)
    title = f"{found.since:%a %d %b} to {last:%a %d %b %Y}" if days > 1 else f"{found.since:%a %d %b %Y}"
    _heading(f"{title}, {count(days, 'day')} of {found.time_zone}")
    if total.synthetic:
        print_prose(
            f"SYNTHETIC: {total.synthetic} of {count(total.calls, 'call')} were made up by a demonstration"
            " (--no-synthetic leaves them out)"
        )
    if not total.calls:
        click.echo("No model was called.")
        _print_subscriptions(found)
        return
    print_fields(
        [
            ("spent", _spent(total)),
            ("calls", f"{count(total.calls, 'call')} in {count(total.tasks, 'task')}{_kinds(total)}"),
            (
                "tokens",
                f"{tokens(total.tokens)}: {tokens(total.input)} input, {tokens(total.cache_read)} cache read,"
                f" {tokens(total.cache_write)} cache write, {tokens(total.output)} output"
                + (f" ({tokens(total.reasoning)} of it reasoning)" if total.reasoning else ""),
            ),
            ("retries", _retries(total)),
        ]
    )
    if days > 1:
        click.echo()
        _chart([(f"{day.date:%a %d %b}", day.sums) for day in found.days])
    click.echo()
    _heading(f"by {found.by}")
    _print_groups(found)
    if found.per_task and found.by != "task":
        click.echo()
        _heading("a task that calls models")
        print_table(
            ["AT MOST", "COST", "TOKENS", "CALLS"],
            [
                [
                    "all" if one.percent == 100 else "half" if one.percent == 50 else f"{one.percent} %",
                    dollars(one.cost),
                    tokens(one.tokens),
                    str(one.calls),
                ]
                for one in found.per_task
            ],
        )
    click.echo()
    _heading("the dearest tasks")
    print_table(
        ["TASK", "COST", "TOKENS", "CALLS", "STATE", "TRACE", "INTENT"],
        [
            [
                task.task_id,
                in_dollars(task.cost, task.unpriced),
                tokens(task.tokens),
                str(task.calls),
                task.state + (" (synthetic)" if task.synthetic else ""),
                task.trace_id,
                one_line(task.intent),
            ]
            for task in found.dearest
        ],
        expendable=["TRACE", "CALLS", "TOKENS"],
    )
    if found.unpriced:
        click.echo()
        _heading("without a price")
        print_table(
            ["MODEL", "CALLS", "TOKENS", "LAST", "WHERE", "WHY"],
            [
                [
                    f"{one.provider}/{one.model}",
                    str(one.calls),
                    tokens(one.tokens),
                    timestamp(one.last_at),
                    "in the house" if one.local else "remote",
                    _why(one),
                ]
                for one in found.unpriced
            ],
            expendable=["LAST", "WHERE"],
        )
        if any(one.lost < one.calls for one in found.unpriced):
            print_prose("Say what they cost in [[prices]] (`free = true` where nothing), then: tracekit cost reprice")
    _print_subscriptions(found)


def _print_subscriptions(found: CostReport) -> None:
    if found.subscriptions:
        click.echo()
        _heading("flat rates, beside what was spent")
        print_table(
            ["FOR", "A MONTH", "THESE DAYS"],
            [[one.label, dollars(one.per_month), dollars(one.cost)] for one in found.subscriptions],
        )


def _print_groups(found: CostReport) -> None:
    shown = found.groups[:DEFAULT_GROUPS]
    most = max((group.sums.cost for group in shown), default=Decimal(0))
    rows = [
        [
            group.key or "(none)",
            in_dollars(group.sums.cost, group.sums.unpriced),
            _share(group.sums.cost, found.total.cost),
            str(group.sums.calls),
            tokens(group.sums.tokens),
            _share(group.sums.retry_cost, group.sums.cost),
            _bar(group.sums.cost, most) if is_terminal() else "",
        ]
        for group in shown
    ]
    print_table(
        [found.by.upper(), "COST", "SHARE", "CALLS", "TOKENS", "RETRIES", " "],
        rows,
        expendable=["RETRIES", "CALLS", "TOKENS"],
    )
    if len(found.groups) > len(shown):
        click.echo(f"… and {len(found.groups) - len(shown)} more: --csv or --json has them")


DEFAULT_GROUPS = 20
"""Groups that are shown to a person."""


def _why(one: Unpriced) -> str:
    """Why calls of a model have no price."""
    if not one.lost:
        return "no price is known"
    if one.lost == one.calls:
        return "nobody saw the answer"
    return f"nobody saw {count(one.lost, 'answer')}; of the others no price is known"


def _spent(sums: Sums) -> str:
    told = dollars(sums.cost)
    if sums.unpriced:
        told += f", and {count(sums.unpriced, 'call')} without a price"
    return told


def _kinds(sums: Sums) -> str:
    kinds = [f"{sums.local} in the house"] if sums.local else []
    kinds += [f"{sums.uncertain} estimated or lost"] if sums.uncertain else []
    return f" ({', '.join(kinds)})" if kinds else ""


def _retries(sums: Sums) -> str:
    share = _share(sums.retry_cost, sums.cost)
    return f"{dollars(sums.retry_cost)} ({share}) in {count(sums.retry_calls, 'call')} of attempts after a failed one"


def _share(part: Decimal, whole: Decimal) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


def _heading(text: str) -> None:
    click.echo(click.style(text, bold=True) if colour() else text)


def _chart(days: Sequence[tuple[str, Sums]]) -> None:
    """A line for each day; on a terminal with a bar."""
    most = max(sums.cost for _, sums in days)
    width = max(len(in_dollars(sums.cost, sums.unpriced)) for _, sums in days)
    screen = console() if is_terminal() else None
    for label, sums in days:
        line = f"{label}  {in_dollars(sums.cost, sums.unpriced).rjust(width)}"
        if screen is None:
            click.echo(f"{line}  {tokens(sums.tokens)} tokens in {count(sums.calls, 'call')}")
        else:
            screen.print(f"{line}  {_bar(sums.cost, most)}", no_wrap=True, crop=False)


def _bar(part: Decimal, whole: Decimal) -> str:
    eighths = round(8 * _BAR * part / whole) if whole else 0
    full, rest = divmod(eighths, 8)
    return "█" * full + (_PARTS[rest] if rest else "")
