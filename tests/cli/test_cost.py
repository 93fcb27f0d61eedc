"""`tracekit cost`, and what `follow` and `tasks show` say of what a task spent."""

from __future__ import annotations

import csv
import io
import re
from decimal import Decimal

from tests.cli.running import Cli
from tests.cost.driving import book, ledger_of, usage
from tests.queue.driving import accept, settle, take
from tracekit.envelope import DataTier
from tracekit.queue import Done, GiveUp, Queue
from tracekit.queue.model import Failed


async def some_calls(queue: Queue) -> str:
    """A task that failed once and asked two models, one of which has no price; and a restricted one."""
    ledger = ledger_of(queue)
    task_id = await accept(queue, intent="summarize the week")
    at = await take(queue)
    await book(ledger, at, usage(output=200, key="first"))
    await settle(queue, at, Failed("ValueError", "no"))
    await queue.sweep()
    at = await take(queue)
    await book(ledger, at, usage("unknown", input=1500), usage(key="k", basis="estimated"))
    await settle(queue, at, Done(summary="done"))
    await accept(queue, intent="the secret of the safe", data_tier=DataTier.RESTRICTED)
    at = await take(queue)
    await book(ledger, at, usage(local=True))
    await settle(queue, at, Done())
    return task_id


async def test_a_report_says_what_was_spent_and_what_has_no_price(queue: Queue, cli: Cli) -> None:
    task_id = await some_calls(queue)
    shown = (await cli.ok("cost", "report")).out
    assert "spent    $0.0037, and 1 call without a price" in shown
    assert "calls    4 calls in 2 tasks (1 in the house, 1 estimated or lost)" in shown
    assert "retries  $0.00033 (9 %) in 2 calls of attempts after a failed one" in shown
    assert "test/unknown  1 unpriced" in shown
    assert task_id in shown
    assert "tracekit cost reprice" in shown
    assert "█" not in shown, "no charts on a pipe"


async def test_a_report_draws_on_a_terminal(queue: Queue, cli: Cli) -> None:
    await some_calls(queue)
    async with cli.on_terminal("cost", "report", columns=110) as terminal:
        assert await terminal.end() == 0
    assert "█" in terminal.shown
    assert "summarize the week" in terminal.shown


async def test_a_report_s_sentences_break_between_words(queue: Queue, cli: Cli) -> None:
    await some_calls(queue)
    async with cli.on_terminal("cost", "report", columns=60) as terminal:
        assert await terminal.end() == 0
    shown = re.sub(r"\x1b\[[0-9;]*m", "", terminal.shown)
    told = shown[: shown.index("by model")] + shown[shown.index("Say what they cost") :]
    lines = told.splitlines()
    assert max(map(len, lines)) <= 60
    for sentence in ("of attempts after a failed one", "tracekit cost reprice"):
        assert sentence in " ".join(told.split())
    assert any(line.startswith(" " * 9) for line in lines), "what goes on stands under what it goes on from"


async def test_c1_a_report_says_why_a_price_is_missing(queue: Queue, cli: Cli) -> None:
    await accept(queue)
    lost = usage(input=0, output=0, basis="lost")
    await book(ledger_of(queue), at := await take(queue), lost)
    shown = (await cli.ok("cost", "report")).out
    assert "nobody saw the answer" in shown
    assert "[[prices]]" not in shown, "a price would not help"
    await book(ledger_of(queue), at, usage("unknown"))
    shown = (await cli.ok("cost", "report")).out
    assert "no price is known" in shown
    assert "[[prices]]" in shown


async def test_a_report_for_scripts_is_exact(queue: Queue, cli: Cli) -> None:
    task_id = await some_calls(queue)
    found = (await cli.ok("cost", "report", "--json", "--by", "requester")).json
    assert Decimal(found["total"]["cost"]) == Decimal("0.00369")
    assert found["total"]["unpriced"] == 1
    assert [group["key"] for group in found["groups"]] == ["rob"]
    assert found["dearest"][0]["task_id"] == task_id
    rows = list(csv.DictReader(io.StringIO((await cli.ok("cost", "report", "--csv", "--by", "task")).out)))
    assert [(row["cost_usd"], row["unpriced_calls"]) for row in rows] == [("0.00336", "1"), ("0.00033", "0")]


async def test_p7_p8_costs_and_what_they_were_for_are_shown_to_the_operator_alone(queue: Queue, cli: Cli) -> None:
    await some_calls(queue)
    assert "the secret of the safe" in (await cli.ok("cost", "report", "--by", "task")).out
    for asked in (("report",), ("report", "--csv"), ("reprice",), ("repricings",)):
        refused = await cli("cost", *asked, TRACEKIT_CLI_PRINCIPAL="renee")
        assert (refused.code, refused.out) == (2, "")
        assert "costs are an operator's" in refused.err
    assert (await cli("cost", "repricings")).err == "Nothing was repriced.\n"


async def test_p7_a_task_s_story_is_told_to_the_household_without_its_price(queue: Queue, cli: Cli) -> None:
    task_id = await some_calls(queue)
    money = ("$", "token", "m-1", "unpriced", "usage.booked")
    for asked in (("follow", task_id), ("follow", task_id, "--json"), ("tasks", "show", task_id)):
        shown = (await cli(*asked, TRACEKIT_CLI_PRINCIPAL="renee")).out
        assert "attempt" in shown
        assert not any(word in shown for word in money), shown
    renee = Cli({**cli.environment, "TRACEKIT_CLI_PRINCIPAL": "renee"})
    async with renee.on_terminal("follow", task_id) as terminal:
        assert await terminal.end() == 0
    assert "2 attempts" in terminal.shown
    assert not any(word in terminal.shown for word in money)

    # Nor why a call was refused: that a budget has no room, and not what is left of it.
    task_id = await accept(queue)
    why = "the model m-1 was not asked: the total budget for today is $5.00, with $4.99 spent"
    await settle(queue, await take(queue), GiveUp(why))
    assert why in (await cli.ok("tasks", "show", task_id)).out
    shown = (await cli.ok("tasks", "show", task_id, TRACEKIT_CLI_PRINCIPAL="renee")).out
    assert "was not asked: there is no room for it" in shown
    assert "$" not in shown


async def test_nothing_was_spent(cli: Cli) -> None:
    assert "No model was called." in (await cli.ok("cost", "report", "--days", "1")).out
    assert (await cli.ok("cost", "report", "--csv")).out.count("\n") == 1


async def test_two_formats_at_once_are_a_wrong_usage(cli: Cli) -> None:
    ran = await cli("cost", "report", "--csv", "--json")
    assert (ran.code, ran.out) == (2, "")


async def test_a_renewed_price_is_tried_then_done_then_listed(queue: Queue, cli: Cli) -> None:
    await some_calls(queue)
    prices = '[{"model": "unknown", "input": 2, "output": 2}, {"model": "m-*", "input": "3", "output": "15"}]'
    tried = await cli.ok("cost", "reprice", "--dry-run", TRACEKIT_PRICES=prices)
    assert "1 call would change, from 1 unpriced to $0.0030." in tried.out
    assert (await cli("cost", "repricings")).err == "Nothing was repriced.\n"
    done = (await cli.ok("cost", "reprice", "--json", TRACEKIT_PRICES=prices)).json
    assert done["repricing"]["changed"] == 1
    assert done["changes"][0]["before"] is None
    assert Decimal(done["changes"][0]["after"]) == Decimal("0.00304")
    [listed] = (await cli.ok("cost", "repricings", "--json")).json
    assert (listed["changed"], listed["by"], listed["unpriced_before"], listed["unpriced_after"]) == (1, "rob", 1, 0)
    assert "0 calls changed." in (await cli.ok("cost", "reprice", TRACEKIT_PRICES=prices)).out


async def test_t5_follow_says_what_a_task_spent(queue: Queue, cli: Cli) -> None:
    task_id = await some_calls(queue)
    shown = (await cli("follow", task_id)).out
    assert "router: attempt 1 called m-1: 210 tokens, $0.0030" in shown
    assert "router: attempt 2 called unknown: 1,520 tokens, unpriced" in shown
    assert "router: attempt 2 called m-1: about 30 tokens, $0.0003" in shown
    assert "  $0.0034 for 1,760 tokens in 3 calls, 1 of them without a price" in shown
    async with cli.on_terminal("follow", task_id) as terminal:
        assert await terminal.end() == 0
    assert "called unknown: 1,520 tokens, unpriced" in terminal.shown
    assert "$0.0034 for 1,760 tokens in 3 calls" in terminal.shown


async def test_c1_a_name_from_elsewhere_is_no_formula_in_csv(queue: Queue, cli: Cli) -> None:
    await accept(queue)
    await book(ledger_of(queue), await take(queue), usage('=HYPERLINK("http://x")'), usage("@\x9b31m"))
    rows = csv.DictReader(io.StringIO((await cli.ok("cost", "report", "--csv", "--by", "persona")).out))
    assert [row["calls"] for row in rows] == ["2"]
    shown = (await cli.ok("cost", "report", "--csv")).out
    assert "\x9b" not in shown
    names = [row["model"] for row in csv.DictReader(io.StringIO(shown))]
    assert all(not name.startswith(("=", "@")) for name in names)


async def test_p7_only_an_operator_prices_anew(queue: Queue, cli: Cli) -> None:
    await some_calls(queue)
    prices = '[{"model": "*", "free": true}]'
    refused = await cli("cost", "reprice", TRACEKIT_CLI_PRINCIPAL="renee", TRACEKIT_PRICES=prices)
    assert (refused.code, refused.out) == (2, "")
    assert "not an operator" in refused.err
    assert (await cli("cost", "repricings")).err == "Nothing was repriced.\n"
