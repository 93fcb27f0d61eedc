"""`tracekit token`: credentials of surfaces."""

from __future__ import annotations

import hashlib
import secrets

import click
from pydantic import ValidationError

from tracekit.cli.app import App, pass_app
from tracekit.cli.output import json_option, print_json
from tracekit.config import ConfigError, Token, config_path
from tracekit.envelope import Origin


@click.group()
def token() -> None:
    """Credentials: who asks follows from the token, never from what the request says."""


@token.command(
    epilog="""\b
Examples:
  tracekit token create --surface zulip --principal rob
  tracekit token create --surface alertmanager --principal system --origin observer
"""
)
@click.option("--surface", required=True, help="Where it is used, such as zulip or alertmanager.")
@click.option("--principal", required=True, help="Whom its requests come from; one of the configuration's principals.")
@click.option(
    "--origin", type=click.Choice([origin.value for origin in Origin]), default="manual", show_default=True,
    help="What its tasks' origin is.",
)  # fmt: skip
@json_option
@pass_app
def create(app: App, surface: str, principal: str, origin: str, as_json: bool) -> None:
    """Make a token. It is printed this once; the configuration keeps its hash, in the lines that are printed too."""
    known = app.settings.principals
    if principal not in known:
        raise ConfigError(f"there is no principal {principal}", hint=f"configured are: {', '.join(sorted(known))}")
    made = secrets.token_urlsafe(32)
    digest = hashlib.sha256(made.encode()).hexdigest()
    try:
        Token(surface=surface, principal=principal, origin=Origin(origin), sha256=digest)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise ConfigError(f"no token can be made: {faults}", hint="names are short and in lower case") from None
    lines = [
        "[[tokens]]",
        f'surface = "{surface}"',
        f'principal = "{principal}"',
        f'origin = "{origin}"',
        f'sha256 = "{digest}"',
    ]
    if as_json:
        print_json({"token": made, "sha256": digest, "toml": "\n".join(lines) + "\n"})
        return
    click.echo(f"{made}\n")
    click.echo(f"Keep it now: it cannot be shown again. Add to {config_path()}:\n", err=True)
    for text in lines:
        click.echo(text)
