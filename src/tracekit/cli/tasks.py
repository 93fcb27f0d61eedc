"""`tracekit tasks`: which tasks there are, and one of them in full."""

from __future__ import annotations

import click

from tracekit.cli.app import App, ListingGroup, pass_app
from tracekit.cli.lines import as_json as event_json
from tracekit.cli.lines import line
from tracekit.cli.notes import vault_note
from tracekit.cli.output import (
    STATES,
    console,
    duration,
    is_terminal,
    json_option,
    print_fields,
    print_json,
    print_table,
)
from tracekit.cli.story import Story, totals
from tracekit.cli.tree import header, summary, tree
from tracekit.envelope import Origin
from tracekit.queue.tasks import Task
from tracekit.workers.substrate import Substrate
from tracekit.workers.words import one_line


@click.group(
    cls=ListingGroup,
    epilog="""\b
Examples:
  tracekit tasks                        the newest fifty
  tracekit tasks list --state open --mode guardian
  tracekit tasks show 01K9GQ7F3M
""",
)
def tasks() -> None:
    """List tasks, or show one. Alone: `tasks list`."""


@tasks.command(
    "list",
    epilog="""\b
Examples:
  tracekit tasks list --state open
  tracekit tasks list --state dead --state failed --json
""",
)
@click.option("--state", "states", multiple=True, type=click.Choice(list(STATES)), help="Only these; may be repeated.")
@click.option("--mode", help="Only tasks that are in this mode now.")
@click.option("--requester", help="Only tasks of this principal.")
@click.option(
    "--origin", type=click.Choice([origin.value for origin in Origin]), help="Only tasks that came from there."
)
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="At most this many.")
@json_option
@pass_app
def list_tasks(
    app: App,
    states: tuple[str, ...],
    mode: str | None,
    requester: str | None,
    origin: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List tasks, the newest first."""

    async def command(substrate: Substrate) -> list[Task]:
        return await substrate.queue.tasks(states=states, mode=mode, requester=requester, origin=origin, limit=limit)

    found = [app.viewer.task(task) for task in app.run(command, name="tasks")]
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("No tasks." if not (states or mode or requester or origin) else "No such tasks.", err=True)
        return
    print_table(
        ["STATE", "TASK", "AGE", "WHERE", "REQUESTER", "INTENT"],
        [
            [
                task.state + (" (synthetic)" if task.synthetic else ""),
                task.id,
                duration(task.now - task.created_at),
                where(task),
                task.requester,
                task.intent,
            ]
            for task in found
        ],
        [STATES.get(task.state, "") for task in found],
        expendable=["REQUESTER", "AGE", "WHERE", "INTENT"],
    )


def where(task: Task) -> str:
    """Where a live task is and what it does there."""
    if task.mode is None:
        return "-"
    doing = f"waits for {task.wait_kind}" if task.wait_kind else task.hop_state
    attempt = f" #{task.attempt}" if task.hop_state == "running" else ""
    return f"{task.mode} {doing}{attempt}"


@tasks.command(
    "show",
    epilog="""\b
Examples:
  tracekit tasks show 01K9GQ7F3M
  tracekit tasks show 4bf92f3577b34da6a3ce929d0e0e4736 --json
""",
)
@click.argument("reference", metavar="TASK_OR_TRACE")
@json_option
@pass_app
def show(app: App, reference: str, as_json: bool) -> None:
    """Show one task as it stands, with its record. `tracekit follow` shows it live."""

    async def command(substrate: Substrate) -> None:
        task_id = await substrate.queue.resolve_id(reference)
        task = await substrate.queue.task(task_id)
        events = app.viewer.events(task, await substrate.queue.events(task_id))
        note = await vault_note(substrate, task_id) if app.viewer.sees(task.data_tier) else None
        shown = app.viewer.task(task)
        story = Story()
        story.add(events)
        hops = story.at(task)
        if as_json:
            print_json({"task": shown, "events": [event_json(task, event) for event in events], "note": note})
            return
        if is_terminal():
            screen = console()
            for text in [*header(shown, screen.width), *tree(task, hops, screen.width)]:
                screen.print(text, no_wrap=True, crop=False)
            if task.state != "open":
                screen.print()
                for text in summary(shown, totals(hops, task), note, screen.width):
                    screen.print(text)
            return
        print_fields(
            [
                ("task", task.id),
                ("trace", task.trace_id),
                ("intent", one_line(shown.intent)),
                ("state", task.state),
                ("where", where(task) if task.mode else None),
                ("requester", f"{task.requester} via {task.surface} ({task.origin})"),
                ("tags", ", ".join(map(one_line, shown.tags))),
                ("summary", one_line(shown.summary or "")),
                ("vault", note),
            ]
        )
        for event in events:
            click.echo(line(task, event))

    app.run(command, name="tasks")
