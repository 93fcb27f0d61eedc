"""`tracekit dlq`: tasks that ran out of attempts."""

from __future__ import annotations

from typing import Literal

import click

from tracekit.cli.app import App, ListingGroup, operator_only, pass_app
from tracekit.cli.output import count, json_option, print_fields, print_json, print_table, timestamp
from tracekit.queue import TaskNotFound
from tracekit.queue.deadletters import DeadLetter
from tracekit.workers.substrate import Substrate
from tracekit.workers.words import one_line

_ERROR_WIDTH = 40


@click.group(
    cls=ListingGroup,
    epilog="""\b
Examples:
  tracekit dlq                        what lies there
  tracekit dlq show 01K9GQ7F3M        why one of them died
  tracekit dlq redrive 01K9GQ7F3M     try it once more
  tracekit dlq abandon 01K9GQ7F3M     end it for good
""",
)
def dlq() -> None:
    """The dead letter queue: list, show, redrive, abandon. Alone: `dlq list`."""


@dlq.command(
    "list",
    epilog="""\b
Examples:
  tracekit dlq list
  tracekit dlq list --all --json
""",
)
@click.option("--all", "resolved", is_flag=True, help="Also those that were redriven or abandoned.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="At most this many.")
@json_option
@pass_app
def list_dead(app: App, resolved: bool, limit: int, as_json: bool) -> None:
    """List dead tasks, the newest first."""

    async def command(substrate: Substrate) -> list[DeadLetter]:
        return await substrate.queue.dead_letters(resolved=resolved, limit=limit)

    found = [app.viewer.dead_letter(entry) for entry in app.run(command, name="dlq")]
    if as_json:
        print_json(found)
    elif not found:
        click.echo("Nothing is dead.", err=True)
    else:
        print_table(
            ["TASK", "MODE", "DIED", "ATTEMPTS", "REASON", "ERROR", "STATE", "INTENT"],
            [
                [
                    entry.task_id,
                    entry.mode,
                    timestamp(entry.died_at),
                    str(entry.attempts),
                    entry.reason,
                    _error(entry),
                    entry.resolution or "open",
                    entry.intent,
                ]
                for entry in found
            ],
            expendable=["DIED", "ATTEMPTS", "REASON", "MODE", "ERROR", "INTENT"],
        )


def _error(entry: DeadLetter) -> str:
    """What it died of, in a few words: the type only where it says more than the reason does."""
    said = [entry.error_type] if entry.error_type and entry.error_type != entry.reason else []
    text = one_line(": ".join([*said, entry.error] if entry.error else said)) or "-"
    return text if len(text) <= _ERROR_WIDTH else f"{text[: _ERROR_WIDTH - 1]}…"


@dlq.command(
    "show",
    epilog="""\b
Examples:
  tracekit dlq show 01K9GQ7F3M
""",
)
@click.argument("reference", metavar="TASK_OR_TRACE")
@json_option
@pass_app
def show(app: App, reference: str, as_json: bool) -> None:
    """Show why a task died, and what became of it; the newest death first."""

    async def command(substrate: Substrate) -> list[DeadLetter]:
        task_id = await substrate.queue.resolve_id(reference)
        found = await substrate.queue.dead_letters(task_id=task_id, resolved=True)
        if not found:
            raise TaskNotFound(f"task {task_id} never was in the DLQ", hint="`tracekit dlq list` shows what lies there")
        return found

    found = [app.viewer.dead_letter(entry) for entry in app.run(command, name="dlq")]
    if as_json:
        print_json(found)
        return
    for i, entry in enumerate(found):
        if i:
            click.echo()
        resolved = f"{entry.resolution} by {entry.resolved_by}" if entry.resolution else "open"
        print_fields(
            [
                ("task", entry.task_id),
                ("trace", entry.trace_id),
                ("intent", one_line(entry.intent)),
                ("died", f"{timestamp(entry.died_at)} in {entry.mode} (hop {entry.hop})"),
                ("reason", f"{entry.reason} after {count(entry.attempts, 'attempt')}"),
                ("error", ": ".join(one_line(text) for text in (entry.error_type, entry.error) if text)),
                ("state", resolved),
                ("review task", entry.review_task_id),
            ]
        )


def _resolve(app: App, reference: str, resolution: Literal["redriven", "abandoned"], as_json: bool) -> None:
    operator_only(app, "redriving and abandoning")

    async def command(substrate: Substrate) -> str:
        task_id = await substrate.queue.resolve_id(reference)
        await substrate.queue.resolve_dead(task_id, resolution, app.settings.cli_principal)
        return task_id

    task_id = app.run(command, name="dlq")
    if as_json:
        print_json({"task_id": task_id, "resolution": resolution})
    else:
        click.echo(f"{task_id} {resolution}")


@dlq.command(
    "redrive",
    epilog="""\b
Examples:
  tracekit dlq redrive 01K9GQ7F3M && tracekit follow 01K9GQ7F3M
""",
)
@click.argument("reference", metavar="TASK_OR_TRACE")
@json_option
@pass_app
def redrive(app: App, reference: str, as_json: bool) -> None:
    """Take a dead task up again where it died, with its attempts unspent."""
    _resolve(app, reference, "redriven", as_json)


@dlq.command(
    "abandon",
    epilog="""\b
Examples:
  tracekit dlq abandon 01K9GQ7F3M
""",
)
@click.argument("reference", metavar="TASK_OR_TRACE")
@json_option
@pass_app
def abandon(app: App, reference: str, as_json: bool) -> None:
    """End a dead task for good."""
    _resolve(app, reference, "abandoned", as_json)
