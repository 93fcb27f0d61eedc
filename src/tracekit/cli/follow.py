"""`tracekit follow`: what happened to a task, then what happens, until it ends."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import click
from rich.console import Group
from rich.live import Live
from rich.text import Text

from tracekit.cli.app import INTERRUPTED, App, pass_app
from tracekit.cli.lines import as_json, line
from tracekit.cli.notes import vault_note
from tracekit.cli.output import console, is_terminal, to_json
from tracekit.cli.story import Story, totals
from tracekit.cli.tree import header, summary, tree
from tracekit.cli.viewer import Viewer
from tracekit.postgres import connect, is_away
from tracekit.queue.follow import Away, Follower, Look
from tracekit.queue.listener import Listener
from tracekit.queue.notify import FORGOTTEN_AFTER
from tracekit.queue.tasks import Task
from tracekit.workers.loops import end, keep
from tracekit.workers.substrate import Substrate
from tracekit.workers.words import one_line

EXIT_CODES = {"done": 0, "failed": 10, "dead": 11, "expired": 12, "rejected": 13, "abandoned": 14}
"""How the following ends, by the task's state."""

_LOOK_S = 2.0
"""How long the look for workers may take."""

EXIT_HELP = """\b
Exit codes:
    0  done              12  expired
   10  failed            13  rejected
   11  dead (in the DLQ) 14  abandoned
    4  no such task     130  interrupted (the task goes on)
    2  wrong usage        1  any other error"""


@click.command(
    epilog=EXIT_HELP
    + """

\b
Examples:
  tracekit follow 01K9GQ7F3M        a task by the beginning of its id
  tracekit follow 4bf92f3577b34da6  or of its trace id
  tracekit follow 01K9GQ7F3M --json | jq .kind
  tracekit follow 01K9GQ7F3M --json --since-seq 1042
"""
)
@click.argument("reference", metavar="TASK_OR_TRACE")
@click.option("--json", "as_events", is_flag=True, help="Print one event a line as JSON, for scripts.")
@click.option(
    "--since-seq", type=click.IntRange(min=0), default=0, metavar="N",
    help="Print only what came after the event numbered N, where an earlier following stopped.",
)  # fmt: skip
@pass_app
@click.pass_context
def follow(ctx: click.Context, app: App, reference: str, as_events: bool, since_seq: int) -> None:
    """Follow a task: replay what happened, then show what happens, until it ends.

    On a terminal this is a tree of its hops, attempts and waits with a waterfall of their times; on a pipe one line for
    each thing that happened. A task id, a trace id, or a beginning of either that fits only one task. Ctrl-C stops the
    following, not the task.
    """
    ctx.exit(follow_task(app, reference, as_events=as_events, since_seq=since_seq))


def follow_task(app: App, reference: str, *, as_events: bool = False, since_seq: int = 0) -> int:
    """Follow a task until it leaves the queue; returns the exit code that tells how. Raises `TaskNotFound`."""
    following: list[Follower] = []

    async def command(substrate: Substrate) -> int:
        task_id = await substrate.queue.resolve_id(reference)
        follower = Follower(substrate.queue, task_id, since_seq=0 if shows_tree(as_events) else since_seq)
        following.append(follower)
        async with _listening(substrate, follower):
            if shows_tree(as_events):
                return await _draw(app.viewer, substrate, follower)
            return await _print(app.viewer, substrate, follower, as_events)

    try:
        return app.run(command, name="follow")
    except KeyboardInterrupt:
        if following:
            seen = following[0]
            further = "" if shows_tree(as_events) else f" --since-seq {seen.seq}"
            click.echo(f"The task goes on. To follow it further: tracekit follow {seen.task_id}{further}", err=True)
        return INTERRUPTED


def shows_tree(as_events: bool) -> bool:
    """Whether there is a screen to draw on, and nobody asked for events."""
    return not as_events and is_terminal()


@asynccontextmanager
async def _listening(substrate: Substrate, follower: Follower) -> AsyncIterator[None]:
    """Be woken by notifications, as far as they come; the follower polls all the same."""
    listener = Listener(
        substrate.listen_dsn,
        substrate.pool,
        follower.wake,
        connect=lambda dsn: connect(dsn, name="tracekit follow", autocommit=True),
    )
    sleeper = f"follow-{secrets.token_hex(8)}"

    async def ask() -> None:
        await substrate.queue.sleep(sleeper, follower.task_id)

    tasks = [
        asyncio.create_task(keep("listen", listener.listen)),
        asyncio.create_task(keep("ask to be notified", ask, pause=FORGOTTEN_AFTER.total_seconds() / 5)),
    ]
    try:
        yield
    finally:
        await end(*tasks)
        try:
            await substrate.queue.awake(sleeper)
        except Exception as error:
            if not is_away(error):
                raise


async def _print(viewer: Viewer, substrate: Substrate, follower: Follower, as_events: bool) -> int:
    story = Story()
    away = False
    resumed = follower.seq > 0
    async for seen in follower.looks():
        if isinstance(seen, Away):
            if not away:
                click.echo(f"tracekit: the database is away, waiting for it ({seen.error})", err=True)
            away = True
            continue
        if away:
            click.echo("tracekit: the database is back", err=True)
            away = False
        events = viewer.events(seen.task, seen.events)
        story.add(events)
        for shown in events:
            click.echo(to_json(as_json(seen.task, shown)) if as_events else line(seen.task, shown))
        if seen.last:
            if not as_events:
                if resumed:
                    story = Story()
                    story.add(viewer.events(seen.task, await substrate.queue.events(follower.task_id)))
                for text in await _ending(viewer, substrate, story, seen.task):
                    click.echo(text.plain)
            return EXIT_CODES[seen.task.state]
    raise AssertionError("following ends with the task's last look")


async def _draw(viewer: Viewer, substrate: Substrate, follower: Follower) -> int:
    screen = console()
    story = Story()
    last: Look | None = None
    try:
        with Live(console=screen, auto_refresh=False, transient=True, vertical_overflow="crop") as live:
            async for seen in follower.looks():
                if isinstance(seen, Away):
                    lines = _lines(viewer, story, last, screen.width) if last else []
                    lines.append(Text(f"the database is away, waiting for it ({seen.error})", style="yellow"))
                else:
                    last = seen
                    story.add(viewer.events(seen.task, seen.events))
                    lines = _lines(viewer, story, seen, screen.width)
                    lines += await _what_helps(viewer, substrate, seen.task)
                live.update(Group(*_fitted(lines, screen.height - 1)), refresh=True)
    except asyncio.CancelledError:
        # Ctrl-C: what was seen so far stays on the screen.
        for text in _lines(viewer, story, last, screen.width) if last else []:
            screen.print(text, no_wrap=True, crop=False)
        raise
    assert last is not None, "following ends with the task's last look"
    for text in _lines(viewer, story, last, screen.width):
        screen.print(text, no_wrap=True, crop=False)
    screen.print()
    for text in await _ending(viewer, substrate, story, last.task, screen.width):
        screen.print(text)
    return EXIT_CODES[last.task.state]


def _lines(viewer: Viewer, story: Story, seen: Look, width: int) -> list[Text]:
    return [*header(viewer.task(seen.task), width), Text(), *tree(seen.task, story.at(seen.task), width)]


async def _what_helps(viewer: Viewer, substrate: Substrate, task: Task) -> list[Text]:
    """What somebody can do so that the task goes on, where it needs somebody."""
    helps = ""
    if task.hop_state == "parked" and task.wait_kind == "approval" and viewer.role == "operator":
        helps = f"tracekit approvals approve {task.id}"
    elif task.hop_state == "ready" and task.mode and not await _is_served(substrate, task.mode):
        helps = f"no worker serves {one_line(task.mode)}: tracekit up"
    return [Text(), Text(helps, style="yellow")] if helps else []


async def _is_served(substrate: Substrate, mode: str) -> bool:
    """Whether a worker for the mode was seen lately. True where that cannot be read: then nothing is claimed."""
    try:
        async with asyncio.timeout(_LOOK_S), substrate.queue.connection() as connection:
            cursor = await connection.execute(
                "SELECT EXISTS (SELECT FROM tracekit.workers"
                " WHERE %s = ANY (modes) AND seen_at > clock_timestamp() - interval '2 minutes')",
                [mode],
            )
            row = await cursor.fetchone()
    except Exception as error:
        if not is_away(error):
            raise
        return True
    return bool(row and row[0])


def _fitted(lines: list[Text], height: int) -> list[Text]:
    """The lines that a screen has room for: the head, and as much of the newest as fits."""
    if len(lines) <= height or height < 6:
        return lines[-height:]
    return [lines[0], Text(f"… {len(lines) - height + 1} lines above …", style="bright_black"), *lines[-(height - 2) :]]


async def _ending(
    viewer: Viewer, substrate: Substrate, story: Story, task: Task, width: int | None = None
) -> list[Text]:
    note = await vault_note(substrate, task.id) if viewer.sees(task.data_tier) else None
    return summary(viewer.task(task), totals(story.at(task), task), note, width)
