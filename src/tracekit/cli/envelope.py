"""`tracekit envelope`: what a task's envelope must look like."""

from __future__ import annotations

from typing import BinaryIO

import click

from tracekit.cli.output import json_option, print_json
from tracekit.envelope import MAX_INTENT, Envelope, EnvelopeError, TaskRequest, json_schema, parse

_LARGEST = 64 * MAX_INTENT


@click.group()
def envelope() -> None:
    """The envelope that every task carries: its JSON Schema, and a check of one."""


@envelope.command(
    epilog="""\b
Examples:
  tracekit envelope schema > envelope.schema.json
"""
)
def schema() -> None:
    """Print the envelope's JSON Schema (draft 2020-12)."""
    print_json(json_schema())


@envelope.command(
    epilog="""\b
Exit codes:
  0  it would be accepted
  2  it would be refused; every fault is listed

\b
Examples:
  tracekit envelope check task.json
  echo '{"intent": "…", "idempotency_key": "1"}' | tracekit envelope check --request -
"""
)
@click.argument("file", type=click.File("rb"))
@click.option("--request", is_flag=True, help="FILE is what a surface sends (`POST /v1/tasks`), not a whole envelope.")
@json_option
@click.pass_context
def check(ctx: click.Context, file: BinaryIO, request: bool, as_json: bool) -> None:
    """Check FILE (`-`: standard input) and list everything that is wrong with it."""
    text = file.read(_LARGEST + 1)
    faults = []
    try:
        if len(text) > _LARGEST:
            raise click.UsageError(f"the file is larger than {_LARGEST} bytes")
        parse(TaskRequest if request else Envelope, text)
    except EnvelopeError as error:
        faults = error.faults
    if as_json:
        print_json({"valid": not faults, "faults": [fault.model_dump() for fault in faults]})
    elif faults:
        for fault in faults:
            click.echo(f"{fault.field}: {fault.message}" if fault.field else fault.message, err=True)
    else:
        click.echo("valid")
    ctx.exit(EnvelopeError.exit_code if faults else 0)
