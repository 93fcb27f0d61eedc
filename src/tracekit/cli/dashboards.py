"""`tracekit dashboards`: Grafana's dashboards as files, in a Grafana, and in the terminal."""

from __future__ import annotations

import os
from pathlib import Path

import click

from tracekit.cli import generated
from tracekit.cli.app import App, pass_app
from tracekit.cli.output import json_option, print_json, print_table
from tracekit.cli.preview import preview
from tracekit.config import read_secret
from tracekit.errors import TracekitError

TOKEN = "GRAFANA_TOKEN"

_STYLES = {"created": "green", "updated": "yellow", "unchanged": "dim"}


class TokenError(TracekitError):
    """There is no token to push with."""

    exit_code = 2


@click.group(
    epilog="""\b
Examples:
  tracekit dashboards preview fleet
  tracekit dashboards build --out grafana/dashboards
  GRAFANA_TOKEN=… tracekit dashboards push --url https://grafana.example.org
""",
)
def dashboards() -> None:
    """Dashboards for Grafana: task, fleet, queue, budget and people."""


@dashboards.command(
    epilog="""\b
Examples:
  tracekit dashboards build
  tracekit dashboards build --out /etc/grafana/dashboards/tracekit
"""
)
@generated.out_option("dashboards")
@json_option
def build(out: Path, as_json: bool) -> None:
    """Write the dashboards as JSON. Files that are already so are left alone."""
    # The SDK that makes them is of no use to any other command.
    from tracekit.dashboards import bundle

    generated.write(out, bundle.files(), as_json=as_json)


@dashboards.command(
    epilog="""\b
Exit codes:
  1  a file is stale, missing, or not of the bundle

\b
Examples:
  tracekit dashboards check
  tracekit dashboards check --out /etc/grafana/dashboards/tracekit
"""
)
@generated.out_option("dashboards")
@json_option
def check(out: Path, as_json: bool) -> None:
    """Say whether the files are what `build` would write."""
    from tracekit.dashboards import bundle

    command = ("tracekit", "dashboards", "build", "--out", str(out))
    generated.check(out, bundle.files(), command, as_json=as_json)


@dashboards.command(
    epilog="""\b
The token is a service account's with the role Editor. It is read from the environment or from a file, and is never an
argument, which every process of the machine could read.

\b
Examples:
  GRAFANA_TOKEN=… tracekit dashboards push --url http://localhost:3000
  tracekit dashboards push --url https://grafana.example.org --token-file /run/secrets/grafana --dry-run
"""
)
@click.option("--url", required=True, help="Grafana's address.")
@click.option("--folder", default="tracekit", show_default=True, help="The folder's uid; made if it is not there.")
@click.option(
    "--token-file", type=click.Path(path_type=Path, dir_okay=False), help=f"A file with the token. [default: ${TOKEN}]"
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@json_option
@pass_app
def push(app: App, url: str, folder: str, token_file: Path | None, dry_run: bool, as_json: bool) -> None:
    """Send the dashboards to a Grafana, over those with the same uids."""
    from tracekit.dashboards import bundle
    from tracekit.dashboards.grafana import Grafana

    app.quieten()
    token = read_secret(token_file, "--token-file") if token_file else os.environ.get(TOKEN, "").strip()
    if not token:
        where = f"{token_file} is empty" if token_file else f"{TOKEN} is not set"
        raise TokenError(f"there is no token: {where}", hint=f"set {TOKEN}, or give --token-file")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise TokenError("the token is not one: it has spaces, or characters that none has")
    with Grafana(url, token, dry_run=dry_run) as grafana:
        pushed = grafana.push({name: bundle.dashboard(name) for name in bundle.DASHBOARDS}, folder)
    if as_json:
        print_json({"dry_run": dry_run, "pushed": pushed})
        return
    print_table(
        ["WOULD BE" if dry_run else "STATUS", "KIND", "UID", "TITLE", "ADDRESS"],
        [[one.status, one.kind, one.uid, one.title, one.url] for one in pushed],
        [_STYLES[one.status] for one in pushed],
    )


dashboards.add_command(preview)
