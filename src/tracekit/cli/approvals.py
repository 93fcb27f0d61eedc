"""`tracekit approvals`: plans that wait for a person's decision."""

from __future__ import annotations

import json
from datetime import timedelta

import click

from tracekit.cli.app import App, ListingGroup, operator_only, pass_app
from tracekit.cli.output import json_option, print_fields, print_json, print_table, timestamp
from tracekit.cli.parameters import DURATION
from tracekit.cli.viewer import HIDDEN, Viewer
from tracekit.workers.approvals import PAST, Approval, Decided, Decision, decide, find, pending
from tracekit.workers.substrate import Substrate
from tracekit.workers.words import one_line, printable

ALREADY_DECIDED = 3
_LONGEST = 200
"""Characters of what an approval would do, in a list."""

_EXIT = """\b
Exit codes:
  0  decided as asked (or so decided before)
  3  somebody decided otherwise before; that stands
  4  no such task, or it waits for no approval
"""


@click.group(
    cls=ListingGroup,
    epilog="""\b
Examples:
  tracekit approvals                         what waits
  tracekit approvals approve 01K9GQ7F3M      shows the plan, asks, approves
  tracekit approvals reject 01K9GQ7F3M --reason "not on a Friday"
  tracekit approvals defer 01K9GQ7F3M --for 8h
""",
)
def approvals() -> None:
    """Approvals: list, approve, reject, defer. Alone: `approvals list`."""


@approvals.command(
    "list",
    epilog="""\b
Examples:
  tracekit approvals list --json | jq -r '.[].task_id'
""",
)
@json_option
@pass_app
def list_pending(app: App, as_json: bool) -> None:
    """List what waits for a decision, the most urgent first."""

    async def command(substrate: Substrate) -> list[Approval]:
        return await pending(substrate.queue)

    found = app.run(command, name="approvals")
    if as_json:
        print_json([_shown(app.viewer, approval) for approval in found])
    elif not found:
        click.echo("Nothing waits for a decision.", err=True)
    else:
        print_table(
            ["TASK", "UNTIL", "REQUESTER", "WHAT"],
            [
                [
                    approval.task_id,
                    timestamp(approval.deadline) + (" urgent" if approval.urgent else ""),
                    approval.requester,
                    _brief("; ".join(_what(app.viewer, approval))),
                ]
                for approval in found
            ],
            expendable=["REQUESTER", "UNTIL", "WHAT"],
        )


def _brief(what: str) -> str:
    """What a list has room for: the text of a note is in its plan, and whoever decides is shown all of it."""
    return what if len(what) <= _LONGEST else f"{what[: _LONGEST - 1]}…"


def _what(viewer: Viewer, approval: Approval) -> tuple[str, ...]:
    """What would be done, as far as they may see it: of money only that it is about it."""
    if not viewer.sees(approval.data_tier):
        return (HIDDEN,)
    return approval.what if viewer.sees_costs or not approval.of_a_budget else ("spend beyond its budget",)


def _shown(viewer: Viewer, approval: Approval) -> dict[str, object]:
    hidden = not viewer.sees(approval.data_tier)
    silent = hidden or (approval.of_a_budget and not viewer.sees_costs)
    return {
        "task_id": approval.task_id,
        "trace_id": approval.trace_id,
        "requester": approval.requester,
        "intent": HIDDEN if hidden else approval.intent,
        "urgent": approval.urgent,
        "opened_at": approval.opened_at,
        "deadline": approval.deadline,
        "round": approval.round,
        "plan_hash": approval.plan_hash,
        "plan": None if silent else approval.plan,
        "what": [] if hidden else _what(viewer, approval),
        "why": [] if silent else approval.why,
    }


def _show(app: App, approval: Approval) -> None:
    fields = [
        ("task", approval.task_id),
        ("requester", approval.requester),
        ("until", timestamp(approval.deadline) + (" (urgent)" if approval.urgent else "")),
        ("plan", approval.plan_hash),
    ]
    print_fields([fields[0], ("intent", one_line(approval.intent)), *fields[1:]])
    click.echo("\nIt would:")
    for number, step in enumerate(approval.what, 1):
        click.echo(f"  {number}. {one_line(step)}")
    if approval.why:
        click.echo("You are asked because:")
        for reason in approval.why:
            click.echo(f"  - {one_line(reason)}")
    click.echo("The plan itself:")
    for text in printable(json.dumps(approval.plan, indent=2, ensure_ascii=False)).splitlines():
        click.echo(f"  {text}")
    click.echo()


def _decide(
    app: App,
    ctx: click.Context,
    reference: str,
    decision: Decision,
    *,
    yes: bool,
    as_json: bool,
    reason: str = "",
    defer_for: timedelta = timedelta(hours=1),
) -> None:
    operator_only(app, "decisions")

    # What is decided on is what was shown: read once, and bound to its hash from then on.
    async def read(substrate: Substrate) -> Approval:
        return await find(substrate.queue, reference)

    async def command(substrate: Substrate) -> Decided:
        by = app.settings.cli_principal
        decided = await decide(substrate.queue, approval, decision, by=by, reason=reason, defer_for=defer_for)
        return decided

    approval = app.run(read, name="approvals")
    if not as_json:
        _show(app, approval)
    if not yes:
        click.confirm(f"{decision.capitalize()} it?", abort=True, err=as_json)
    decided = app.run(command, name="approvals")
    as_asked = decided.decision == decision
    if as_json:
        print_json({"task_id": approval.task_id, "plan_hash": approval.plan_hash, "decided": decided})
    elif decided.accepted:
        click.echo(f"{approval.task_id} {PAST[decision]}")
    else:
        said = PAST.get(decided.decision, decided.decision)
        click.echo(f"{decided.by} has {said} it already, at {timestamp(decided.at)}; that stands.", err=True)
    ctx.exit(0 if as_asked else ALREADY_DECIDED)


_yes = click.option("--yes", "-y", is_flag=True, help="Do not ask, for scripts.")
_reason = click.option("--reason", default="", help="Why; it is kept with the decision.")


@approvals.command(
    "approve",
    epilog=_EXIT
    + """
\b
Examples:
  tracekit approvals approve 01K9GQ7F3M
  tracekit approvals approve 01K9GQ7F3M --yes --json
""",
)
@click.argument("reference", metavar="TASK_OR_TRACE")
@_yes
@_reason
@json_option
@pass_app
@click.pass_context
def approve(ctx: click.Context, app: App, reference: str, yes: bool, reason: str, as_json: bool) -> None:
    """Show a task's plan and approve exactly it."""
    _decide(app, ctx, reference, "approve", yes=yes, as_json=as_json, reason=reason)


@approvals.command(
    "reject",
    epilog=_EXIT
    + """
\b
Examples:
  tracekit approvals reject 01K9GQ7F3M --reason "not on a Friday"
""",
)
@click.argument("reference", metavar="TASK_OR_TRACE")
@_yes
@_reason
@json_option
@pass_app
@click.pass_context
def reject(ctx: click.Context, app: App, reference: str, yes: bool, reason: str, as_json: bool) -> None:
    """Show a task's plan and reject it: the task ends."""
    _decide(app, ctx, reference, "reject", yes=yes, as_json=as_json, reason=reason)


@approvals.command(
    "defer",
    epilog=_EXIT
    + """
\b
Examples:
  tracekit approvals defer 01K9GQ7F3M --for 8h
""",
)
@click.argument("reference", metavar="TASK_OR_TRACE")
@click.option(
    "--for", "defer_for", type=DURATION, default="1h", show_default=True, help="How long before it asks again."
)
@_yes
@_reason
@json_option
@pass_app
@click.pass_context
def defer(
    ctx: click.Context, app: App, reference: str, defer_for: timedelta, yes: bool, reason: str, as_json: bool
) -> None:
    """Decide later: the task rests, then asks again."""
    _decide(app, ctx, reference, "defer", yes=yes, as_json=as_json, reason=reason, defer_for=defer_for)
