"""The command line."""

from __future__ import annotations

import sys

from tracekit.cli.app import run


def main() -> None:
    """Run `tracekit` with the process's arguments, and end the process with its exit code."""
    from tracekit.cli.commands import cli

    sys.exit(run(cli))
