"""`tracekit cost`: what model calls spent, and at which prices."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import timedelta
from decimal import Decimal
from typing import TextIO

import click

from tracekit.cli.app import App, operator_only, pass_app
from tracekit.cli.cost_report import as_data, print_csv, print_report
from tracekit.cli.output import (
    count,
    json_option,
    print_json,
    print_table,
    timestamp,
)
from tracekit.cli.parameters import DURATION
from tracekit.cost import Booked, Ledger, PriceBook, UsageError, late
from tracekit.cost.money import dollars, in_dollars
from tracekit.cost.report import DIMENSIONS, CostReport, Dimension
from tracekit.cost.report import report as read_report
from tracekit.cost.reprice import Change, Repricing, repricings
from tracekit.cost.reprice import reprice as price_anew
from tracekit.envelope import parse
from tracekit.workers.substrate import Substrate
from tracekit.workers.words import one_line


@click.group(
    epilog="""\b
Examples:
  tracekit cost report                     the last seven days, by model
  tracekit cost report --days 30 --by requester
  tracekit cost settle 01K9GQ7F3M --source claude-code result.json
  tracekit cost reprice --dry-run          what a renewed price table would change
""",
)
def cost() -> None:
    """What model calls spent: reports, bills that come late, and prices that are renewed. An operator's."""


@cost.command(
    epilog="""\b
Examples:
  tracekit cost report
  tracekit cost report --days 1 --by task
  tracekit cost report --days 30 --by requester --csv > spent.csv
  tracekit cost report --json | jq -r .total.cost
""",
)
@click.option("--days", type=click.IntRange(1, 3_660), default=7, show_default=True, help="Local days, with today.")
@click.option("--by", type=click.Choice(DIMENSIONS), default="model", show_default=True, help="What to group by.")
@click.option("--synthetic/--no-synthetic", default=True, show_default=True, help="Count what a demonstration made up.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the groups as CSV, with exact dollars.")
@json_option
@pass_app
def report(app: App, days: int, by: Dimension, synthetic: bool, as_csv: bool, as_json: bool) -> None:
    """What was spent: totals, by day, by what you ask for, per task, the dearest tasks, and what has no price.

    Days are those of `cost.time_zone`. A sum of dollars is of the calls that have a price; how many have none stands
    beside it. In JSON and CSV dollars are exact.
    """
    operator_only(app, "costs")
    if as_csv and as_json:
        raise click.UsageError("--csv and --json are two formats: give one")

    async def command(substrate: Substrate) -> CostReport:
        async with substrate.queue.connection() as connection:
            return await read_report(
                connection,
                days=days,
                time_zone=substrate.settings.cost.time_zone,
                by=by,
                synthetic=synthetic,
                subscriptions=substrate.settings.prices,
            )

    found = app.run(command, name="cost")
    if as_json:
        print_json(as_data(found))
    elif as_csv:
        print_csv(found)
    else:
        print_report(found)


# --- late reports ---------------------------------------------------------------------------------------------------


@cost.command(
    epilog="""\b
Exit codes:
  0  settled, or known already
  2  the result has no usage, or is of another source
  4  no such task, or no such call: the calls are listed

\b
Examples:
  tracekit cost settle 01K9GQ7F3M --source claude-code result.json
  curl -si …/chat/completions … | tracekit cost settle 01K9GQ7F3M --source litellm --call 5f1c0d2e9a7b4c36
  echo '{"input": 1200, "cache_read": 8000, "output": 300, "cost": "0.0213"}' |
    tracekit cost settle 01K9GQ7F3M --source counters --call holmes/1
""",
)
@click.argument("reference", metavar="TASK_OR_TRACE")
@click.argument("file", metavar="[FILE]", type=click.File("r", encoding="utf-8"), default="-")
@click.option("--source", type=click.Choice(late.SOURCES), required=True, help="Who answered so.")
@click.option("--call", help="The call's key. Default: the result's own session, or the only call of the task.")
@click.option("--provider", default="", help="Whose the model is, where the result does not say.")
@click.option("--model", default="", help="Which model it is, where the result does not say.")
@json_option
@pass_app
def settle(
    app: App, reference: str, file: TextIO, source: late.Source, call: str | None, provider: str, model: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Book what is learnt of a call later, also after its task has ended: a provider's result, a bill, or counters.

    FILE (default: stdin) is the result as it came: JSON, its last line where it is a stream, or an answer with its
    head, as `curl -i` prints it. The same report twice is one. What was believed before stays in the ledger.
    """
    operator_only(app, "costs")
    report = parse(
        late.LateReport,
        {"source": source, "call": call, "provider": provider, "model": model, **_answer(file)},
    )

    async def command(substrate: Substrate) -> tuple[str, list[Booked]]:
        task_id = await substrate.queue.resolve_id(reference)
        ledger = Ledger(substrate.queue, PriceBook(substrate.settings.prices))
        return task_id, await late.settle(ledger, task_id, report, by=app.viewer.principal)

    task_id, booked = app.run(command, name="cost")
    if as_json:
        print_json({"task_id": task_id, "calls": booked})
        return
    for one in booked:
        price = "unpriced" if one.cost is None else f"{dollars(one.cost)} ({one.price_source})"
        click.echo(f"{one_line(one.key)}: {price}, {'settled' if one.new else 'known already'}")


def _answer(file: TextIO) -> dict[str, object]:
    """The result and the headers in a file. Raises `UsageError`."""
    try:
        text = file.read()
    except UnicodeDecodeError:
        raise UsageError("the report is not text in UTF-8") from None
    headers = {}
    while text.startswith("HTTP/"):
        # An interim answer has a head of its own, and the last one counts.
        head, _, text = text.replace("\r\n", "\n").partition("\n\n")
        headers = {
            name.strip(): value.strip() for name, _, value in (line.partition(":") for line in head.split("\n")[1:])
        }
    lines = text.strip().splitlines()
    for candidate in (text, lines[-1] if lines else ""):
        if not candidate.strip():
            return {"headers": headers}
        try:
            return {"result": json.loads(candidate), "headers": headers}
        except (ValueError, RecursionError):
            continue
    raise UsageError("the report is not JSON", hint="give the result as it came, or an answer as `curl -i` prints it")


# --- prices ---------------------------------------------------------------------------------------------------------


@cost.command(
    epilog="""\b
Examples:
  tracekit cost reprice --dry-run
  tracekit cost reprice --since 30d
""",
)
@click.option("--since", type=DURATION, help="Only calls made in this time up to now, such as 30d.")
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@json_option
@pass_app
def reprice(app: App, since: timedelta | None, dry_run: bool, as_json: bool) -> None:
    """Price what was spent anew, by the prices that are known now: the configuration's, the provider's, the table's.

    Tokens stay as they are. What was believed before stays in the ledger, and each change names this repricing.
    """
    operator_only(app, "costs")

    async def command(substrate: Substrate) -> tuple[Repricing, list[Change]]:
        async with substrate.queue.connection() as connection:
            cursor = await connection.execute("SELECT clock_timestamp() - %s::interval", [since])
            row = await cursor.fetchone()
        ledger = Ledger(substrate.queue, PriceBook(substrate.settings.prices))
        return await price_anew(ledger, app.viewer.principal, since=row[0] if row else None, dry_run=dry_run)

    done, changes = app.run(command, name="cost")
    if as_json:
        print_json({"repricing": done, "changes": changes})
        return
    would = "would change" if dry_run else "changed"
    click.echo(
        f"Looked at {count(done.looked_at, 'call')} with {done.price_version}:"
        f" {count(done.changed, 'call')} {would}"
        + ("." if not done.changed else "")
        + (
            f", from {in_dollars(done.cost_before, done.unpriced_before)}"
            f" to {in_dollars(done.cost_after, done.unpriced_after)}."
            if done.changed
            else ""
        )
    )
    by_model: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        by_model.setdefault((f"{change.provider}/{change.model}", change.source), []).append(change)
    if by_model:
        print_table(
            ["MODEL", "CALLS", "BEFORE", "AFTER", "BY"],
            [
                [
                    model,
                    str(len(of)),
                    in_dollars(_sum(one.before for one in of), sum(one.before is None for one in of)),
                    in_dollars(_sum(one.after for one in of), sum(one.after is None for one in of)),
                    source,
                ]
                for (model, source), of in sorted(by_model.items())
            ],
        )


def _sum(amounts: Iterable[Decimal | None]) -> Decimal:
    return sum((amount for amount in amounts if amount is not None), Decimal(0))


@cost.command(
    "repricings",
    epilog="""\b
Examples:
  tracekit cost repricings
""",
)
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most this many.")
@json_option
@pass_app
def list_repricings(app: App, limit: int, as_json: bool) -> None:
    """List the repricings that there were, the newest first, with what each changed."""
    operator_only(app, "costs")

    async def command(substrate: Substrate) -> list[Repricing]:
        async with substrate.queue.connection() as connection:
            return await repricings(connection, limit)

    found = app.run(command, name="cost")
    if as_json:
        print_json(found)
    elif not found:
        click.echo("Nothing was repriced.", err=True)
    else:
        print_table(
            ["ID", "AT", "BY", "TABLE", "LOOKED AT", "CHANGED", "BEFORE", "AFTER"],
            [
                [
                    str(one.id),
                    timestamp(one.at),
                    one.by,
                    one.price_version,
                    str(one.looked_at),
                    str(one.changed) + ("" if one.finished_at else " (broken off)"),
                    in_dollars(one.cost_before, one.unpriced_before),
                    in_dollars(one.cost_after, one.unpriced_after),
                ]
                for one in found
            ],
            expendable=["LOOKED AT", "TABLE"],
        )
