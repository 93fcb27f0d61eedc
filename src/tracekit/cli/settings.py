"""`tracekit config`: what is configured."""

from __future__ import annotations

import json
import re
from typing import Any

import click

from tracekit.cli.app import App, pass_app
from tracekit.cli.output import json_option, print_json
from tracekit.config import Settings, config_path
from tracekit.postgres import redact_dsn

_USERINFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")


@click.group("config")
def config() -> None:
    """The configuration: a TOML file, and TRACEKIT_* variables that override it."""


@config.command(
    epilog="""\b
Examples:
  tracekit config show
  tracekit config show --json | jq .values.worker
"""
)
@json_option
@pass_app
def show(app: App, as_json: bool) -> None:
    """Show every setting as it applies, defaults included. Secrets are masked."""
    path = config_path()
    values = masked(app.settings)
    if as_json:
        print_json({"file": path, "file_exists": path.exists(), "data_home": app.settings.data_home, "values": values})
        return
    click.echo(f"# {path}{'' if path.exists() else ' (there is none)'}")
    click.echo(f"# data directory: {app.settings.data_home}")
    for name, value in _flat(values):
        click.echo(f"{name} = {json.dumps(value)}")


def masked(settings: Settings) -> dict[str, Any]:
    """The settings as JSON data, without anything that must not be seen."""
    values = settings.model_dump(mode="json")
    for name in ("dsn", "listen_dsn"):
        dsn = getattr(settings, name).get_secret_value()
        values[name] = redact_dsn(dsn) if dsn else ""
    for token in values["tokens"]:
        if token["sha256"]:
            token["sha256"] = token["sha256"][:8] + "…"
    cleaned = _without_userinfo(values)
    assert isinstance(cleaned, dict), "a dictionary stays one"
    return cleaned


def _without_userinfo(value: Any) -> Any:
    match value:
        case str():
            return _USERINFO.sub("***", value)
        case dict():
            return {name: _without_userinfo(item) for name, item in value.items()}
        case list():
            return [_without_userinfo(item) for item in value]
        case _:
            return value


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    lines: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            lines += _flat(value, f"{prefix}{name}.")
        elif value is not None:
            lines.append((prefix + name, value))
    return lines
