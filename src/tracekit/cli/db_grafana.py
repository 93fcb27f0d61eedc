"""`tracekit db grafana`: let dashboards read the database, and say what Grafana has to be told."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import click
import yaml

from tracekit.cli.app import App, pass_app
from tracekit.cli.output import count, json_option, print_json
from tracekit.postgres import Connection, EmbeddedServer, check_schema, connect
from tracekit.postgres.readers import READERS, Granted, grant_reading

DATA_SOURCE = "tracekit-postgres"
"""The data source's uid, which the dashboards know."""


@click.command(
    epilog="""\b
Exit codes:
  5  the schema does not fit this program

\b
Examples:
  tracekit db grafana                     make the role and give it what it needs
  GRAFANA_DB_PASSWORD=… tracekit db grafana --login grafana --password-env GRAFANA_DB_PASSWORD
  TRACEKIT_DSN=postgresql://postgres@db.example/tracekit tracekit db grafana
"""
)
@click.option("--login", metavar="NAME", default="", help="Also make a role that may log in, or renew its password.")
@click.option(
    "--password-env",
    metavar="VARIABLE",
    default="",
    help="The variable that holds the login's password. Without it the login has none, for servers that ask for none.",
)
@click.option(
    "--connections",
    type=click.IntRange(1, 1000),
    default=10,
    show_default=True,
    help="The login has no more at once. Fewer keep Grafana from taking the workers' place, more serve more viewers.",
)
@json_option
@pass_app
def grafana(app: App, login: str, password_env: str, connections: int, as_json: bool) -> None:
    """Let Grafana read the database: the views of the schema `grafana`, and nothing else.

    Migrating does it too where the user may make roles. Where not, run this once as a user who may. Again it changes
    nothing but the password and the limits of the login.
    """
    if password_env and not login:
        raise click.UsageError("--password-env is of --login")
    password = os.environ.get(password_env, "") if password_env else ""
    if password_env and not password:
        raise click.UsageError(f"the variable {password_env} is not set, or empty")
    dsn = app.settings.dsn.get_secret_value()
    if dsn:
        granted, source = asyncio.run(_grant(app, dsn, login, password, connections))
    else:
        with EmbeddedServer(app.settings.data_home).acquire() as lease:
            granted, source = asyncio.run(_grant(app, lease.dsn, login, password, connections))
    if password_env:
        source["secureJsonData"] = {"password": f"${password_env}"}
    if as_json:
        report = {"role": READERS, "role_made": granted.role_made}
        report |= {"login": login or None, "login_made": granted.login_made, "datasource": source if login else None}
        print_json(report)
        return
    click.echo(f"{READERS}{' is made, and' if granted.role_made else ''} may read the views of the schema `grafana`.")
    if not login:
        click.echo("`tracekit db grafana --login NAME` makes a login for Grafana.")
        return
    how = "is made" if granted.login_made else "was there"
    click.echo(f"{login} {how}: it begins read-only, with 30 s a statement, {count(connections, 'connection')}.")
    click.echo("In Grafana, as a provisioned data source (or the same in its form):\n")
    click.echo(yaml.safe_dump({"apiVersion": 1, "datasources": [source]}, sort_keys=False).rstrip())
    if not dsn:
        click.echo("\nThe embedded server lets in nobody but the user it runs as: Grafana must run as that user, too.")


async def _grant(app: App, dsn: str, login: str, password: str, connections: int) -> tuple[Granted, dict[str, Any]]:
    pooled = app.settings.pooler == "transaction"
    connection = await connect(dsn, name="tracekit db", autocommit=True, transaction_pooler=pooled)
    async with connection:
        await check_schema(connection)
        granted = await grant_reading(connection, login=login, password=password, most_connections=connections)
        return granted, _data_source(connection, login)


def _data_source(connection: Connection, login: str) -> dict[str, Any]:
    """What Grafana is told (https://grafana.com/docs/grafana/latest/datasources/postgres/), without the password."""
    info = connection.info
    socket = info.host.startswith("/")
    tls = info.get_parameters().get("sslmode") or ("require" if connection.pgconn.ssl_in_use else "disable")
    return {
        "name": DATA_SOURCE,
        "uid": DATA_SOURCE,
        "type": "grafana-postgresql-datasource",
        "url": info.host if socket else f"{info.host}:{info.port}",
        "user": login,
        "jsonData": {
            "database": info.dbname,
            "sslmode": "disable" if socket else tls,
            "postgresVersion": info.server_version // 10_000 * 100,
        },
    }
