"""`tracekit up`, `worker` and `serve`: the processes that do the work. `demo`: all of it at once."""

from __future__ import annotations

import asyncio
import importlib
from types import ModuleType

import click

from tracekit.cli.app import App, pass_app


def _processes() -> ModuleType:
    # Loaded when a process starts: the web framework and the SDK would double the time of every other command.
    return importlib.import_module("tracekit.cli.processes")


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
    asyncio.run(_processes().up(app, host, port))


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
    asyncio.run(_processes().worker(app, chosen, metrics_port))


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
    asyncio.run(_processes().serve(app, host, port))


@click.command(
    epilog="""\b
Examples:
  tracekit demo
  tracekit demo --keep
  tracekit demo --json 2>/dev/null | jq .ok
"""
)
@click.option("--keep", is_flag=True, help="Keep its directory, and say how to look around in it.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print what became of each step as JSON; the telling goes to stderr."
)
@click.pass_context
def demo(ctx: click.Context, keep: bool, as_json: bool) -> None:
    """Do the main job on real input, in under a minute and on a throw-away database.

    Exits with 1 where any step did not do what it said.
    """
    show = importlib.import_module("tracekit.demo")
    ctx.exit(show.run(keep=keep, as_json=as_json))
