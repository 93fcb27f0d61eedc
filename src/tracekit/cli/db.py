"""`tracekit db`: the database, whether the embedded server or one behind a DSN."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import click
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tracekit.cli import keeper
from tracekit.cli.app import App, pass_app
from tracekit.cli.db_grafana import grafana
from tracekit.cli.output import json_option, print_fields, print_json
from tracekit.postgres import (
    DatabaseError,
    EmbeddedServer,
    SchemaError,
    ServerError,
    ServerStatus,
    UnreachableError,
    check_schema,
    connect,
    default_provider,
    migrate,
    redact_dsn,
)

NOT_RUNNING = 3


@click.group(
    epilog="""\b
Examples:
  tracekit db status
  tracekit db start       keep the embedded server running
  tracekit db migrate     bring the schema up to date
  tracekit db grafana     let dashboards read it
  tracekit db shell -c 'select state, count(*) from tracekit.tasks group by 1'
"""
)
def db() -> None:
    """The database: the embedded server's start and stop, and any server's status, schema and shell.

    Without a DSN every command starts the embedded server when it needs it, and the last one to leave stops it.
    """


db.add_command(grafana)


def _embedded(app: App) -> EmbeddedServer:
    if app.settings.dsn.get_secret_value():
        raise DatabaseError(
            "the configuration names a DSN, so there is no embedded server to start or stop",
            hint="that server is run by somebody else; `tracekit db status` looks at it",
        )
    return EmbeddedServer(app.settings.data_home)


@db.command(
    epilog="""\b
Examples:
  tracekit db start && tracekit db status
"""
)
@pass_app
def start(app: App) -> None:
    """Start the embedded server and keep it running until `tracekit db stop`."""
    server = _embedded(app)
    pid = keeper.start(app.settings.data_home)
    if pid is None:
        click.echo("The server is kept running already.")
        return
    asyncio.run(migrate(server.dsn))
    click.echo("The server runs, until `tracekit db stop`.")


@db.command(
    epilog="""\b
Examples:
  tracekit db stop
  tracekit db stop --immediate
"""
)
@click.option("--immediate", is_flag=True, help="As in a crash: the next start recovers from the log.")
@pass_app
def stop(app: App, immediate: bool) -> None:
    """Stop the embedded server, also one that is in use: workers wait until it is back."""
    server = _embedded(app)
    keeper.stop(app.settings.data_home)
    was = server.status()
    server.stop(mode="immediate" if immediate else "fast")
    if not was.running:
        click.echo("The server did not run.")
    else:
        click.echo("The server is stopped." + (" Somebody was using it." if was.in_use else ""))


@db.command(
    epilog="""\b
Exit codes:
  0  it runs, and its schema fits
  1  it cannot be reached
  3  the embedded server does not run (any command starts it)
  5  its schema does not fit this program

\b
Examples:
  tracekit db status --json
"""
)
@json_option
@pass_app
@click.pass_context
def status(ctx: click.Context, app: App, as_json: bool) -> None:
    """Show where the database is, whether it answers, and whether its schema fits. Starts nothing."""
    dsn = app.settings.dsn.get_secret_value()
    server: ServerStatus | None = None
    report: dict[str, Any] = {"kind": "dsn" if dsn else "embedded", "dsn": redact_dsn(dsn) if dsn else None}
    if not dsn:
        server = EmbeddedServer(app.settings.data_home).status()
        report |= {
            "dsn": server.dsn,
            "running": server.running,
            "pid": server.pid,
            "in_use": server.in_use,
            "kept": keeper.pid(app.settings.data_home) is not None,
            "data": server.data_dir,
            "log": server.log,
        }
    code = NOT_RUNNING
    if dsn or (server and server.running):
        code, told = asyncio.run(_look(dsn or report["dsn"], app.settings.pooler == "transaction"))
        report |= told
    if as_json:
        print_json(report)
    else:
        states = {
            0: "runs, and its schema fits",
            1: "cannot be used",
            NOT_RUNNING: "does not run (any command starts it)",
        }
        print_fields(
            [
                ("database", f"{'at a DSN' if dsn else 'embedded'}: {states[code]}"),
                ("address", report["dsn"]),
                ("server", report.get("server") and f"PostgreSQL {report['server']}"),
                ("schema", report.get("schema")),
                ("error", report.get("error")),
                ("hint", report.get("hint")),
                ("in use", ("yes" if report["in_use"] else "no") if server else None),
                ("kept", ("until `tracekit db stop`" if report["kept"] else "while it is used") if server else None),
                ("data", str(server.data_dir) if server else None),
                ("log", str(server.log) if server else None),
            ]
        )
    ctx.exit(code)


async def _look(dsn: str, pooler: bool) -> tuple[int, dict[str, Any]]:
    told: dict[str, Any] = {}
    try:
        connection = await connect(dsn, name="tracekit db", autocommit=True, transaction_pooler=pooler)
    except UnreachableError as error:
        return 1, {"running": False, "error": str(error), "hint": error.hint}
    async with connection:
        told |= {"running": True, "server": connection.info.parameter_status("server_version")}
        try:
            await check_schema(connection)
        except SchemaError as error:
            return error.exit_code, {**told, "schema": "does not fit", "error": str(error), "hint": error.hint}
    return 0, {**told, "schema": "fits"}


@db.command(
    "migrate",
    epilog="""\b
Examples:
  tracekit db migrate
  tracekit db migrate --force
""",
)
@click.option(
    "--force",
    is_flag=True,
    help="Cut off the programs that are at work; they end by themselves, and what they held is taken up "
    "again when its lease has ended. Without it they are named, and nothing is changed.",
)
@json_option
@pass_app
def migrate_command(app: App, as_json: bool, force: bool) -> None:
    """Bring the schema up to date: all that is missing in one transaction, or nothing."""
    dsn = app.settings.dsn.get_secret_value()
    if dsn:
        applied = asyncio.run(migrate(dsn, force=force))
    else:
        with EmbeddedServer(app.settings.data_home).acquire() as lease:
            applied = asyncio.run(migrate(lease.dsn, force=force))
    names = [f"{migration.version:04}_{migration.name}" for migration in applied]
    if as_json:
        print_json({"applied": names})
    else:
        click.echo("\n".join(f"applied {name}" for name in names) or "The schema is up to date.")


@db.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="""\b
Examples:
  tracekit db shell
  tracekit db shell -c 'table tracekit.workers'
""",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[PSQL ARGUMENTS]...")
@pass_app
@click.pass_context
def shell(ctx: click.Context, app: App, arguments: tuple[str, ...]) -> None:
    """Open psql on the database; what follows is passed on to it."""
    psql = _psql()
    dsn = app.settings.dsn.get_secret_value()
    if dsn:
        ctx.exit(_run_psql(psql, dsn, arguments))
    with EmbeddedServer(app.settings.data_home).acquire() as lease:
        ctx.exit(_run_psql(psql, lease.dsn, arguments))


def _psql() -> Path:
    try:
        found = default_provider().find()
    except ServerError:
        found = None
    beside = found.bin_dir / "psql" if found else None
    if beside and os.access(beside, os.X_OK):
        return beside
    if installed := shutil.which("psql"):
        return Path(installed)
    raise DatabaseError(
        "there is no psql on this machine",
        hint="install it (Debian: apt-get install postgresql-client); `tracekit db status` shows the address",
    )


def _run_psql(psql: Path, dsn: str, arguments: tuple[str, ...]) -> int:
    settings = conninfo_to_dict(dsn)
    # Not on the command line: everybody on the machine can read that.
    password = settings.pop("password", None)
    environment = os.environ | ({"PGPASSWORD": str(password)} if password else {})
    # Ctrl-C is for what psql runs; psql says what becomes of it.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        command: list[str | Path] = [psql, "--dbname", make_conninfo("", **settings), *arguments]
        return subprocess.run(
            command, env=environment, check=False, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        ).returncode
    finally:
        signal.signal(signal.SIGINT, before)
