"""`tracekit top`: what waits, runs, failed and was spent, at a glance, and again every few seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta

import click
from rich.text import Text

from tracekit.cli.app import INTERRUPTED, App, operator_only, pass_app
from tracekit.cli.output import console, is_terminal, to_json
from tracekit.cli.overview import lines
from tracekit.cli.parameters import DURATION
from tracekit.cli.screen import Screen
from tracekit.postgres import is_away
from tracekit.queue.follow import Away
from tracekit.workers.loops import end
from tracekit.workers.overview import Overview, Overviews
from tracekit.workers.substrate import Substrate
from tracekit.workers.words import age, one_line

_SHORTEST = timedelta(seconds=0.2)
_REST = 0.5
"""Seconds between tries while the database is away."""


@click.command(
    epilog="""\b
Keys:
  q, Escape  leave      Ctrl-C  leave, with exit code 130

\b
Columns:
  READY    hops that wait for a worker; OLDEST is how long the first of them has
  SCHED    hops that wait for their time, RUN those in flight, PARKED those that wait for a person or an event
  WORKERS  that serve the mode, seen within two minutes
  /MIN     attempts that ended in the last minute, and FAILED those of them that ended with an error

\b
Exit codes:
  0  left, or printed      2  wrong usage, or you are no operator
  1  any other error     130  interrupted

\b
Examples:
  tracekit top
  tracekit top --interval 10s
  tracekit top --once
  tracekit top --once --json | jq '.modes[] | select(.ready > 100)'
  tracekit top --json --interval 1m >> overview.jsonl
"""
)
@click.option("--interval", type=DURATION, default="2s", show_default=True, help="Between looks.")
@click.option("--once", is_flag=True, help="Print one look and end, also on a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print each look as one line of JSON, for scripts.")
@pass_app
@click.pass_context
def top(ctx: click.Context, app: App, interval: timedelta, once: bool, as_json: bool) -> None:
    """Watch all modes: depth, work in flight, failures, the DLQ, approvals, and what is spent. An operator's.

    On a terminal this fills the screen until q is typed; on a pipe it is one look. With --json looks go on until
    Ctrl-C, or to the first with --once. A database that goes away is waited for. No title of a restricted task is
    shown. A very deep queue is counted more rarely than it is looked at; the first line says so.
    """
    operator_only(app, "overviews")
    if interval < _SHORTEST:
        raise click.BadParameter(f"must be {_SHORTEST.total_seconds():g}s at least", param_hint="--interval")

    async def command(substrate: Substrate) -> None:
        overviews = Overviews(substrate.queue, time_zone=substrate.settings.cost.time_zone, at_most=interval * 0.9)
        if once or not (as_json or is_terminal()):
            _print(await overviews.look(), as_json)
        elif as_json:
            await _stream(_looks(overviews, interval))
        else:
            await _watch(_looks(overviews, interval), interval)

    try:
        app.run(command, name="top")
    except KeyboardInterrupt:
        ctx.exit(INTERRUPTED)


async def _looks(overviews: Overviews, interval: timedelta) -> AsyncIterator[Overview | Away]:
    while True:
        try:
            seen = await overviews.look()
        except Exception as error:
            if not is_away(error):
                raise
            yield Away(one_line(str(error)) or type(error).__name__)
            await asyncio.sleep(_REST)
        else:
            yield seen
            await asyncio.sleep(interval.total_seconds())


def _print(overview: Overview, as_json: bool) -> None:
    if as_json:
        click.echo(to_json(overview))
    elif is_terminal():
        screen = console()
        for text in lines(overview, screen.width):
            screen.print(text, no_wrap=True, crop=False)
    else:
        for text in lines(overview):
            click.echo(text.plain.rstrip())


async def _stream(looks: AsyncIterator[Overview | Away]) -> None:
    away = False
    last: Overview | None = None
    async for seen in looks:
        if isinstance(seen, Away):
            if not away:
                click.echo(f"tracekit: the database is away, waiting for it ({seen.error})", err=True)
            away = True
            continue
        if away:
            click.echo("tracekit: the database is back", err=True)
            away = False
        if seen is not last:
            click.echo(to_json(seen))
        last = seen


@dataclass(slots=True)
class _Seen:
    """What there is to draw."""

    last: Overview | None = None
    away: Away | None = None
    away_since: float = 0.0


async def _watch(looks: AsyncIterator[Overview | Away], interval: timedelta) -> None:
    seen = _Seen()
    with Screen() as screen:

        async def look() -> None:
            async for found in looks:
                if isinstance(found, Away):
                    seen.away_since = seen.away_since if seen.away else time.monotonic()
                    seen.away = found
                else:
                    seen.last, seen.away = found, None
                screen.changed.set()

        # Keys and the window's size are heeded while the database lets a look wait.
        looking = asyncio.create_task(look())
        looking.add_done_callback(lambda _: screen.changed.set())
        try:
            while not screen.over:
                screen.draw(_drawn(seen, interval, *screen.size))
                await screen.changed.wait()
                screen.changed.clear()
                if looking.done():
                    looking.result()
        finally:
            await end(looking)


def _drawn(seen: _Seen, interval: timedelta, width: int, height: int) -> list[Text]:
    shown = (
        lines(seen.last, width, height - (2 if seen.away else 0))
        if seen.last
        else [Text("tracekit", style="bold"), Text("looking …")]
    )
    if seen.away:
        lasts = age(time.monotonic() - seen.away_since)
        shown[1:1] = [Text(f"THE DATABASE IS AWAY for {lasts}, waiting for it: {seen.away.error}", style="bold red")]
        shown[1].truncate(width, overflow="ellipsis")
        if seen.last:
            shown[2:2] = [Text("what follows is the last that was seen", style="yellow")]
    keys = f"every {interval.total_seconds():g} s, q leaves"
    if shown[0].cell_len + len(keys) + 2 <= width:
        shown[0].append(keys.rjust(width - shown[0].cell_len), style="bright_black")
    return shown[:height]
