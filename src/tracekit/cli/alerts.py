"""`tracekit alerts`: the alert rules and the Alertmanager configuration, as files."""

from __future__ import annotations

from pathlib import Path

import click

from tracekit.alerts.files import files
from tracekit.alerts.rule import GRAFANA_URL, RUNBOOK_URL, Bases
from tracekit.cli import generated
from tracekit.cli.output import Command, json_option


@click.group()
def alerts() -> None:
    """Alert rules for Prometheus and an Alertmanager configuration, made from the catalogue of metrics."""


def _options(command: Command) -> Command:
    for option in (
        json_option,
        click.option("--runbook-url", default=RUNBOOK_URL, show_default=True, help="The page of the runbooks."),
        click.option("--grafana-url", default=GRAFANA_URL, show_default=True, help="Where the dashboards are."),
        generated.out_option("alerts"),
    ):  # fmt: skip
        command = option(command)
    return command


@alerts.command(
    epilog="""\b
Examples:
  tracekit alerts build
  tracekit alerts build --out /etc/prometheus/tracekit --grafana-url https://grafana.example.org
"""
)
@_options
def build(out: Path, grafana_url: str, runbook_url: str, as_json: bool) -> None:
    """Write the rules (tracekit.rules.yaml) and an Alertmanager configuration (alertmanager.yaml)."""
    generated.write(out, files(Bases(grafana_url, runbook_url)), as_json=as_json)


@alerts.command(
    epilog="""\b
Exit codes:
  1  a file is stale, missing, or not of the bundle

\b
Examples:
  tracekit alerts check
  tracekit alerts check --out /etc/prometheus/tracekit --grafana-url https://grafana.example.org
"""
)
@_options
def check(out: Path, grafana_url: str, runbook_url: str, as_json: bool) -> None:
    """Say whether the files are what `build` would write."""
    command = ["tracekit", "alerts", "build", "--out", str(out)]
    for option, value, default in (
        ("--grafana-url", grafana_url, GRAFANA_URL),
        ("--runbook-url", runbook_url, RUNBOOK_URL),
    ):
        command += [option, value] if value != default else []
    generated.check(out, files(Bases(grafana_url, runbook_url)), command, as_json=as_json)
