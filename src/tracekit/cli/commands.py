"""The root command, and all that hang on it."""

from __future__ import annotations

import click

from tracekit import __version__
from tracekit.cli.alerts import alerts
from tracekit.cli.app import App, pass_app
from tracekit.cli.approvals import approvals
from tracekit.cli.audit import audit
from tracekit.cli.budget import budget
from tracekit.cli.cost import cost
from tracekit.cli.dashboards import dashboards
from tracekit.cli.db import db
from tracekit.cli.dlq import dlq
from tracekit.cli.envelope import envelope
from tracekit.cli.follow import follow
from tracekit.cli.rollup import rollup
from tracekit.cli.serve import demo, serve, up, worker
from tracekit.cli.settings import config
from tracekit.cli.submit import submit
from tracekit.cli.tasks import tasks
from tracekit.cli.token import token
from tracekit.cli.top import top


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
Exit codes of every command (some have more, see their help):
  0  done       2  wrong usage, input or configuration    130  interrupted
  1  an error   4  no such task                           5  the database's schema is another version's

\b
Examples:
  tracekit demo                                        see it all at work
  tracekit up                                          run it
  tracekit submit "turn on the kitchen light" --follow
  tracekit follow 01K9GQ7F3M                           watch a task
""",
)
@click.version_option(__version__, prog_name="tracekit", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show log lines, and the traceback of an error.")
@pass_app
def cli(app: App, debug: bool) -> None:
    """A durable task queue for household agents, where every task is one OpenTelemetry trace."""
    app.debug = debug


@cli.command(
    epilog="""\b
Examples:
  tracekit version
"""
)
def version() -> None:
    """Print the version."""
    click.echo(__version__)


for command in (
    alerts, approvals, audit, budget, config, cost, dashboards, db, demo, dlq, envelope, follow, rollup, serve, submit,
    tasks, token, top, up, worker,
):  # fmt: skip
    cli.add_command(command)
