"""`tracekit budget`: what may be spent, what is left of it, and what numbers a week of spending suggests."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

import click

from tracekit.cli.app import App, operator_only, pass_app
from tracekit.cli.output import count, json_option, print_json, print_table, timestamp, to_json
from tracekit.cost.budgets import Budget, Past, Setting, Standing, history, past, set_budgets, standings
from tracekit.cost.limits import POLICIES, UNITS, Limit, Policy, Scope, Unit, about, shown
from tracekit.cost.periods import Period
from tracekit.cost.suggestion import Suggestion, suggest
from tracekit.workers.substrate import Substrate
from tracekit.workers.words import one_line

_BY: tuple[Scope, ...] = ("mode", "persona", "requester", "model")
_AMOUNT = re.compile(r"\$?(\d[\d_,]*(?:\.\d+)?)([kKmM]?)")
_TOO_MUCH = Decimal(10**15)
_PLACES = 6
_TIMES = {"": 1, "k": 1_000, "m": 1_000_000}

USED_UP = 3


class AmountType(click.ParamType[Decimal]):
    """`5`, `$4.50`, `200k`, `2M`: exact."""

    name = "amount"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        """The amount that `value` says; anything else is a usage error."""
        if isinstance(value, Decimal):
            return value
        found = _AMOUNT.fullmatch(str(value).strip())
        if found is None:
            self.fail(f"{value!r} is not an amount such as 5, 4.50, 200k or 2M", param, ctx)
        try:
            amount = Decimal(re.sub("[_,]", "", found[1])) * _TIMES[found[2].lower()]
        except InvalidOperation:
            self.fail(f"{value!r} is not a number", param, ctx)
        # Beyond these it would be rounded on its way, or shown as nothing.
        if amount >= _TOO_MUCH or amount != round(amount, _PLACES):
            self.fail(f"an amount has at most {_PLACES} decimal places and is less than 10^15", param, ctx)
        return amount


AMOUNT = AmountType()


@click.group(
    epilog="""\b
Examples:
  tracekit budget suggest                      numbers from a week of spending, and where they come from
  tracekit budget set --suggested              take them
  tracekit budget set 5 --per day              five dollars a day, beyond which calls wait for your word
  tracekit budget show                         what is left
""",
)
def budget() -> None:
    """What may be spent: suggest, set, show, history.

    A call of a model reserves the most that it may cost before it is made, so that no number of calls at once can spend
    more than there is.
    """


# What a suggestion is made from: where it is shown, and where it is taken.
_by = click.option("--by", type=click.Choice(_BY), multiple=True, help="Suggested: also a day of each of these.")
_synthetic = click.option(
    "--synthetic/--no-synthetic",
    default=None,
    help="Suggested: from what `demo --week` made up, or not. Default: only where there is nothing else.",
)
_anyway = click.option("--anyway", is_flag=True, help="Suggested: from fewer than seven days with calls.")


@budget.command(
    "set",
    epilog="""\b
Exit codes:
  0  it holds from now on, in all processes
  2  wrong usage, or you are no operator
  3  --suggested, and the ledger has fewer than seven days with calls (--anyway takes them)

\b
Examples:
  tracekit budget set 5 --per day
  tracekit budget set 2M --unit tokens --per week --requester renee --policy refuse
  tracekit budget set 0.50 --per task
  tracekit budget set 3 --per day --model gpt-4o --policy downgrade --urgent-extra 1 --why "the heating season"
  tracekit budget set --suggested
  tracekit budget set --none --per day
""",
)
@click.argument("amount", type=AMOUNT, required=False)
@click.option(
    "--per", type=click.Choice(["day", "week", "task"]), help="For how long; a task's cap is each task's own."
)
@click.option("--unit", type=click.Choice(UNITS), default="usd", show_default=True, help="Of what.")
@click.option("--mode", "of_mode", help="Of one mode only.")
@click.option("--persona", "of_persona", help="Of one persona only.")
@click.option("--requester", "of_requester", help="Of what one principal asks for.")
@click.option("--model", "of_model", help="Of one model only, by the name that its server is asked for.")
@click.option(
    "--policy",
    type=click.Choice(POLICIES),
    default="park",
    show_default=True,
    help="At the limit: ask the local model instead, wait for an operator's word, or refuse.",
)
@click.option("--urgent-extra", type=AMOUNT, default="0", help="What urgent tasks alone may spend beyond it.")
@click.option("--why", default="", help="Kept in the history.")
@click.option("--suggested", is_flag=True, help="All that `budget suggest` says, with where it comes from.")
@_by
@_synthetic
@_anyway
@click.option("--none", "withdraw", is_flag=True, help="Withdraw it.")
@json_option
@pass_app
def set_(
    app: App,
    amount: Decimal | None,
    per: Period | None,
    unit: Unit,
    of_mode: str | None,
    of_persona: str | None,
    of_requester: str | None,
    of_model: str | None,
    policy: Policy,
    urgent_extra: Decimal,
    why: str,
    suggested: bool,
    by: Sequence[Scope],
    synthetic: bool | None,
    anyway: bool,
    withdraw: bool,
    as_json: bool,
) -> None:
    """Set a budget, take what is suggested, or withdraw one. It holds at once; what is spent of today counts."""
    operator_only(app, "budgets")
    given: tuple[str | None, ...] = (of_mode, of_persona, of_requester, of_model)
    subjects = [(scope, subject) for scope, subject in zip(_BY, given, strict=True) if subject is not None]
    if (amount is not None) + suggested + withdraw != 1:
        raise click.UsageError("give an amount, or --suggested, or --none")
    if len(subjects) > 1:
        raise click.UsageError("a budget is of one mode, persona, requester or model; or of all, without any")
    if any(not subject.strip() for _, subject in subjects):
        raise click.UsageError("whose budget? the name is empty")
    if suggested and (per or subjects):
        raise click.UsageError("--suggested sets what `tracekit budget suggest` shows, and takes no name")
    if not suggested and (by or synthetic is not None or anyway):
        raise click.UsageError("--by, --synthetic and --anyway are of --suggested")
    if not suggested and per is None:
        raise click.UsageError("--per day, week or task?")
    if per == "task" and subjects:
        raise click.UsageError("a task's cap is of all that it spends")
    if unit != "usd" and amount is not None and (amount % 1 or urgent_extra % 1):
        raise click.UsageError(f"{unit} are whole numbers")

    async def command(substrate: Substrate) -> list[Budget]:
        settings = substrate.settings
        zone = settings.cost.time_zone

        def made(limit: Limit, amount: Decimal | None, basis: object = None) -> Budget:
            return Budget(limit, amount, policy, zone, settings.cli_principal, urgent_extra, why, basis)

        async with substrate.queue.connection() as connection:
            if suggested:
                found = await suggest(connection, zone, by=by, unit=unit, synthetic=synthetic, anyway=anyway)
                made_of = [made(one.limit, one.amount, json.loads(to_json(one.basis))) for one in found]
            else:
                assert per is not None, "it was asked for"
                scope, subject = subjects[0] if subjects else ("task" if per == "task" else "total", "")
                made_of = [made(Limit(scope, subject, per, unit), None if withdraw else amount)]
            await set_budgets(connection, made_of)
        return made_of

    found = app.run(command, name="budget")
    local = app.settings.cost.local_model
    if as_json:
        print_json([_data(one) for one in found])
    for one in found if not as_json else ():
        said = "withdrawn" if one.amount is None else f"{shown(one.limit.unit, one.amount)}, then {one.policy}"
        click.echo(one_line(f"{one.limit.name}: {said}"))
    if policy == "downgrade" and not local and not withdraw:
        click.echo("no local model is configured (cost.local_model): calls beyond it are refused", err=True)


def _data(one: Budget) -> dict[str, object]:
    return {
        "scope": one.limit.scope,
        "subject": one.limit.subject,
        "period": one.limit.period,
        "unit": one.limit.unit,
        "amount": one.amount,
        "urgent_extra": one.urgent_extra,
        "policy": one.policy,
        "time_zone": one.time_zone,
        "set_by": one.set_by,
        "why": one.why,
        "basis": one.basis,
    }


@budget.command(
    epilog="""\b
Exit codes:
  0  shown
  3  --check, and a budget is used up

\b
Examples:
  tracekit budget show
  tracekit budget show --json | jq -r '.[] | select(.period == "day") | .remaining'
  tracekit budget show --check || echo "enough for today"
""",
)
@click.option("--check", is_flag=True, help="Exit with 3 where nothing is left of one.")
@json_option
@pass_app
@click.pass_context
def show(ctx: click.Context, app: App, check: bool, as_json: bool) -> None:
    """Show what may be spent today and this week, what is spent and reserved, and what is left."""

    async def command(substrate: Substrate) -> list[Standing]:
        async with substrate.queue.connection() as connection:
            return await standings(connection)

    found = app.run(command, name="budget")
    used_up = [one for one in found if one.remaining is not None and one.remaining <= 0]
    if not app.viewer.sees_costs:
        # Of other people's limits not even the exit code tells.
        mine = ("requester", app.viewer.principal)
        used_up = [one for one in used_up if one.scope == "total" or (one.scope, one.subject) == mine]
        words = "Some things have to wait, or need a yes first." if used_up else "There is room for what you ask."
        if as_json:
            print_json({"room": not used_up, "status": words})
        else:
            click.echo(words)
    elif as_json:
        print_json([_standing(one) for one in found])
    elif not found:
        click.echo("No budget is set: `tracekit budget suggest` has numbers after a week of spending.", err=True)
    else:
        print_table(
            ["BUDGET", "AMOUNT", "SPENT", "RESERVED", "LEFT", "USED", "AT THIS PACE", "UNTIL", "THEN"],
            [_row(one) for one in found],
            ["red" if one in used_up else "" for one in found],
            expendable=["AT THIS PACE", "RESERVED", "UNTIL", "SPENT"],
        )
    ctx.exit(USED_UP if check and used_up else 0)


def _row(one: Standing) -> list[str]:
    if one.spent is None or one.reserved is None or one.remaining is None or one.ends is None:
        return [one.limit.name, shown(one.unit, one.amount), "", "", "", "", "", "each task", one.policy]
    projection = one.projection
    used = f"{100 * one.spent / one.amount:.0f} %" if one.amount else "-"
    return [
        one.limit.name,
        shown(one.unit, one.amount),
        shown(one.unit, one.spent),
        shown(one.unit, one.reserved),
        shown(one.unit, one.remaining),
        used,
        "-" if projection is None else about(one.unit, projection),
        timestamp(one.ends)[:16].replace("T", " "),
        one.policy,
    ]


def _standing(one: Standing) -> dict[str, object]:
    return {**dataclasses.asdict(one), "remaining": one.remaining, "projection": one.projection}


@budget.command(
    "history",
    epilog="""\b
Examples:
  tracekit budget history
  tracekit budget history --periods            what was spent in each day and week
  tracekit budget history --json | jq '.[0].basis'
""",
)
@click.option("--periods", is_flag=True, help="The days and weeks, and what was spent in each.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="At most this many.")
@json_option
@pass_app
def history_(app: App, periods: bool, limit: int, as_json: bool) -> None:
    """Show who set what and when, the newest first, and from what."""
    operator_only(app, "budgets")

    async def command(substrate: Substrate) -> tuple[list[Setting], list[Past]]:
        async with substrate.queue.connection() as connection:
            return await history(connection, limit), await past(connection, limit) if periods else []

    settings, spent = app.run(command, name="budget")
    if as_json:
        print_json(spent if periods else settings)
    elif periods:
        print_table(
            ["FROM", "UNTIL", "BUDGET", "SPENT"],
            [
                [
                    timestamp(one.begins)[:16].replace("T", " "),
                    timestamp(one.ends)[:16].replace("T", " "),
                    Limit(one.scope, one.subject, one.period, one.unit).name,
                    shown(one.unit, one.spent),
                ]
                for one in spent
            ],
        )
    elif not settings:
        click.echo("No budget was ever set.", err=True)
    else:
        print_table(
            ["SET", "BY", "BUDGET", "AMOUNT", "THEN", "FROM", "WHY"],
            [
                [
                    timestamp(one.set_at)[:16].replace("T", " "),
                    one.set_by,
                    one.limit.name,
                    "withdrawn" if one.amount is None else shown(one.unit, one.amount),
                    one.policy,
                    _from(one),
                    one_line(one.why),
                ]
                for one in settings
            ],
            expendable=["FROM", "THEN", "WHY"],
        )


def _from(one: Setting) -> str:
    if not isinstance(one.basis, dict):
        return ""
    made_up = " (synthetic)" if one.basis.get("synthetic") else ""
    days, with_calls = one.basis.get("days"), one.basis.get("days_with_calls")
    return f"{days if with_calls in (None, days) else f'{with_calls} of {days}'} days{made_up}"


@budget.command(
    "suggest",
    epilog="""\b
Exit codes:
  0  shown
  3  the ledger has fewer than seven days with calls (--anyway takes them)

\b
Examples:
  tracekit budget suggest
  tracekit budget suggest --by mode --by requester
  tracekit budget suggest --unit tokens --json
""",
)
@_by
@click.option("--unit", type=click.Choice(UNITS), default="usd", show_default=True, help="Of what.")
@_synthetic
@_anyway
@json_option
@pass_app
def suggest_(app: App, by: Sequence[Scope], unit: Unit, synthetic: bool | None, anyway: bool, as_json: bool) -> None:
    """Suggest budgets from what was spent, and say how it came to each number. Changes nothing."""
    operator_only(app, "budgets")

    async def command(substrate: Substrate) -> list[Suggestion]:
        zone = substrate.settings.cost.time_zone
        async with substrate.queue.connection() as connection:
            return await suggest(connection, zone, by=by, unit=unit, synthetic=synthetic, anyway=anyway)

    found = app.run(command, name="budget")
    if as_json:
        print_json([{**dataclasses.asdict(one.limit), "amount": one.amount, "basis": one.basis} for one in found])
        return
    if not found:
        click.echo(f"Nothing was spent in {unit}: there is no number to suggest.", err=True)
        return
    basis = found[0].basis
    made_up = ", all of them made up by `tracekit demo --week`" if basis.synthetic else ""
    silent = "" if basis.days_with_calls == basis.days else f", {basis.days_with_calls} of them with calls"
    click.echo(
        f"From {count(basis.days, 'day')}{silent}, {basis.first} to {basis.last} ({app.settings.cost.time_zone}),"
        f" with {count(basis.calls, 'call')}{made_up}.\n"
    )
    print_table(
        ["BUDGET", "AMOUNT", "MEDIAN", "P90", "MOST", "TREND", "HOW"],
        [_suggested(one) for one in found],
        expendable=["TREND", "MEDIAN", "MOST", "P90"],
    )
    if basis.unpriced and unit == "usd":
        click.echo(
            f"\n{count(basis.unpriced, 'call')} of unknown price: no dollar above stands for them, and a budget of"
            " dollars lets no such call through. `--unit tokens` counts them."
        )
    options = [f"--by {scope}" for scope in by] + ([] if unit == "usd" else [f"--unit {unit}"])
    options += [] if synthetic is None else ["--synthetic" if synthetic else "--no-synthetic"]
    options += ["--anyway"] if anyway else []
    click.echo(f"\nTo take them: {' '.join(['tracekit budget set --suggested', *options])}")


def _suggested(one: Suggestion) -> list[str]:
    basis, unit = one.basis, one.limit.unit
    trend = "-"
    if basis.of == "days":
        sign = "-" if basis.trend < 0 else "+"
        trend = f"{sign}{about(unit, abs(basis.trend))}/day{'' if basis.rises else ' (not clear)'}"
    return [
        one.limit.name,
        shown(unit, one.amount),
        *(about(unit, amount) for amount in (basis.median, basis.p90, basis.most)),
        trend,
        basis.how,
    ]
