"""`tracekit budget`, as a person and a script use it (C3, C4), and the week that it can be tried on."""

from __future__ import annotations

import json
import re
from decimal import Decimal

import pytest

from tests.cli.running import Cli
from tests.cost.budgeting import reserve
from tests.cost.driving import book, ledger_of, usage
from tests.queue.driving import accept, take
from tracekit.queue import Queue


async def test_c4_from_a_synthetic_week_to_a_budget_and_back(cli: Cli) -> None:
    refused = await cli("budget", "suggest")
    assert (refused.code, refused.out) == (3, "")
    assert "has 0 of the 7 days" in refused.err
    assert "demo --week" in refused.err
    assert (await cli("budget", "set", "--suggested")).code == 3
    written = (await cli.ok("demo", "--week", "--json")).json
    again = await cli("demo", "--week")
    assert again.code == 2
    assert "--remove" in again.err
    assert "SYNTHETIC" in (await cli.ok("cost", "report", "--days", "8")).out

    suggested = (await cli.ok("budget", "suggest", "--by", "mode", "--json")).json
    assert [one["scope"] for one in suggested[:4]] == ["total", "total", "task", "mode"]
    assert all(one["basis"]["synthetic"] and one["basis"]["days"] == 7 for one in suggested)
    shown = (await cli.ok("budget", "suggest")).out
    assert "made up by `tracekit demo --week`" in shown
    assert "rounded up" in shown

    taken = (await cli.ok("budget", "set", "--suggested", "--json")).json
    assert [one["amount"] for one in taken] == [one["amount"] for one in suggested[:3]]
    line = (await cli.ok("budget", "history", "--json")).json[0]
    assert (line["set_by"], line["basis"]["synthetic"]) == ("rob", True)
    assert "7 days (synthetic)" in (await cli.ok("budget", "history")).out
    standing = (await cli.ok("budget", "show", "--json")).json
    assert [Decimal(one["spent"]) for one in standing if one["spent"] is not None] == [0, 0]

    # What is said to take them takes exactly them.
    asked = ("--by", "mode", "--by", "model", "--unit", "tokens", "--synthetic", "--anyway")
    suggested = (await cli.ok("budget", "suggest", *asked, "--json")).json
    assert len(suggested) > 3
    *_, line = (await cli.ok("budget", "suggest", *asked)).out.splitlines()
    command = line.removeprefix("To take them: tracekit ").split()
    assert command[:3] == ["budget", "set", "--suggested"]
    taken = (await cli.ok(*command, "--json")).json
    names = ("scope", "subject", "period", "unit", "amount")
    assert [[one[name] for name in names] for one in taken] == [[one[name] for name in names] for one in suggested]

    listed = (await cli.ok("tasks", "--limit", "3")).out
    assert listed.count("done (synthetic)") == 3
    assert (await cli.ok("demo", "--week", "--remove", "--json")).json == {"removed": written["tasks"]}
    removed = (await cli.ok("demo", "--week", "--remove")).out
    assert "0 synthetic tasks removed" in removed
    assert "budgets are set, and stay: see `tracekit budget show`" in removed


async def test_c3_what_is_left_is_shown_and_can_be_checked(queue: Queue, cli: Cli) -> None:
    said = await cli("budget", "show")
    assert (said.code, said.out) == (0, "")
    assert "No budget is set" in said.err
    await cli.ok("budget", "set", "1", "--unit", "requests", "--per", "day", "--model", "m-1")
    await cli.ok("budget", "set", "$2.50", "--per", "week", "--urgent-extra", "1", "--why", "winter")
    await cli.ok("budget", "set", "200k", "--unit", "tokens", "--per", "day")
    assert (await cli("budget", "show", "--check")).code == 0
    await accept(queue)
    at = await take(queue)
    await reserve(ledger_of(queue), at, "k")
    await book(ledger_of(queue), at, usage(key="k"))
    shown = await cli("budget", "show", "--check")
    assert shown.code == 3
    assert "model m-1/day/requests  1 request" in shown.out
    assert "200,000 tokens" in shown.out
    assert "$0.00033" in shown.out
    found = json.loads((await cli.ok("budget", "show", "--json")).out)
    week = next(one for one in found if one["period"] == "week")
    assert [week["amount"], week["spent"]] == ["2.50", "0.00033"]
    assert Decimal(week["reserved"]) == 0
    assert Decimal(week["remaining"]) == Decimal("2.49967")
    assert "0.00033" in (await cli.ok("budget", "history", "--periods")).out

    await cli.ok("budget", "set", "--none", "--unit", "requests", "--per", "day", "--model", "m-1")
    assert (await cli("budget", "show", "--check")).code == 0
    assert "withdrawn" in (await cli.ok("budget", "history")).out


async def test_p7_somebody_of_the_household_hears_plain_words(queue: Queue, cli: Cli) -> None:
    await cli.ok("budget", "set", "0", "--unit", "requests", "--per", "day", "--requester", "renee")
    shown = await cli.ok("budget", "show", TRACEKIT_CLI_PRINCIPAL="renee")
    assert shown.out == "Some things have to wait, or need a yes first.\n"
    await cli.ok("budget", "set", "5", "--unit", "requests", "--per", "day", "--requester", "renee")
    # Limits that are not hers, whatever their name, are none of her business: the exit code is silent on them too.
    await cli.ok("budget", "set", "0", "--unit", "requests", "--per", "day", "--requester", "rob")
    await cli.ok("budget", "set", "0", "--unit", "requests", "--per", "day", "--persona", "renee")
    shown = await cli.ok("budget", "show", "--check", TRACEKIT_CLI_PRINCIPAL="renee")
    assert shown.out == "There is room for what you ask.\n"
    assert (await cli("budget", "show", "--check")).code == 3
    for asked in (("set", "5", "--per", "day"), ("history",), ("suggest",)):
        refused = await cli("budget", *asked, TRACEKIT_CLI_PRINCIPAL="renee")
        assert (refused.code, refused.out) == (2, "")
        assert "is not an operator" in refused.err


async def test_what_a_budget_is_called_moves_no_cursor(cli: Cli) -> None:
    said = (await cli.ok("budget", "set", "5", "--per", "day", "--model", "m\x9b31m\u202eevil")).out
    assert "evil/day/usd: $5.00, then park" in said
    assert not re.search("[\x80-\x9f\u202e]", said)


@pytest.mark.parametrize(
    "wrong",
    [
        ("5",),
        ("--per", "day"),
        ("5", "--suggested"),
        ("--suggested", "--per", "day"),
        ("5", "--per", "day", "--by", "mode"),
        ("5", "--per", "day", "--no-synthetic"),
        ("--none", "--per", "day", "--anyway"),
        ("5", "--per", "task", "--mode", "router"),
        ("5", "--per", "day", "--mode", "a", "--model", "b"),
        ("1.5", "--per", "day", "--unit", "tokens"),
        ("-1", "--per", "day"),
        ("much", "--per", "day"),
        ("5", "--per", "month"),
    ],
)
async def test_what_is_no_budget_is_wrong_usage(cli: Cli, wrong: tuple[str, ...]) -> None:
    refused = await cli("budget", "set", *wrong)
    assert (refused.code, refused.out) == (2, "")


async def test_c3_without_a_local_model_set_says_what_downgrade_will_come_to(cli: Cli) -> None:
    said = await cli("budget", "set", "5", "--per", "day", "--policy", "downgrade")
    assert said.code == 0
    assert "no local model is configured" in said.err


@pytest.mark.parametrize("amount", ["9" * 40, "0.0000001", "1" * 5_000, "999999999999999999M"])
async def test_c3_an_amount_that_cannot_be_kept_exactly_is_a_wrong_usage(cli: Cli, amount: str) -> None:
    ran = await cli("budget", "set", amount, "--unit", "tokens", "--per", "day")
    assert (ran.code, ran.out) == (2, "")
    assert "at most 6 decimal places" in ran.err
    assert "Traceback" not in ran.err


async def test_c3_a_budget_of_nobody_is_a_wrong_usage(cli: Cli) -> None:
    ran = await cli("budget", "set", "5", "--per", "day", "--model", "")
    assert (ran.code, ran.out) == (2, "")
    assert "the name is empty" in ran.err
