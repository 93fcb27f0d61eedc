"""`tracekit submit`: a task from the command line."""

from __future__ import annotations

import os
from datetime import timedelta

import click

from tracekit import ids
from tracekit.cli.app import App, pass_app
from tracekit.cli.follow import EXIT_HELP, follow_task
from tracekit.cli.output import json_option, print_json
from tracekit.cli.parameters import DURATION
from tracekit.envelope import DataTier, Envelope, Origin, Priority, TaskRequest, parse
from tracekit.queue import Receipt, Submission
from tracekit.tracing.context import parse_traceparent
from tracekit.workers.substrate import Substrate

SURFACE = "cli"


@click.command(
    epilog=EXIT_HELP.replace("Exit codes:", "Exit codes with --follow (0 without, once the task is accepted):")
    + """

\b
Examples:
  tracekit submit "turn on the kitchen light" --follow
  tracekit submit "restart the backup job" --priority high --ttl 15m --destructive
  tracekit submit "write the weekly report" --key report-2026-w45 --json
"""
)
@click.argument("words", metavar="INTENT", nargs=-1, required=True)
@click.option(
    "--priority", type=click.Choice([p.value for p in Priority]), default="normal", show_default=True,
    help="How soon it is wanted.",
)  # fmt: skip
@click.option("--ttl", type=DURATION, help="How long it is worth doing, such as 15m; after that it expires, undone.")
@click.option("--key", help="The same key is the same task, however often it is submitted. Default: a new one.")
@click.option("--destructive", is_flag=True, help="It destroys something: a person must approve the plan.")
@click.option(
    "--data-tier", type=click.Choice([tier.value for tier in DataTier]), default="internal", show_default=True,
    help="How far its data may travel.",
)  # fmt: skip
@click.option("--follow", "-f", "follows", is_flag=True, help="Follow it until it ends.")
@json_option
@pass_app
@click.pass_context
def submit(
    ctx: click.Context,
    app: App,
    words: tuple[str, ...],
    priority: str,
    ttl: timedelta | None,
    key: str | None,
    destructive: bool,
    data_tier: str,
    follows: bool,
    as_json: bool,
) -> None:
    """File a task with the intent INTENT, in your own words, quoted or not. Prints its id.

    It is filed as the principal that the configuration names (`cli_principal`). A TRACEPARENT in the environment is
    continued: the task becomes part of the caller's trace.
    """
    caller = parse_traceparent(os.environ.get("TRACEPARENT"), os.environ.get("TRACESTATE"))
    request = parse(
        TaskRequest,
        {
            "intent": " ".join(words),
            "idempotency_key": f"cli:{ids.new_task_id()}" if key is None else key,
            "priority": priority,
            "ttl": ttl,
            "destructive": destructive,
            "data_tier": data_tier,
        },
    )
    envelope = Envelope.seal(
        request,
        origin=Origin.MANUAL,
        surface=SURFACE,
        requester=app.settings.cli_principal,
        trace_id=caller.trace_id if caller else ids.new_trace_id(),
        parent_span_id=caller.span_id if caller else None,
        trace_state=caller.trace_state if caller else "",
    )

    async def command(substrate: Substrate) -> Receipt:
        [receipt] = await substrate.queue.enqueue([Submission(envelope)])
        return receipt

    receipt = app.run(command, name="submit")
    if not (follows and as_json):
        if as_json:
            print_json(receipt)
        else:
            click.echo(receipt.task_id, err=follows)
            if receipt.duplicate:
                click.echo("This key is known: this is the task that it named first.", err=True)
    if follows:
        ctx.exit(follow_task(app, receipt.task_id, as_events=as_json))
