"""`tracekit rollup`: a week as a note in the vault."""

from __future__ import annotations

import click

from tracekit.cli.app import App, operator_only, pass_app
from tracekit.cli.output import json_option, print_json
from tracekit.workers.rollup import roll_up, write_rollup
from tracekit.workers.substrate import Substrate
from tracekit.workers.week import Week
from tracekit.workers.words import printable


@click.command(
    epilog="""\b
Exit codes:
  0  written, or as it was already
  2  no such week
  3  a person has changed the note: it is left alone

\b
Examples:
  tracekit rollup                       the last week that is over
  tracekit rollup --week 2026-W47
  tracekit rollup --stdout | less       only show it
""",
)
@click.option("--week", help="The ISO week, such as 2026-W47. Default: the last one that is over.")
@click.option("--stdout", "only_show", is_flag=True, help="Print it, and write nothing.")
@click.option(
    "--synthetic/--no-synthetic", default=False, show_default=True, help="Count what a demonstration made up."
)
@json_option
@pass_app
def rollup(app: App, week: str | None, only_show: bool, synthetic: bool, as_json: bool) -> None:
    """Roll a week up: its tasks, approvals, dead letters, what was spent, and the budgets, as a note in the vault.

    A worker does it by itself when a week is over. It is `<year>/weekly/<week>.md` there; written again it says what is
    known now. Days are those of `cost.time_zone`. Of restricted tasks it has numbers and nothing else.
    """
    operator_only(app, "roll-ups")
    if only_show and as_json:
        raise click.UsageError("--stdout and --json are two formats: give one")
    wanted = Week.parse(week) if week else None

    async def command(substrate: Substrate) -> tuple[Week, str]:
        return await roll_up(substrate.queue, substrate.settings, wanted, synthetic=synthetic)

    found, text = app.run(command, name="rollup")
    if only_show:
        click.echo(printable(text), nl=False)
        return
    written = write_rollup(app.settings.vault_dir, found, text)
    if as_json:
        print_json({"week": str(found), "path": app.settings.vault_dir / written.path, "changed": written.changed})
    else:
        click.echo(f"{app.settings.vault_dir / written.path}{'' if written.changed else ' (as it was)'}")
