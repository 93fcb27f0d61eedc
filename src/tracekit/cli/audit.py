"""`tracekit audit`: does the record hold together?"""

from __future__ import annotations

from contextlib import aclosing
from datetime import timedelta

import click

from tracekit.cli.app import App, pass_app
from tracekit.cli.output import count, json_option, to_json
from tracekit.cli.parameters import DURATION
from tracekit.queue.audit import Extent
from tracekit.queue.audit import audit as check
from tracekit.workers.substrate import Substrate


@click.command(
    epilog="""\b
Exit codes:
  0  everything holds together
  1  something is missing or too much; each is named

\b
Examples:
  tracekit audit                  all that the database remembers
  tracekit audit --since 24h
  tracekit audit --since 7d --json | jq 'select(.check == "orphan")'
"""
)
@click.option("--since", type=DURATION, help="Only tasks that were alive in this time up to now, such as 24h.")
@json_option
@pass_app
@click.pass_context
def audit(ctx: click.Context, app: App, since: timedelta | None, as_json: bool) -> None:
    """Check the record: one root span for each task that ended, no span without its parent, a span for each attempt.

    Also that each open task has its one place in the queue, each dead one its entry in the DLQ and its review task, and
    each hop and wait its span. With `--json` a line for each finding, and one with `summary` at the end.
    """

    async def command(substrate: Substrate) -> int:
        found = 0
        extent: Extent | None = None
        task_id = ""
        async with substrate.pool.connection() as connection, aclosing(check(connection, since=since)) as answers:
            async for answer in answers:
                if isinstance(answer, Extent):
                    extent = answer
                    continue
                found += 1
                if as_json:
                    click.echo(to_json(answer))
                else:
                    if answer.task_id != task_id:
                        click.echo(f"{answer.task_id} (trace {answer.trace_id})")
                    click.echo(f"  {answer.check}: {answer.detail}")
                task_id = answer.task_id
        assert extent is not None, "the extent comes first"
        if as_json:
            click.echo(to_json({"summary": extent, "findings": found}))
        else:
            click.echo(
                f"{count(extent.tasks, 'task')} ({extent.ended} ended, {extent.open} open, {extent.dead} dead),"
                f" {count(extent.hops, 'hop')}, {count(extent.attempts, 'attempt')}, {count(extent.spans, 'span')}:"
                f" {count(found, 'fault') if found else 'everything holds together'}"
            )
        return 1 if found else 0

    ctx.exit(app.run(command, name="audit"))
