"""Late reports through the real command line, and what each kind of them settles (C1)."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import Cli, environment
from tests.cost.driving import all_counted, all_spent, book, ledger_of, rows, usage
from tests.queue.driving import accept, settle, take
from tracekit import ids
from tracekit.cost import Usage, UsageError, late
from tracekit.cost.late import LateReport, NoSuchCall
from tracekit.cost.reservations import Intended
from tracekit.envelope import EnvelopeError
from tracekit.queue import Done, Queue

PAYLOADS = Path(__file__).parent / "payloads"
SESSION = "claude-code/450a08fb-31b2-4186-8816-7c12e1a5857c/claude-opus-4-8[1m]"


@pytest.fixture
def cli(dsn: str, tmp_path: Path) -> Cli:
    return Cli(environment(tmp_path, dsn))


async def ended(queue: Queue, *calls: Usage) -> str:
    """A task that made these calls and is over."""
    task_id = await accept(queue)
    at = await take(queue)
    await book(ledger_of(queue), at, *calls)
    await settle(queue, at, Done())
    return task_id


async def spend(queue: Queue) -> list[tuple[Any, ...]]:
    assert await all_counted(queue) == await all_spent(queue)
    return await rows(
        queue,
        "SELECT key, version, provider, model, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens,"
        " cost, price_source, basis FROM tracekit.spend ORDER BY key",
    )


async def test_c1_claude_code_s_result_settles_its_session_once(queue: Queue, cli: Cli) -> None:
    estimated = Usage("anthropic", "claude-opus-4-8[1m]", input=5, output=5, basis="estimated", key=SESSION)
    task_id = await ended(queue, estimated, usage(key="another"))
    file = str(PAYLOADS / "claude_code_result.json")
    # By a trace's id as well as by the task's.
    for reference, said in ((task_id, "settled"), ((await queue.task(task_id)).trace_id, "known already")):
        shown = (await cli.ok("cost", "settle", reference, file, "--source", "claude-code")).out
        assert shown == f"{SESSION}: $0.0288 (provider), {said}\n"
    assert (await spend(queue))[1] == (
        SESSION, 2, "anthropic", "claude-opus-4-8[1m]", 24, 2048, 4096, 84, Decimal("0.028844"), "provider", "reported",
    )  # fmt: skip


async def test_c1_claude_code_that_stopped_at_its_budget_is_billed_late_too(queue: Queue, cli: Cli) -> None:
    task_id = await accept(queue)
    at = await take(queue, lease=timedelta(microseconds=1))
    # Its worker died over it: the result is what was left of it.
    await ledger_of(queue).reserve(at, "lost-1", Intended("anthropic", "claude-opus-4-8", False, 10, 10), "a" * 16)
    await queue.sweep()
    await ledger_of(queue).sweep()
    result = (PAYLOADS / "claude_code_result_error_max_budget.json").read_text()
    stream = '{"type":"system"}\n' + json.dumps(json.loads(result)) + "\n"
    ran = await cli("cost", "settle", task_id, "--source", "claude-code", "--call", "lost-1", "--json", stdin=stream)
    assert (ran.code, ran.err) == (0, "")
    assert [(one["key"], one["version"], one["cost"]) for one in ran.json["calls"]] == [("lost-1", 2, "0.014422")]
    [(*_, cost, _, basis)] = await spend(queue)
    assert (cost, basis) == (Decimal("0.014422"), "reported")


async def test_c1_a_session_of_several_models_settles_one_call_and_books_the_rest_beside_it(queue: Queue) -> None:
    task_id = await ended(queue, usage(key="k", basis="estimated"))
    result = json.loads((PAYLOADS / "claude_code_result.json").read_text())
    result["modelUsage"]["claude-haiku-4-5"] = {"inputTokens": 7, "outputTokens": 3, "costUSD": 0.001}
    result["total_cost_usd"] = 0.03
    report = LateReport(source="claude-code", call="k", result=result)
    for new in (True, False):
        booked = await late.settle(ledger_of(queue), task_id, report, by="rob")
        assert [(one.key, one.new) for one in booked] == [
            ("k", new), ("k/claude-haiku-4-5", new), ("k/claude-code", new)
        ]  # fmt: skip
    assert sum(row[8] for row in await spend(queue)) == Decimal("0.03")
    found = await rows(queue, "SELECT DISTINCT hop, attempt, mode, requester, at FROM tracekit.spend")
    assert len(found) == 1, "they are calls of the same attempt"
    assert found[0][:4] == (1, 1, "router", "rob")


async def test_c1_litellm_s_answer_as_curl_prints_it(queue: Queue, cli: Cli) -> None:
    task_id = await ended(queue, usage("planner", key="k", basis="estimated"))
    answer = (PAYLOADS / "litellm_proxy_chat_completion.txt").read_text()
    # Of a task's only call the key need not be known.
    ran = await cli("cost", "settle", task_id, "--source", "litellm", stdin=f"HTTP/1.1 100 Continue\r\n\r\n{answer}")
    assert (ran.out, ran.err) == ("k: $0.000014 (provider), settled\n", "")
    assert await spend(queue) == [
        ("k", 2, "openai", "gpt-4o-mini", 10, 0, 0, 20, Decimal("0.0000135"), "provider", "reported")
    ]
    # The head alone has the price, and the tokens stay.
    head = answer.replace("0.0000135", "0.5").replace("1.35e-05", "0.5").partition("\n\n")[0] + "\n\n"
    ran = await cli("cost", "settle", task_id, "--source", "litellm", stdin=head)
    assert ran.out == "k: $0.50 (provider), settled\n"
    assert (await spend(queue))[0][4:9] == (10, 0, 0, 20, Decimal("0.5"))


async def test_c1_holmesgpt_s_metadata_keeps_the_model_that_was_booked(queue: Queue) -> None:
    task_id = await ended(queue, usage("gpt-5", key="holmes/1", basis="estimated", provider="openai"))
    costs = {"total_cost": 0.0312, "prompt_tokens": 8_500, "completion_tokens": 600, "cached_tokens": 6_000}
    report = LateReport(source="holmesgpt", result={"metadata": {"costs": costs}})
    [booked] = await late.settle(ledger_of(queue), task_id, report, by="rob")
    assert (booked.key, booked.version, booked.cost) == ("holmes/1", 2, Decimal("0.0312"))
    assert (await spend(queue))[0][2:8] == ("openai", "gpt-5", 2_500, 6_000, 0, 600)


async def test_c1_counters_are_priced_when_the_call_was_made_and_a_price_alone_keeps_them(queue: Queue) -> None:
    task_id = await ended(queue, usage(key="k", basis="estimated", local=True))
    ledger = ledger_of(queue)
    counted = LateReport(source="counters", result={"input": 100, "cache_read": 10, "output": 5, "reasoning": 2})
    [booked] = await late.settle(ledger, task_id, counted, by="rob")
    assert booked.cost == (100 * 3 + 10 * Decimal("0.3") + 5 * 15) / 1_000_000
    [(local,)] = await rows(queue, "SELECT local FROM tracekit.spend")
    assert local, "where it ran is known from the call"
    unpriced = await ended(queue, usage("unknown", key="k"))
    for cost in ("0.125", 0.125):
        [booked] = await late.settle(ledger, unpriced, LateReport(source="counters", result={"cost": cost}), by="rob")
        assert (booked.cost, booked.version) == (Decimal("0.125"), 2)
    [row] = await rows(
        queue, "SELECT input_tokens, output_tokens, billed_by FROM tracekit.spend WHERE task_id = %s", unpriced
    )
    assert row == (10, 20, "rob")


async def test_c1_what_settles_nothing_says_why_and_writes_nothing(queue: Queue, cli: Cli) -> None:
    task_id = await ended(queue, usage(key="first"), usage("unknown", key="second", basis="estimated"))
    before = await spend(queue)
    file = str(PAYLOADS / "claude_code_result.json")
    ran = await cli("cost", "settle", task_id, file, "--source", "claude-code")
    assert (ran.code, ran.out) == (4, "")
    assert f"has made no call '{SESSION}'" in ran.err
    assert "name one of them: 'second' (unknown, estimated, unpriced), 'first' (m-1)" in ran.err
    unnamed = await cli("cost", "settle", task_id, "--source", "counters", stdin='{"input": 1}')
    assert (unnamed.code, "has made 2 calls" in unnamed.err) == (4, True)
    assert (await cli("cost", "settle", ids.new_task_id(), file, "--source", "claude-code")).code == 4
    for source, text in (
        ("claude-code", "{}"),
        ("openai", '{"usage": {}}'),
        ("litellm", "HTTP/1.1 200 OK\nserver: x\n\n"),
        ("counters", "no json"),
        ("counters", ""),
        ("counters", "{}"),
        ("counters", '{"input": -1}'),
        ("counters", '{"input": 1, "tokens": 2}'),
        ("counters", '{"input": 1, "cost": "much"}'),
        ("counters", '{"output": 1, "reasoning": 2}'),
    ):
        refused = await cli("cost", "settle", task_id, "--source", source, "--call", "first", stdin=text)
        assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1), (source, text)
    refused = await cli("cost", "settle", task_id, file, "--source", "claude-code", TRACEKIT_CLI_PRINCIPAL="renee")
    assert (refused.code, refused.out) == (2, "")
    assert await spend(queue) == before

    idle = await accept(queue)
    with pytest.raises(NoSuchCall, match="called no model"):
        await late.settle(ledger_of(queue), idle, LateReport(source="counters", result={"input": 1}), by="rob")
    with pytest.raises(EnvelopeError):
        await late.settle(ledger_of(queue), task_id, LateReport(source="counters", call="first"), by="rob")


async def test_c1_a_price_alone_does_not_tell_what_a_lost_call_used(queue: Queue) -> None:
    task_id = await ended(queue, usage(key="k", input=0, output=0, basis="lost"))
    with pytest.raises(UsageError, match="nobody saw what the call 'k' used"):
        await late.settle(ledger_of(queue), task_id, LateReport(source="counters", result={"cost": "1"}), by="rob")
