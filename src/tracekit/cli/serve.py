"""`tracekit up`, `worker` and `serve`: the processes that do the work. `demo`: all of it at once."""

from __future__ import annotations

import importlib

import click

from tracekit.cli.app import App, pass_app
from tracekit.cli.output import count, print_json
from tracekit.cost.budgets import standings
from tracekit.cost.money import dollars
from tracekit.workers.substrate import Substrate


def _run(process: str, app: App, *arguments: object) -> None:
    # Loaded when a process starts: the web framework and the SDK would double the time of every other command.
    processes = importlib.import_module("tracekit.cli.processes")
    loop = importlib.import_module("uvloop")
    loop.run(getattr(processes, process)(app, *arguments))


@click.command(
    epilog="""\b
Examples:
  tracekit up
  tracekit up --port 9000
"""
)
@click.option("--host", help="Where to listen for HTTP. Default: the configuration's (127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65535), help="Default: the configuration's (8420). 0: any free one.")
@pass_app
def up(app: App, host: str | None, port: int | None) -> None:
    """Run everything in one process: HTTP, all modes, and the sweeper. Ctrl-C or SIGTERM drains it."""
    _run("up", app, host, port)


@click.command(
    epilog="""\b
Examples:
  tracekit worker                            all installed modes
  tracekit worker --modes executor,reviewer
  tracekit worker --modes executor --metrics-port 9101
"""
)
@click.option("--modes", help="Which modes to serve, separated by commas. Default: all that are installed.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), help="Serve /metrics on this port. Default: not at all.")
@pass_app
def worker(app: App, modes: str | None, metrics_port: int | None) -> None:
    """Run a worker. SIGTERM lets it finish what it can, and gives the rest back."""
    chosen = [name.strip() for name in modes.split(",") if name.strip()] if modes is not None else None
    if chosen == []:
        raise click.BadParameter("names no mode", param_hint="--modes")
    _run("worker", app, chosen, metrics_port)


@click.command(
    epilog="""\b
Examples:
  tracekit serve --host 0.0.0.0 --port 8420
"""
)
@click.option("--host", help="Where to listen. Default: the configuration's (127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65535), help="Default: the configuration's (8420). 0: any free one.")
@pass_app
def serve(app: App, host: str | None, port: int | None) -> None:
    """Serve HTTP only: what files tasks, takes decisions, and answers /healthz, /readyz and /metrics."""
    _run("serve", app, host, port)


@click.command(
    epilog="""\b
Examples:
  tracekit demo
  tracekit demo --keep
  tracekit demo --json 2>/dev/null | jq .ok
  tracekit demo --week                a synthetic week of spending, into your database
  tracekit demo --week --remove       take it away again
"""
)
@click.option("--keep", is_flag=True, help="Keep its directory, and say how to look around in it.")
@click.option(
    "--week", is_flag=True, help="Instead: write a synthetic week of tasks and their cost into your database."
)
@click.option("--remove", is_flag=True, help="With --week: take all of it out of the database again.")
@click.option("--seed", type=int, help="With --week: another week than the usual one.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print what became of each step as JSON; the telling goes to stderr."
)
@pass_app
@click.pass_context
def demo(ctx: click.Context, app: App, keep: bool, week: bool, remove: bool, seed: int | None, as_json: bool) -> None:
    """Do the main job on real input, in under a minute and on a throw-away database.

    Exits with 1 where any step did not do what it said. With --week it fills the database that is configured with a
    week that never was, marked as synthetic wherever it can be seen, so that reports and suggestions have something to
    show; exits with 2 where there is one already.
    """
    show = importlib.import_module("tracekit.demo")
    if not week:
        if remove or seed is not None:
            raise click.UsageError("--remove and --seed are of --week")
        ctx.exit(show.run(keep=keep, as_json=as_json))
    if keep or (remove and seed is not None):
        raise click.UsageError("--week takes --remove, or --seed, and no --keep")
    if remove:

        async def command(substrate: Substrate) -> tuple[int, int]:
            gone = await show.remove_week(substrate)
            async with substrate.queue.connection() as connection:
                return gone, len(await standings(connection, make=False))

        gone, budgets = app.run(command, name="demo")
        if as_json:
            print_json({"removed": gone})
        else:
            click.echo(f"{count(gone, 'synthetic task')} removed, and all that they spent.")
            if budgets:
                stay = "1 budget is set, and stays" if budgets == 1 else f"{budgets} budgets are set, and stay"
                click.echo(
                    f"{stay}: see `tracekit budget show`; `tracekit budget set --none --per day` withdraws a day's."
                )
        return
    module = importlib.import_module("tracekit.demo.week")
    chosen = module.SEED if seed is None else seed
    written = app.run(lambda substrate: show.write_week(substrate, chosen), name="demo")
    if as_json:
        print_json(written)
        return
    click.echo(
        f"A synthetic week, {written.first} to {written.last} ({written.time_zone}): {count(written.tasks, 'task')},"
        f" {count(written.calls, 'call')} of models, {dollars(written.cost)}, {written.unpriced} without a price."
        " None of it is real, and no budget is touched."
    )
    click.echo("  tracekit cost report             what it spent")
    click.echo("  tracekit budget suggest          the numbers that follow from it")
    click.echo("  tracekit demo --week --remove    take it away")
